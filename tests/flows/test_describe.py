"""The cycle's summary in words."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from flows.cycle import CycleConfig
from flows.steps import describe
from flows.steps.judge import Judgement
from flows.steps.run import Run
from tests.training.rating.judged_makers import VARIANTS, YEAR, evidence
from training.rating.engine import rate
from training.rating.judging import judge
from training.rating.selection import select
from training.rating.tracks import DECAY_HORIZONS, Tracks


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folders = {name: tmp_path / name for name in ("features", "panels", "fits", "signals", "reports")}
    now = datetime(2024, 5, 6, tzinfo=UTC)
    return Run(config=CycleConfig(), cycle_id="c", market="m", now=now, code="code", git_sha="sha", **folders)


def judgement(num_bars: int) -> Judgement:
    """Of eight variants that trade noise; the gates do not see the bars that their betas take."""
    returns_VT = np.random.default_rng(0).normal(0.0, 0.01, (len(VARIANTS), num_bars))
    tracks = Tracks(
        variants=VARIANTS,
        event_times_T=np.arange(num_bars).astype("datetime64[D]").astype("datetime64[us]"),
        net_VT=returns_VT,
        gross_VT=returns_VT,
        turnover_VT=np.ones_like(returns_VT),
        unit_impact_VT=np.full_like(returns_VT, np.nan),
        ic_VT=returns_VT,
        decay_VH=np.zeros((len(VARIANTS), len(DECAY_HORIZONS))),
        capital=0.0,
    )
    ratings = rate(tracks, returns_VT.mean(axis=0, keepdims=True), periods_per_year=YEAR)
    judged = judge(VARIANTS, ratings.residual_VT[:, 63:], evidence(), seed=0, periods_per_year=YEAR)
    selection = select(ratings.table, ratings.correlation, judged.verdicts)
    return Judgement(tracks=tracks, ratings=ratings, failed={}, judged=judged, selection=selection)


def test_a_track_that_looks_long_enough_is_told_which_bars_do_not_count(run: Run) -> None:
    said = describe._gate(run, judgement(126), num_trials=3)["Gate (strict)"]
    assert said == "no variant can be judged: that takes 126 bars after the first 63, which its beta takes"
    said = describe._gate(run, judgement(63 + 126), num_trials=3)["Gate (strict)"]
    assert "(8 with a long enough track, 126 bars after the first 63, which its beta takes) finds" in said
