"""Forecasts of single bars: by the newest model before them, on the features that it was trained on."""

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from feature_repo.market.costs import CostModel
from tests.training.panel_makers import make_panel
from training.artifacts import ArtifactError
from training.dataset import window
from training.evaluation import (
    NONE,
    LiveModel,
    ScoringTask,
    as_trained,
    latencies,
    live_models,
    newest_before,
    open_model,
    score_model,
    score_models,
    signal_rows,
    speakers,
)
from training.models.fitted import FittedModel
from training.models.registry import architecture
from training.models.spec import Budget
from training.panels import load_panel, save_panel
from training.signals import SignalStore
from training.splits.walk_forward import final_fold
from training.trainer import FoldTask, train_fold
from training.variants import full_grid

MADE_AT = datetime(2019, 4, 1, 22, tzinfo=UTC)
NOW = datetime(2019, 4, 3, 22, tzinfo=UTC)


@pytest.fixture(scope="module")
def panel_folder(tmp_path_factory):
    return save_panel(make_panel(num_times=260, signal=0.5), tmp_path_factory.mktemp("panels"))


def fit(panel_folder, folder, name, *, made_at=MADE_AT, as_of=""):
    panel = load_panel(panel_folder)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    variant = next(v for v in full_grid(["toy"]) if v.architecture == name and v.lookback == 14)
    task = FoldTask(
        variant=variant,
        params={**architecture(name).defaults(), **dict(variant.params)},
        panel=panel_folder,
        panel_fingerprint=panel.fingerprint,
        fold=final_fold(*times, train=120, validate=40),
        kind="live",
        interval="1d",
        seed=3,
        budget=Budget(max_trees=20, max_epochs=2, device="cpu"),
        costs=CostModel(),
        code=f"code {made_at}",
        git_sha="sha",
        folder=folder / "fits",
        signals=folder / "signals",
        made_at=made_at.isoformat(),
        as_of=as_of,
    )
    result = train_fold(task)
    assert result.ok, result.reason
    return task


def found(folder, **asked):
    store = SignalStore(root=folder / "signals")
    return live_models(store, folder / "fits", **{"interval": "1d", "horizon": 1, **asked})


@pytest.fixture(scope="module")
def boosted(panel_folder, tmp_path_factory):
    """A live fit of trees: the task and the model as it is found."""
    folder = tmp_path_factory.mktemp("boosted")
    task = fit(panel_folder, folder, "lightgbm")
    (models,) = found(folder)[0].values()
    return task, models[0]


def model(knew_until):
    return LiveModel(
        variant="v",
        key=knew_until,
        folder=None,
        architecture="a",
        pipeline="p",
        lookback=7,
        per_entity=False,
        knew_until=np.datetime64(knew_until, "us"),
        checksum="",
        panel_fingerprint="",
    )


# ---- whose turn it is ------------------------------------------------------------------------------------------------


def test_the_newest_model_strictly_before_a_sample_time_speaks():
    models = [model(f"2020-01-0{day}T22:00") for day in (2, 5)]
    times_T = np.array(
        [
            f"2020-01-{when}"
            for when in ("01T21:15", "02T22:00", "03T21:15", "05T21:15", "05T22:00:00.000001", "09T21:15")
        ],
        dtype="datetime64[us]",
    )
    np.testing.assert_array_equal(newest_before(models, times_T), [NONE, NONE, 0, 0, 1, 1])


def test_who_holds_the_stage_speaks_from_then_on_and_no_bar_before_it_was_made():
    old, new = (model(f"2020-01-0{day}") for day in (2, 4))
    times_T = np.array([f"2020-01-0{day}" for day in range(2, 9)], dtype="datetime64[us]")
    first, sixth = (np.datetime64(f"2020-01-0{day}", "us") for day in (1, 6))
    by_age = [NONE, 0, 0, 1, 1, 1, 1]
    assert speakers([old, new], times_T).tolist() == by_age
    assert speakers([old, new], times_T, held=old.key, since=sixth).tolist() == [NONE, 0, 0, 1, 1, 0, 0]
    assert speakers([old, new], times_T, held=new.key, since=first).tolist() == by_age
    assert speakers([old, new], times_T, held="gone", since=first).tolist() == by_age


def test_a_model_is_as_old_as_what_it_knew_not_as_its_last_sample(panel_folder, tmp_path):
    """Its last sample's label ended bars after the sample: by ``trained_to`` it would speak of bars it has seen."""
    task = fit(panel_folder, tmp_path, "lightgbm")
    (models,) = found(tmp_path)[0].values()
    panel, learned = load_panel(panel_folder), task.fold.validate.stop - 1
    label_end = panel.labels.end_T[learned]
    between = panel.sample_times_T[
        (panel.sample_times_T > panel.sample_times_T[learned]) & (panel.sample_times_T < label_end)
    ]
    assert len(between)
    assert (newest_before(models, between) == NONE).all()
    assert models[0].knew_until == np.datetime64("2019-04-01T22:00", "us")


def test_a_fit_as_of_an_earlier_time_knew_no_more_than_was_known_then(panel_folder, tmp_path):
    fit(panel_folder, tmp_path, "lightgbm", as_of="2018-10-01T00:00:00+02:00")
    (models,) = found(tmp_path)[0].values()
    assert models[0].knew_until == np.datetime64("2018-09-30T22:00", "us")


def test_models_are_found_by_variant_the_oldest_first_and_others_are_left_out(panel_folder, tmp_path):
    later = fit(panel_folder, tmp_path, "lightgbm", made_at=NOW)
    first = fit(panel_folder, tmp_path, "lightgbm")
    fit(panel_folder, tmp_path, "dlinear")
    models, unreadable = found(tmp_path)
    assert [each.key for each in models[first.variant.id]] == [first.key, later.key]
    assert (len(models), unreadable) == (2, {})
    assert found(tmp_path, interval="1h") == found(tmp_path, horizon=2) == ({}, {})


def test_whose_recipe_or_features_are_not_those_of_now_is_told_of(panel_folder, tmp_path):
    task = fit(panel_folder, tmp_path, "lightgbm")
    recipe = task.folder / task.variant.id / task.key / "model" / "recipe.json"
    content = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**content, "feature_views": ["toy_v0", "bar_v1"]}))
    models, unreadable = found(tmp_path)
    assert models == {}
    assert "it learned from the feature tables toy_v0, bar_v1, now they are bar_v1" in unreadable[task.variant.id]
    recipe.write_text("{}")
    assert "is not a recipe of this version" in found(tmp_path)[1][task.variant.id]


# ---- the forecasts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lightgbm", "dlinear", "var", "random_forest"])
def test_a_bar_by_itself_is_forecast_as_among_others(panel_folder, tmp_path, name):
    """Bit for bit as one at a time; and as the live fit itself did, which forecasts its bars together."""
    task = fit(panel_folder, tmp_path, name)
    (models,) = found(tmp_path)[0].values()
    panel = load_panel(panel_folder)
    entities = panel.entities if models[0].per_entity else None
    rows = tuple(range(250, 260))
    asked = ScoringTask(model=models[0], panel=panel_folder, rows=rows, entities=entities)
    [together] = score_models([asked])
    assert together.reason == ""
    singly = [score_model(replace(asked, rows=(row,)), panel).bars[0] for row in rows]
    np.testing.assert_array_equal([bar.score_N for bar in together.bars], [bar.score_N for bar in singly])
    own = SignalStore(root=task.signals).read(task.variant.id, model_versions=[task.key], kind="live")
    last = own[own["event_time"] == own["event_time"].max()]
    np.testing.assert_allclose(together.bars[-1].score_N, last["score"], rtol=1e-6)
    assert all(bar.latency_ms > 0 for bar in together.bars)


def test_a_model_gets_its_own_features_in_its_order_and_nan_for_those_without_a_value(boosted, panel_folder):
    """A panel of few bars leaves out a feature that has no value in them; another is new, and the order is another."""
    _, live = boosted
    panel = load_panel(panel_folder)
    blind = panel.x_TNF.copy()
    blind[..., 1] = np.nan
    order = [2, 0]
    x_TNF = np.concatenate([np.full_like(blind[..., :1], 9.0), blind[..., order]], axis=2)
    names = ("newer", *(panel.feature_names[i] for i in order))
    seen = replace(panel, x_TNF=x_TNF, feature_names=names)
    fitted, wanted = open_model(live)
    expected = fitted.predict(window(replace(panel, x_TNF=blind), 255, 256, lookback=14)).score_TN[0]
    scored = score_model(ScoringTask(model=live, panel=panel_folder, rows=(255,)), seen)
    np.testing.assert_array_equal(scored.bars[0].score_N, expected)
    # what this guards against: as many features in another order are taken without a word
    slipped = fitted.predict(window(seen, 255, 256, lookback=14)).score_TN[0]
    assert wanted == panel.feature_names
    assert not np.array_equal(slipped, expected)


def test_entities_stand_where_the_parameters_are(panel_folder):
    panel = load_panel(panel_folder)
    seen = as_trained(panel, panel.feature_names, ("E3", "GONE", "E0"))
    np.testing.assert_array_equal(seen.returns_TN[:, [0, 2]], panel.returns_TN[:, [3, 0]])
    np.testing.assert_array_equal(seen.vol_TN[:, 2], panel.vol_TN[:, 0])
    assert np.isnan(seen.x_TNF[:, 1]).all()
    assert np.isnan(seen.returns_TN[:, 1]).all()
    assert seen.x_TNF.dtype == np.float32
    assert np.isnan(seen.labels.y_TN).all()
    assert as_trained(panel, panel.feature_names, None).entities == panel.entities


def test_a_changed_file_or_another_model_is_refused(boosted, tmp_path):
    _, live = boosted
    copied = replace(live, folder=shutil.copytree(live.folder, tmp_path / "model"))
    assert isinstance(open_model(copied)[0], FittedModel)
    with pytest.raises(ArtifactError, match=re.escape("fitted was other with")):
        open_model(replace(copied, variant="other"))
    with pytest.raises(ArtifactError, match="don't use it"):
        open_model(replace(copied, checksum="0" * 64))
    (copied.folder / "model.json").write_text("{}")
    scored = score_model(ScoringTask(model=copied, panel=tmp_path, rows=(255,)), make_panel(num_times=260))
    assert (scored.bars, "changed: model.json" in scored.reason) == ((), True)


# ---- what is kept of them --------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_store_and_dated_by_when_they_were_there(boosted, panel_folder, tmp_path):
    _, live = boosted
    panel = load_panel(panel_folder)
    unknown = panel.x_TNF.copy()
    unknown[258:, 1] = np.nan
    scored = score_model(ScoringTask(model=live, panel=panel_folder, rows=(257, 258)), replace(panel, x_TNF=unknown))
    rows = signal_rows(scored, interval="1d", horizon=1, made_at=NOW)
    store = SignalStore(root=tmp_path)
    assert store.append(rows) == 5 + 4
    back = store.read(live.variant, model_versions=[live.key], kind="live")
    assert (back["made_at"] == NOW).all()
    ends = panel.event_times_T[[257, 258]]
    np.testing.assert_array_equal(store.event_times(live.variant, model_version=live.key, kind="live"), ends)
    assert back["confidence"].between(0, 1).all()
    assert [each.num_signals for each in latencies(scored, measured_at=NOW)] == [5, 4]


def test_nothing_to_say_is_no_row(boosted, panel_folder):
    _, live = boosted
    panel = load_panel(panel_folder)
    blind = replace(panel, x_TNF=np.full_like(panel.x_TNF, np.nan))
    scored = score_model(ScoringTask(model=live, panel=panel_folder, rows=(257,)), blind)
    assert scored.reason == ""
    assert signal_rows(scored, interval="1d", horizon=1, made_at=NOW).empty
    assert [each.num_signals for each in latencies(scored, measured_at=NOW)] == [0]
