import numpy as np
import pytest

from training.models.classical.distances import (
    LINEAR,
    POLY,
    RBF,
    kernel_sums,
    kernel_sums_python,
    nearest,
    nearest_python,
)


def drawn(*, num_samples=23, num_points=61, num_features=7):
    rng = np.random.default_rng(0)
    return rng.standard_normal((num_samples, num_features)), rng.standard_normal((num_features, num_points))


@pytest.mark.parametrize("kernel", [LINEAR, POLY, RBF])
def test_the_compiled_kernel_sums_are_the_plain_ones(kernel):
    x, points = drawn()
    weights = np.random.default_rng(1).standard_normal(points.shape[1])
    got, want = (sums(x, points, weights, kernel) for sums in (kernel_sums, kernel_sums_python))
    np.testing.assert_array_equal(got, want)


def test_the_kernels_by_matrix_algebra():
    x, points = drawn()
    weights = np.random.default_rng(1).standard_normal(points.shape[1])
    squared = ((x[:, :, None] - points) ** 2).sum(axis=1)
    np.testing.assert_allclose(kernel_sums(x, points, weights, LINEAR), x @ points @ weights, rtol=1e-11)
    np.testing.assert_allclose(kernel_sums(x, points, weights, POLY), (1 + x @ points) ** 2 @ weights, rtol=1e-11)
    np.testing.assert_allclose(kernel_sums(x, points, weights, RBF), np.exp(-squared) @ weights, rtol=1e-11)


@pytest.mark.parametrize("num_nearest", [1, 5, 61])
def test_the_nearest_are_those_of_a_stable_sort(num_nearest):
    """Coordinates of few values: most distances are tied."""
    rng = np.random.default_rng(2)
    x, points = rng.integers(0, 3, (23, 3)).astype(float), rng.integers(0, 3, (3, 61)).astype(np.float32)
    squared = ((x[:, :, None] - points) ** 2).sum(axis=1)
    want = np.argsort(squared, axis=1, kind="stable")[:, :num_nearest]
    for find in (nearest, nearest_python):
        index, found = find(x, points, num_nearest)
        np.testing.assert_array_equal(index, want)
        np.testing.assert_array_equal(found, np.take_along_axis(squared, want, axis=1))
