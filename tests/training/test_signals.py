"""The signal store."""

import numpy as np
import pandas as pd
import pytest

from training.signals import SignalStore


def _signals(version="k1", kind="oos", num=4, score=0.5):
    times = pd.date_range("2020-01-01", periods=num, freq="D", tz="UTC").astype("datetime64[us, UTC]")
    return pd.DataFrame(
        {
            "variant": "v",
            "interval": "1d",
            "horizon": 1,
            "entity_key": "A",
            "event_time": times,
            "made_at": times,
            "model_version": version,
            "kind": kind,
            "score": score,
            "confidence": 0.6,
        }
    )


def test_what_is_written_is_read_back_in_order(tmp_path):
    store = SignalStore(root=tmp_path)
    frame = _signals().sample(frac=1.0, random_state=1)
    assert store.write(frame) == 4
    back = store.read("v", model_versions=["k1"], kind="oos")
    assert back["event_time"].is_monotonic_increasing
    assert np.allclose(back["score"], 0.5)


def test_writing_again_replaces_and_never_doubles(tmp_path):
    store = SignalStore(root=tmp_path)
    store.write(_signals())
    store.write(_signals(score=0.7))
    back = store.read("v", model_versions=["k1"], kind="oos")
    assert len(back) == 4
    assert np.allclose(back["score"], 0.7)


def test_kinds_and_versions_do_not_mix(tmp_path):
    store = SignalStore(root=tmp_path)
    store.write(pd.concat([_signals("k1"), _signals("k2"), _signals("k1", kind="live")]))
    assert set(store.read("v", model_versions=["k2"], kind="oos")["model_version"]) == {"k2"}
    assert set(store.read("v", model_versions=["k1"], kind="live")["kind"]) == {"live"}


def test_duplicate_keys_and_missing_columns_are_refused(tmp_path):
    store = SignalStore(root=tmp_path)
    with pytest.raises(ValueError, match="share a key"):
        store.write(pd.concat([_signals(), _signals()]))
    with pytest.raises(ValueError, match="lack the columns"):
        store.write(_signals().drop(columns="score"))
