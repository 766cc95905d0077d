import dataclasses

import numpy as np
import pytest

from tests.training.models.toys import learning_windows, toy_panel
from training.dataset import window
from training.models.spec import ModelError
from training.models.windows import (
    LABEL_LIMIT,
    Scaler,
    forecastable_TN,
    label_TN,
    require_labels,
    scatter_TN,
    sequence_samples,
    summarise,
    summary_samples,
)

LOOKBACK = 5


@pytest.fixture
def holes():
    """A window of 12 targets with 4 rows of history, a fifth of it unknown, entity 1 unknown at target 3."""
    panel = toy_panel(memory=0.5, num_times=40, num_entities=3, num_features=2)
    x = panel.x_TNF.copy()
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    x[13, 1] = np.nan
    panel = dataclasses.replace(panel, x_TNF=x)
    return window(panel, 10, 22, lookback=LOOKBACK, learn_T=np.arange(40) % 4 != 0)


def test_sequences_are_the_last_rows_of_each_target(holes):
    samples = sequence_samples(holes)
    assert samples.x_SLF.dtype == np.float32
    assert len(samples.x_SLF) == forecastable_TN(holes).sum() < 12 * 3
    for x_LF, y, (target, entity) in zip(samples.x_SLF, samples.y_S, samples.index_S2, strict=True):
        row = target + holes.num_history
        np.testing.assert_array_equal(x_LF, holes.x_TNF[row - LOOKBACK + 1 : row + 1, entity])
        np.testing.assert_equal(y, holes.y_TN[row, entity])


def test_summaries_against_numpy(holes):
    x_SLF, x_SK = sequence_samples(holes).x_SLF.astype(np.float64), summary_samples(holes).x_SK
    checked = 0
    for x_LF, x_K in zip(x_SLF, x_SK, strict=True):
        for f in range(2):
            known = x_LF[np.isfinite(x_LF[:, f]), f]
            last, mean, deviation, distance = x_K[f::2]
            if len(known) < 2:
                continue
            checked += 1
            np.testing.assert_allclose([mean, deviation], [known.mean(), known.std()], rtol=1e-5, atol=1e-7)
            np.testing.assert_equal(last, np.float32(x_LF[-1, f]))
            np.testing.assert_allclose(distance, (x_LF[-1, f] - known.mean()) / known.std(), rtol=1e-4)
    assert checked > 30


def test_summaries_of_a_constant_or_unknown_feature():
    panel = toy_panel(memory=0.5, num_times=20, num_entities=1, num_features=2)
    x = panel.x_TNF.copy()
    x[..., 0], x[..., 1] = 3.0, np.nan
    part = window(dataclasses.replace(panel, x_TNF=x), 10, 12, lookback=LOOKBACK)
    np.testing.assert_array_equal(summarise(part)[0, 0], [3, np.nan, 3, np.nan, 0, np.nan, np.nan, np.nan])


def test_summaries_count_rows_before_the_window_as_unknown():
    panel = toy_panel(memory=0.5, num_times=20, num_entities=1, num_features=1)
    part = window(panel, 0, 3, lookback=LOOKBACK)
    np.testing.assert_allclose(summarise(part)[2, 0, 1], panel.x_TNF[:3, 0, 0].mean(), rtol=1e-6)
    assert not forecastable_TN(part).any()


def test_labelled_samples_are_those_with_a_label(holes):
    learn, every = summary_samples(holes, labelled=True), summary_samples(holes)
    assert np.isfinite(learn.y_S).all()
    np.testing.assert_array_equal(learn.x_SK, every.x_SK[np.isfinite(every.y_S)])
    assert 0 < len(learn.y_S) < len(every.y_S)
    np.testing.assert_array_equal(sequence_samples(holes, labelled=True).index_S2, learn.index_S2)


def test_labels_are_limited(holes):
    wild = dataclasses.replace(holes, y_TN=holes.y_TN * 1e3)
    assert np.nanmax(np.abs(label_TN(wild))) == LABEL_LIMIT
    assert label_TN(wild).shape == (12, 3)


def test_scatter_puts_scores_back(holes):
    samples = sequence_samples(holes)
    score_TN = scatter_TN(holes, np.arange(len(samples.y_S), dtype=float), samples.index_S2)
    np.testing.assert_array_equal(score_TN[forecastable_TN(holes)], np.arange(len(samples.y_S)))
    assert np.isnan(score_TN[~forecastable_TN(holes)]).all()


def test_too_few_labels_are_refused():
    require_labels(np.zeros(30))
    with pytest.raises(ModelError, match="29 labelled"):
        require_labels(np.zeros(29))


def test_scaler_is_median_and_interquartile_range():
    rng = np.random.default_rng(0)
    x = rng.normal([3.0, -1.0], [2.0, 0.1], size=(20_000, 2))
    scaler = Scaler.fit(x)
    np.testing.assert_allclose(scaler.centre_F, [3.0, -1.0], atol=0.05)
    np.testing.assert_allclose(scaler.scale_F, [2.0, 0.1], rtol=0.03)
    spoilt = x.copy()
    spoilt[:200] = 1e9
    np.testing.assert_allclose(Scaler.fit(spoilt).scale_F, scaler.scale_F, rtol=0.05)


def test_scaler_limits_and_fills():
    scaler = Scaler(centre_F=np.array([1.0]), scale_F=np.array([2.0]))
    values = np.array([[2.0], [1e9], [-np.inf], [np.nan]])
    np.testing.assert_array_equal(scaler.transform(values), np.float32([[0.5], [5.0], [-5.0], [0.0]]))
    assert scaler.transform(values).dtype == np.float32


def test_scaler_of_odd_features():
    """Never known, constant, constant but for a few, and with infinities."""
    mostly = np.where(np.arange(100) < 5, 1.0, 0.0)
    infinite = np.where(np.arange(100) == 0, np.inf, np.arange(100.0))
    scaler = Scaler.fit(np.column_stack([np.full(100, np.nan), np.full(100, 7.0), mostly, infinite]))
    np.testing.assert_allclose(scaler.centre_F, [0.0, 7.0, 0.0, 50.0])
    np.testing.assert_allclose(scaler.scale_F, [1.0, 1.0, mostly.std(), 49 / 1.349])


def test_scaler_state_round_trips():
    scaler = Scaler.fit(np.random.default_rng(0).standard_normal((50, 3)))
    again = Scaler.from_state(scaler.state())
    np.testing.assert_array_equal(again.centre_F, scaler.centre_F)
    np.testing.assert_array_equal(again.scale_F, scaler.scale_F)


def test_train_window_of_the_toy_has_its_labels():
    train, valid = learning_windows(toy_panel(memory=0.5), lookback=LOOKBACK)
    assert np.isfinite(label_TN(train)).all()
    assert (train.num_targets, valid.num_targets) == (140, 48)
