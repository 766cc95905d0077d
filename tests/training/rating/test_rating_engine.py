"""Ratings: the figures are those of the metrics, and the score ranks what it says it ranks."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from training.metrics import performance as perf
from training.rating.engine import WEIGHTS, composite_score, correlation, rate
from training.rating.gates import skilled, track_record
from training.rating.selection import select
from training.rating.tracks import DECAY_HORIZONS, Tracks

YEAR = 252
SERIES = ("net_VT", "gross_VT", "turnover_VT", "unit_impact_VT", "ic_VT", "decay_VH")


def make_tracks(num_variants=8, num_bars=400, seed=0):
    rng = np.random.default_rng(seed)
    market = rng.normal(0.0004, 0.01, (2, num_bars))
    drift = np.linspace(-0.0005, 0.0025, num_variants)[:, None]
    gross = drift + 0.2 * market[0] + rng.normal(0, 0.008, (num_variants, num_bars))
    turnover = rng.uniform(0.2, 1.0, gross.shape)
    tracks = Tracks(
        variants=tuple(f"v{i}" for i in range(num_variants)),
        event_times_T=np.arange(num_bars).astype("datetime64[D]").astype("datetime64[us]"),
        net_VT=gross - 3e-4 * turnover,
        gross_VT=gross,
        turnover_VT=turnover,
        unit_impact_VT=rng.uniform(0.5e-7, 1.5e-7, gross.shape),
        ic_VT=20 * drift + rng.normal(0, 0.2, gross.shape),
        decay_VH=20 * drift / np.sqrt(DECAY_HORIZONS),
        capital=0.0,
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
        assert row[[f"ic_{bars}" for bars in DECAY_HORIZONS]].tolist() == tracks.decay_VH[v].tolist()
        assert row["capacity"] == pytest.approx(perf.capacity(tracks.net_VT[v], tracks.unit_impact_VT[v], capital=0.0))


def test_the_table_is_what_its_readers_and_the_documentation_name():
    tracks, market = make_tracks()
    table = rate(tracks, market, periods_per_year=YEAR).table
    described = rate.__doc__.split("Columns of the table;")[1]
    assert [name for name in table.columns if f"``{name}``" not in described] == ["ic_2", "ic_3", "ic_5"]  # "ic_1 .."
    assert {*WEIGHTS, "score", "rank", "ann_vol", "psr"} <= {*table.columns}
    assert table.index.name == "variant"


def test_correlation_with_the_active_leaves_the_variant_itself_out():
    tracks, market = make_tracks()
    residual = perf.beta_residual(tracks.net_VT, market)
    corr = np.corrcoef(residual)
    rated = rate(tracks, market, periods_per_year=YEAR, active=["v2", "v5", "gone"]).table["active_correlation"]
    assert rated["v0"] == pytest.approx(corr[0, [2, 5]].mean())
    assert rated["v2"] == pytest.approx(corr[2, 5])
    assert rate(tracks, market, periods_per_year=YEAR).table["active_correlation"].isna().all()
    alone = rate(tracks, market, periods_per_year=YEAR, active=["v2"]).table["active_correlation"]
    assert alone.isna().tolist() == [name == "v2" for name in alone.index]


def test_of_two_alike_the_simpler_one_ranks_first():
    tracks, market = make_tracks(num_variants=2)
    same = {name: np.repeat(getattr(tracks, name)[:1], 2, axis=0) for name in SERIES}
    sizes = {"v0": 100_000, "v1": 10}
    table = rate(replace(tracks, **same), market, periods_per_year=YEAR, num_parameters=sizes).table
    assert table.index.tolist() == ["v1", "v0"]
    assert table["num_parameters"].tolist() == [10, 100_000]


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
    arrays = {name: getattr(tracks, name)[back] for name in SERIES}
    turned = replace(tracks, variants=tracks.variants[back], **arrays)
    table = rate(tracks, market, periods_per_year=YEAR).table
    pd.testing.assert_frame_equal(rate(turned, market, periods_per_year=YEAR).table, table, rtol=1e-12)


def test_equals_rank_by_name():
    tracks, market = make_tracks(num_variants=3)
    same = {name: np.repeat(getattr(tracks, name)[:1], 3, axis=0) for name in SERIES}
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
    last = table.index[-1]
    for column, weight in WEIGHTS.items():
        freak = table.assign(**{column: table[column].where(table.index != last, np.copysign(1e9, weight))})
        assert composite_score(freak)[last] - table.loc[last, "score"] <= abs(weight)
        by_value = (freak[[*WEIGHTS]].fillna(0.0) * pd.Series(WEIGHTS)).sum(axis=1)
        assert by_value.idxmax() == last  # the broken variant: values instead of ranks
    freak = table.assign(profit_factor=table["profit_factor"].where(table.index != last, np.inf))
    assert composite_score(freak)[last] < 0.5


def test_an_unknown_merit_ranks_last_and_an_unknown_cost_in_the_middle():
    base = pd.DataFrame(1.0, index=list("abc"), columns=[*WEIGHTS]).assign(num_days=1e9)
    merit = composite_score(base.assign(ic_t=[np.nan, 1.0, 2.0]))
    assert merit.index[merit.argsort()].tolist() == ["a", "b", "c"]
    cost = composite_score(base.assign(num_parameters=[np.nan, 1e6, 10.0]))
    assert cost.index[cost.argsort()].tolist() == ["b", "a", "c"]
    np.testing.assert_allclose(cost["a"], 0.5)


def test_a_few_lucky_days_do_not_pass_for_a_year_of_them():
    """Forecasts on 40 good days of 400: flat on the others, its Sharpe ratio is lower by the root of 10."""
    tracks, market = make_tracks()
    rng = np.random.default_rng(9)
    days = np.sort(rng.choice(400, 40, replace=False))
    lucky = rng.normal(0.002, 0.008, 40)
    flat, missing = tracks.net_VT.copy(), tracks.net_VT.copy()
    flat[0], missing[0] = 0.0, np.nan
    flat[0, days] = missing[0, days] = lucky
    as_built = rate(replace(tracks, net_VT=flat), market, periods_per_year=YEAR).table.loc["v0"]
    as_dropped = rate(replace(tracks, net_VT=missing), market, periods_per_year=YEAR).table.loc["v0"]
    assert as_built["sharpe_net"] == pytest.approx(as_dropped["sharpe_net"] / np.sqrt(10), rel=0.05)
    assert as_built["ann_return_net"] < 0.2 * as_dropped["ann_return_net"]
    assert as_built["num_days"] == 400


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


def test_a_track_shorter_than_ninety_bars_is_recent_throughout():
    tracks, market = make_tracks()
    net = tracks.net_VT.copy()
    net[7, :-60] = np.nan
    table = rate(replace(tracks, net_VT=net), market, periods_per_year=YEAR).table
    assert np.isnan(table.loc["v7", "sharpe_90"])
    filled = table.assign(sharpe_90=table["sharpe_90"].fillna(table["sharpe_net"]))
    assert composite_score(filled)["v7"] == table.loc["v7", "score"]
    assert (
        composite_score(table.assign(sharpe_90=filled["sharpe_90"].fillna(-9).where(table.index != "v7", -9)))["v7"]
        < table.loc["v7", "score"]
    )


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
    none = {name: getattr(tracks, name)[:0] for name in SERIES}
    ratings = rate(replace(tracks, variants=(), **none), market, periods_per_year=YEAR)
    assert ratings.table.empty
    assert {"score", "rank", "sharpe_residual"} <= set(ratings.table.columns)
    assert not select(ratings.table, ratings.correlation, {}).reasons


def test_the_whole_way_from_tracks_to_stages():
    """Two real edges among noise: they go live, the rest is on paper or refused with a reason."""
    tracks, market = make_tracks(num_variants=16, num_bars=750, seed=3)
    rng = np.random.default_rng(4)
    net = rng.normal(0, 0.008, tracks.net_VT.shape) + 0.5 * market[0] + 0.3 * market[1]
    net -= net.mean(axis=1, keepdims=True)
    net[[2, 9]] += 0.008 * 5 / YEAR**0.5
    ratings = rate(replace(tracks, net_VT=net), market, periods_per_year=YEAR)
    gate = skilled(ratings.residual_VT, seed=0, reps=200).verdicts(periods_per_year=YEAR)
    verdicts = {name: [gate[v], track_record(ratings.residual_VT[v])] for v, name in enumerate(ratings.variants)}
    chosen = select(ratings.table, ratings.correlation, verdicts)
    assert set(chosen.production) == {"v2", "v9"}
    assert len(chosen.staging) == 6
    assert len(chosen.refused) == 8
