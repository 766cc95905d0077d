"""From signals to tracks."""

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.costs import CostModel
from tests.training.panel_makers import make_panel
from training.metrics.forecast import ic_by_time
from training.rating.tracks import build_tracks, score_matrix
from training.signals import SignalStore
from training.simulate import simulate

COSTS = CostModel()


def _signals(panel, rows, score_TN, *, variant, version):
    at, of = np.nonzero(np.isfinite(score_TN))
    times = pd.DatetimeIndex(panel.event_times_T[rows][at]).tz_localize("UTC")
    return pd.DataFrame(
        {
            "variant": variant,
            "interval": "1d",
            "horizon": 1,
            "entity_key": np.array(panel.entities, dtype=object)[of],
            "event_time": times,
            "made_at": times,
            "model_version": version,
            "kind": "oos",
            "score": score_TN[at, of],
            "confidence": 0.5,
        }
    )


@pytest.fixture
def panel():
    return make_panel(num_times=120, signal=0.5)


def _write(store, panel, rows, *, variant, version, seed=0):
    score_TN = np.random.default_rng(seed).standard_normal((rows.stop - rows.start, len(panel.entities)))
    store.write(_signals(panel, rows, score_TN, variant=variant, version=version))
    return score_TN


def test_a_track_is_the_simulation_of_its_folds_joined(panel, tmp_path):
    store = SignalStore(root=tmp_path)
    first = _write(store, panel, slice(60, 80), variant="v", version="a", seed=1)
    second = _write(store, panel, slice(80, 100), variant="v", version="b", seed=2)
    tracks = build_tracks(store, {"v": {"a": 0.3, "b": 0.9}}, panel, costs=COSTS)
    joined = np.vstack([first, second])
    book = simulate(joined, panel.hold_TN[60:100], threshold=np.repeat([0.3, 0.9], 20), costs=COSTS)
    np.testing.assert_allclose(tracks.net_VT[0], book.net_T)
    np.testing.assert_allclose(tracks.ic_VT[0], ic_by_time(joined, panel.labels.forward_TN[60:100]))
    np.testing.assert_array_equal(tracks.event_times_T, panel.event_times_T[60:100])


def test_shorter_tracks_are_nan_before_they_begin(panel, tmp_path):
    store = SignalStore(root=tmp_path)
    _write(store, panel, slice(60, 100), variant="long", version="a")
    _write(store, panel, slice(90, 100), variant="short", version="b")
    tracks = build_tracks(store, {"long": {"a": 0.0}, "short": {"b": 0.0}}, panel, costs=COSTS)
    assert np.isfinite(tracks.net_VT[0]).all()
    assert np.isnan(tracks.net_VT[1, :30]).all()
    assert np.isfinite(tracks.net_VT[1, 30:]).all()


def test_bars_without_a_complete_label_are_left_out(panel, tmp_path):
    store = SignalStore(root=tmp_path)
    _write(store, panel, slice(100, 120), variant="v", version="a")
    tracks = build_tracks(store, {"v": {"a": 0.0}}, panel, costs=COSTS)
    assert tracks.event_times_T[-1] < panel.event_times_T[-1]
    assert not np.isnat(panel.labels.end_T[np.searchsorted(panel.event_times_T, tracks.event_times_T)]).any()
    assert np.isfinite(tracks.net_VT).all()


def test_a_bar_without_signals_inside_a_track_is_flat_not_missing(panel, tmp_path):
    store = SignalStore(root=tmp_path)
    score_TN = np.random.default_rng(0).standard_normal((20, len(panel.entities)))
    score_TN[5] = np.nan
    store.write(_signals(panel, slice(60, 80), score_TN, variant="v", version="a"))
    tracks = build_tracks(store, {"v": {"a": 0.0}}, panel, costs=COSTS)
    assert tracks.net_VT.shape == (1, 20)
    assert tracks.gross_VT[0, 5] == 0.0


def test_score_matrix_puts_every_score_at_its_time_and_entity(panel):
    score_TN = np.arange(10.0).reshape(2, 5)
    signals = _signals(panel, slice(3, 5), score_TN, variant="v", version="a").sample(frac=1.0, random_state=3)
    found, version_T = score_matrix(signals, panel.event_times_T[:8], panel.entities)
    np.testing.assert_array_equal(found[3:5], score_TN)
    assert np.isnan(np.delete(found, [3, 4], axis=0)).all()
    assert version_T.tolist() == ["", "", "", "a", "a", "", "", ""]
