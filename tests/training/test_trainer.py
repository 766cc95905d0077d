"""Training a fold: what it leaves behind, that it is not repeated, that failures are results."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from feature_repo.market.costs import CostModel
from tests.training.panel_makers import make_panel
from training.artifacts import verify_manifest
from training.models.fitted import FittedModel
from training.models.registry import architecture
from training.models.spec import Budget
from training.panels import load_panel, save_panel
from training.recipe import read_recipe
from training.signals import SignalStore
from training.splits.walk_forward import final_fold, walk_forward
from training.trainer import FoldTask, model_folder, train_fold, validation_ic
from training.variants import full_grid

LENGTHS = {"train": 120, "validate": 40}


@pytest.fixture(scope="module")
def panel_folder(tmp_path_factory):
    return save_panel(make_panel(num_times=260, signal=0.5), tmp_path_factory.mktemp("panels"))


@pytest.fixture
def task(panel_folder, tmp_path):
    panel = load_panel(panel_folder)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    fold = walk_forward(*times, **LENGTHS, test=20, step=20, num_folds=2)[0]
    variant = next(v for v in full_grid(["toy"]) if v.architecture == "lightgbm" and v.lookback == 7)
    return FoldTask(
        variant=variant,
        params={**architecture("lightgbm").defaults(), **dict(variant.params)},
        panel=panel_folder,
        panel_fingerprint=panel.fingerprint,
        fold=fold,
        kind="oos",
        interval="1d",
        seed=3,
        budget=Budget(max_trees=20),
        costs=CostModel(),
        code="code",
        git_sha="sha",
        folder=tmp_path / "fits",
        signals=tmp_path / "signals",
        made_at="2022-01-01T00:00:00+00:00",
    )


def _live(task):
    panel = load_panel(task.panel)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    return replace(task, kind="live", fold=final_fold(*times, **LENGTHS))


def test_a_test_fold_scores_its_own_window_and_nothing_else(task):
    result = train_fold(task)
    assert result.ok, result.reason
    signals = SignalStore(root=task.signals).read(task.variant.id, model_versions=[task.key], kind="oos")
    panel = load_panel(task.panel)
    times = signals["event_time"].dt.tz_convert(None).unique()
    np.testing.assert_array_equal(np.sort(times.to_numpy("datetime64[us]")), panel.event_times_T[task.fold.test])
    assert (signals["made_at"] > signals["event_time"]).all()
    assert len(signals) == result.num_signals == 20 * len(panel.entities)


def test_a_finished_fold_is_read_back_not_refitted(task):
    first = train_fold(task)
    file = task.folder / task.variant.id / task.key / "result.json"
    marked = {**json.loads(file.read_text()), "threshold": 123.0}
    file.write_text(json.dumps(marked))
    assert train_fold(task).threshold == 123.0
    assert first.threshold != 123.0


def test_markets_with_the_same_data_keep_their_own_fits_and_signals(task, tmp_path):
    first = replace(_live(task), market_name="one", market="here")
    second = replace(first, market_name="two", market="there", signals=tmp_path / "two")
    results = [train_fold(each) for each in (first, second)]
    assert results[0].checksum == results[1].checksum
    for each, result in zip((first, second), results, strict=True):
        said = SignalStore(root=each.signals).read(task.variant.id, model_versions=[each.key], kind="live")
        assert len(said) == result.num_signals > 0
        assert read_recipe(model_folder(each)).task.market == each.market


def test_a_finished_fold_whose_signals_were_removed_is_done_again(task):
    first = train_fold(task)
    shutil.rmtree(task.signals)
    again = train_fold(task)
    said = SignalStore(root=task.signals).read(task.variant.id, model_versions=[task.key], kind="oos")
    assert len(said) == again.num_signals == first.num_signals
    assert again.checksum == first.checksum


def test_a_fold_killed_before_it_was_published_is_done_again_and_ends_the_same(task):
    first = train_fold(task)
    (task.folder / task.variant.id / task.key / "result.json").unlink()
    again = train_fold(task)
    assert (again.checksum, again.threshold) == (first.checksum, first.threshold)


def test_the_key_tells_everything_that_decides_the_fit(task):
    other = {
        "params": {**task.params, "lambda_l2": 99.0},
        "panel_fingerprint": "x",
        "seed": 4,
        "code": "other",
        "kind": "live",
        "budget": Budget(max_trees=21),
        "costs": CostModel(fee_bps=9.0),
        "market_name": "other",
    }
    keys = {replace(task, **{name: value}).key for name, value in other.items()}
    assert len(keys | {task.key}) == len(other) + 1
    assert replace(task, git_sha="later", made_at="later").key == task.key


def test_a_live_fit_saves_a_model_that_says_what_it_is_and_scores_the_newest_bars(task):
    live = _live(task)
    result = train_fold(live)
    assert result.ok, result.reason
    manifest = verify_manifest(model_folder(live))
    assert (manifest.variant, manifest.checksum) == (task.variant.id, result.checksum)
    assert FittedModel.load(model_folder(live)).checksum() == result.checksum
    signals = SignalStore(root=task.signals).read(task.variant.id, model_versions=[live.key], kind="live")
    panel = load_panel(task.panel)
    assert signals["event_time"].max().tz_convert(None).to_datetime64() == panel.event_times_T[-1]
    assert signals["event_time"].nunique() == len(panel.event_times_T) - live.fold.test.start


def test_a_failing_fit_is_a_result_with_its_reason(task):
    broken = replace(task, params={**task.params, "num_leaves": -5})
    result = train_fold(broken)
    assert not result.ok
    assert "Error" in result.reason
    assert list((task.folder / task.variant.id).iterdir()) == []  # nothing is left, so the next run tries again


def test_a_test_window_cannot_change_the_fit_or_the_threshold(task, tmp_path):
    """Garble everything from the test window on: the model and its threshold must not notice."""
    panel = load_panel(task.panel)
    cut = task.fold.test.start
    labels = replace(panel.labels, y_TN=panel.labels.y_TN.copy(), forward_TN=panel.labels.forward_TN.copy())
    labels.y_TN[cut:], labels.forward_TN[cut:] = 7.0, 7.0
    x_TNF, hold_TN = panel.x_TNF.copy(), panel.hold_TN.copy()
    x_TNF[cut:], hold_TN[cut:] = 9.0, 0.5
    garbled = replace(panel, x_TNF=x_TNF, hold_TN=hold_TN, labels=labels, fingerprint="f" * 64)
    elsewhere = replace(task, panel=save_panel(garbled, tmp_path / "garbled"), folder=tmp_path / "other")
    first, second = train_fold(task), train_fold(elsewhere)
    assert (first.checksum, first.threshold) == (second.checksum, second.threshold)


def test_validation_ic_sees_a_planted_signal(task):
    assert validation_ic(task) > 0.15


def test_validation_ic_of_a_failing_fit_is_nan(task):
    assert np.isnan(validation_ic(replace(task, params={**task.params, "num_leaves": -5})))
