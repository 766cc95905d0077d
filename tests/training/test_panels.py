"""Building, saving and cutting panels."""

from dataclasses import fields, replace

import numpy as np
import pytest

from tests.training.panel_makers import make_panel
from training.dataset import window
from training.panels import PanelError, build_panel, load_panel, save_panel


def test_a_saved_panel_is_read_back_whole_and_memory_mapped(tmp_path):
    panel = make_panel(num_times=50)
    back = load_panel(save_panel(panel, tmp_path))
    for name in ("event_times_T", "sample_times_T", "x_TNF", "returns_TN", "vol_TN", "hold_TN"):
        np.testing.assert_array_equal(getattr(back, name), getattr(panel, name))
    for field in fields(panel.labels):
        np.testing.assert_array_equal(getattr(back.labels, field.name), getattr(panel.labels, field.name))
    assert (back.entities, back.feature_names, back.fingerprint) == (
        panel.entities,
        panel.feature_names,
        panel.fingerprint,
    )
    assert isinstance(back.x_TNF, np.memmap)
    assert not back.x_TNF.flags.writeable


def test_saving_twice_leaves_one_folder_and_nothing_half_done(tmp_path):
    panel = make_panel(num_times=50)
    assert save_panel(panel, tmp_path) == save_panel(panel, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_fingerprint_tells_one_changed_value():
    assert make_panel(seed=1).fingerprint == make_panel(seed=1).fingerprint
    assert make_panel(seed=1).fingerprint != make_panel(seed=2).fingerprint


def test_features_nobody_has_are_left_out_and_none_at_all_is_not_applicable():
    panel = make_panel(num_times=50)
    facts = {"pipeline": "toy", "entities": panel.entities, "labels": panel.labels, "hold_TN": panel.hold_TN}
    times = {"event_times_T": panel.event_times_T, "sample_times_T": panel.sample_times_T}
    names = ("toy_v1__a", "toy_v1__b", "bar_v1__ret_1", "bar_v1__vol_60")
    known = np.ones((50, 5, 4))
    known[..., 1] = np.nan
    assert build_panel(names=names, known_TNF=known, bar_view="bar_v1", **facts, **times).feature_names == ("a",)
    known[..., 0] = np.nan
    with pytest.raises(PanelError, match="not applicable"):
        build_panel(names=names, known_TNF=known, bar_view="bar_v1", **facts, **times)


def test_a_window_holds_the_lookback_as_history_and_hides_labels_it_may_not_show():
    panel = make_panel(num_times=50)
    cut = window(panel, 20, 30, lookback=8)
    assert (cut.num_history, cut.num_targets) == (7, 10)
    assert np.isnan(cut.y_TN).all()
    learn = np.zeros(50, dtype=bool)
    learn[22:25] = True
    shown = window(panel, 20, 30, lookback=8, learn_T=learn)
    assert np.flatnonzero(np.isfinite(shown.y_TN).all(axis=1)).tolist() == [9, 10, 11]
    assert np.isfinite(shown.forward_TN).any(axis=1).sum() == 3


def test_history_rows_never_show_labels_even_when_learnable():
    panel = make_panel(num_times=50)
    cut = window(panel, 20, 30, lookback=8, learn_T=np.ones(50, dtype=bool))
    assert np.isnan(cut.y_TN[: cut.num_history]).all()
    assert np.isfinite(cut.y_TN[cut.num_history :]).all()


def test_a_window_at_the_start_has_what_history_there_is():
    panel = replace(make_panel(num_times=50))
    assert window(panel, 3, 5, lookback=8).num_history == 3
