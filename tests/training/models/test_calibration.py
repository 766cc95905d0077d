import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from training.models.calibration import MIN_SAMPLES, Calibrator


def outcomes(*, num, intercept, slope, seed=0, scale=1.0):
    """Scores whose sign is right with probability expit(intercept + slope |score| / scale)."""
    rng = np.random.default_rng(seed)
    score = rng.standard_normal(num) * scale
    right = rng.random(num) < expit(intercept + slope * np.abs(score) / scale)
    size = np.abs(rng.standard_normal(num)) + 0.01
    return score, np.where(right, 1, -1) * np.sign(score) * size


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_recovers_the_probability(scale):
    score, y = outcomes(num=20_000, intercept=0.1, slope=0.6, scale=scale)
    calibrator = Calibrator.fit(score, y)
    strength = np.array([0.1, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(calibrator.confidence(strength * scale), expit(0.1 + 0.6 * strength), atol=0.02)


def test_is_calibrated_on_new_outcomes():
    calibrator = Calibrator.fit(*outcomes(num=5_000, intercept=-0.1, slope=0.5))
    score, y = outcomes(num=20_000, intercept=-0.1, slope=0.5, seed=1)
    confidence, right = calibrator.confidence(score), np.sign(score) == np.sign(y)
    for part in np.array_split(np.argsort(confidence), 5):
        assert abs(confidence[part].mean() - right[part].mean()) < 0.03


@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 200))
def test_is_a_probability_that_never_falls_with_strength(seed, intercept, slope, num):
    calibrator = Calibrator.fit(*outcomes(num=num, intercept=intercept, slope=slope, seed=seed))
    confidence = calibrator.confidence(np.linspace(0, 10, 200))
    assert ((confidence > 0) & (confidence < 1)).all()
    assert (np.diff(confidence) >= 0).all()
    np.testing.assert_array_equal(confidence, calibrator.confidence(-np.linspace(0, 10, 200)))


def test_strength_that_misleads_gives_the_hit_rate():
    score, y = outcomes(num=2_000, intercept=1.0, slope=-0.8)
    confidence = Calibrator.fit(score, y).confidence(np.array([0.0, 1.0, 5.0]))
    hits = (np.sign(score) == np.sign(y)).sum()
    np.testing.assert_allclose(confidence, (hits + 10) / 2020)


def test_a_few_samples_give_the_shrunken_hit_rate():
    score = np.linspace(0.1, 1, MIN_SAMPLES - 1)
    np.testing.assert_allclose(
        Calibrator.fit(score, score).confidence(score), (MIN_SAMPLES - 1 + 10) / (MIN_SAMPLES + 19)
    )
    assert Calibrator.fit(np.array([]), np.array([])).confidence(np.array([2.0])) == pytest.approx(0.5)


def test_always_right_is_still_no_certainty():
    score = np.random.default_rng(0).standard_normal(500)
    assert 0.9 < Calibrator.fit(score, score).confidence(score).max() < 1


def test_beyond_the_strongest_seen_it_claims_no_more():
    score, y = outcomes(num=2_000, intercept=0.0, slope=1.0)
    confidence = Calibrator.fit(score, y).confidence(np.array([np.abs(score).max(), 1e6, np.inf]))
    assert confidence[0] == confidence[1] == confidence[2]


def test_only_pairs_with_a_sign_count_and_unknown_stays_unknown():
    score, y = outcomes(num=500, intercept=0.2, slope=0.5)
    padding = np.array([np.nan, 1.0, 0.0, 1.0, np.inf])
    padded = Calibrator.fit(np.append(score, padding), np.append(y, [1.0, np.nan, 1.0, 0.0, 1.0]))
    assert padded == Calibrator.fit(score, y)
    assert np.isnan(padded.confidence(np.array([np.nan]))).all()


def test_state_round_trips():
    calibrator = Calibrator.fit(*outcomes(num=500, intercept=0.2, slope=0.5))
    assert Calibrator.from_state(calibrator.state()) == calibrator
