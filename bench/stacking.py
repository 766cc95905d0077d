"""Stacked training: 18 hyperparameter variants of a network fitted together, beside the same fits one after another.

Both ways fit the same windows with the same seeds and must come to the same weights. Seconds are a core's time in whole
fits, preparation and calibration included. Where there is a GPU both ways run there too, by the clock; dropout draws
other numbers there each way, so those weights are not compared.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bench.report import Bar, Report, Row, at_most, options, progress, publish
from training.dataset import Window
from training.models.fitted import FittedModel, fit_model
from training.models.registry import architecture, architectures
from training.models.spec import Architecture, Budget, Device, ModelError, Params
from training.models.stacked import fit_stacked, is_worth_stacking

NUM_VARIANTS = 18
QUICK = ("dlinear", "nhits", "lstm")
SAME_WITHIN = 0.01  # of a weight: the sums run in another order, and Adam divides by small gradients
CHOICE_COSTS = 1.25  # of the quicker way

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Training targets of each entity (a third as many validate), and the fits' epochs."""

    num_times: int
    num_entities: int
    num_features: int
    lookback: int
    num_epochs: int


FULL = Size(num_times=140, num_entities=8, num_features=20, lookback=30, num_epochs=5)
SMALL = Size(num_times=140, num_entities=8, num_features=20, lookback=30, num_epochs=3)


def noise(size: Size, num_targets: int, *, seed: int) -> Window:
    """Nothing to learn: how long it takes does not depend on what is learned."""
    rng = np.random.default_rng(seed)
    shape = (size.lookback - 1 + num_targets, size.num_entities)
    y_TN = rng.standard_normal(shape)
    return Window(
        lookback=size.lookback,
        num_history=size.lookback - 1,
        sample_times_T=np.datetime64("2020-01-01", "us") + np.arange(shape[0]) * np.timedelta64(1, "D"),
        x_TNF=rng.standard_normal((*shape, size.num_features)).astype(np.float32),
        returns_TN=0.01 * y_TN,
        vol_TN=np.full(shape, 0.01),
        y_TN=y_TN,
        forward_TN=0.01 * y_TN,
    )


def variants(spec: Architecture) -> list[Params]:
    """Learning rates, dropouts and decays (those that it has), 18 in all, with its smallest width."""
    choices = {"learning_rate": (1e-3, 5e-4, 1e-4), "dropout": (0.1, 0.2, 0.3), "weight_decay": (1e-4, 0.0)}
    had = {name: values for name, values in choices.items() if name in spec.space}
    grid = [dict(zip(had, values, strict=True)) for values in itertools.product(*had.values())]
    return [grid[k % len(grid)] for k in range(NUM_VARIANTS)]


def measure(name: str, size: Size) -> Row:
    """Times of both ways on a CPU, and on the GPU where there is one."""
    import torch

    spec = architecture(name)
    train, valid = (noise(size, num, seed=num) for num in (size.num_times, size.num_times // 3))
    jobs = list(zip(variants(spec), range(NUM_VARIANTS), strict=True))

    def one_by_one(device: Device) -> list[FittedModel]:
        budget = _budget(size, device)
        return [
            fit_model(spec, params, train, valid, lookback=size.lookback, seed=seed, budget=budget)
            for params, seed in jobs
        ]

    def stack(device: Device) -> list[FittedModel | ModelError]:
        params, seeds = zip(*jobs, strict=True)
        budget = _budget(size, device)
        return fit_stacked(spec, params, train, valid, lookback=size.lookback, seeds=seeds, budget=budget)

    one_by_one_s, singles = _timed(time.process_time, lambda: one_by_one("cpu"))
    stacked_s, members = _timed(time.process_time, lambda: stack("cpu"))
    more = {
        "one by one s": one_by_one_s,
        "ratio": stacked_s / one_by_one_s,
        "chosen": _way(is_stacked=is_worth_stacking(spec, "cpu", NUM_VARIANTS)),
        "weights differ": _difference(singles, members),
    }
    if torch.cuda.is_available():
        stack("cuda")  # loads the kernels
        more["GPU stacked s"], _ = _timed(time.perf_counter, lambda: stack("cuda"))
        more["GPU one by one s"], _ = _timed(time.perf_counter, lambda: one_by_one("cuda"))
    return Row(name=name, seconds=stacked_s, more=more)


def _budget(size: Size, device: Device) -> Budget:
    return Budget(max_epochs=size.num_epochs, deadline_s=600.0, device=device)


def _timed(clock: Callable[[], float], action: Callable[[], Result]) -> tuple[float, Result]:
    start = clock()
    result = action()
    return clock() - start, result


def _way(*, is_stacked: bool) -> str:
    return "stacked" if is_stacked else "one by one"


def _difference(singles: Sequence[FittedModel], members: Sequence[FittedModel | ModelError]) -> float:
    """The largest of any weight."""
    largest = 0.0
    for single, member in zip(singles, members, strict=True):
        if isinstance(member, ModelError):
            raise SystemExit(f"a stacked fit failed, so its time means nothing: {member}")
        pairs = zip(member.model.state().values(), single.model.state().values(), strict=True)
        largest = max(largest, *(float(np.abs(np.subtract(ours, theirs)).max()) for ours, theirs in pairs))
    return largest


def compare(*, names: Sequence[str], size: Size) -> Report:
    """Measure these architectures, one at a time."""
    measure(names[0], Size(num_times=40, num_entities=4, num_features=2, lookback=7, num_epochs=1))  # imports
    rows = []
    for name in names:
        progress(f"fitting {NUM_VARIANTS} variants of {name} both ways")
        rows.append(measure(name, size))
    return Report(
        bench="stacking",
        rows=rows,
        bars=[bar for row in rows for bar in _bars(row)],
        facts=[
            f"{NUM_VARIANTS} variants, {size.num_times * size.num_entities:,} samples x {size.num_features} features x "
            f"{size.lookback} rows, {size.num_epochs} epochs, hidden size 64, one thread",
            f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; the time is the process's own",
        ],
    )


def _bars(row: Row) -> list[Bar]:
    other_s = row.more["one by one s"]
    chosen_s = row.seconds if row.more["chosen"] == _way(is_stacked=True) else other_s
    return [
        at_most(f"{row.name}: the chosen way over the quicker one", chosen_s / min(row.seconds, other_s), CHOICE_COSTS),
        at_most(f"{row.name}: largest difference of a weight", row.more["weights differ"], SAME_WITHIN),
    ]


def networks() -> list[str]:
    """The deep architectures."""
    return [name for name, spec in architectures().items() if spec.family == "deep"]


def bench(*, quick: bool) -> Report:
    """The bench at its usual sizes."""
    return compare(names=QUICK, size=SMALL) if quick else compare(names=networks(), size=FULL)


def main() -> int:
    """Run the bench, on all networks or on those named."""
    parser = options(__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *networks()], help="architectures; all unless given")
    chosen = parser.parse_args()
    if chosen.names:
        report = compare(names=chosen.names, size=SMALL if chosen.quick else FULL)
    else:
        report = bench(quick=chosen.quick)
    return publish(report, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
