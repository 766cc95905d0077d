"""The one sum from scores to net returns: by hand, as properties, and against a slow book-keeper."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from feature_repo.market.costs import CostModel, Liquidity
from training.metrics.performance import sharpe
from training.simulate import positions_from_scores, simulate, tune_threshold

FREE = CostModel(fee_bps=0.0, half_spread_bps=0.0, borrow_bps_ann=0.0)
COSTS = CostModel(fee_bps=1.0, half_spread_bps=2.0, borrow_bps_ann=50.0)

score_arrays = arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(2, 6)),
    elements=st.one_of(st.just(np.nan), st.floats(-3, 3).map(lambda x: round(x, 3))),
)


def world(seed, num_times=60, num_entities=6):
    rng = np.random.default_rng(seed)
    score = rng.normal(size=(num_times, num_entities))
    returns = rng.normal(0, 0.02, score.shape)
    score[rng.random(score.shape) < 0.1] = np.nan
    returns[rng.random(score.shape) < 0.05] = np.nan
    return score, returns


@settings(max_examples=200, deadline=None)
@given(score=score_arrays, threshold=st.floats(0, 2))
def test_positions_are_dollar_neutral_with_gross_one_or_flat(score, threshold):
    weights = positions_from_scores(score, threshold)
    gross = np.abs(weights).sum(axis=1)
    invested = gross > 0
    np.testing.assert_allclose(weights.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(gross[invested], 1.0, atol=1e-12)
    assert (weights[np.isnan(score)] == 0).all()
    edge = score - np.nansum(score, axis=1, keepdims=True) / np.maximum(
        np.isfinite(score).sum(axis=1, keepdims=True), 1
    )
    held = weights != 0
    assert (np.abs(edge[held]) >= threshold).all()
    assert (np.sign(weights[held]) == np.sign(edge[held])).all()


def test_weights_are_proportional_to_the_distance_from_the_mean():
    weights = positions_from_scores(np.array([[4.0, 2.0, 0.0, -6.0]]), 0.0)
    np.testing.assert_allclose(weights, [[1 / 3, 1 / 6, 0.0, -0.5]])
    # A threshold of 4 leaves one on each side, itself included; of 5 an empty long leg, so nothing at all.
    np.testing.assert_allclose(positions_from_scores(np.array([[4.0, 2.0, 0.0, -6.0]]), 4.0), [[0.5, 0, 0, -0.5]])
    np.testing.assert_array_equal(positions_from_scores(np.array([[4.0, 2.0, 0.0, -6.0]]), 5.0), np.zeros((1, 4)))


def test_a_threshold_for_each_decision_is_that_of_its_row():
    score, _ = world(0)
    threshold = np.linspace(0.0, 1.5, len(score))
    threshold[5] = np.inf
    rows = [positions_from_scores(score[i : i + 1], threshold[i])[0] for i in range(len(score))]
    np.testing.assert_array_equal(positions_from_scores(score, threshold), rows)
    assert (rows[5] == 0).all()


def test_two_assets_by_hand():
    """Long A, short B twice, then the other way round; 3 bps a unit traded, 50 bps a year on shorts."""
    score = np.array([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    returns = np.array([[0.10, -0.10], [0.02, 0.04], [0.0, 0.01]])
    book = simulate(score, returns, threshold=0.0, costs=COSTS)
    np.testing.assert_allclose(book.gross_T, [0.10, -0.01, 0.005])
    # After row 0 capital is 1.10 and A weighs 0.55 / 1.1 = 0.5, B -0.45 / 1.1: back to -0.5 trades 0.5 - 0.45 / 1.1.
    second = 0.5 - 0.45 / 1.1
    third = (0.5 + 0.5 * 1.02 / 0.99) + (0.5 + 0.5 * 1.04 / 0.99)
    np.testing.assert_allclose(book.turnover_T, [1.0, second, third])
    borrow = 0.5 * 50e-4 / 252
    np.testing.assert_allclose(book.cost_T, np.array([1.0, second, third]) * 3e-4 + borrow)
    np.testing.assert_allclose(book.net_T, book.gross_T - book.cost_T)


def slow_book(score, returns, threshold, costs):
    """One decision after another, in plain Python."""
    before, out = np.zeros(score.shape[1]), []
    for s, r in zip(score, np.nan_to_num(returns), strict=True):
        edge = s - np.nanmean(s)
        kept = np.where(np.abs(edge) >= threshold, np.nan_to_num(edge), 0.0)
        long, short = kept.clip(min=0), (-kept).clip(min=0)
        weights = 0.5 * long / long.sum() - 0.5 * short / short.sum() if long.any() and short.any() else kept * 0
        gross = weights @ r
        cost = costs.cost_TN(weights[None], before[None]).sum()
        out.append((gross - cost, np.abs(weights - before).sum()))
        before = weights * (1 + r) / (1 + gross)
    return np.array(out).T


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_slow_bookkeeper(seed):
    score, returns = world(seed)
    book = simulate(score, returns, threshold=0.5, costs=COSTS)
    np.testing.assert_allclose([book.net_T, book.turnover_T], slow_book(score, returns, 0.5, COSTS), atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), threshold=st.floats(0, 1.5))
def test_net_is_gross_less_cost_and_cost_never_pays(seed, threshold):
    score, returns = world(seed)
    book = simulate(score, returns, threshold=threshold, costs=COSTS)
    free = simulate(score, returns, threshold=threshold, costs=FREE)
    np.testing.assert_array_equal(book.net_T, book.gross_T - book.cost_T)
    assert (book.cost_T >= 0).all()
    np.testing.assert_array_equal(free.net_T, free.gross_T)
    np.testing.assert_array_equal(free.gross_T, book.gross_T)
    assert (book.net_T <= free.net_T).all()


def test_the_future_changes_nothing():
    score, returns = world(1)
    whole = simulate(score, returns, threshold=0.3, costs=COSTS)
    for stop in (1, 20, 59):
        cut = simulate(score[:stop], returns[:stop], threshold=0.3, costs=COSTS)
        np.testing.assert_array_equal(cut.net_T, whole.net_T[:stop])
        np.testing.assert_array_equal(cut.positions_TN, whole.positions_TN[:stop])
    # The broken variant, a decision that earns the return before it, is another book.
    assert not np.allclose(simulate(score[1:], returns[:-1], threshold=0.3, costs=COSTS).net_T, whole.net_T[1:])


def test_no_scores_are_flat_and_leaving_costs():
    score = np.array([[1.0, -1.0], [np.nan, np.nan], [np.nan, np.nan]])
    book = simulate(score, np.zeros((3, 2)), threshold=0.0, costs=COSTS)
    np.testing.assert_allclose(book.turnover_T, [1.0, 1.0, 0.0])
    assert book.net_T[1] == pytest.approx(-3e-4)
    assert book.net_T[2] == 0.0


def test_a_missing_return_keeps_the_position_and_earns_nothing():
    score = np.array([[1.0, -1.0], [1.0, -1.0]])
    book = simulate(score, np.array([[np.nan, 0.0], [0.0, 0.0]]), threshold=0.0, costs=COSTS)
    np.testing.assert_allclose(book.gross_T, 0.0)
    np.testing.assert_allclose(book.turnover_T, [1.0, 0.0])


def test_a_ruined_book_starts_again_from_flat():
    score = np.array([[1.0, -1.0], [1.0, -1.0]])
    book = simulate(score, np.array([[0.0, 3.0], [0.01, 0.0]]), threshold=0.0, costs=FREE)
    assert book.gross_T[0] == -1.5
    np.testing.assert_allclose(book.turnover_T, [1.0, 1.0])


def test_no_decisions_no_book():
    book = simulate(np.empty((0, 3)), np.empty((0, 3)), threshold=0.0, costs=COSTS)
    assert book.net_T.shape == (0,)


def test_tuned_threshold_is_the_best_on_what_it_saw():
    """Only extreme scores carry anything: a high threshold wins, and no candidate beats the one chosen."""
    rng = np.random.default_rng(2)
    score = rng.normal(size=(250, 20))
    returns = 0.01 * rng.normal(size=score.shape) + np.where(np.abs(score) > 1.2, 0.004 * score, 0.0)
    chosen = tune_threshold(score, returns, costs=COSTS)
    distance = np.abs(score - score.mean(axis=1, keepdims=True))
    candidates = [0.0, *np.quantile(distance, [0.25, 0.5, 0.75])]
    ratios = [sharpe(simulate(score, returns, threshold=c, costs=COSTS).net_T, periods_per_year=1) for c in candidates]
    assert chosen == pytest.approx(candidates[int(np.argmax(ratios))])
    assert chosen > 1.0


def test_ties_and_nothing_to_tune_take_the_lowest_threshold():
    score = np.tile([1.0, -1.0], (30, 1))
    assert tune_threshold(score, np.random.default_rng(0).normal(size=score.shape), costs=FREE) == 0.0
    assert tune_threshold(np.full((5, 3), np.nan), np.zeros((5, 3)), costs=COSTS) == 0.0
    assert tune_threshold(score, np.zeros((30, 2)), costs=FREE) == 0.0


def liquid(shape, *, value=1e6, vol=0.02):
    return Liquidity(value_TN=np.full(shape, value), vol_TN=np.full(shape, vol))


def test_impact_by_hand():
    """Trading a quarter of a bar's volume moves a price by half its volatility, and all of the trade pays it."""
    costs = CostModel(fee_bps=0.0, half_spread_bps=0.0, borrow_bps_ann=0.0, capital=500_000.0)
    book = simulate(np.array([[1.0, -1.0]]), np.zeros((1, 2)), threshold=0.0, costs=costs, liquidity=liquid((1, 2)))
    np.testing.assert_allclose(book.cost_T, [0.5 * 0.02])  # each leg trades 250,000 of 1,000,000
    np.testing.assert_allclose(book.unit_impact_T * np.sqrt(500_000.0), book.cost_T)


def test_impact_grows_with_the_power_three_halves_of_the_trade():
    weights, none = np.array([[0.1, 0.4]]), np.zeros((1, 2))
    small, large = CostModel(capital=1e5).unit_impact_TN(weights, none, liquid((1, 2)))[0]
    assert large / small == pytest.approx(4**1.5)
    twice = CostModel(impact_coefficient=2.0).unit_impact_TN(weights, none, liquid((1, 2)))
    np.testing.assert_allclose(twice, [[2 * small, 2 * large]])


def test_the_length_of_a_bar_does_not_matter_to_impact():
    """An hour of a 24-hour market trades 1 / 24 and moves 1 / sqrt(24) of what a day does."""
    weights, none = np.array([[0.3, -0.2]]), np.zeros((1, 2))
    day = CostModel().unit_impact_TN(weights, none, liquid((1, 2)))
    hour = CostModel().unit_impact_TN(weights, none, liquid((1, 2), value=1e6 / 24, vol=0.02 / np.sqrt(24)))
    np.testing.assert_allclose(hour, day)


def test_without_capital_or_volume_there_is_no_impact():
    score, returns = world(3)
    plain = simulate(score, returns, threshold=0.0, costs=COSTS)
    assert np.isnan(plain.unit_impact_T).all()
    free = simulate(score, returns, threshold=0.0, costs=COSTS, liquidity=liquid(score.shape))
    np.testing.assert_array_equal(free.net_T, plain.net_T)
    assert (free.unit_impact_T[1:] > 0).all()
    rich = CostModel(borrow_bps_ann=50.0, capital=1e6)
    for unknown in (np.nan, 0.0, -1.0, np.inf):
        blind = simulate(score, returns, threshold=0.0, costs=rich, liquidity=liquid(score.shape, value=unknown))
        np.testing.assert_array_equal(blind.net_T, plain.net_T)
        assert np.isnan(blind.unit_impact_T).all()
    assert (
        simulate(score, returns, threshold=0.0, costs=rich, liquidity=liquid(score.shape)).net_T < plain.net_T
    ).all()


def test_an_asset_without_volume_is_not_charged_and_makes_the_bars_impact_unknown():
    liquidity = liquid((2, 2))
    liquidity.value_TN[0, 1] = np.nan
    costs = CostModel(fee_bps=0.0, half_spread_bps=0.0, borrow_bps_ann=0.0, capital=500_000.0)
    score = np.array([[1.0, -1.0], [-1.0, 1.0]])
    book = simulate(score, np.zeros((2, 2)), threshold=0.0, costs=costs, liquidity=liquidity)
    np.testing.assert_allclose(book.cost_T, [0.25 * 0.02, 2 * np.sqrt(0.5) * 0.02])
    assert np.isnan(book.unit_impact_T[0])
    assert np.isfinite(book.unit_impact_T[1])


def test_the_books_path_does_not_depend_on_capital():
    """So impact at any capital is its root times the unit impact, which is what the capacity estimate rests on."""
    score, returns = world(4)
    books = [
        simulate(score, returns, threshold=0.0, costs=CostModel(capital=capital), liquidity=liquid(score.shape))
        for capital in (0.0, 1e5, 4e5)
    ]
    np.testing.assert_array_equal(books[1].positions_TN, books[2].positions_TN)
    impacts = [book.cost_T - books[0].cost_T for book in books[1:]]
    np.testing.assert_allclose(impacts[1], 2 * impacts[0], atol=1e-15)
    np.testing.assert_allclose(impacts[0], np.sqrt(1e5) * books[0].unit_impact_T, atol=1e-15)
