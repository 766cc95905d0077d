"""StepM by matrix products: the very answers of arch, for the same draws, and its variance in closed form."""

import numpy as np
import pytest
from arch.bootstrap import StationaryBootstrap, StepM

from training.rating.step_m import bootstrap_counts, bootstrap_means, long_run_variance, step_m


def world(seed):
    """Returns of unit variance, some variants good and some bad, and a block size."""
    rng = np.random.default_rng(seed)
    num_bars, num_variants = int(rng.integers(30, 150)), int(rng.integers(1, 12))
    returns = rng.standard_t(4, (num_bars, num_variants)) + rng.normal(0, 0.25, num_variants) * rng.integers(0, 2)
    return returns / returns.std(axis=0), int(rng.integers(1, 8))


def by_arch(unit_SV, *, level, reps, seed, block_size):
    """Superior variants, the last critical mean, the p-values; cash joins, as in ours."""
    losses = -np.column_stack([unit_SV, np.zeros(len(unit_SV))])
    test = StepM(np.zeros(len(unit_SV)), losses, size=level, block_size=block_size, reps=reps, seed=seed)
    test.compute()
    superior = np.zeros(unit_SV.shape[1] + 1, dtype=bool)
    superior[np.array(test.superior_models, dtype=int)] = True
    test.spa.compute()
    p_values = test.spa.pvalues.to_numpy()
    test.spa.subset(~superior)
    test.spa.compute()
    return superior[:-1], test.spa.critical_values(level)["consistent"], p_values


def test_the_answers_are_archs():
    num_found = 0
    for seed in range(80):
        unit_SV, block_size = world(seed)
        asked = {"level": 0.1, "reps": 60, "seed": seed, "block_size": block_size}
        superior, critical, p_values = by_arch(unit_SV, **asked)
        ours = step_m(unit_SV, **asked)
        assert (ours.superior_V == superior).all()
        assert ours.critical == pytest.approx(critical, abs=1e-12)
        assert [ours.p_lower, ours.p_consistent, ours.p_upper] == pytest.approx(p_values, abs=1e-12)
        num_found += superior.sum()
    assert num_found > 20  # or the worlds are no test


def test_a_later_step_finds_what_the_first_left():
    """One step alone is a weaker test: its critical mean is that of the best of all, those found long ago included."""
    unit_SV = np.random.default_rng(0).standard_normal((400, 21))
    unit_SV = (unit_SV - unit_SV.mean(axis=0)) / unit_SV.std(axis=0)
    unit_SV[:, :20] += 0.5
    unit_SV[:, 20] += 2.0 / np.sqrt(400)
    drawn_RV = bootstrap_means(unit_SV, reps=300, seed=0, block_size=2)
    first = np.quantile((drawn_RV - unit_SV.mean(axis=0)).max(axis=1), 0.9)
    assert unit_SV[:, 20].mean() < first
    assert step_m(unit_SV, level=0.1, reps=300, seed=0, block_size=2).superior_V.all()


def test_counts_are_those_of_archs_samples():
    samples = StationaryBootstrap(4, np.arange(50), seed=3).bootstrap(7)
    counts = np.concatenate(list(bootstrap_counts(50, reps=7, seed=3, block_size=4)))
    assert counts.shape == (7, 50)
    for row, ((drawn,), _) in zip(counts, samples, strict=True):
        assert (row == np.bincount(drawn, minlength=50)).all()


def test_many_replications_come_in_chunks_of_the_same_draws():
    few, many = (bootstrap_means(world(0)[0], reps=reps, seed=1, block_size=3) for reps in (400, 1100))
    assert many.shape[0] == 1100
    assert many[:400] == pytest.approx(few, abs=1e-12)


def test_the_variance_is_archs_and_the_bootstraps_own():
    unit_SV, block_size = world(5)
    test = StepM(np.zeros(len(unit_SV)), -unit_SV, block_size=block_size, reps=2, seed=0)
    test.spa.compute()
    assert long_run_variance(unit_SV, block_size) == pytest.approx(test.spa._loss_diff_var, rel=1e-10)
    means = bootstrap_means(unit_SV, reps=4000, seed=0, block_size=block_size)
    assert long_run_variance(unit_SV, block_size) == pytest.approx(means.var(axis=0) * len(unit_SV), rel=0.1)


def test_nothing_is_superior_to_cash_where_all_lose():
    returns = np.abs(np.random.default_rng(0).standard_normal((200, 3)))
    ours = step_m(-returns / returns.std(axis=0), level=0.05, reps=50, seed=0, block_size=2)
    assert not ours.superior_V.any()
    assert ours.critical >= 0
