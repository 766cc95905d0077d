"""The signal store."""

import signal
import subprocess
import sys
from pathlib import Path

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


# ---- append ----------------------------------------------------------------------------------------------------------


def _bars(first, num, *, entities=("A", "B"), version="k1", score=0.5):
    parts = [
        _signals(version=version, kind="live", num=first + num, score=score).assign(entity_key=e) for e in entities
    ]
    return pd.concat([part[first:] for part in parts], ignore_index=True)


def test_append_adds_what_the_file_lacks_and_the_first_word_stays(tmp_path):
    store = SignalStore(root=tmp_path)
    store.write(_bars(0, 3))
    assert store.append(_bars(1, 4, entities=("A", "B", "C"), score=0.9)) == 2 * 2 + 4
    back = store.read("v", model_versions=["k1"], kind="live")
    assert len(back) == 3 * 2 + 2 * 2 + 4
    said = back.set_index(["entity_key", "event_time"])["score"]
    times = _signals(num=5)["event_time"]
    assert said["A", times[2]] == 0.5
    assert said["A", times[3]] == said["C", times[1]] == 0.9


def test_append_again_changes_no_byte(tmp_path):
    store = SignalStore(root=tmp_path)
    assert store.append(_bars(0, 5)) == 10
    [file] = tmp_path.rglob("*.parquet")
    before, written = file.read_bytes(), file.stat().st_mtime_ns
    assert store.append(_bars(0, 5, score=0.1)) == 0
    assert store.append(_bars(2, 1)) == 0
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (before, written)


def test_append_looks_at_the_file_of_its_own_model_and_kind(tmp_path):
    store = SignalStore(root=tmp_path)
    store.write(pd.concat([_bars(0, 3, version="k1"), _bars(0, 3, version="k2").assign(kind="oos")]))
    assert store.append(pd.concat([_bars(0, 4, version="k1"), _bars(0, 4, version="k2")])) == 2 + 8
    assert list(store.versions("live")) == [("v", "k1"), ("v", "k2")]
    assert list(store.versions("oos")) == [("v", "k2")]


def test_append_refuses_two_words_on_one_bar(tmp_path):
    twice = pd.concat([_bars(0, 2), _bars(1, 1, score=0.7).assign(made_at=pd.Timestamp("2024-01-01", tz="UTC"))])
    with pytest.raises(ValueError, match="2 signals share a key"):
        SignalStore(root=tmp_path).append(twice)
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_bars_that_a_model_has_signals_for(tmp_path):
    store = SignalStore(root=tmp_path)
    store.write(_bars(1, 3).sample(frac=1.0, random_state=1))
    expected = _signals(num=4)["event_time"][1:].dt.tz_convert(None).to_numpy("datetime64[us]")
    found = store.event_times("v", model_version="k1", kind="live")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == "datetime64[us]"
    assert not len(store.event_times("v", model_version="k9", kind="live"))


_DIES = """
import os, signal, sys
from pathlib import Path
import pandas as pd
from training.signals import SignalStore

where, at = sys.argv[1:]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if at == "before":
    Path.replace = die  # all is written, and nothing is in its place
else:
    real = Path.replace
    Path.replace = lambda path, target: (real(path, target), die())
SignalStore(root=Path(where)).append(pd.read_parquet(Path(where) / "given.parquet"))
"""


@pytest.mark.parametrize(("at", "there"), [("before", 6), ("after", 10)])
def test_append_killed_leaves_a_whole_file_and_is_finished_by_the_next(tmp_path, at, there):
    store, given = SignalStore(root=tmp_path), _bars(0, 5)
    store.append(_bars(0, 3))
    given.to_parquet(tmp_path / "given.parquet")
    command = [sys.executable, "-c", _DIES, str(tmp_path), at]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(store.read("v", model_versions=["k1"], kind="live")) == there
    assert store.append(_bars(0, 6)) == 12 - there
    assert len(store.read("v", model_versions=["k1"], kind="live")) == 12
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["k1-live.parquet"]  # no half file is left
