"""From signals to tracks."""

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.costs import CostModel, Liquidity
from tests.training.panel_makers import make_panel
from training.metrics.forecast import ic_by_time, mean_ic
from training.rating.tracks import DECAY_HORIZONS, build_tracks, score_matrix
from training.signals import SignalStore
from training.simulate import simulate
from training.tearsheet import compounded

COSTS = CostModel()


def _signals(panel, rows, score_TN, *, variant, version, kind="oos", made_after="0h"):
    at, of = np.nonzero(np.isfinite(score_TN))
    times = pd.DatetimeIndex(panel.event_times_T[rows][at]).tz_localize("UTC")
    return pd.DataFrame(
        {
            "variant": variant,
            "interval": "1d",
            "horizon": 1,
            "entity_key": np.array(panel.entities, dtype=object)[of],
            "event_time": times,
            "made_at": times + pd.Timedelta(made_after),
            "model_version": version,
            "kind": kind,
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


def test_a_pipeline_that_ended_is_flat_to_the_end_and_not_spared_the_rest(panel, tmp_path):
    store = SignalStore(root=tmp_path)
    _write(store, panel, slice(60, 100), variant="long", version="a")
    _write(store, panel, slice(60, 70), variant="ended", version="b")
    tracks = build_tracks(store, {"long": {"a": 0.0}, "ended": {"b": 0.0}}, panel, costs=COSTS)
    assert np.isfinite(tracks.net_VT).all()
    assert (tracks.gross_VT[1, 10:] == 0).all()
    assert tracks.turnover_VT[1, 10] > 0.9  # it had to leave
    assert (tracks.net_VT[1, 11:] == 0).all()
    assert np.isnan(tracks.ic_VT[1, 10:]).all()


def test_decay_is_the_ic_with_what_came_after(tmp_path):
    """The panel's first feature tells the next bar's return and nothing of the later ones: IC falls as 1 / sqrt(h)."""
    panel = make_panel(num_times=120, num_entities=20, signal=0.5)
    store = SignalStore(root=tmp_path)
    score_TN = np.asarray(panel.x_TNF[20:110, :, 0], dtype=float)
    store.write(_signals(panel, slice(20, 110), score_TN, variant="v", version="a"))
    tracks = build_tracks(store, {"v": {"a": 0.0}}, panel, costs=COSTS)
    expected = [mean_ic(ic_by_time(score_TN, compounded(panel.hold_TN, h)[20:110])) for h in DECAY_HORIZONS]
    np.testing.assert_allclose(tracks.decay_VH[0], expected)
    np.testing.assert_allclose(tracks.decay_VH[0, 0], mean_ic(tracks.ic_VT[0]))
    np.testing.assert_allclose(tracks.decay_VH[0], 0.5 / np.sqrt(DECAY_HORIZONS), atol=0.06)


def test_impact_is_charged_where_volume_is_known(panel, tmp_path):
    store = SignalStore(root=tmp_path)
    score_TN = _write(store, panel, slice(60, 100), variant="v", version="a")
    costs = CostModel(capital=1e6)
    value_TN = np.full(panel.hold_TN.shape, 1e7)
    tracks = build_tracks(store, {"v": {"a": 0.0}}, panel, costs=costs, traded_value_TN=value_TN)
    liquidity = Liquidity(value_TN=value_TN[60:100], vol_TN=panel.vol_TN[60:100])
    book = simulate(score_TN, panel.hold_TN[60:100], threshold=0.0, costs=costs, liquidity=liquidity)
    np.testing.assert_array_equal(tracks.net_VT[0], book.net_T)
    np.testing.assert_array_equal(tracks.unit_impact_VT[0], book.unit_impact_T)
    assert tracks.capital == 1e6
    without = build_tracks(store, {"v": {"a": 0.0}}, panel, costs=costs)
    assert (without.net_VT > tracks.net_VT).all()
    assert np.isnan(without.unit_impact_VT).all()


def test_the_first_word_on_a_bar_counts_and_a_later_models_is_hindsight(panel, tmp_path):
    store = SignalStore(root=tmp_path)
    first_TN, later_TN = np.random.default_rng(0).standard_normal((2, 20, len(panel.entities)))
    store.write(_signals(panel, slice(60, 80), first_TN, variant="v", version="b", kind="live", made_after="1h"))
    store.write(_signals(panel, slice(60, 80), later_TN, variant="v", version="a", kind="live", made_after="30d"))
    for versions in (["a", "b"], ["b", "a"]):
        signals = store.read("v", model_versions=versions, kind="live")
        found, version_T = score_matrix(signals, panel.event_times_T, panel.entities)
        np.testing.assert_array_equal(found[60:80], first_TN)
        assert set(version_T[60:80]) == {"b"}


def test_signals_of_other_times_and_entities_are_left_out(panel):
    signals = _signals(panel, slice(3, 5), np.ones((2, 5)), variant="v", version="a")
    stranger = signals.iloc[:1].assign(entity_key="gone", score=9.0)
    found, _ = score_matrix(pd.concat([signals, stranger]), panel.event_times_T[4:8], panel.entities)
    np.testing.assert_array_equal(found, [[1.0] * 5, *[[np.nan] * 5] * 3])


def test_score_matrix_puts_every_score_at_its_time_and_entity(panel):
    score_TN = np.arange(10.0).reshape(2, 5)
    signals = _signals(panel, slice(3, 5), score_TN, variant="v", version="a").sample(frac=1.0, random_state=3)
    found, version_T = score_matrix(signals, panel.event_times_T[:8], panel.entities)
    np.testing.assert_array_equal(found[3:5], score_TN)
    assert np.isnan(np.delete(found, [3, 4], axis=0)).all()
    assert version_T.tolist() == ["", "", "", "a", "a", "", "", ""]
