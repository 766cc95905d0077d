"""Performance figures against quantstats, closed forms and brute force."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from training.metrics import performance as perf

YEAR = 252


@pytest.fixture(scope="module")
def returns():
    rng = np.random.default_rng(7)
    return 0.01 * rng.standard_t(4, size=(3, 600)) + 0.0005


@pytest.fixture(scope="module")
def golden():
    import quantstats.stats

    return quantstats.stats


def as_series(row):
    return pd.Series(row, index=pd.bdate_range("2015-01-01", periods=len(row)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda r: perf.sharpe(r, periods_per_year=YEAR), lambda q, s: q.sharpe(s, periods=YEAR)),
        (lambda r: perf.sortino(r, periods_per_year=YEAR), lambda q, s: q.sortino(s, periods=YEAR)),
        (lambda r: perf.annual_return(r, periods_per_year=YEAR), lambda q, s: q.cagr(s, periods=YEAR)),
        (lambda r: perf.annual_volatility(r, periods_per_year=YEAR), lambda q, s: q.volatility(s, periods=YEAR)),
        (perf.max_drawdown, lambda q, s: q.max_drawdown(s)),
        (perf.win_rate, lambda q, s: q.win_rate(s)),
        (perf.profit_factor, lambda q, s: q.profit_factor(s)),
    ],
    ids=["sharpe", "sortino", "cagr", "volatility", "max_drawdown", "win_rate", "profit_factor"],
)
def test_equals_quantstats(ours, theirs, returns, golden):
    expected = [theirs(golden, as_series(row)) for row in returns]
    np.testing.assert_allclose(ours(returns), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda r: perf.sharpe(r, periods_per_year=YEAR), lambda e, s: e.sharpe_ratio(s, annualization=YEAR)),
        (lambda r: perf.sortino(r, periods_per_year=YEAR), lambda e, s: e.sortino_ratio(s, annualization=YEAR)),
        (lambda r: perf.annual_return(r, periods_per_year=YEAR), lambda e, s: e.annual_return(s, annualization=YEAR)),
        (
            lambda r: perf.annual_volatility(r, periods_per_year=YEAR),
            lambda e, s: e.annual_volatility(s, annualization=YEAR),
        ),
        (perf.max_drawdown, lambda e, s: e.max_drawdown(s)),
    ],
    ids=["sharpe", "sortino", "annual_return", "volatility", "max_drawdown"],
)
def test_equals_empyrical(ours, theirs, returns):
    import empyrical

    expected = [theirs(empyrical, as_series(row)) for row in returns]
    np.testing.assert_allclose(ours(returns), expected, rtol=1e-10)


def test_residual_beta_is_empyricals_of_the_bars_before(returns):
    import empyrical

    market = 0.5 * returns[1] + returns[2]
    residual = perf.beta_residual(returns, market[None], window=100, min_obs=30)
    for t in (30, 99, 100, 101, 599):
        past = slice(max(0, t - 100), t)
        expected = [row[t] - empyrical.beta(row[past], market[past]) * market[t] for row in returns]
        np.testing.assert_allclose(residual[:, t], expected, rtol=1e-9)


def test_recovery_is_quantstats_one_bar_after_the_last_under_water(returns, golden):
    falls = 0
    for row in [*returns, -returns[0], returns[1] - 0.001]:
        series = pd.Series(row, index=pd.date_range("2015-01-01", periods=len(row)))  # a bar is a calendar day
        worst = golden.drawdown_details(golden.to_drawdown_series(series)).sort_values("max drawdown").iloc[0]
        found = perf.recovery_bars(row)
        if worst["end"] == f"{series.index[-1]:%Y-%m-%d}":
            assert np.isnan(found)
        else:
            assert found == (pd.Timestamp(worst["end"]) - pd.Timestamp(worst["valley"])).days + 1
            falls += 1
    assert falls


def test_rolling_sharpe_equals_quantstats(returns, golden):
    expected = golden.rolling_sharpe(as_series(returns[0]), rolling_period=60, periods_per_year=YEAR)
    ours = perf.rolling_sharpe(returns, window=60, periods_per_year=YEAR)
    np.testing.assert_allclose(ours[0], expected.to_numpy(), rtol=1e-8)
    np.testing.assert_allclose(ours[:, -1], perf.sharpe(returns[:, -60:], periods_per_year=YEAR), rtol=1e-12)


def test_psr_equals_quantstats_up_to_its_unbiased_moments(returns, golden):
    expected = [golden.probabilistic_ratio(as_series(row)) for row in returns]
    np.testing.assert_allclose(perf.psr(returns), expected, atol=2e-3)


def test_psr_is_the_papers_formula(returns):
    row = returns[0]
    ratio = row.mean() / row.std(ddof=1)
    skewness, kurtosis = stats.skew(row), stats.kurtosis(row, fisher=False)
    error = np.sqrt((1 - skewness * ratio + (kurtosis - 1) / 4 * ratio**2) / (len(row) - 1))
    np.testing.assert_allclose(perf.psr(row, benchmark_sharpe=0.01), stats.norm.cdf((ratio - 0.01) / error), rtol=1e-12)


def test_a_track_of_the_minimum_length_has_the_level_as_its_psr():
    """The two formulas are each other's inverse: PSR at n = MinTRL is 1 - level."""
    row = 0.01 * np.random.default_rng(1).standard_normal(400) + 0.001
    ratio = row.mean() / row.std(ddof=1)
    needed = perf.min_track_record(row, level=0.05)
    z_have = stats.norm.ppf(perf.psr(row))
    np.testing.assert_allclose(z_have * np.sqrt((needed - 1) / (len(row) - 1)), stats.norm.ppf(0.95), rtol=1e-9)
    assert perf.min_track_record(-row) == np.inf
    assert perf.min_track_record(row, benchmark_sharpe=2 * ratio) == np.inf


def test_expected_max_sharpe_is_what_the_best_of_luck_shows():
    draws = np.random.default_rng(0).standard_normal((4000, 200)).max(axis=1)
    assert perf.expected_max_sharpe(1.0, 200) == pytest.approx(draws.mean(), abs=0.03)
    assert perf.expected_max_sharpe(1.0, 1) == 0.0


def test_drawdown_and_recovery_by_hand():
    down_and_back = np.array([0.1, -0.1, -0.5, 0.5, 1 / 0.45 / 1.5 - 1, -0.01])
    assert perf.max_drawdown(down_and_back) == pytest.approx(-0.55)
    assert perf.recovery_bars(down_and_back) == 2
    assert np.isnan(perf.recovery_bars(down_and_back[:4]))
    assert perf.max_drawdown(np.array([-0.2, 0.1])) == pytest.approx(-0.2)  # below the starting capital
    assert perf.recovery_bars(np.array([0.01, 0.02])) == 0
    assert perf.max_drawdown(np.array([0.5, -1.5, 3.0])) == -1.0
    assert perf.annual_return(np.array([0.5, -1.5, 3.0]), periods_per_year=YEAR) == -1.0


def test_closed_forms():
    row = np.array([0.02, -0.01, 0.0, 0.03])
    assert perf.win_rate(row) == pytest.approx(2 / 3)
    assert perf.profit_factor(row) == pytest.approx(5.0)
    assert perf.profit_factor(np.array([0.1])) == np.inf
    assert perf.sortino(row, periods_per_year=1) == pytest.approx(0.01 / (0.01 / 2))
    assert perf.annual_return(np.full(4, 0.1), periods_per_year=2) == pytest.approx(1.1**2 - 1)
    assert perf.turnover_ann(np.array([0.5, 1.5]), periods_per_year=YEAR) == pytest.approx(252)


@pytest.mark.parametrize("row", [np.zeros(10), np.full(10, 0.001), np.array([0.01]), np.full(5, np.nan), np.array([])])
def test_what_is_not_defined_is_nan_without_a_warning(row):
    assert np.isnan(perf.sharpe(row, periods_per_year=YEAR))
    assert np.isnan(perf.psr(row))
    assert np.isnan(perf.rolling_sharpe(row, window=3, periods_per_year=YEAR)).all()
    assert np.isnan(perf.min_track_record(row))


def test_nothing_traded_has_no_rates():
    assert np.isnan(perf.win_rate(np.zeros(5)))
    assert np.isnan(perf.profit_factor(np.zeros(5)))
    assert np.isnan(perf.max_drawdown(np.full(3, np.nan)))
    assert np.isnan(perf.annual_return(np.full(3, np.nan), periods_per_year=YEAR))


def test_a_late_start_changes_nothing(returns):
    """NaN before a variant's first bar leaves every figure as that of the bars it has."""
    late = returns.copy()
    late[:, :200] = np.nan
    for figure in (perf.win_rate, perf.profit_factor, perf.max_drawdown, perf.recovery_bars, perf.psr):
        np.testing.assert_allclose(figure(late), figure(returns[:, 200:]), rtol=1e-12)
    for figure in (perf.sharpe, perf.sortino, perf.annual_return, perf.annual_volatility):
        np.testing.assert_allclose(
            figure(late, periods_per_year=YEAR), figure(returns[:, 200:], periods_per_year=YEAR), rtol=1e-12
        )


def test_capacity_is_where_impact_halves_the_edge():
    """e = 4e-4 a bar before impact, k = 1e-7 a root of capital: (e / 2k)^2 = 4 million, whatever capital was traded."""
    impact = 1e-7 * np.array([0.5, 1.5, 1.0, 1.0])
    edge = np.array([9e-4, -3e-4, 4e-4, 6e-4])
    for capital in (0.0, 1e4, 4e6):
        net = edge - np.sqrt(capital) * impact
        assert perf.capacity(net, impact, capital=capital) == pytest.approx(4e6)
    at_capacity = edge - np.sqrt(4e6) * impact
    assert at_capacity.mean() == pytest.approx(edge.mean() / 2)
    ratio = perf.sharpe(at_capacity, periods_per_year=YEAR) / perf.sharpe(edge, periods_per_year=YEAR)
    assert ratio == pytest.approx(0.5, abs=0.1)


def test_capacity_without_an_edge_volumes_or_trades():
    impact = np.full(4, 1e-7)
    assert perf.capacity(np.full(4, -1e-4), impact, capital=0.0) == 0.0
    assert np.isnan(perf.capacity(np.full(4, 1e-4), np.full(4, np.nan), capital=0.0))
    assert np.isnan(perf.capacity(np.zeros(4), np.zeros(4), capital=0.0))
    known = perf.capacity(np.full(2, 1e-4), impact[:2], capital=0.0)
    assert perf.capacity(np.array([1e-4, 1e-4, 9.0]), np.array([1e-7, 1e-7, np.nan]), capital=0.0) == known


def slow_residual(net_T, market_FT, *, window, min_obs):
    out = net_T.copy()
    for t in range(len(net_T)):
        past = slice(max(0, t - window), t)
        know = np.isfinite(net_T[past]) & np.isfinite(market_FT[:, past]).all(axis=0)
        if know.sum() >= min_obs:
            x = np.column_stack([np.ones(know.sum()), market_FT[:, past][:, know].T])
            betas = np.linalg.lstsq(x, net_T[past][know], rcond=None)[0][1:]
            out[t] = net_T[t] - np.nansum(betas * market_FT[:, t])
    return out


@pytest.mark.parametrize("num_factors", [1, 2, 3])
def test_residual_equals_brute_force(num_factors):
    rng = np.random.default_rng(3)
    market = rng.normal(0, 0.01, 200) + rng.normal(0, 0.004, (num_factors, 200))  # factors alike, as indices are
    net = np.stack([0.8 * market[0], -0.3 * market.sum(axis=0)]) + rng.normal(0, 0.004, (2, 200))
    net[1, :50] = np.nan
    market[:, 120:123] = market[-1, 150] = np.nan
    ours = perf.beta_residual(net, market, window=60, min_obs=20)
    expected = [slow_residual(row, market, window=60, min_obs=20) for row in net]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(ours[0, :20], net[0, :20])  # no beta before there are enough bars


def test_beta_uses_no_future():
    rng = np.random.default_rng(4)
    market = rng.normal(0, 0.01, 300)
    net = market * 1.2 + rng.normal(0, 0.003, (2, 300))
    whole = perf.beta_residual(net, market[None], window=100, min_obs=30)
    for stop in (40, 150, 299):
        np.testing.assert_array_equal(
            perf.beta_residual(net[:, :stop], market[None, :stop], window=100, min_obs=30), whole[:, :stop]
        )
    # The bar's own market return doesn't enter its beta: doubling it moves the residual by exactly beta times as much.
    doubled = market.copy()
    doubled[200] *= 2
    moved = perf.beta_residual(net, doubled[None], window=100, min_obs=30)[0, 200] - whole[0, 200]
    assert moved / market[200] == pytest.approx((whole[0, 200] - net[0, 200]) / market[200], rel=1e-9)


def test_holding_the_market_has_no_residual_and_a_flat_benchmark_takes_nothing():
    market = np.random.default_rng(5).normal(0.001, 0.01, 400)
    residual = perf.beta_residual(market[None], market[None])
    np.testing.assert_allclose(residual[0, 63:], 0.0, atol=1e-12)
    np.testing.assert_array_equal(perf.beta_residual(market[None], np.full((1, 400), 0.0003))[0], market)


@pytest.mark.parametrize("shape", [(400,), (1, 399), (400, 1)])
def test_factors_of_other_bars_are_refused(shape):
    with pytest.raises(ValueError, match=r"rows \(F, T\) over the bars of the returns .* got returns \(2, 400\)"):
        perf.beta_residual(np.zeros((2, 400)), np.zeros(shape))


@pytest.mark.parametrize("twin", [1.0, -0.5])
def test_a_factor_that_says_nothing_new_takes_nothing(twin):
    rng = np.random.default_rng(6)
    market_T = rng.normal(0.001, 0.01, 400)
    net_VT = 0.7 * market_T + rng.normal(0, 0.004, (3, 400))
    twice = perf.beta_residual(net_VT, np.stack([market_T, twin * market_T]))
    np.testing.assert_allclose(twice, perf.beta_residual(net_VT, market_T[None]), atol=1e-12)


def test_holding_assets_that_beat_their_benchmark_has_no_residual_to_both():
    """A desk's assets are those that did well: residual to the index alone, holding them would be skill."""
    rng = np.random.default_rng(7)
    index_T = rng.normal(0.0003, 0.01, 1000)
    mean_T = index_T + rng.normal(0.001, 0.004, 1000)
    net_VT = np.array([[0.7], [1.0]]) * mean_T
    alone_VT = perf.beta_residual(net_VT, index_T[None])[:, perf.MIN_BETA_BARS :]
    both_VT = perf.beta_residual(net_VT, np.stack([index_T, mean_T]))[:, perf.MIN_BETA_BARS :]
    assert (perf.sharpe(alone_VT, periods_per_year=YEAR) > 2).all()
    np.testing.assert_allclose(both_VT, 0.0, atol=1e-12)


def test_of_a_late_starter_too_the_first_bars_are_not_residual_yet():
    """It holds a rising market from bar 100 on: on its raw first bars that would be skill."""
    rng = np.random.default_rng(3)
    market_T = 0.01 + 0.01 * rng.standard_normal(400)
    net_VT = np.vstack([market_T, np.where(np.arange(400) < 100, np.nan, market_T)])
    residual_VT = perf.beta_residual(net_VT, market_T[None])
    kept_VT = perf.hedged(residual_VT)
    np.testing.assert_allclose(kept_VT[0, perf.MIN_BETA_BARS :], residual_VT[0, perf.MIN_BETA_BARS :])
    assert np.isnan(kept_VT[0, : perf.MIN_BETA_BARS]).all()
    assert np.isnan(kept_VT[1, : 100 + perf.MIN_BETA_BARS]).all()
    assert np.nanmean(residual_VT[1]) > 1e-3
    np.testing.assert_allclose(kept_VT[:, 100 + perf.MIN_BETA_BARS :], 0.0, atol=1e-12)
