"""PSI against closed forms, and at its edges."""

import numpy as np
import pytest

from training.metrics.distribution import bin_counts, psi, psi_from_counts, quantile_edges


def test_closed_form_of_two_bins():
    """Reference half and half, current 3 to 1: with the half-counts (50.5, 50.5)/101 and (75.5, 25.5)/101."""
    reference = np.repeat([0.0, 1.0], 50)
    current = np.repeat([0.0, 1.0], [75, 25])
    p, q = np.array([75.5, 25.5]) / 101, np.array([0.5, 0.5])
    assert psi(reference, current, bins=2) == pytest.approx(((p - q) * np.log(p / q)).sum())


def test_a_scaled_normal_has_its_known_index():
    """Scale x 1.5 on ten quantile bins: 0.19 (integral of the normal density over the deciles)."""
    rng = np.random.default_rng(0)
    assert psi(rng.normal(size=200_000), 1.5 * rng.normal(size=200_000)) == pytest.approx(0.188, abs=0.01)


def test_without_drift_it_is_small_and_near_its_expectation():
    rng = np.random.default_rng(1)
    values = [psi(rng.normal(size=1000), rng.normal(size=250)) for _ in range(200)]
    assert np.mean(values) == pytest.approx(9 * (1 / 1000 + 1 / 250), rel=0.15)


def test_same_sample_is_zero_and_direction_does_not_matter():
    sample = np.random.default_rng(2).normal(size=500)
    assert psi(sample, sample) == 0.0
    assert psi(sample, sample + 1.0) > 0.5
    assert psi(sample, sample - 1.0) > 0.5


@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_a_constant_reference_sees_a_move_to_either_side(shift):
    constant = np.full(100, 3.0)
    assert psi(constant, constant[:30]) == 0.0
    assert psi(constant, constant + shift) > 1.0


def test_a_value_held_often_has_a_bin_to_itself():
    reference = np.concatenate([np.zeros(500), np.random.default_rng(3).uniform(0.1, 1.0, 500)])
    edges = quantile_edges(reference, bins=10)
    assert bin_counts(reference, edges)[np.searchsorted(edges, 0.0)] == 500
    assert psi(reference, np.where(reference == 0.0, -1.0, reference)) > 1.0


def test_bins_of_a_continuous_reference_are_equally_full():
    reference = np.random.default_rng(4).normal(size=1000)
    np.testing.assert_array_equal(bin_counts(reference, quantile_edges(reference, bins=10)), 100)


def test_nan_is_ignored_and_an_empty_side_is_nan():
    sample = np.random.default_rng(5).normal(size=300)
    current = sample + 0.2
    assert psi(np.append(sample, np.nan), np.append(current, [np.nan, np.inf])) == psi(sample, current)
    assert np.isnan(psi([], sample))
    assert np.isnan(psi(sample, [np.nan]))


def test_counts_of_many_features_go_through_at_once_and_padding_changes_nothing():
    rng = np.random.default_rng(6)
    reference, current = rng.integers(0, 50, (4, 3, 8)), rng.integers(0, 20, (4, 3, 8))
    index = psi_from_counts(reference, current)
    for at in np.ndindex(4, 3):
        assert index[at] == pytest.approx(float(psi_from_counts(reference[at], current[at])))
    padding = [(0, 0), (0, 0), (0, 5)]
    np.testing.assert_allclose(psi_from_counts(np.pad(reference, padding), np.pad(current, padding)), index)
    assert np.isnan(psi_from_counts(np.zeros(3), np.zeros(3)))
