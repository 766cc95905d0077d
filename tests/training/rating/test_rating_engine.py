"""Ratings: the figures are those of the metrics, and the score ranks what it says it ranks."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from training.metrics import performance as perf
from training.rating.engine import WEIGHTS, composite_score, correlation, rate
from training.rating.gates import skilled, track_record
from training.rating.selection import select
from training.rating.tracks import Tracks

YEAR = 252


def make_tracks(num_variants=8, num_bars=400, seed=0):
    rng = np.random.default_rng(seed)
    market = rng.normal(0.0004, 0.01, num_bars)
    drift = np.linspace(-0.0005, 0.0025, num_variants)[:, None]
    gross = drift + 0.2 * market + rng.normal(0, 0.008, (num_variants, num_bars))
    turnover = rng.uniform(0.2, 1.0, gross.shape)
    tracks = Tracks(
        variants=tuple(f"v{i}" for i in range(num_variants)),
        event_times_T=np.arange(num_bars).astype("datetime64[D]").astype("datetime64[us]"),
        net_VT=gross - 3e-4 * turnover,
        gross_VT=gross,
        turnover_VT=turnover,
        ic_VT=20 * drift + rng.normal(0, 0.2, gross.shape),
    )
    return tracks, market


def test_the_table_holds_the_metrics_figures():
    tracks, market = make_tracks()
    ratings = rate(tracks, market, periods_per_year=YEAR)
    residual = perf.beta_residual(tracks.net_VT, market)
    np.testing.assert_array_equal(ratings.residual_VT, residual)
    for v, name in enumerate(tracks.variants):
        row = ratings.table.loc[name]
        assert row["sharpe_net"] == pytest.approx(perf.sharpe(tracks.net_VT[v], periods_per_year=YEAR))
        assert row["sharpe_residual"] == pytest.approx(perf.sharpe(residual[v], periods_per_year=YEAR))
        assert row["sharpe_60"] == pytest.approx(perf.sharpe(tracks.net_VT[v, -60:], periods_per_year=YEAR))
        assert row["ann_return_gross"] > row["ann_return_net"]
        assert row["ic"] == pytest.approx(tracks.ic_VT[v].mean())
        assert row["psr"] == pytest.approx(perf.psr(residual[v]))
        others = np.delete(np.corrcoef(residual)[v], v)
        assert row["mean_correlation"] == pytest.approx(others.mean())
        assert row["num_days"] == 400


def test_the_best_drift_ranks_first_and_the_worst_last():
    tracks, market = make_tracks()
    table = rate(tracks, market, periods_per_year=YEAR).table
    assert list(table["rank"]) == list(range(1, 9))
    assert table["score"].is_monotonic_decreasing
    assert table.index[0] in {"v7", "v6"}
    assert table.index[-1] in {"v0", "v1"}


def test_the_order_of_the_tracks_does_not_matter():
    tracks, market = make_tracks()
    back = slice(None, None, -1)
    arrays = {name: getattr(tracks, name)[back] for name in ("net_VT", "gross_VT", "turnover_VT", "ic_VT")}
    turned = replace(tracks, variants=tracks.variants[back], **arrays)
    table = rate(tracks, market, periods_per_year=YEAR).table
    pd.testing.assert_frame_equal(rate(turned, market, periods_per_year=YEAR).table, table, rtol=1e-12)


def test_equals_rank_by_name():
    tracks, market = make_tracks(num_variants=3)
    same = {
        name: np.repeat(getattr(tracks, name)[:1], 3, axis=0) for name in ("net_VT", "gross_VT", "turnover_VT", "ic_VT")
    }
    table = rate(replace(tracks, variants=("c", "a", "b"), **same), market, periods_per_year=YEAR).table
    assert list(table.index) == ["a", "b", "c"]
    assert table["score"].nunique() == 1


def test_weights_are_a_whole_and_every_one_of_them_counts():
    assert sum(abs(weight) for weight in WEIGHTS.values()) == pytest.approx(1.0)
    base = pd.DataFrame(1.0, index=range(3), columns=[*WEIGHTS]).assign(num_days=1e9)
    np.testing.assert_allclose(composite_score(base), 0.5)
    for column, weight in WEIGHTS.items():
        better = base.assign(**{column: [0.0, 1.0, 2.0]})
        score = composite_score(better)
        np.testing.assert_allclose(score[2] - score[0], weight * 2 / 3, atol=1e-6)


def test_one_freak_figure_buys_one_rank_only():
    tracks, market = make_tracks()
    table = rate(tracks, market, periods_per_year=YEAR).table
    freak = table.assign(profit_factor=table["profit_factor"].where(table.index != table.index[-1], 1e9))
    assert composite_score(freak).loc[table.index[-1]] < 0.5


def test_a_short_track_is_shrunk_to_the_middle_and_its_gaps_are_not_counted():
    tracks, market = make_tracks()
    net = tracks.net_VT.copy()
    net[7, :-42] = np.nan
    ratings = rate(replace(tracks, net_VT=net), market, periods_per_year=YEAR)
    row = ratings.table.loc["v7"]
    assert row["num_days"] == 42
    assert row["sharpe_net"] == pytest.approx(perf.sharpe(tracks.net_VT[7, -42:], periods_per_year=YEAR))
    assert np.isnan(row["sharpe_60"])
    assert np.isfinite(row["sharpe_30"])
    unshrunk = composite_score(ratings.table.assign(num_days=1e12)).loc["v7"]
    assert row["score"] - 0.5 == pytest.approx((unshrunk - 0.5) * 42 / (42 + 126))


def test_a_variant_that_never_traded_ranks_without_a_crash():
    tracks, market = make_tracks()
    net = tracks.net_VT.copy()
    net[3], net[4] = 0.0, np.nan
    table = rate(replace(tracks, net_VT=net), market, periods_per_year=YEAR).table
    assert table.loc[["v3", "v4"], "sharpe_net"].isna().all()
    assert np.isfinite(table["score"]).all()
    assert table.loc["v4", "num_days"] == 0


def test_correlation_equals_pandas_over_shared_bars():
    rng = np.random.default_rng(0)
    returns = rng.normal(size=(6, 150)) + rng.normal(size=150)
    returns[1, :60] = np.nan
    returns[2, :140] = np.nan
    returns[3] = 0.0
    returns[4, rng.random(150) < 0.2] = np.nan
    expected = pd.DataFrame(returns.T).corr(min_periods=20)
    np.testing.assert_allclose(correlation(returns), expected, atol=1e-10)
    assert np.isnan(correlation(returns)[3]).all()


def test_nothing_trained_is_an_empty_table():
    tracks, market = make_tracks()
    none = {name: np.empty((0, 400)) for name in ("net_VT", "gross_VT", "turnover_VT", "ic_VT")}
    ratings = rate(replace(tracks, variants=(), **none), market, periods_per_year=YEAR)
    assert ratings.table.empty
    assert {"score", "rank", "sharpe_residual"} <= set(ratings.table.columns)
    assert not select(ratings.table, ratings.correlation, {}).reasons


def test_the_whole_way_from_tracks_to_stages():
    """Two real edges among noise: they go live, the rest is on paper or refused with a reason."""
    tracks, market = make_tracks(num_variants=16, num_bars=750, seed=3)
    rng = np.random.default_rng(4)
    net = rng.normal(0, 0.008, tracks.net_VT.shape) + 0.5 * market
    net -= net.mean(axis=1, keepdims=True)
    net[[2, 9]] += 0.008 * 5 / YEAR**0.5
    ratings = rate(replace(tracks, net_VT=net), market, periods_per_year=YEAR)
    gate = skilled(ratings.residual_VT, seed=0, reps=200).verdicts(periods_per_year=YEAR)
    verdicts = {name: [gate[v], track_record(ratings.residual_VT[v])] for v, name in enumerate(ratings.variants)}
    chosen = select(ratings.table, ratings.correlation, verdicts)
    assert set(chosen.production) == {"v2", "v9"}
    assert len(chosen.staging) == 6
    assert len(chosen.refused) == 8
