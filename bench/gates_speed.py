"""How long the gates take for 486 variants x 1,000 days: PBO beside ffn's, StepM beside arch's, a whole night's gate.

PBO by 16 blocks and StepM by 1,000 replications get the same returns as their peers and must come to the same answer.
Returns are arrays in memory. A night's gate is all of ``judge``: StepM at 5,000 replications, SPA, PBO, the clusters of
the trials, deflated Sharpe ratios, track records and evidence; certificates' refits are not in it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import ffn
import numpy as np
import pandas as pd
from arch.bootstrap import StepM

from bench.gates import NUM_VARIANTS, YEAR, World, draw
from bench.report import Report, Row, at_least, at_most, median_seconds, options, progress, publish, ratio
from training.leakage.verdict import LeakVerdict
from training.rating.evidence import Evidence
from training.rating.judging import judge
from training.rating.overfitting import overfitting
from training.rating.step_m import step_m

NUM_DAYS = 1000
RUNS = 5
STEP_M = {"reps": 1000, "block_size": 10, "seed": 0}
LEVEL = 0.05
CLEAN = LeakVerdict(
    subject="panel",
    fingerprint="abc",
    checks=("truncation",),
    findings=(),
    num_compared=1,
    checked_at=(datetime(2020, 1, 2, tzinfo=UTC),),
)


def _by_arch(unit_SV: np.ndarray) -> Any:
    test = StepM(np.zeros(len(unit_SV)), -unit_SV, size=LEVEL, **STEP_M)
    test.compute()
    return test.superior_models


def _night(net_VT: np.ndarray) -> Any:
    variants = [f"variant-{v}" for v in range(len(net_VT))]
    evidence = dict.fromkeys(variants, Evidence(fingerprint="abc", leaks=CLEAN))
    return judge(variants, net_VT, evidence, seed=0, periods_per_year=YEAR, num_tuning_trials=200)


def bench(*, quick: bool) -> Report:
    """Time each beside its peer; ``quick`` cuts the time into 12 blocks instead of 16, 924 combinations for 12,870."""
    net_VT, _ = draw(World(seed=0, num_bars=NUM_DAYS, num_skilled=20, sharpe=2.0))
    unit_SV = net_VT.T / net_VT.std(axis=1)
    luck_VT, _ = draw(World(seed=0, num_bars=NUM_DAYS))
    blocks = 12 if quick else 16
    progress("PBO ...")
    pbo_s, ours = median_seconds(lambda: overfitting(luck_VT, num_blocks=blocks), RUNS)
    usable = pd.DataFrame(
        luck_VT.T[NUM_DAYS % blocks :]
    )  # ffn drops the newest bars beyond a multiple, ours the oldest
    ffn_s, theirs = median_seconds(lambda: ffn.core.calc_prob_backtest_overfitting(usable, n_blocks=blocks), 1)
    progress("StepM ...")
    step_s, found = median_seconds(lambda: step_m(unit_SV, level=LEVEL, **STEP_M), RUNS)
    arch_s, superior = median_seconds(lambda: _by_arch(unit_SV), 3)
    progress("a night's gate ...")
    night_s, _ = median_seconds(lambda: _night(net_VT), 3)
    same = set(np.flatnonzero(found.superior_V)) == set(superior)
    size = f"{NUM_VARIANTS} x {NUM_DAYS}"
    return Report(
        bench="gates_speed",
        rows=[
            Row(name=f"PBO, {blocks} blocks", seconds=pbo_s, more={"answer": f"{ours.pbo:.4f}"}),
            Row(name=f"ffn's PBO, {blocks} blocks", seconds=ffn_s, more={"answer": f"{theirs:.4f}"}),
            Row(name="StepM", seconds=step_s, more={"answer": f"{found.superior_V.sum()} superior"}),
            Row(name="arch's StepM", seconds=arch_s, more={"answer": f"{len(superior)} superior"}),
            Row(name="a night's gate, all of it", seconds=night_s),
        ],
        bars=[
            at_most(f"PBO of {size}, seconds", pbo_s, 1.0),
            at_least("PBO: times faster than ffn", ratio(ffn_s, pbo_s), 5.0 if quick else 50.0),
            at_most("PBO: difference from ffn", abs(ours.pbo - theirs), 1e-9),
            at_least("StepM: times faster than arch", ratio(arch_s, step_s), 3.0),
            at_most("StepM: another superior set than arch's", float(not same), 0),
            at_most(f"a night's gate of {size}, seconds", night_s, 60.0),
        ],
        facts=[f"{size}, {RUNS} runs each of ours, 3 of arch's, 1 of ffn's"],
    )


def main() -> int:
    """Run the bench."""
    chosen = options(__doc__).parse_args()
    return publish(bench(quick=chosen.quick), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
