"""What every architecture owes, checked on each one the registry finds; there is no list of exceptions."""

import dataclasses
import json
import pickle
import pickletools
import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.training.models.toys import learning_windows, panel_of, toy_panel
from training.dataset import Panel, window
from training.models.fitted import FittedModel, fit_model
from training.models.registry import architectures
from training.models.spec import Architecture, Budget, ModelError
from training.models.state import load_state, save_state
from training.models.windows import scatter_TN, sequence_samples

LOOKBACK = 10
BUDGET = Budget(max_epochs=8, max_trees=60, max_agent_steps=1500)
FIRST, STOP = 212, 410  # test targets with a label
NAMES = sorted(architectures())

READERS = {".json": json.loads, ".txt": bytes.decode, ".safetensors": safetensors.numpy.load}

every_architecture = pytest.mark.parametrize("name", NAMES)


def fit(architecture: Architecture, panel: Panel, *, seed=1, budget=BUDGET) -> FittedModel:
    train, valid = learning_windows(panel, lookback=LOOKBACK)
    return fit_model(architecture, {}, train, valid, lookback=LOOKBACK, seed=seed, budget=budget)


def scores(model, panel: Panel, first=FIRST, stop=STOP) -> np.ndarray:
    return model.predict(window(panel, first, stop, lookback=LOOKBACK)).score_TN


def random_states() -> tuple:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), kind, keys.tobytes(), rest, torch.random.get_rng_state().numpy().tobytes()


def correlation(score: np.ndarray, panel: Panel) -> float:
    return float(np.corrcoef(score.ravel(), panel.labels.y_TN[FIRST:STOP].ravel())[0, 1])


def with_holes(panel: Panel) -> Panel:
    """A fifth of the features unknown, some rows of an entity wholly so, one entity never there, one feature late.

    That one is known from the test on: a market's trades may have begun yesterday.
    """
    rng = np.random.default_rng(5)
    x, returns = panel.x_TNF.copy(), panel.returns_TN.copy()
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:FIRST, :, -1] = np.nan
    x[100:110, 0] = returns[100:110, 0] = np.nan
    x[300:305, 0] = returns[300:305, 0] = np.nan
    x[:, 2] = returns[:, 2] = np.nan
    forward = panel.labels.forward_TN.copy()
    forward[:, 2] = np.nan
    return panel_of(x=x, returns=returns, forward=forward)


def garbled(panel: Panel, rows: slice) -> Panel:
    """The same panel with other features, returns and volatilities in these rows, some of them unknown."""
    rng = np.random.default_rng(6)
    changed = {}
    for field in ("x_TNF", "returns_TN", "vol_TN"):
        values = getattr(panel, field).copy()
        values[rows] = 10 * np.abs(rng.standard_normal(values[rows].shape))
        values[rows][::3] = np.nan
        changed[field] = values
    return dataclasses.replace(panel, **changed)


# The checks, each also run on an architecture that breaks the rule.


def check_determinism(architecture: Architecture, panel: Panel) -> None:
    assert fit(architecture, panel).checksum() == fit(architecture, panel).checksum()


def check_causality(model, panel: Panel) -> None:
    whole = scores(model, panel)
    for last in (FIRST, 250, 399):
        known = slice(0, last - FIRST + 1)
        future = garbled(panel, slice(last + 1, None))
        np.testing.assert_array_equal(scores(model, future)[known], whole[known], "the future garbled")
        np.testing.assert_array_equal(scores(model, panel, stop=last + 1), whole[known], "the future deleted")


def check_lookback(model, panel: Panel) -> None:
    """The score at t in any window with the lookback before it is the same; without that there is none."""
    whole = scores(model, panel)
    for first, stop in ((FIRST, FIRST + 1), (230, 231), (240, 305), (409, 410)):
        np.testing.assert_array_equal(scores(model, panel, first, stop), whole[first - FIRST : stop - FIRST])
        past = garbled(panel, slice(0, first - LOOKBACK + 1))
        np.testing.assert_array_equal(scores(model, past, first, first + 1), whole[[first - FIRST]], "older rows")
    early = scores(model, panel, 0, 30)
    assert np.isnan(early[: LOOKBACK - 1]).all()
    assert np.isfinite(early[LOOKBACK - 1 :]).all()


def check_unknowns(models: list, holes: Panel) -> None:
    known = np.isfinite(holes.x_TNF[FIRST:STOP]).any(axis=2)
    assert not known[:, 2].any()
    for model in models:
        np.testing.assert_array_equal(np.isfinite(scores(model, holes)), known)


def check_learns(model, panel: Panel, *, at_least=0.3) -> None:
    assert correlation(scores(model, panel), panel) > at_least


def check_noise(architecture: Architecture, panel: Panel) -> None:
    """Out-of-sample correlation on 1,188 labels of noise within four standard errors."""
    score = scores(fit(architecture, panel), panel)
    bound = 4 / np.sqrt(score.size)
    assert np.ptp(score) == 0 or abs(correlation(score, panel)) < bound


def check_round_trip(model: FittedModel, panel: Panel, folder: Path) -> None:
    model.save(folder)
    loaded = FittedModel.load(folder)
    part = window(panel, FIRST, STOP, lookback=LOOKBACK)
    np.testing.assert_array_equal(loaded.predict(part).score_TN, model.predict(part).score_TN)
    np.testing.assert_array_equal(loaded.predict(part).confidence_TN, model.predict(part).confidence_TN)
    assert loaded.checksum() == model.checksum()
    assert (loaded.architecture, dict(loaded.params), loaded.lookback) == (
        model.architecture,
        dict(model.params),
        model.lookback,
    )


def check_no_pickle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.suffix in READERS, f"{path} is of no kind known to be harmless: {sorted(READERS)}"
        content = path.read_bytes()
        READERS[path.suffix](content)
        assert not zipfile.is_zipfile(path), path
        assert not is_pickle(content), path


def is_pickle(content: bytes) -> bool:
    """Whether the bytes run as pickle opcodes to a STOP (parsed, never executed)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # bytes that are no pickle may hold odd escapes
            return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(content))
    except ValueError:
        return False


def check_deadline(architecture: Architecture, panel: Panel) -> None:
    with pytest.raises(ModelError, match="deadline_s"):
        fit(architecture, panel, budget=dataclasses.replace(BUDGET, deadline_s=0.0))


# Every architecture.


@pytest.fixture(scope="module")
def toy() -> Panel:
    return toy_panel(memory=0.75)


@pytest.fixture(scope="module")
def noise() -> Panel:
    return toy_panel(memory=0.0, seed=3)


@pytest.fixture(scope="module")
def fitted(toy):
    """The model of an architecture on the toy, fitted once."""
    models: dict[str, FittedModel] = {}

    def of(name: str) -> FittedModel:
        if name not in models:
            models[name] = fit(architectures()[name], toy)
        return models[name]

    return of


def test_the_four_families_are_there():
    assert {architecture.family for architecture in architectures().values()} == {
        "classical",
        "deep",
        "econometric",
        "agent",
    }


@every_architecture
def test_says_what_it_is(name):
    architecture = architectures()[name]
    assert architecture.name == name
    assert any(char.isdigit() for char in architecture.source), "a source has a year"
    assert all(
        letter.isalpha() and len(set(choices)) == len(choices) > 0 for letter, choices in architecture.grid.values()
    )
    assert all(len(set(choices)) == len(choices) > 0 for choices in architecture.space.values())
    assert not set(architecture.grid) & set(architecture.space)


@every_architecture
def test_refitting_under_a_seed_repeats(name, toy, fitted):
    assert fit(architectures()[name], toy).checksum() == fitted(name).checksum()


@every_architecture
def test_fitting_leaves_the_global_random_states_alone(name, toy):
    before = random_states()
    fit(architectures()[name], toy, budget=Budget(max_epochs=1, max_trees=2, max_agent_steps=300))
    assert random_states() == before


@every_architecture
def test_saved_and_loaded_is_the_same_without_pickle(name, toy, fitted, tmp_path):
    check_round_trip(fitted(name), toy, tmp_path)
    check_no_pickle(tmp_path)


@every_architecture
def test_the_future_changes_nothing(name, toy, fitted):
    check_causality(fitted(name), toy)


@every_architecture
def test_uses_exactly_its_lookback(name, toy, fitted):
    check_lookback(fitted(name), toy)


@every_architecture
def test_labels_are_not_seen_at_prediction(name, toy, fitted):
    seen = window(toy, FIRST, STOP, lookback=LOOKBACK, learn_T=np.ones(len(toy.sample_times_T), dtype=bool))
    np.testing.assert_array_equal(fitted(name).predict(seen).score_TN, scores(fitted(name), toy))


@every_architecture
def test_shape_and_confidence(name, toy, fitted):
    forecast = fitted(name).predict(window(toy, FIRST, STOP, lookback=LOOKBACK))
    assert forecast.score_TN.shape == forecast.confidence_TN.shape == (STOP - FIRST, 6)
    assert forecast.score_TN.dtype == forecast.confidence_TN.dtype == np.float64
    assert ((forecast.confidence_TN >= 0) & (forecast.confidence_TN <= 1)).all()
    order = np.argsort(np.abs(forecast.score_TN), axis=None)
    assert (np.diff(forecast.confidence_TN.ravel()[order]) >= 0).all(), "confidence falls as the score strengthens"


@every_architecture
def test_nothing_to_score_is_no_error(name, toy, fitted):
    assert fitted(name).predict(window(toy, 300, 300, lookback=LOOKBACK)).score_TN.shape == (0, 6)
    assert np.isnan(fitted(name).predict(window(toy, 0, 3, lookback=LOOKBACK)).confidence_TN).all()


@every_architecture
def test_unknown_features_and_entities(name, toy, fitted):
    holes = with_holes(toy)
    check_unknowns([fit(architectures()[name], holes), fitted(name)], holes)


@every_architecture
def test_a_learnable_toy_is_learned(name, toy, fitted):
    check_learns(fitted(name), toy)


@every_architecture
def test_noise_is_not_learned(name, noise):
    check_noise(architectures()[name], noise)


@every_architecture
def test_a_deadline_fails_the_fit(name, toy):
    check_deadline(architectures()[name], toy)


@every_architecture
def test_nothing_to_learn_from_is_a_model_error(name, toy):
    hidden = window(toy, 20, 160, lookback=LOOKBACK)
    _, valid = learning_windows(toy, lookback=LOOKBACK)
    with pytest.raises(ModelError):
        fit_model(architectures()[name], {}, hidden, valid, lookback=LOOKBACK, seed=1, budget=BUDGET)


@every_architecture
def test_a_validation_window_without_labels_still_fits(name, toy):
    train, _ = learning_windows(toy, lookback=LOOKBACK)
    valid = window(toy, 162, 210, lookback=LOOKBACK)
    model = fit_model(architectures()[name], {}, train, valid, lookback=LOOKBACK, seed=1, budget=BUDGET)
    check_learns(model, toy)
    assert np.ptp(model.predict(window(toy, FIRST, STOP, lookback=LOOKBACK)).confidence_TN) == 0


# The checks bite: each on a model that breaks its rule, and all of them pass on the honest one.


class Honest:
    """Twice the last value of feature 0."""

    def __init__(self, params, *, lookback):
        self.weight = np.array([2.0])

    def fit(self, train, valid, *, seed, budget):
        if budget.deadline_s <= 0:
            raise ModelError("raise Budget.deadline_s")

    def predict(self, window):
        samples = sequence_samples(window)
        return scatter_TN(window, self.weight * np.nan_to_num(samples.x_SLF[:, -1, 0]), samples.index_S2)

    def state(self):
        return {"weight": self.weight}

    def save(self, folder):
        save_state(folder, settings={}, state=self.state())

    @classmethod
    def load(cls, folder):
        model = cls({}, lookback=0)
        model.weight = load_state(folder)[1]["weight"]
        return model


class Clairvoyant(Honest):
    def predict(self, window):
        score = super().predict(window)
        return np.vstack([score[1:], score[-1:]])


class Normaliser(Honest):
    """Scales by statistics of the whole window: a common leak."""

    def predict(self, window):
        score = super().predict(window)
        return score / np.nanstd(score)


class Rememberer(Honest):
    """Adds all the history it is handed."""

    def predict(self, window):
        return super().predict(window) + np.nan_to_num(window.x_TNF[..., 0]).sum()


class Unseeded(Honest):
    def fit(self, train, valid, *, seed, budget):
        self.weight = np.random.default_rng().standard_normal(1)


class Backwards(Honest):
    def predict(self, window):
        return -super().predict(window)


class Guesser(Honest):
    """Gives a score where nothing is known."""

    def predict(self, window):
        return np.nan_to_num(super().predict(window))


class Forgetful(Honest):
    @classmethod
    def load(cls, folder):
        return cls({}, lookback=0)

    def fit(self, train, valid, *, seed, budget):
        self.weight = np.array([3.0])


class Truncating(Honest):
    def fit(self, train, valid, *, seed, budget):
        return


class Pickler(Honest):
    protocol, file = 5, "weight.bin"

    def save(self, folder):
        super().save(folder)
        (folder / self.file).write_bytes(pickle.dumps(self.weight, protocol=self.protocol))


class TextPickler(Pickler):
    protocol, file = 0, "weight.txt"


class Zipper(Honest):
    """As torch.save and stable-baselines3 do."""

    def save(self, folder):
        super().save(folder)
        torch.save({"weight": torch.from_numpy(self.weight)}, folder / "weight.json")


def architecture_of(model) -> Architecture:
    return Architecture(name=model.__name__.lower(), family="classical", source="here, 2024", model=model)


@pytest.fixture
def registered(monkeypatch):
    """Makes ``FittedModel.load`` find an architecture of this file."""

    def register(model) -> Architecture:
        architecture = architecture_of(model)
        known = architectures() | {architecture.name: architecture}
        monkeypatch.setattr("training.models.registry.architectures", lambda: known)
        return architecture

    return register


def test_the_honest_model_passes(toy, noise, registered, tmp_path):
    architecture = registered(Honest)
    model = fit(architecture, toy)
    check_determinism(architecture, toy)
    check_causality(model, toy)
    check_lookback(model, toy)
    check_unknowns([model], with_holes(toy))
    check_learns(model, toy)
    check_noise(architecture, noise)
    check_round_trip(model, toy, tmp_path)
    check_no_pickle(tmp_path)
    check_deadline(architecture, toy)


@pytest.mark.parametrize("model", [Clairvoyant, Normaliser])
def test_a_look_ahead_is_caught(model, toy):
    with pytest.raises(AssertionError):
        check_causality(fit(architecture_of(model), toy), toy)


def test_a_longer_memory_is_caught(toy):
    with pytest.raises(AssertionError):
        check_lookback(fit(architecture_of(Rememberer), toy), toy)


def test_a_missing_seed_is_caught(toy):
    with pytest.raises(AssertionError):
        check_determinism(architecture_of(Unseeded), toy)


def test_a_guess_about_the_unknown_is_caught(toy):
    with pytest.raises(AssertionError):
        check_unknowns([fit(architecture_of(Guesser), toy)], with_holes(toy))


def test_a_model_that_learned_the_wrong_sign_is_caught(toy):
    with pytest.raises(AssertionError):
        check_learns(fit(architecture_of(Backwards), toy), toy)


def test_a_leaked_label_is_caught_by_the_noise_check(noise):
    x = noise.x_TNF.copy()
    x[..., 0] = np.nan_to_num(noise.labels.y_TN)
    leaked = panel_of(x=x, returns=noise.returns_TN, forward=noise.labels.forward_TN)
    with pytest.raises(AssertionError):
        check_noise(architectures()["lightgbm"], leaked)


def test_a_lossy_save_is_caught(toy, registered, tmp_path):
    with pytest.raises((AssertionError, ModelError)):
        check_round_trip(fit(registered(Forgetful), toy), toy, tmp_path)


def test_a_truncated_fit_is_caught(toy):
    with pytest.raises(pytest.fail.Exception):
        check_deadline(architecture_of(Truncating), toy)


@pytest.mark.parametrize("model", [Pickler, TextPickler, Zipper])
def test_a_pickle_in_disguise_is_caught(model, toy, tmp_path):
    fit(architecture_of(model), toy).save(tmp_path)
    with pytest.raises((AssertionError, ValueError)):
        check_no_pickle(tmp_path)
