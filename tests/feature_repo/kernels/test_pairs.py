"""Rolling statistics of two series against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.kernels import pairs

WINDOW, NUM_BARS = 12, 60
NAMES = sorted(name.removesuffix("_python") for name in vars(pairs) if name.endswith("_python"))


def series(hole: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(0.0, 0.02, NUM_BARS)
    y = 0.7 * x + rng.normal(0.001, 0.01, NUM_BARS)
    if hole is not None:
        (x if hole % 2 else y)[hole] = np.nan
    return y, x


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hole", [None, 20, 21])
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar:RuntimeWarning")
def test_jitted_equals_plain_bit_for_bit(name: str, hole: int | None) -> None:
    got = getattr(pairs, name)(*series(hole), WINDOW)
    np.testing.assert_array_equal(got, getattr(pairs, f"{name}_python")(*series(hole), WINDOW))
    blank = np.zeros(NUM_BARS, dtype=bool)
    blank[: WINDOW - 1] = True
    if hole is not None:
        blank[hole : hole + WINDOW] = True
    np.testing.assert_array_equal(np.isnan(got), blank)


@pytest.mark.parametrize("name", NAMES)
def test_value_depends_on_the_window_alone(name: str) -> None:
    kernel = getattr(pairs, name)
    full = kernel(*series(), WINDOW)
    for stop in range(WINDOW, NUM_BARS + 1):
        cut = kernel(*(part[stop - WINDOW : stop].copy() for part in series()), WINDOW)
        assert cut[-1] == full[stop - 1]


def test_they_are_the_least_squares_line_and_numpys_correlation() -> None:
    y, x = series()
    slope, spread = pairs.rolling_slope(y, x, WINDOW), pairs.rolling_residual_std(y, x, WINDOW)
    correlation = pairs.rolling_correlation(y, x, WINDOW)
    for i in range(WINDOW - 1, NUM_BARS):
        rows = slice(i - WINDOW + 1, i + 1)
        design = np.column_stack([np.ones(WINDOW), x[rows]])
        line, residual, *_ = np.linalg.lstsq(design, y[rows], rcond=None)
        assert slope[i] == pytest.approx(line[1], rel=1e-10)
        assert spread[i] == pytest.approx(np.sqrt(residual[0] / (WINDOW - 2)), rel=1e-10)
        assert correlation[i] == pytest.approx(np.corrcoef(x[rows], y[rows])[0, 1], rel=1e-10)


def test_a_perfect_line_and_a_still_series() -> None:
    x = np.arange(20.0)
    assert pairs.rolling_slope(3.0 - 2.0 * x, x, 5)[-1] == -2.0
    assert pairs.rolling_correlation(3.0 - 2.0 * x, x, 5)[-1] == pytest.approx(-1.0, abs=1e-15)
    assert pairs.rolling_residual_std(3.0 - 2.0 * x, x, 5)[-1] == 0.0
    still = np.full(20, 0.1)
    for name in NAMES:
        assert np.isnan(getattr(pairs, name)(x, still, 5)).all()
    assert np.isnan(pairs.rolling_correlation(still, x, 5)).all()
    assert pairs.rolling_slope(still, x, 5)[-1] == 0.0


def test_digits_of_a_small_spread_around_a_large_level_are_kept() -> None:
    y, x = series()
    for name in NAMES:
        kernel = getattr(pairs, name)
        np.testing.assert_allclose(kernel(y + 1e6, x - 1e6, WINDOW), kernel(y, x, WINDOW), rtol=1e-5)
