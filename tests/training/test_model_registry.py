"""The registry as a person asks for it: the best model, one at a glance, one's own rated beside the factory's."""

import itertools
import json
import uuid
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.costs import CostModel
from tests.training.dying_client import DyingClient, Killed
from tests.training.panel_makers import make_panel
from tests.training.tracking_makers import START, VARIANT, make_record, make_summary, of_variant
from training.artifacts import ArtifactError, file_sha256, verify_manifest, write_manifest
from training.metrics.forecast import mean_ic
from training.model_registry import ModelRegistry, RegistryError
from training.models.registry import architecture
from training.models.spec import Budget
from training.own_model import OwnModel, OwnModelError, checked_forecasts
from training.panels import load_panel, save_panel
from training.rating.engine import rate
from training.rating.tracks import build_tracks
from training.signals import SignalStore
from training.splits.walk_forward import walk_forward
from training.tracking import Tracker, model_name
from training.trainer import FoldTask, train_fold
from training.variants import full_grid

NOW = datetime(2024, 6, 1, tzinfo=UTC)
SPAN = (datetime(2019, 1, 2, tzinfo=UTC), datetime(2020, 1, 3, tzinfo=UTC))


def make_registry(databases, folder: Path) -> ModelRegistry:
    tracker = Tracker(databases.url("mlflow"), (folder / "artifacts").as_uri(), f"the market {uuid.uuid4().hex}")
    return ModelRegistry(tracker=tracker, signals=SignalStore(root=folder / "signals"))


@pytest.fixture
def registry(databases, tmp_path) -> ModelRegistry:
    return make_registry(databases, tmp_path)


def forecasts(num_bars: int = 3) -> pd.DataFrame:
    times = pd.date_range("2020-02-03", periods=num_bars, tz="UTC")
    grid = pd.MultiIndex.from_product([times, ["A", "B"]], names=["event_time", "entity_key"]).to_frame(index=False)
    made_at = grid["event_time"] + pd.Timedelta(minutes=15)
    return grid.assign(made_at=made_at, score=np.resize([0.5, -0.5], len(grid)), confidence=0.6)


@pytest.fixture
def own(tmp_path) -> OwnModel:
    folder = tmp_path / "mine"
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "coefficients.json").write_text("[1, 2]")
    return OwnModel(
        name="desk-ridge",
        source=folder,
        strategy_type="carry",
        params={"alpha": 0.5},
        training_span=SPAN,
        dataset_fingerprint="desk data of May",
        code_version="desk 1.2",
        metrics={"test": {"sharpe_net": 0.8}, "validation": {"ic": 0.02}},
        forecasts=forecasts(),
        threshold=0.1,
        lookback=20,
    )


# ---- the best --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cycles(databases, tmp_path_factory) -> ModelRegistry:
    """An old cycle, the newest finished one, one that is being logged, and an own model of two versions."""
    folder = tmp_path_factory.mktemp("cycles")
    registry = make_registry(databases, folder)
    record = make_record(folder / "saved")
    scores = {
        "old": {"a": 9.0},
        "new": {"a": 1.0, "b": 2.0, "c": 2.5, "d": 2.5},
        "unfinished": {"a": 8.0},
    }
    for day, (cycle_id, by_variant) in enumerate(scores.items()):
        at = START + timedelta(days=day)
        dated = replace(record, cycle_id=cycle_id, training_key=cycle_id, started_at=at, ended_at=at)
        pipelines = {"a": "momentum", "b": "momentum", "c": "volatility", "d": "volatility"}
        registry.tracker.log_variants(
            replace(
                of_variant(dated, name, metrics={"test": {"sharpe_net": value, "ann_vol": value / 10}, "train": {}}),
                pipeline=pipelines[name],
            )
            for name, value in by_variant.items()
        )
        if cycle_id != "unfinished":
            registry.tracker.log_cycle_summary(make_summary(cycle_id, started_at=at))
    (folder / "mine").mkdir()
    (folder / "mine" / "model.json").write_text("{}")
    mine = OwnModel(
        name="mine",
        source=folder / "mine",
        strategy_type="momentum",
        params={},
        training_span=SPAN,
        dataset_fingerprint="d",
        code_version="v",
        metrics={"test": {"sharpe_net": 7.0, "hit_rate": 0.5}, "validation": {"sharpe_net": 3.0}},
    )
    registry.register_model(mine, now=NOW)
    registry.register_model(replace(mine, params={"k": 1}, metrics={"test": {"sharpe_net": 1.5}}), now=NOW)
    return registry


def test_the_best_is_of_the_newest_finished_cycle_or_an_own_models_newest_version(cycles):
    best = cycles.get_best_model("momentum", "sharpe_net")  # not 9.0 (old), 8.0 (unfinished) or 7.0 (superseded)
    assert (best.name, best.version, best.cycle_id, best.metrics["test"]["sharpe_net"]) == ("b", 1, "new", 2.0)


def test_the_lowest_is_best_where_higher_is_not_better(cycles):
    lowest = cycles.get_best_model("momentum", "ann_vol", higher_is_better=False)
    assert (lowest.name, lowest.version) == ("a", 2)
    assert cycles.get_best_model("momentum", "sharpe_net", higher_is_better=False).name == "a"


def test_an_own_model_can_be_the_best(cycles):
    version = cycles.get_model("mine").version
    cycles.log_metrics("mine", {"calmar": 3.0}, dataset_type="test", at=NOW)
    assert (cycles.get_best_model("momentum", "calmar").name, version) == ("mine", 2)


def test_a_tie_is_refused_with_the_names(cycles):
    with pytest.raises(RegistryError, match=r"2 models of strategy_type 'volatility' share the best.*2\.5: c, d"):
        cycles.get_best_model("volatility", "sharpe_net")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("carry", "sharpe_net"), "no model of strategy_type 'carry'.*there are: momentum, volatility"),
        (("momentum", "hit_rate"), "none of the 3 models .* has the metric test_hit_rate; .*test_sharpe_net"),
        (("momentum", "sharpe_net", "validation"), "has the metric validation_sharpe_net"),
        (("momentum", "sharpe_net", "live"), "no dataset_type 'live'; there are: train, validation, test"),
        (("momentum' or tags.x = '", "sharpe_net"), "quotes"),
        (("momentum", "sharpe`net"), "quotes"),
    ],
)
def test_no_such_strategy_metric_or_dataset_is_an_error_that_says_what_there_is(cycles, arguments, said):
    with pytest.raises(RegistryError, match=said):
        cycles.get_best_model(*arguments)


def test_a_market_without_models_says_so(registry):
    with pytest.raises(RegistryError, match="none yet, run a cycle first"):
        registry.get_best_model("momentum", "sharpe_net")


def test_the_database_ranks_however_many_models_there_are(cycles, monkeypatch):
    asked = []
    search_runs = cycles.tracker.client.search_runs

    def watch(*args, **options):
        page = search_runs(*args, **options)
        asked.append((options["order_by"], len(page)))
        return page

    monkeypatch.setattr(cycles.tracker.client, "search_runs", watch)
    cycles.get_best_model("momentum", "sharpe_net")
    assert asked[1:] == [(["metrics.`test_sharpe_net` DESC"], 1), (["metrics.`test_sharpe_net` DESC"], 2)]


# ---- at a glance -----------------------------------------------------------------------------------------------------


def test_a_model_at_a_glance(registry, tmp_path):
    record = make_record(tmp_path / "saved")
    registry.tracker.log_variants([record, replace(record, cycle_id="c2", training_key="k2")])
    card = registry.get_model(VARIANT)
    assert (card.version, registry.get_model(VARIANT, 1).cycle_id, card.cycle_id) == (2, "c1", "c2")
    assert (card.stage, card.family, card.lookback, card.code_version) == ("None", "deep", 30, "abc")
    assert card.params == {"hidden_size": "128", "dropout": "0.1"}
    assert card.metrics == {"train": {"fit_s": 12.0}, "test": {"ic": 0.03, "sharpe_net": 1.5}}
    assert card.training_span == record.manifest.training_span
    lines = [
        f"{VARIANT}, version 2 in {registry.tracker.market} (stage None)",
        "lstm (deep) on technical, lookback 30",
        "2019-01-02 to 2020-01-03, data ffffffffffff",
        "by code abc, c2",
        "dropout 0.1, hidden_size 128",
    ]
    assert all(line in str(card) for line in lines)
    rows = [line.split() for line in str(card).splitlines()]
    assert ["metrics", "train", "test"] in rows
    assert ["fit_s", "12", "-"] in rows
    assert ["sharpe_net", "-", "1.5"] in rows


def test_a_model_or_version_that_is_not_there_is_an_error_with_a_hint(registry, tmp_path):
    registry.tracker.log_variants([make_record(tmp_path / "saved")])
    with pytest.raises(RegistryError, match=f"no model 'lstm-l30-technicl'.*1 are.*close to it are {VARIANT}"):
        registry.get_model("lstm-l30-technicl")
    with pytest.raises(RegistryError, match="has no version 7; the newest is 1"):
        registry.get_model(VARIANT, 7)


def test_a_version_made_by_hand_is_told_from_ours(registry):
    name = model_name(registry.tracker.market, "stray")
    registry.tracker.client.create_registered_model(name)
    registry.tracker.client.create_model_version(name, "file:///somewhere", await_creation_for=0)
    with pytest.raises(RegistryError, match="not registered by Perennial"):
        registry.get_model("stray")


def test_metrics_are_named_by_the_data_they_were_measured_on_and_the_newest_counts(registry, own):
    registry.register_model(own, now=NOW)
    registry.log_metrics("desk-ridge", {"sharpe_net": 0.7, "ic": 0.01}, dataset_type="test", at=NOW + timedelta(days=1))
    registry.log_metrics("desk-ridge", {"loss": float("nan")}, dataset_type="train", at=NOW)
    card = registry.get_model("desk-ridge")
    assert card.metrics == {"test": {"sharpe_net": 0.7, "ic": 0.01}, "validation": {"ic": 0.02}}
    found = registry.tracker.search("metrics.test_sharpe_net > 0.6 and tags.family = 'own'")
    assert [run.info.run_id for run in found] == [card.run_id]
    with pytest.raises(RegistryError, match="no dataset_type 'holdout'"):
        registry.log_metrics("desk-ridge", {}, dataset_type="holdout", at=NOW)


def test_an_artifact_is_kept_with_its_checksum_size_and_type(registry, own, tmp_path):
    registry.register_model(own, now=NOW)
    report = tmp_path / "tear sheet.html"
    report.write_text("<p>good")
    artifact = registry.log_artifact("desk-ridge", report, artifact_type="report")
    assert (artifact.sha256, artifact.size, artifact.kind) == (file_sha256(report), 7, "report")
    card = registry.get_model("desk-ridge")
    assert card.artifacts == (artifact,)
    assert "files/tear sheet.html: report, 7 bytes" in str(card)
    stored = Path(registry.tracker.client.download_artifacts(card.run_id, artifact.path))
    assert file_sha256(stored) == artifact.sha256
    report.write_text("<p>better")
    registry.log_artifact("desk-ridge", report, artifact_type="report")
    assert [each.size for each in registry.get_model("desk-ridge").artifacts] == [9]


@pytest.mark.parametrize("name", ["nonesuch.txt", "folder", "what?.txt"])
def test_only_a_file_with_a_plain_name_is_an_artifact(registry, own, tmp_path, name):
    registry.register_model(own, now=NOW)
    (tmp_path / "folder").mkdir()
    (tmp_path / "what?.txt").touch()
    with pytest.raises(RegistryError, match="one file whose name"):
        registry.log_artifact("desk-ridge", tmp_path / name, artifact_type="report")


# ---- one's own -------------------------------------------------------------------------------------------------------


def test_an_own_model_is_a_version_with_the_tags_of_any_variant(registry, own):
    card = registry.register_model(own, now=NOW)
    version = registry.tracker.client.get_model_version(model_name(registry.tracker.market, "desk-ridge"), "1")
    tags = {
        "market": registry.tracker.market,
        "variant": "desk-ridge",
        "family": "own",
        "strategy_type": "carry",
        "architecture": "own",
        "lookback": "20",
        "git_sha": "desk 1.2",
        "dataset_fingerprint": "desk data of May",
        "train_to": "2020-01-03T00:00:00+00:00",
        "training_key": card.training_key,
    }
    assert tags.items() <= version.tags.items()
    assert (card.params, card.training_span) == ({"alpha": "0.5"}, SPAN)
    assert card.metrics == {"test": {"sharpe_net": 0.8}, "validation": {"ic": 0.02}}
    stored = Path(registry.tracker.client.download_artifacts(card.run_id, "model"))
    assert verify_manifest(stored, sha256=card.artifact_sha256).checksum == card.checksum
    (stored / "parts" / "coefficients.json").write_text("[1, 3]")
    with pytest.raises(ArtifactError, match=r"coefficients\.json"):
        verify_manifest(stored, sha256=card.artifact_sha256)


def test_the_same_model_is_the_version_there_is_and_any_change_is_a_new_one(registry, own):
    first = registry.register_model(own, now=NOW)
    shuffled = replace(own, forecasts=own.forecasts.sample(frac=1.0, random_state=0))
    assert registry.register_model(shuffled, now=NOW + timedelta(days=1)) == first
    (own.source / "more.txt").write_text("x")
    restated = own.forecasts.assign(score=-own.forecasts["score"])
    versions = [
        registry.register_model(changed, now=NOW).version
        for changed in (own, replace(own, forecasts=restated), replace(own, threshold=0.2), replace(own, seed=1))
    ]
    assert versions == [2, 3, 4, 5]
    kept = registry.signals.read("desk-ridge", model_versions=[first.training_key], kind="oos")
    assert kept["score"].tolist() == own.forecasts["score"].tolist()


def test_whichever_write_a_kill_hits_registering_again_ends_right(registry, own):
    alive = registry.tracker.client
    for num_writes in itertools.count():
        model = replace(own, name=f"own-{num_writes}")
        registry.tracker.client = DyingClient(alive, num_writes)
        with suppress(Killed):
            registry.register_model(model, now=NOW)
        survived = registry.tracker.client.left > 0
        registry.tracker.client = alive
        card = registry.register_model(model, now=NOW)
        assert (card.version, card.metrics) == (1, {"test": {"sharpe_net": 0.8}, "validation": {"ic": 0.02}})
        assert len(registry.tracker.search(f"tags.variant = '{model.name}'")) == 1
        assert len(registry.signals.read(model.name, model_versions=[card.training_key], kind="oos")) == 6
        if survived:
            break
    assert num_writes >= 8


def test_an_object_that_saves_itself_is_registered_and_its_manifest_is_honoured(registry, own):
    class Fitted:
        def save(self, folder):
            (folder / "weights.json").write_text("[3]")
            write_manifest(
                folder,
                variant="whatever",
                checksum="canonical",
                params={},
                feature_names=(),
                dataset_fingerprint="d",
                training_span=SPAN,
                seed=0,
                code_version="v",
                packages={},
            )

    card = registry.register_model(replace(own, source=Fitted()), now=NOW)
    assert card.checksum == "canonical"
    assert verify_manifest(Path(registry.tracker.client.download_artifacts(card.run_id, "model"))).variant == own.name


def test_files_that_are_not_what_their_manifest_says_are_refused(registry, own):
    facts = {"variant": "v", "checksum": "c", "params": {}, "feature_names": (), "dataset_fingerprint": "d", "seed": 0}
    write_manifest(own.source, **facts, training_span=SPAN, code_version="v", packages={})
    (own.source / "parts" / "coefficients.json").write_text("[tampered]")
    with pytest.raises(ArtifactError, match=r"changed: parts/coefficients\.json"):
        registry.register_model(own, now=NOW)
    assert registry.tracker.search("") == []


@pytest.mark.parametrize("name", [VARIANT, "../up", "with space", "quo'te", "", "taken"])
def test_a_name_of_the_factory_or_one_that_is_no_name_is_refused(registry, own, tmp_path, name):
    taken = of_variant(make_record(tmp_path / "saved"), "taken")
    registry.tracker.log_variants([taken])
    with pytest.raises(RegistryError, match=r"variant of the factory|a name has|not as an own model"):
        registry.register_model(replace(own, name=name), now=NOW)
    assert not registry.signals.root.exists()


def test_a_folder_without_files_is_refused(registry, own, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OwnModelError, match="has no files"):
        registry.register_model(replace(own, source=tmp_path / "empty"), now=NOW)
    with pytest.raises(OwnModelError, match="is not a folder"):
        registry.register_model(replace(own, source=tmp_path / "nonesuch"), now=NOW)


# Each makes the first row wrong.
WRONG = {
    "1 without a finite score": {"score": np.inf},
    "1 with a confidence outside 0 to 1": {"confidence": 1.5},
    "1 without an entity": {"entity_key": None},
    r"1 not later than what their model learned from \(in sample\)": {"event_time": pd.Timestamp(SPAN[1])},
    "1 made before their bar ended": {"made_at": pd.Timestamp("2020-02-02", tz="UTC")},
    "1 made after now": {"made_at": pd.Timestamp(NOW) + pd.Timedelta(seconds=1)},
    "1 of a bar and entity that has another": {"entity_key": "B"},
}


@pytest.mark.parametrize(("said", "wrong"), WRONG.items())
def test_forecasts_that_cannot_be_rated_honestly_are_refused_with_counts(registry, own, said, wrong):
    frame = forecasts()
    ((column, value),) = wrong.items()
    frame[column] = [value, *frame[column][1:]]
    with pytest.raises(OwnModelError, match=f"of 6 forecasts are {said}; correct"):
        registry.register_model(replace(own, forecasts=frame), now=NOW)
    assert not registry.signals.root.exists()
    assert registry.tracker.search("") == []


def test_forecasts_need_their_columns_and_time_zones(own):
    with pytest.raises(OwnModelError, match="lack confidence"):
        checked_forecasts(replace(own, forecasts=forecasts().drop(columns="confidence")), now=NOW)
    naive = forecasts().assign(made_at=lambda frame: frame["made_at"].dt.tz_localize(None))
    with pytest.raises(OwnModelError, match="made_at must hold times with a time zone"):
        checked_forecasts(replace(own, forecasts=naive), now=NOW)


def test_forecasts_of_earlier_fits_are_held_to_what_those_fits_learned_from(own):
    later = replace(own, training_span=(SPAN[0], NOW))  # the final model has seen what its earlier fits forecast
    with pytest.raises(OwnModelError, match="6 not later than"):
        checked_forecasts(later, now=NOW)
    walked = forecasts().assign(trained_to=pd.Timestamp(SPAN[1]))
    assert len(checked_forecasts(replace(later, forecasts=walked), now=NOW)) == 6
    walked.loc[0, "trained_to"] = walked.loc[0, "event_time"]
    with pytest.raises(OwnModelError, match="1 not later than"):
        checked_forecasts(replace(later, forecasts=walked), now=NOW)


def test_thresholds_are_those_of_every_own_model_with_forecasts(registry, own):
    registry.register_model(own, now=NOW)
    newest = registry.register_model(replace(own, threshold=0.3), now=NOW)
    registry.register_model(replace(own, name="silent", forecasts=None), now=NOW)
    assert registry.thresholds() == {"desk-ridge": {newest.training_key: 0.3}}


# ---- rated like any other --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A panel whose first feature knows the return, the folds, and a factory variant trained over them."""
    folder = tmp_path_factory.mktemp("market")
    panel_folder = save_panel(make_panel(num_times=260, signal=0.5), folder / "panels")
    panel = load_panel(panel_folder)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    folds = walk_forward(*times, train=120, validate=40, test=20, step=20, num_folds=3)
    variant = next(v for v in full_grid(["toy"]) if v.architecture == "lightgbm" and v.lookback == 7)
    tasks = [
        FoldTask(
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
            folder=folder / "fits",
            signals=folder / "signals",
        )
        for fold in folds
    ]
    results = [train_fold(task) for task in tasks]
    assert all(result.ok for result in results)
    store = SignalStore(root=folder / "signals")
    return panel, folds, store, {variant.id: {result.key: result.threshold for result in results}}


def desks_own(panel, folds, folder: Path, *, sign: float = 1.0) -> OwnModel:
    """A least-squares model, fitted anew for every fold outside Perennial."""
    rows = []
    for fold in folds:
        learned, tested = np.flatnonzero(fold.learn_T), np.arange(fold.test.start, fold.test.stop)
        x, y = panel.x_TNF[learned].reshape(-1, panel.x_TNF.shape[2]), panel.labels.y_TN[learned].ravel()
        coefficients = sign * np.linalg.lstsq(x, y, rcond=None)[0]
        score_TN = panel.x_TNF[tested] @ coefficients
        at, of = np.nonzero(np.isfinite(score_TN))
        rows.append(
            pd.DataFrame(
                {
                    "entity_key": np.array(panel.entities, dtype=object)[of],
                    "event_time": pd.DatetimeIndex(panel.event_times_T[tested][at]).tz_localize("UTC"),
                    "made_at": pd.DatetimeIndex(panel.sample_times_T[tested][at]).tz_localize("UTC"),
                    "score": score_TN[at, of],
                    "confidence": 0.6,
                    "trained_to": pd.Timestamp(panel.sample_times_T[learned[-1]]).tz_localize("UTC"),
                }
            )
        )
    folder.mkdir()
    (folder / "coefficients.json").write_text(json.dumps(coefficients.tolist()))
    return OwnModel(
        name="desk-least-squares" if sign > 0 else "desk-upside-down",
        source=folder,
        strategy_type="toy",
        params={"intercept": False},
        training_span=tuple(pd.Timestamp(t).tz_localize("UTC").to_pydatetime() for t in panel.sample_times_T[[0, -1]]),
        dataset_fingerprint=panel.fingerprint,
        code_version="desk 1.2",
        forecasts=pd.concat(rows, ignore_index=True),
    )


def test_an_own_model_is_rated_beside_a_variant_of_the_factory(databases, market, tmp_path):
    panel, folds, store, of_factory = market
    registry = replace(make_registry(databases, tmp_path), signals=store)
    models = [desks_own(panel, folds, tmp_path / f"{sign}", sign=sign) for sign in (1.0, -1.0)]
    cards = [registry.register_model(model, now=NOW) for model in models]
    thresholds = {**of_factory, **registry.thresholds()}
    assert list(thresholds) == [*of_factory, "desk-least-squares", "desk-upside-down"]
    tracks = build_tracks(store, thresholds, panel, costs=CostModel())
    ratings = rate(tracks, np.zeros((1, len(tracks.event_times_T))), periods_per_year=252)
    table = ratings.table
    assert table["num_days"].tolist() == [60, 60, 60]
    best = table.loc[cards[0].name]
    assert best["sharpe_net"] > 3
    assert best["ic"] == pytest.approx(mean_ic(tracks.ic_VT[[1]])[0])
    assert table.index[-1] == "desk-upside-down"
    assert table.loc["desk-upside-down", "ic"] == pytest.approx(-best["ic"])
    registry.log_metrics(cards[0].name, best.to_dict(), dataset_type="test", at=NOW)
    found = registry.get_best_model("toy", "sharpe_net")
    assert (found.name, found.metrics["test"]["sharpe_net"]) == (cards[0].name, best["sharpe_net"])
