"""What learners over summaries of the lookback share: samples, scaling, one thread, saving; each adds its learning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.dataset import Window
from training.models.deadline import Deadline
from training.models.spec import Budget, ModelError, Params, State
from training.models.state import load_state, save_state
from training.models.windows import (
    Scaler,
    SummarySamples,
    require_labels,
    require_new_labels,
    scatter_TN,
    summary_samples,
)

# Tensor suffixes: T targets, N entities, S samples, K summary features.


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Summaries (S, K) float32 with their labels (S,), in the order of (time, entity).

    For a scaled architecture the summaries are finite, else NaN is unknown.
    """

    x_SK: NDArray[np.float32]
    y_S: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a fit was asked: hyperparameters, seed, and how much work it may do until when."""

    params: Params
    seed: int
    budget: Budget
    deadline: Deadline


class Learned(Protocol):
    """What was learned. ``score`` gives (S,) expected labels; a sample's does not depend on the others."""

    def score(self, x_SK: NDArray[np.float32]) -> NDArray[np.float64]: ...

    def state(self) -> State: ...


Learn: TypeAlias = Callable[[Table, Table, Task], Learned]
"""``(learn, check, task)``: learn from the one table, choose the complexity on the other, which may be empty."""

Relearn: TypeAlias = Callable[[Any, Table, Task], Learned]
"""``(learned, new, task)``: what is known with the new samples; ``learned`` itself stays as it is."""

Restore: TypeAlias = Callable[[Params, State], Learned]
"""What was learned, from the hyperparameters and its ``state``."""


class TabularModel:
    """A learner over the four summary statistics of every feature, pooled over entities."""

    def __init__(self, regressor: TabularRegressor, params: Params) -> None:
        self._regressor = regressor
        self._params = dict(params)
        self._scaler: Scaler | None = None

    def fit(self, train: Window, valid: Window, *, seed: int, budget: Budget) -> None:
        task = Task(params=self._params, seed=seed, budget=budget, deadline=Deadline(budget))
        learn, check = summary_samples(train, labelled=True), summary_samples(valid, labelled=True)
        require_labels(learn.y_S)
        self._scaler = Scaler.fit(learn.x_SK) if self._regressor.scaled else None
        with one_thread():
            self._learned = self._regressor.learn(self._table(learn), self._table(check), task)
        task.deadline.check("the end")

    def predict(self, window: Window) -> NDArray[np.float64]:
        samples = summary_samples(window)
        return scatter_TN(window, self._learned.score(self._table(samples).x_SK), samples.index_S2)

    def state(self) -> State:
        return self._learned.state() | (self._scaler.state() if self._scaler else {})

    def save(self, folder: Path) -> None:
        save_state(folder, settings=self._params, state=self.state())

    def restore(self, state: State) -> None:
        """Become the model that ``state`` was taken from."""
        self._scaler = Scaler.from_state(state) if self._regressor.scaled else None
        self._learned = self._regressor.restore(self._params, state)

    def _table(self, samples: SummarySamples) -> Table:
        x_SK = self._scaler.transform(samples.x_SK) if self._scaler else samples.x_SK
        return Table(x_SK=x_SK, y_S=samples.y_S)


class OnlineTabularModel(TabularModel):
    """A tabular model whose learner takes new samples to what it knows; its scaling stays that of the fit."""

    def __init__(self, regressor: TabularRegressor, params: Params, relearn: Relearn) -> None:
        super().__init__(regressor, params)
        self._relearn = relearn

    def update(self, new: Window, *, seed: int, budget: Budget) -> None:
        """Learn from the labelled targets of ``new``; where that fails the model stays as it was."""
        task = Task(params=self._params, seed=seed, budget=budget, deadline=Deadline(budget))
        samples = summary_samples(new, labelled=True)
        require_new_labels(samples.y_S)
        with one_thread():
            learned = self._relearn(self._learned, self._table(samples), task)
        task.deadline.check("the end")
        self._learned = learned


@dataclass(frozen=True, kw_only=True, slots=True)
class TabularRegressor:
    """The factory of an architecture.

    ``scaled``: the summaries come centred and scaled by what the training samples showed, within +-5, 0 where
    unknown; else as they are, for learners that take NaN and care for order alone. With ``relearn`` its models learn
    between refits.
    """

    learn: Learn
    restore: Restore
    scaled: bool
    relearn: Relearn | None = None

    def __call__(self, params: Params, *, lookback: int) -> TabularModel:  # noqa: ARG002 (the windows bring it)
        return OnlineTabularModel(self, params, self.relearn) if self.relearn else TabularModel(self, params)

    def load(self, folder: Path) -> TabularModel:
        """A saved model, as it was."""
        params, state = load_state(folder)
        model = self(params, lookback=0)
        model.restore(state)
        return model


def subsample(table: Table, max_rows: int, *, seed: int) -> Table:
    """At most ``max_rows`` of the samples, drawn by the seed without replacement and left in their order.

    Drawn, not every n-th: a stride that the number of entities divides would see a few entities only.
    """
    if len(table.y_S) <= max_rows:
        return table
    rows = np.sort(np.random.default_rng(seed).choice(len(table.y_S), max_rows, replace=False))
    return Table(x_SK=table.x_SK[rows], y_S=table.y_S[rows])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenMP and BLAS compute on one thread meanwhile: sums split over threads depend on where they run."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield


@contextmanager
def must_converge(advice: str) -> Iterator[None]:
    """Fail the fit where a solver of scikit-learn gives up before it is done, instead of keeping what it had."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            yield
        except ConvergenceWarning as warning:
            raise ModelError(f"the solver did not converge: {warning}; {advice}") from warning
