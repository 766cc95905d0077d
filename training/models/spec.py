"""The one interface of every architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window

Value: TypeAlias = str | int | float | bool
Params: TypeAlias = Mapping[str, Value]
Family: TypeAlias = Literal["classical", "deep", "econometric", "agent"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
State: TypeAlias = dict[str, NDArray[np.generic]]
EPOCHS: Final = "training.epochs"
"""In the state of a network, int64 (2,): the epochs its fit ran, and which of them was the best, from 1."""


class ModelError(RuntimeError):
    """A fit or a forecast that failed for a reason of the model's own (divergence, too little data, deadline)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How much work a fit may do, in steps; the deadline fails a fit, it never truncates one.

    ``device`` is where networks are fitted: ``auto`` takes the GPU where there is one.
    """

    max_epochs: int = 30
    max_trees: int = 100
    max_agent_steps: int = 4000
    deadline_s: float = 300.0
    device: Device = "auto"


class Model(Protocol):
    """A model of one variant. T sample times, N entities.

    ``fit`` learns from ``train`` and stops early on ``valid``. ``predict`` gives a raw score (num_targets, N) for
    the targets of a window: the expected return over the horizon divided by its volatility, NaN where there is no
    forecast; the score at t uses the last ``lookback`` rows up to t and nothing else. ``state`` is everything fitted,
    as named arrays (canonical: its checksum repeats on refitting); ``save`` and the factory's ``load`` round-trip
    without pickle.
    """

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None: ...

    def predict(self, window: Window) -> NDArray[np.float64]: ...

    def state(self) -> State: ...

    def save(self, folder: Path) -> None: ...


@runtime_checkable
class OnlineModel(Model, Protocol):
    """A model that can learn between refits.

    ``update`` takes a window whose labelled targets are new (later than all it learned from), keeps what it knew, and
    is deterministic under the seed; what was fitted for scaling stays. A fit is never undone by it: refit for that.
    """

    def update(self, new: Window, *, seed: int, budget: Budget) -> None: ...


class ModelFactory(Protocol):
    """Builds an unfitted model, and loads a fitted one; a model's class with a ``load`` is one."""

    def __call__(self, params: Params, *, lookback: int) -> Model: ...

    def load(self, folder: Path) -> Model: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A registered architecture.

    Parameters
    ----------
    grid
        Hyperparameters that are part of a variant's id, with a letter each: ``{"hidden_size": ("h", (64, 128))}``
        gives ids ending in ``-h64`` and ``-h128``.
    space
        Hyperparameters Optuna picks, each a tuple of choices whose first is the default.
    source
        The paper or book the architecture comes from.
    cost_s
        About what a fit of 5,000 samples x 20 features over 30 bars takes on one core, in CPU seconds: a small budget
        of variants takes cheap architectures first.
    reads_features
        False for a model of the returns alone, which is the same on every pipeline.
    """

    name: str
    family: Family
    source: str
    model: ModelFactory
    grid: Mapping[str, tuple[str, tuple[Value, ...]]] = field(default_factory=dict)
    space: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    cost_s: float = 1.0
    reads_features: bool = True

    def defaults(self) -> dict[str, Value]:
        """The tuned parameters' defaults."""
        return {name: choices[0] for name, choices in self.space.items()}
