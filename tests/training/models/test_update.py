"""What every model that learns between refits owes, checked on each one found; the others are told apart by type."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.training.models.toys import VOL, panel_of
from training.dataset import Panel, Window, window
from training.models.fitted import complete_params
from training.models.registry import architectures
from training.models.spec import Architecture, Budget, Model, ModelError, OnlineModel
from training.models.state import checksum, load_state, save_state
from training.models.windows import label_TN, scatter_TN, sequence_samples

LOOKBACK = 7
BUDGET = Budget(max_epochs=8, max_trees=60, max_agent_steps=300)
DRIFT = 170  # the first row of the new market
NEW = (DRIFT + 2, 290)  # targets to update from
PURGED = 280  # of which those from here on have no label yet
SHORT = (292, 302)
TEST = (304, 440)


def new_model(architecture: Architecture) -> Model:
    return architecture.model(complete_params(architecture, {}), lookback=LOOKBACK)


ONLINE = sorted(
    name for name, architecture in architectures().items() if isinstance(new_model(architecture), OnlineModel)
)
OFFLINE = sorted(set(architectures()) - set(ONLINE))

every_online = pytest.mark.parametrize("name", ONLINE)


def drifting_panel(*, before: float, after: float, seed=0) -> Panel:
    """Unit AR(1) returns whose memory changes at ``DRIFT``; the label is the return after the next."""
    rng = np.random.default_rng(seed)
    z = np.zeros((450, 6))
    for t in range(1, 450):
        memory = before if t < DRIFT else after
        z[t] = memory * z[t - 1] + np.sqrt(1 - memory**2) * rng.standard_normal(6)
    x = rng.standard_normal((450, 6, 3)).astype(np.float32)
    x[..., 0] = z
    forward = np.full_like(z, np.nan)
    forward[:-2] = VOL * z[2:]
    return panel_of(x=x, returns=VOL * z, forward=forward)


def part(panel: Panel, first: int, stop: int, *, seen_until: int = 450) -> Window:
    return window(panel, first, stop, lookback=LOOKBACK, learn_T=np.arange(450) < seen_until)


def new_window(panel: Panel) -> Window:
    return part(panel, *NEW, seen_until=PURGED)


def digest(model: Model) -> str:
    return checksum({}, model.state())


def score(model: Model, panel: Panel) -> np.ndarray:
    return model.predict(window(panel, *TEST, lookback=LOOKBACK))


def skill(model: Model, panel: Panel) -> float:
    """Correlation of scores with labels of the new market; 0 where the scores don't vary."""
    score_S, y_S = score(model, panel).ravel(), panel.labels.y_TN[slice(*TEST)].ravel()
    return float(np.corrcoef(score_S, y_S)[0, 1]) if np.ptp(score_S) > 0 else 0.0


def error(model: Model, panel: Panel) -> float:
    """Mean squared error of scores as forecasts of labels, in the new market."""
    return float(np.mean((score(model, panel) - panel.labels.y_TN[slice(*TEST)]) ** 2))


class Workshop:
    """Fits an architecture to the old market once, and hands out as many models of that fit as are asked for."""

    def __init__(self, panel: Panel, folder: Path) -> None:
        self._panel, self._folder = panel, folder
        self._first: dict[str, Model] = {}
        self._updated: dict[str, OnlineModel] = {}

    def first(self, architecture: Architecture) -> Model:
        """The model that was fitted, never loaded; it is handed out once."""
        self.fitted(architecture)
        return self._first.pop(architecture.name)

    def fitted(self, architecture: Architecture) -> Model:
        """A model of the fit, as saved and loaded."""
        folder = self._folder / architecture.name
        if not folder.exists():
            model = new_model(architecture)
            model.fit(part(self._panel, 20, 118), part(self._panel, 120, 168), seed=1, budget=BUDGET)
            model.save(folder)
            self._first[architecture.name] = model
        return architecture.model.load(folder)

    def updated(self, architecture: Architecture) -> OnlineModel:
        """That model after its update from the new market; the same one to all who only look at it."""
        if architecture.name not in self._updated:
            self._updated[architecture.name] = self.updated_from(self._panel, architecture)
        return self._updated[architecture.name]

    def updated_from(self, panel: Panel, architecture: Architecture) -> OnlineModel:
        """Another one, updated from the same targets of a panel."""
        model = self.fitted(architecture)
        model.update(new_window(panel), seed=2, budget=BUDGET)
        return model


@pytest.fixture(scope="module")
def drift() -> Panel:
    return drifting_panel(before=0.0, after=0.85)


@pytest.fixture(scope="module")
def workshop(drift, tmp_path_factory) -> Workshop:
    return Workshop(drift, tmp_path_factory.mktemp("fits"))


# The checks, each also run on a model that breaks the rule.


def check_determinism(workshop: Workshop, architecture: Architecture, panel: Panel) -> None:
    again = workshop.updated_from(panel, architecture)
    assert digest(again) == digest(workshop.updated(architecture))
    np.testing.assert_array_equal(score(again, panel), score(workshop.updated(architecture), panel))


def check_round_trips(workshop: Workshop, architecture: Architecture, panel: Panel, folder: Path) -> None:
    """Fit, save, load and update is fit and update; and what was updated is saved and loaded whole."""
    kept, loaded = workshop.first(architecture), workshop.updated(architecture)
    before = digest(kept)
    kept.update(new_window(panel), seed=2, budget=BUDGET)
    assert digest(kept) == digest(loaded) != before
    np.testing.assert_array_equal(score(kept, panel), score(loaded, panel))
    kept.save(folder)
    again = architecture.model.load(folder)
    assert digest(again) == digest(kept)
    np.testing.assert_array_equal(score(again, panel), score(kept, panel))
    for model in (kept, again):  # a second update finds all it needs too
        model.update(part(panel, *SHORT), seed=3, budget=BUDGET)
    assert digest(again) == digest(kept)


def check_learns_the_drift(workshop: Workshop, architecture: Architecture, panel: Panel) -> None:
    """Nearer to the labels of the new market than without the update, and right about their order."""
    stale, fresh = workshop.fitted(architecture), workshop.updated(architecture)
    assert error(fresh, panel) < 0.95 * error(stale, panel)
    assert skill(fresh, panel) > 0.3


def check_keeps_what_it_knew(workshop: Workshop, architecture: Architecture, panel: Panel) -> None:
    """A short update does not undo a fit to a market that has not changed."""
    model = workshop.fitted(architecture)
    before = skill(model, panel)
    model.update(part(panel, *SHORT), seed=2, budget=BUDGET)
    assert before > 0.3
    assert skill(model, panel) > 0.8 * before


def check_knows_only_the_labelled(workshop: Workshop, architecture: Architecture, panel: Panel) -> None:
    """Targets whose labels are hidden, and all that comes after the window, change nothing; the labelled ones do."""
    rng = np.random.default_rng(6)
    changed = {}
    for field in ("x_TNF", "returns_TN", "vol_TN"):
        values = getattr(panel, field).copy()
        values[PURGED:] = 10 * np.abs(rng.standard_normal(values[PURGED:].shape))
        changed[field] = values
    later = dataclasses.replace(panel, **changed)
    assert digest(workshop.updated_from(later, architecture)) == digest(workshop.updated(architecture))
    labels = dataclasses.replace(panel.labels, y_TN=-panel.labels.y_TN)
    other = dataclasses.replace(panel, labels=labels, returns_TN=np.roll(panel.returns_TN, 3, axis=0))
    assert digest(workshop.updated_from(other, architecture)) != digest(workshop.updated(architecture))


def check_fails_whole(workshop: Workshop, architecture: Architecture, panel: Panel) -> None:
    """Nothing to learn from, or no time for it, is a ModelError and leaves the model as it was."""
    model = workshop.fitted(architecture)
    before = digest(model)
    with pytest.raises(ModelError):
        model.update(window(panel, *NEW, lookback=LOOKBACK), seed=2, budget=BUDGET)
    with pytest.raises(ModelError, match="deadline_s"):
        model.update(new_window(panel), seed=2, budget=dataclasses.replace(BUDGET, deadline_s=0.0))
    assert digest(model) == before
    np.testing.assert_array_equal(score(model, panel), score(workshop.fitted(architecture), panel))


# Every model that learns between refits.


def test_who_learns_between_refits_and_who_does_not(capsys):
    with capsys.disabled():
        print(f"\n  learn between refits: {', '.join(ONLINE)}\n  are refitted only: {', '.join(OFFLINE)}")  # noqa: T201 (for people to read)
    assert {"elastic_net", "har_rv", "knn", "lightgbm", "logistic", "var", "xgboost"} <= set(ONLINE)
    # A forest's trees, support vectors and maximum likelihoods are not added to: their fits have no next step.
    assert {"random_forest", "extra_trees", "svm", "arima", "garch", "holt_winters"} <= set(OFFLINE)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_model_without_update_is_none(name):
    assert not hasattr(new_model(architectures()[name]), "update")


@every_online
def test_updating_under_a_seed_repeats(name, workshop, drift):
    check_determinism(workshop, architectures()[name], drift)


@every_online
def test_saved_and_loaded_it_updates_the_same(name, workshop, drift, tmp_path):
    check_round_trips(workshop, architectures()[name], drift, tmp_path)


@every_online
def test_it_learns_what_the_fit_could_not_know(name, workshop, drift):
    check_learns_the_drift(workshop, architectures()[name], drift)


@every_online
def test_it_knows_nothing_beyond_the_labelled_targets(name, workshop, drift):
    check_knows_only_the_labelled(workshop, architectures()[name], drift)


@every_online
def test_an_update_that_fails_leaves_the_model_as_it_was(name, workshop, drift):
    check_fails_whole(workshop, architectures()[name], drift)


@pytest.fixture(scope="module")
def steady() -> Panel:
    return drifting_panel(before=0.85, after=0.85)


@pytest.fixture(scope="module")
def steady_workshop(steady, tmp_path_factory) -> Workshop:
    return Workshop(steady, tmp_path_factory.mktemp("steady"))


@every_online
def test_a_short_update_keeps_what_was_known(name, steady_workshop, steady):
    check_keeps_what_it_knew(steady_workshop, architectures()[name], steady)


@every_online
def test_an_update_leaves_the_global_random_states_alone(name, workshop, drift):
    from tests.training.models.test_conformance import random_states

    model = workshop.fitted(architectures()[name])
    before = random_states()
    model.update(part(drift, *SHORT), seed=2, budget=BUDGET)
    assert random_states() == before


# The checks bite: each on a model that breaks its rule, and all of them pass on the honest one.


class Honest:
    """A slope on the last value of feature 0: the mean of those per date, remembered as a sum and a count."""

    def __init__(self, params, *, lookback):
        self.sums_3 = np.zeros(3)

    def fit(self, train, valid, *, seed, budget):
        self.sums_3 = self.sums_of(train)

    def update(self, new, *, seed, budget):
        if budget.deadline_s <= 0:
            raise ModelError("raise Budget.deadline_s")
        self.sums_3 = self.sums_3 + self.sums_of(new)

    def sums_of(self, window):
        samples = sequence_samples(window, labelled=True)
        if not len(samples.y_S):
            raise ModelError("nothing to update from")
        x_S = samples.x_SLF[:, -1, 0].astype(float)
        return np.array([(x_S * samples.y_S).sum(), (x_S**2).sum(), len(x_S)])

    def predict(self, window):
        samples = sequence_samples(window)
        slope = self.sums_3[0] / self.sums_3[1]
        return scatter_TN(window, slope * samples.x_SLF[:, -1, 0].astype(float), samples.index_S2)

    def state(self):
        return {"sums": self.sums_3}

    def save(self, folder):
        save_state(folder, settings={}, state=self.state())

    @classmethod
    def load(cls, folder):
        model = cls({}, lookback=LOOKBACK)
        model.sums_3 = load_state(folder)[1]["sums"]
        return model


class Idle(Honest):
    """Takes the new window and learns nothing."""

    def update(self, new, *, seed, budget): ...


class Unseeded(Honest):
    def update(self, new, *, seed, budget):
        super().update(new, seed=seed, budget=budget)
        self.sums_3[0] += np.random.default_rng().standard_normal()


class Forgetful(Honest):
    """Keeps for its updates what it does not save."""

    scale = 1.0

    def fit(self, train, valid, *, seed, budget):
        super().fit(train, valid, seed=seed, budget=budget)
        self.scale = 2.0

    def sums_of(self, window):
        return self.scale * super().sums_of(window)


class Peeking(Honest):
    """Scales by all features of the window, those of hidden targets too."""

    def sums_of(self, window):
        return super().sums_of(window) / np.nanstd(window.x_TNF)


class Replacing(Honest):
    """Fits the new window alone, by the difference of two rows of it."""

    def update(self, new, *, seed, budget):
        y_TN = np.nan_to_num(label_TN(new))
        self.sums_3 = np.array([-np.abs(y_TN).max(), 1.0, 1.0])


class HalfDone(Honest):
    """Changes first and looks at the clock afterwards."""

    def update(self, new, *, seed, budget):
        self.sums_3 = self.sums_3 + 1.0
        super().update(new, seed=seed, budget=budget)


def architecture_of(model) -> Architecture:
    return Architecture(name=model.__name__.lower(), family="classical", source="here, 2024", model=model)


def test_the_honest_model_passes(workshop, drift, steady_workshop, steady, tmp_path):
    architecture = architecture_of(Honest)
    assert isinstance(new_model(architecture), OnlineModel)
    check_determinism(workshop, architecture, drift)
    check_round_trips(workshop, architecture, drift, tmp_path)
    check_learns_the_drift(workshop, architecture, drift)
    check_knows_only_the_labelled(workshop, architecture, drift)
    check_fails_whole(workshop, architecture, drift)
    check_keeps_what_it_knew(steady_workshop, architecture, steady)


@pytest.mark.parametrize(
    ("model", "check"),
    [
        (Unseeded, check_determinism),
        (Idle, check_learns_the_drift),
        (Peeking, check_knows_only_the_labelled),
        (Idle, check_knows_only_the_labelled),
        (HalfDone, check_fails_whole),
    ],
)
def test_a_broken_update_is_caught(model, check, workshop, drift):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(workshop, architecture_of(model), drift)


def test_an_update_that_undoes_the_fit_is_caught(steady_workshop, steady):
    with pytest.raises(AssertionError):
        check_keeps_what_it_knew(steady_workshop, architecture_of(Replacing), steady)


def test_an_update_that_needs_what_was_not_saved_is_caught(workshop, drift, tmp_path):
    with pytest.raises(AssertionError):
        check_round_trips(workshop, architecture_of(Forgetful), drift, tmp_path)
