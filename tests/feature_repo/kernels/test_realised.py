"""Realised variances by hand, against numpy and on random walks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from feature_repo.kernels.realised import realised_moments, realised_moments_python


def one_window(close: list[float] | np.ndarray, open_: float = np.nan) -> tuple[float, ...]:
    close = np.asarray(close, dtype=float)
    opens = np.full(len(close), np.nan)
    opens[:1] = open_
    found = realised_moments(opens, close, np.array([0, len(close)]))
    return tuple(float(values[0]) for values in found)


def test_jitted_equals_plain_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    close = np.exp(rng.normal(0.0, 0.01, 200).cumsum())
    close[rng.random(200) < 0.1] = np.nan
    opens = np.where(rng.random(200) < 0.5, close * 1.001, np.nan)
    start = np.unique(np.concatenate([[0, 0, 1, 3, 200], rng.integers(0, 200, 20)]))
    for one, other in zip(
        realised_moments(opens, close, start), realised_moments_python(opens, close, start), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_by_hand() -> None:
    close = np.exp([0.0, 0.1, -0.1, 0.2])
    variance, bipower, upside, num_bars = one_window(close)
    assert variance == pytest.approx(0.1**2 + 0.2**2 + 0.3**2)
    assert bipower == pytest.approx(math.pi / 2 * 3 / 2 * (0.1 * 0.2 + 0.2 * 0.3))
    assert upside == pytest.approx(0.1**2 + 0.3**2)
    assert num_bars == 4


def test_the_first_bar_counts_from_its_open() -> None:
    variance, bipower, upside, num_bars = one_window(np.exp([0.1, 0.0]), open_=math.exp(0.3))
    assert variance == pytest.approx(0.2**2 + 0.1**2)
    assert bipower == pytest.approx(math.pi / 2 * 2 * 0.2 * 0.1)
    assert (upside, num_bars) == (0.0, 2)


def test_a_return_across_a_gap_is_one_return() -> None:
    assert one_window(np.exp([0.0, np.nan, 0.3]))[0] == pytest.approx(0.09)


def test_too_few_returns_say_nothing() -> None:
    np.testing.assert_array_equal(one_window([]), [np.nan, np.nan, np.nan, 0.0])
    np.testing.assert_array_equal(one_window([1.0]), [np.nan, np.nan, np.nan, 1.0])
    variance, bipower, upside, _ = one_window([1.0, math.e])
    assert (variance, upside) == (1.0, 1.0)
    assert math.isnan(bipower)


def test_they_measure_a_random_walk_and_bipower_leaves_a_jump_out() -> None:
    steps = np.random.default_rng(1).normal(0.0, 0.02 / math.sqrt(96), (400, 96))
    jumpy = steps.copy()
    jumpy[:, 40] += 0.05
    starts = np.arange(0, 400 * 96 + 1, 96)
    for moves, jumps in ((steps, 0.0), (jumpy, 0.05**2)):
        close = np.exp(np.cumsum(moves, axis=1))
        opens = np.ones_like(close)
        variance, bipower, upside, _ = realised_moments(opens.ravel(), close.ravel(), starts)
        assert variance.mean() == pytest.approx(0.02**2 + jumps, rel=0.03)
        beside_jump = math.pi * 0.05 * math.sqrt(2 / math.pi) * 0.02 / math.sqrt(96) if jumps else 0.0
        assert bipower.mean() == pytest.approx(0.02**2 + beside_jump, rel=0.03)
        assert upside.mean() == pytest.approx(0.5 * 0.02**2 + jumps, rel=0.05)
