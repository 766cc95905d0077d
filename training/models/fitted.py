"""A fitted variant: the model, its calibration, and what was asked of it, as one artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models import registry
from training.models.calibration import Calibrator
from training.models.spec import Architecture, Budget, Model, ModelError, Params, Value
from training.models.state import checksum, load_state, save_state
from training.models.windows import forecastable_TN, label_TN

# Tensor suffixes: T targets of a window, N entities.

MODEL_FILE: Final = "model.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Scores (expected return over the horizon / its volatility) and the probability that their sign is right.

    Both (num_targets, N) float64, NaN where there is no forecast.
    """

    score_TN: NDArray[np.float64]
    confidence_TN: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedModel:
    """What a fit leaves behind; ``save`` and ``load`` round-trip it bit for bit without pickle."""

    architecture: str
    params: Params
    lookback: int
    num_features: int
    model: Model
    calibrator: Calibrator

    def predict(self, window: Window) -> Forecast:
        """Forecast the targets of a window; the forecast at t uses the last ``lookback`` rows up to t inclusive."""
        self._require_fit(window)
        score_TN = self.model.predict(window)
        return Forecast(score_TN=score_TN, confidence_TN=self.calibrator.confidence(score_TN))

    def checksum(self) -> str:
        """SHA-256 over everything asked and everything fitted; repeats when refitted with the same seed and data."""
        return checksum(self._description(), self.model.state() | self.calibrator.state())

    def save(self, folder: Path) -> None:
        """Write the artifact: ``model.json``, ``model/`` and ``calibrator/``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save(folder / "model")
        save_state(folder / "calibrator", settings={}, state=self.calibrator.state())
        description = self._description() | {"checksum": self.checksum()}
        (folder / MODEL_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artifact; ``ModelError`` when it is not what was saved."""
        try:
            description = json.loads((folder / MODEL_FILE).read_text())
            expected = description.pop("checksum")
            model = registry.architecture(description["architecture"]).model.load(folder / "model")
            calibrator = Calibrator.from_state(load_state(folder / "calibrator")[1])
            fitted = cls(**description, model=model, calibrator=calibrator)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"no readable model in {folder}: {error!r}; restore the artifact or refit it") from error
        if fitted.checksum() != expected:
            raise ModelError(f"the model in {folder} is not the one saved there; restore the artifact or refit it")
        return fitted

    def _description(self) -> dict[str, object]:
        return {
            "architecture": self.architecture,
            "params": dict(self.params),
            "lookback": self.lookback,
            "num_features": self.num_features,
        }

    def _require_fit(self, window: Window) -> None:
        got = (window.lookback, window.x_TNF.shape[2])
        if got != (self.lookback, self.num_features):
            raise ModelError(
                f"a window of (lookback, features) {got} for a model fitted on {(self.lookback, self.num_features)}; "
                "cut it with the model's lookback from a panel of its pipeline"
            )


def complete_params(architecture: Architecture, params: Params) -> dict[str, Value]:
    """``params`` with the first choice of everything not given; an unknown name is refused."""
    first = {name: choices[0] for name, (_, choices) in architecture.grid.items()} | architecture.defaults()
    unknown = sorted(set(params) - set(first))
    if unknown:
        raise ModelError(f"{architecture.name} has no parameters {unknown}; it has {sorted(first)}")
    return first | dict(params)


def fit_model(
    architecture: Architecture,
    params: Params,
    train: Window,
    valid: Window,
    *,
    lookback: int,
    seed: int,
    budget: Budget,
) -> FittedModel:
    """Fit on ``train``, stop early and calibrate on ``valid``. Parameters not given take their first choice."""
    for name, part in (("train", train), ("valid", valid)):
        if part.lookback != lookback:
            raise ModelError(f"the {name} window was cut for lookback {part.lookback}, the model has {lookback}")
    params = complete_params(architecture, params)
    model = architecture.model(params, lookback=lookback)
    model.fit(train, valid, seed=seed, budget=budget)
    score_TN = model.predict(valid)
    if forecastable_TN(valid).any() and not np.isfinite(score_TN).any():
        raise ModelError(f"{architecture.name} gives no finite score on its validation window; its fit diverged")
    return FittedModel(
        architecture=architecture.name,
        params=params,
        lookback=lookback,
        num_features=train.x_TNF.shape[2],
        model=model,
        calibrator=Calibrator.fit(score_TN, label_TN(valid)),
    )
