"""A spec is whole or refused."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from feature_repo.market.schema import MarketError
from feature_repo.market.simulated.rounding import LOT, significant, whole_lots
from feature_repo.market.simulated.spec import Drift, Regime, SimSpec, random_stream

ONE = (Regime(name="calm", share=1.0, drift_ann=0.0, vol_factor=1.0),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": {"astrology": 0.05}}, r"no alpha can be planted in \['astrology'\]; choose among \['cross_asset'"),
        ({"alpha": {"momentum": 0.5}}, "the alpha of 'momentum' is 0.5; it must lie between -0.2 and 0.2"),
        ({"alpha": {"momentum": float("nan")}}, "the alpha of 'momentum' is nan"),
        ({"regimes": (*ONE, *ONE)}, r"shares are \[1.0, 1.0\]"),
        ({"regimes": (Regime(name="mad", share=1.0, drift_ann=0.0, vol_factor=99.0),)}, "vol_factor of regime 'mad'"),
        ({"regimes": (Regime(name="up", share=1.0, drift_ann=99.0, vol_factor=1.0),)}, "drift_ann of regime 'up'"),
        ({"drifts": (Drift(feature="price", at=0.5, size=1.0),)}, r"drift of 'price' can be injected; choose among"),
        ({"drifts": (Drift(feature="volume", at=1.5, size=1.0),)}, "at of the drift of 'volume' is 1.5"),
        ({"start": date(2024, 1, 1)}, "must lie between 1970 and a month before 2026-01-01"),
        ({"num_delistings": 10}, "num_delistings is 10; it must lie between 0 and 9"),
        ({"num_sectors": 1}, "num_sectors is 1"),
        ({"num_tick_days": 61}, "num_tick_days is 61; it must lie between 0 and 60"),
        ({"num_bad_rows": 11}, "num_bad_rows is 11"),
        ({"late_share": 0.5}, "late_share is 0.5"),
        ({"tail_dof": 4.0}, "tail_dof is 4.0; it must be above 4"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(MarketError, match=message):
        SimSpec(**fields)


def test_regimes_follow_each_other_over_the_whole_history():
    assert SimSpec().regime_days() == (0, 270, 630, 705, 960, 1200, 1500)
    assert SimSpec(regimes=ONE).regime_days() == (0, 1500)


def test_a_purpose_has_draws_of_its_own():
    def draw(seed: int, purpose: str) -> float:
        return float(random_stream(SimSpec(seed=seed), purpose).random())

    assert draw(1, "a") == draw(1, "a")
    assert len({draw(1, "a"), draw(1, "b"), draw(2, "a")}) == 3


def test_significant_digits():
    values = np.array([1234.5678, 0.0123456789, 98765432.1, 9.9999996, 1.0, np.nan])
    expected = [1234.57, 0.0123457, 98765400.0, 10.0, 1.0, np.nan]
    np.testing.assert_array_equal(significant(values), expected)
    rising = np.sort(np.exp(np.random.default_rng(0).uniform(-5, 15, 20_000)))
    assert (np.diff(significant(rising)) >= 0).all()


def test_sums_of_lots_are_exact():
    volume = whole_lots(np.random.default_rng(0).uniform(0, 1e7, 10_000), least=64)
    assert (volume / LOT == np.rint(volume / LOT)).all()
    assert volume[::-1].sum() == volume.sum() == volume.reshape(100, 100).sum(axis=1).sum()
    assert whole_lots(np.array([0.0]), least=64) == 64 * LOT
