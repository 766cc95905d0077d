"""A small judged search: noise, one skilled variant, and one of every way to fail."""

from datetime import UTC, datetime

import numpy as np

from training.leakage.verdict import LeakVerdict
from training.rating.evidence import Evidence, Finding
from training.rating.judging import judge

YEAR = 252
NUM_BARS = 500
VARIANTS = ("skilled", "leaky", "uncertified", "forged", "slow", "drifted", "lucky-0", "lucky-1")
CLEAN = LeakVerdict(
    subject="momentum: panel",
    fingerprint="abc",
    checks=("truncation",),
    findings=(),
    num_compared=1_000,
    checked_at=(datetime(2020, 1, 2, tzinfo=UTC),),
)
CERTIFIED = Finding(ok=True, why="six of six items agree", value=6, threshold=6)


def returns():
    """All but the lucky have true skill, so that each fails by its own evidence only."""
    rows = np.random.default_rng(0).standard_normal((len(VARIANTS), NUM_BARS)) * 0.01
    rows -= rows.mean(axis=1, keepdims=True)
    rows[:6] += 0.01 * 5 / np.sqrt(YEAR)
    return rows


def good(**changes):
    """Evidence with nothing to say against it."""
    known = {"leaks": CLEAN, "certificate": CERTIFIED, "latency_p99_ms": 4.0, "drift": Finding(ok=True, why="steady")}
    return Evidence(fingerprint="abc", **{**known, **changes})


def evidence():
    changes = {
        "leaky": {"leaks": None},
        "uncertified": {"certificate": None},
        "forged": {"certificate": Finding(ok=False, why="the weights differ <b>")},
        "slow": {"latency_p99_ms": 80.0},
        "drifted": {"drift": Finding(ok=False, why="retrain: PSI 0.4")},
    }
    return {variant: good(**changes.get(variant, {})) for variant in VARIANTS}


def judged(**options):
    asked = {"seed": 0, "periods_per_year": YEAR, "num_failed": 2, "num_tuning_trials": 30, **options}
    return judge(VARIANTS, returns(), evidence(), **asked)
