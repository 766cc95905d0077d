"""The compiled loops: each is its plain twin bit for bit, and equals what numpy and scipy say."""

import numpy as np
import pytest
from scipy import stats

from training.metrics import kernels


@pytest.fixture(scope="module")
def returns():
    rng = np.random.default_rng(0)
    rows = 0.02 * rng.standard_t(3, size=(9, 80))
    rows[1, :30] = np.nan
    rows[2] = np.nan
    rows[3] = 0.0013
    rows[4, 40] = -1.5  # ruin
    rows[5, rng.random(80) < 0.3] = np.nan
    rows[6, 0] = np.inf
    rows[7] = 0.0
    rows[8] = -0.01
    return rows


def test_every_kernel_equals_its_plain_twin(returns):
    rng = np.random.default_rng(1)
    market = rng.normal(0, 0.01, (2, 80))
    market[:, 10:13] = market[1, 30] = np.nan
    score, outcome = np.round(rng.normal(size=(3, 12, 6)), 1), np.round(rng.normal(size=(2, 12, 6)), 1)
    score[rng.random(score.shape) < 0.3] = np.nan
    outcome[0, rng.random((12, 6)) < 0.3] = np.nan
    order, outcome_order = np.argsort(score, axis=-1), np.argsort(outcome, axis=-1)
    arguments = {
        "moments": (returns,),
        "wealth": (returns,),
        "past_hedge": (returns, market, 20, 5),
        "rank_ic": (score, order, outcome, outcome_order, 3),
    }
    twins = {name.removesuffix("_python") for name in vars(kernels) if name.endswith("_python")}
    assert twins == {*arguments, "centred_ranks", "add_bar", "solve_betas"}
    for name, given in arguments.items():
        plain, compiled = getattr(kernels, f"{name}_python"), getattr(kernels, name)
        np.testing.assert_array_equal(compiled(*given), plain(*given), err_msg=name)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_centred_ranks_equal_scipys(share):
    rng = np.random.default_rng(2)
    for _ in range(50):
        values = rng.integers(0, 5, 8).astype(float)
        values[rng.random(8) < 0.2] = np.nan
        paired = np.isfinite(values) & (rng.random(8) >= share)
        for ranks_of in (kernels._centred_ranks, kernels.centred_ranks_python):
            ranks = np.full(8, np.nan)
            squares = ranks_of(values, np.argsort(values), paired, int(paired.sum()), ranks)
            expected = stats.rankdata(values[paired]) - (paired.sum() + 1) / 2
            np.testing.assert_array_equal(ranks[paired], expected)
            assert squares == pytest.approx((expected**2).sum())


@pytest.mark.parametrize(
    ("add_bar", "solve"),
    [(kernels._add_bar, kernels._solve_betas), (kernels.add_bar_python, kernels.solve_betas_python)],
    ids=["compiled", "plain"],
)
def test_betas_are_least_squares_of_the_bars_that_were_added_and_not_taken_off(add_bar, solve):
    joint = np.random.default_rng(3).normal(0, 0.01, (3, 60))
    joint[1, 20] = np.nan
    total, product, beta = np.zeros(3), np.zeros((3, 3)), np.zeros(2)
    count = sum(add_bar(joint, t, 1, total, product) for t in range(60))
    count += sum(add_bar(joint, t, -1, total, product) for t in range(10))
    solve(count, total, product, np.zeros((3, 3)), beta)
    left = np.delete(joint, 20, axis=1)[:, 10:]
    assert count == left.shape[1]
    expected = np.linalg.lstsq(np.column_stack([np.ones(count), *left[:2]]), left[2], rcond=None)[0][1:]
    np.testing.assert_allclose(beta, expected, rtol=1e-9)


def test_moments_are_numpys(returns):
    for row, (count, mean, second, third, fourth) in zip(returns, kernels.moments(returns), strict=True):
        finite = row[np.isfinite(row)]
        assert count == len(finite)
        if count:
            np.testing.assert_allclose(mean, finite.mean(), rtol=1e-12, atol=1e-18)
            expected = [((finite - finite.mean()) ** power).mean() for power in (2, 3, 4)]
            np.testing.assert_allclose([second, third, fourth], expected, rtol=1e-9, atol=1e-18)


def test_a_constant_row_has_no_spread_at_all():
    assert (kernels.moments(np.full((1, 99_999), 0.1))[0, 2:] == 0.0).all()


def slow_wealth(row):
    wealth = np.cumprod(np.concatenate([[1.0], np.maximum(1.0 + np.where(np.isfinite(row), row, 0.0), 0.0)]))
    peak = np.maximum.accumulate(wealth)
    trough = (wealth / peak - 1.0).argmin()
    back = np.flatnonzero((np.arange(len(wealth)) >= trough) & (wealth >= peak[trough] * (1 - 1e-12)))
    return np.isfinite(row).sum(), wealth[-1], (wealth / peak - 1.0).min(), back[0] - trough if len(back) else -1


def test_wealth_and_its_deepest_fall_equal_brute_force(returns):
    rng = np.random.default_rng(3)
    rows = np.vstack([returns, 0.002 + 0.01 * rng.normal(size=(60, 80))])
    found = kernels.wealth(rows)
    np.testing.assert_allclose(found, [slow_wealth(row) for row in rows], rtol=1e-12)
    assert (found[:, 3] > 0).sum() > 20
    assert (found[:, 3] < 0).sum() > 5
