"""Statistics across assets against numpy, whole and with holes."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.kernels import cross_section as kernels
from feature_repo.kernels.cross_section import bar_moments, component_signs, find_components

WINDOW, MIN_COUNT, NUM_BARS, NUM_ASSETS = 20, 16, 45, 9
ROWS = np.arange(NUM_BARS)


def returns(seed: int = 0, *, holes: float = 0.0, num_assets: int = NUM_ASSETS) -> np.ndarray:
    """Two common factors and noise, of different size for each asset; (T, N)."""
    rng = np.random.default_rng(seed)
    exposure = rng.normal(1.0, 0.5, (2, num_assets))
    x_TN = rng.normal(0.0, 0.02, (NUM_BARS, 2)) @ exposure + rng.normal(0.0, 0.01, (NUM_BARS, num_assets))
    x_TN *= rng.uniform(0.5, 2.0, num_assets)
    x_TN[rng.random(x_TN.shape) < holes] = np.nan
    return x_TN


def found(x_TN: np.ndarray, rows: np.ndarray = ROWS) -> kernels.Components:
    return find_components(x_TN, rows, window=WINDOW, min_count=MIN_COUNT, min_assets=3, num_components=3)


def fields(components: kernels.Components) -> dict[str, np.ndarray]:
    return {name: getattr(components, name) for name in components.__dataclass_fields__}


def arguments() -> dict[str, tuple[object, ...]]:
    x_TN, rows = returns(3, holes=0.1), np.array([5, 19, 30, 44])
    mean_RN = kernels.window_means(x_TN, rows, WINDOW, MIN_COUNT)
    z_RNW, std_RN = kernels.standardised_windows(x_TN, rows, mean_RN, WINDOW)
    factor_RKW = np.random.default_rng(1).normal(0.0, 0.2, (4, 3, WINDOW))
    loading_RKN = kernels.component_loadings(z_RNW, factor_RKW)
    return {
        "bar_moments": (x_TN, 3),
        "window_means": (x_TN, rows, WINDOW, MIN_COUNT),
        "standardised_windows": (x_TN, rows, mean_RN, WINDOW),
        "window_grams": (z_RNW, std_RN),
        "component_loadings": (z_RNW, factor_RKW),
        "component_signs": (loading_RKN,),
        "component_returns": (loading_RKN, std_RN, x_TN[rows]),
        "component_residuals": (z_RNW, loading_RKN, factor_RKW),
    }


def test_every_kernel_is_tested_against_its_plain_twin() -> None:
    assert set(arguments()) == {name.removesuffix("_python") for name in vars(kernels) if name.endswith("_python")}


@pytest.mark.parametrize("name", sorted(arguments()))
def test_jitted_equals_plain_bit_for_bit(name: str) -> None:
    args = arguments()[name]
    jitted, plain = getattr(kernels, name)(*args), getattr(kernels, f"{name}_python")(*args)
    for one, other in zip(*((v if isinstance(v, tuple) else (v,)) for v in (jitted, plain)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bar_moments_are_numpys() -> None:
    x_TN = returns(1, holes=0.3)
    mean_T, std_T, rising_T, others_TN = bar_moments(x_TN, 3)
    for t, x_N in enumerate(x_TN):
        there = x_N[~np.isnan(x_N)]
        assert mean_T[t] == pytest.approx(there.mean(), rel=1e-9, abs=1e-15)
        assert std_T[t] == pytest.approx(there.std(ddof=1), rel=1e-12)
        assert rising_T[t] == (there > 0).mean()
        for n in range(NUM_ASSETS):
            rest = np.delete(x_N, n)
            assert others_TN[t, n] == pytest.approx(np.nanmean(rest), rel=1e-8, abs=1e-15)


def test_bar_moments_need_three_assets() -> None:
    x_TN = np.array([[0.1, 0.2, np.nan, np.nan], [0.1, 0.2, 0.3, np.nan]])
    for values in bar_moments(x_TN, 3):
        assert np.isnan(values[0]).all()
        assert np.isfinite(values[1]).all()
    mean_T, std_T, _, others_TN = bar_moments(np.array([[0.1, np.nan]]), 1)
    assert mean_T[0] == 0.1
    assert np.isnan(std_T[0])
    np.testing.assert_array_equal(others_TN, [[np.nan, 0.1]])


@pytest.mark.parametrize(("seed", "holes"), [(0, 0.0), (1, 0.05), (2, 0.15)])
def test_components_are_numpys(seed: int, holes: float) -> None:
    """On every window by brute force; a missing return stands at the asset's mean."""
    x_TN = returns(seed, holes=holes)
    got = found(x_TN)
    for row in range(WINDOW - 1, NUM_BARS):
        x_WN = x_TN[row - WINDOW + 1 : row + 1]
        counted = np.flatnonzero((~np.isnan(x_WN)).sum(axis=0) >= MIN_COUNT)
        num = len(counted)
        if num < 3:
            continue
        filled_WN = np.where(np.isnan(x_WN), np.nanmean(x_WN, axis=0), x_WN)[:, counted]
        correlation_NN = np.corrcoef(filled_WN.T)
        value_N, vector_NN = np.linalg.eigh(correlation_NN)
        value_N, vector_NN = value_N[::-1], vector_NN[:, ::-1]
        assert got.share_R[row] == pytest.approx(value_N[0] / num, rel=1e-10)
        assert got.absorption_R[row] == pytest.approx(value_N[: -(-num // 5)].sum() / num, rel=1e-10)
        off_diagonal = correlation_NN[np.triu_indices(num, 1)]
        assert got.correlation_R[row] == pytest.approx(off_diagonal.mean(), rel=1e-9)
        loading_KN = np.sqrt(value_N[:3, None]) * vector_NN[:, :3].T
        loading_KN[0] *= np.sign(loading_KN[0].sum())
        loading_KN[1:] *= np.sign((loading_KN[1:] ** 3).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(got.loading_RKN[row][:, counted], loading_KN, rtol=1e-7, atol=1e-9)
        assert np.isnan(np.delete(got.loading_RKN[row], counted, axis=1)).all()

        latest_N = x_WN[-1, counted]
        weight_KN = loading_KN / np.nanstd(x_WN[:, counted], axis=0, ddof=1) * ~np.isnan(latest_N)
        want_K = weight_KN @ np.nan_to_num(latest_N) / np.abs(weight_KN).sum(axis=1)
        np.testing.assert_allclose(got.return_RK[row], want_K, rtol=1e-7, atol=1e-11)

        z_WN = (filled_WN - filled_WN.mean(axis=0)) / filled_WN.std(axis=0)
        factor_WK = z_WN @ vector_NN[:, :3]
        residual_WN = z_WN - factor_WK @ np.linalg.lstsq(factor_WK, z_WN, rcond=None)[0]
        want_N = np.where(np.isnan(latest_N), np.nan, (residual_WN / residual_WN.std(axis=0, ddof=1))[-1])
        np.testing.assert_allclose(got.residual_RN[row, counted], want_N, rtol=1e-7, atol=1e-9)


def test_loadings_are_correlations_with_the_component() -> None:
    x_TN = returns(4)
    got = found(x_TN)
    x_WN = x_TN[-WINDOW:]
    weight_N = got.loading_RKN[-1, 0] / x_WN.std(axis=0, ddof=1)
    component_W = x_WN @ weight_N
    want = [np.corrcoef(component_W, x_WN[:, n])[0, 1] for n in range(NUM_ASSETS)]
    np.testing.assert_allclose(got.loading_RKN[-1, 0], want, rtol=1e-9)
    assert np.corrcoef(component_W, x_WN.mean(axis=1))[0, 1] > 0.5


def test_one_factor_alone_explains_everything() -> None:
    rng = np.random.default_rng(5)
    x_TN = rng.normal(0.0, 0.01, (NUM_BARS, 1)) * np.array([1.0, 2.0, -0.5, 3.0])
    got = found(x_TN)
    np.testing.assert_allclose(got.share_R[WINDOW - 1 :], 1.0)
    np.testing.assert_allclose(got.loading_RKN[WINDOW - 1 :, 0], np.tile([1.0, 1.0, -1.0, 1.0], (26, 1)))
    assert np.isnan(got.loading_RKN[:, 1:]).all()
    assert np.isnan(got.return_RK[:, 1:]).all()
    assert np.isnan(got.residual_RN).all(), "nothing is left to be a residual"


def test_signs_do_not_depend_on_what_the_solver_returns() -> None:
    loading_RKN = np.random.default_rng(6).normal(0.0, 0.5, (50, 3, 8))
    np.testing.assert_array_equal(component_signs(-loading_RKN), -component_signs(loading_RKN))
    oriented = loading_RKN * component_signs(loading_RKN)[:, :, None]
    assert (oriented[:, 0].sum(axis=1) > 0).all()
    assert ((oriented[:, 1:] ** 3).sum(axis=2) > 0).all()


def test_rows_are_the_same_bits_alone_and_together() -> None:
    x_TN = returns(7, holes=0.1)
    together = fields(found(x_TN))
    for row in (19, 25, 44):
        cut = x_TN[row - WINDOW + 1 : row + 1].copy()
        for name, values in fields(found(cut, np.array([WINDOW - 1]))).items():
            np.testing.assert_array_equal(values[0], together[name][row], err_msg=name)


def test_an_asset_that_is_not_there_yet_changes_no_bit() -> None:
    x_TN = returns(8, holes=0.1)
    few = np.full(NUM_BARS, np.nan)
    few[-5:] = 0.01
    for at in (0, 4, NUM_ASSETS):
        more_TN = np.insert(x_TN, at, few, axis=1)
        for name, values in fields(found(more_TN)).items():
            if name != "residual_RN" and name != "loading_RKN" and name != "return_RK":
                np.testing.assert_array_equal(values, fields(found(x_TN))[name], err_msg=name)
        for name in ("loading_RKN", "residual_RN"):
            np.testing.assert_array_equal(np.delete(fields(found(more_TN))[name], at, -1), fields(found(x_TN))[name])
        np.testing.assert_array_equal(found(more_TN).return_RK, found(x_TN).return_RK)


def test_an_asset_counts_from_its_minimum_of_returns_on_and_only_if_it_moves() -> None:
    x_TN = returns(9)
    x_TN[-WINDOW:-MIN_COUNT, 0] = np.nan
    x_TN[:, 1] = 0.001
    got = found(x_TN, np.array([NUM_BARS - 1]))
    assert np.isfinite(got.loading_RKN[0, 0, 0])
    assert np.isnan(got.loading_RKN[0, 0, 1])
    x_TN[-MIN_COUNT, 0] = np.nan
    assert np.isnan(found(x_TN, np.array([NUM_BARS - 1])).loading_RKN[0, 0, 0])


def test_fewer_than_three_assets_and_short_windows_say_nothing() -> None:
    for components in (found(returns(10, num_assets=2)), found(returns(10)[: WINDOW - 1], np.arange(WINDOW - 1))):
        for name, values in fields(components).items():
            assert np.isnan(values).all(), name


def test_more_assets_than_bars_absorb_at_most_everything() -> None:
    got = found(returns(11, num_assets=130))
    assert got.absorption_R[-1] == pytest.approx(1.0)
    assert got.share_R[-1] < 1.0
