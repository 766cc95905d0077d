"""A desk's forecasts from a file: checked against the market, added to but never rewritten, rated like any variant."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.calendar import first_price_after, price_grid
from feature_repo.market.costs import CostModel
from training.model_registry import ModelRegistry, RegistryError
from training.outside_signals import (
    OutsideSignalError,
    checked_signals,
    comparable,
    import_signals,
    known_before,
    over,
    read_signals,
)
from training.own_model import OwnModel, OwnModelError
from training.rating.live import live_panel
from training.rating.tracks import build_tracks
from training.signals import SignalStore
from training.simulate import simulate
from training.tracking import Tracker

NUM_BARS, FIRST = 100, 60
ENTITIES = ("A", "B", "C", "D")
NOW = datetime(2024, 5, 10, 0, 7, tzinfo=UTC)  # the last bar ended and was known 5 minutes ago


@pytest.fixture(scope="module")
def grid():
    rng = np.random.default_rng(0)
    ends = pd.date_range(end="2024-05-10", periods=NUM_BARS, tz="UTC")
    close_TN = 100 * np.exp(np.cumsum(0.02 * rng.standard_normal((NUM_BARS, 4)), axis=0))
    frame = pd.DataFrame(close_TN, index=pd.Index(ends, name="event_time"), columns=list(ENTITIES))
    frame = frame.melt(ignore_index=False, var_name="entity_key", value_name="close").reset_index()
    bars = frame.assign(ingest_time=frame["event_time"] + pd.Timedelta("2min"))
    return price_grid(bars, calendar="24/7", interval="1d")


@pytest.fixture
def registry(databases, tmp_path) -> ModelRegistry:
    tracker = Tracker(databases.url("mlflow"), (tmp_path / "artifacts").as_uri(), f"a market {uuid.uuid4().hex}")
    return ModelRegistry(tracker=tracker, signals=SignalStore(root=tmp_path / "signals"))


@pytest.fixture
def forecasts(grid):
    ends = pd.DatetimeIndex(grid.event_times_T[FIRST:]).tz_localize("UTC")
    index = pd.MultiIndex.from_product([ends, ENTITIES], names=["event_time", "entity_key"])
    score = np.random.default_rng(1).standard_normal(len(index))
    rows = index.to_frame(index=False).assign(score=score, confidence=0.6)
    return rows.assign(made_at=rows["event_time"] + pd.Timedelta("3min"))


@pytest.fixture
def bring(registry, grid):
    def bring(rows, *, variant="desk-view", interval="1d", horizon=1, now=NOW):
        return import_signals(registry, rows, variant=variant, grid=grid, interval=interval, horizon=horizon, now=now)

    return bring


@pytest.fixture
def check(grid):
    def check(rows, *, now=NOW):
        return checked_signals(rows, variant="desk-view", grid=grid, interval="1d", horizon=1, now=now)

    return check


def changed(rows, row, **values):
    """The rows with one of them changed."""
    rows = rows.copy()
    for name, value in values.items():
        rows.loc[row, name] = value
    return rows


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_becomes_a_variant_whose_track_is_that_of_its_scores(bring, registry, grid, forecasts, tmp_path, suffix):
    path = tmp_path / f"desk{suffix}"
    shuffled = forecasts.sample(frac=1.0, random_state=0)
    shuffled.to_csv(path, index=False) if suffix == ".csv" else shuffled.to_parquet(path)
    done = bring(read_signals(path))
    assert (done.version, done.num_new, done.num_known) == (1, len(forecasts), 0)
    thresholds = comparable(registry, interval="1d", horizon=1)
    assert list(thresholds) == ["desk-view"]
    panel = live_panel(grid, grid.close_TN[-1], horizon=1)
    tracks = build_tracks(registry.signals, thresholds, panel, costs=CostModel())
    num_rated = int((~np.isnat(panel.labels.end_T)).sum())
    scores = forecasts["score"].to_numpy().reshape(-1, 4)[: num_rated - FIRST]
    book = simulate(scores, panel.hold_TN[FIRST:num_rated], threshold=0.0, costs=CostModel())
    np.testing.assert_allclose(tracks.net_VT[0], book.net_T)
    card = registry.get_model("desk-view")
    assert (card.family, card.strategy_type, card.architecture) == ("own", "outside", "outside")


def test_the_same_rows_again_change_nothing(bring, registry, forecasts):
    first, (before,) = bring(forecasts), [registry.get_model("desk-view")]
    stored = {path: path.stat().st_mtime_ns for path in registry.signals.root.rglob("*.parquet")}
    for rows in (forecasts, forecasts.iloc[::-1], forecasts.iloc[10:20]):
        again = bring(rows)
        assert (again.version, again.num_new, again.num_known) == (first.version, 0, len(rows))
    assert registry.get_model("desk-view") == before
    assert {path: path.stat().st_mtime_ns for path in registry.signals.root.rglob("*.parquet")} == stored


def test_later_bars_are_added_and_all_that_was_said_before_stands(bring, registry, forecasts):
    old, new = forecasts.iloc[:100], forecasts.iloc[100:]
    bring(old)
    added = bring(forecasts.iloc[60:])  # some of it is known
    assert (added.version, added.num_new, added.num_known) == (2, len(new), 40)
    ((variant, by_version),) = registry.thresholds().items()
    rows = registry.signals.read(variant, model_versions=list(by_version), kind="oos")
    pd.testing.assert_frame_equal(rows[forecasts.columns], forecasts, check_dtype=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": 9.0}, "of 100 forecasts are 1 other than what was imported earlier (first A at 2024-04-01"),
        ({"made_at": pd.Timestamp("2024-04-01 00:01", tz="UTC")}, "1 other than what was imported earlier"),
        ({"confidence": 0.9}, "a track can't be rewritten"),
    ],
)
def test_a_forecast_that_was_imported_cannot_be_changed(check, forecasts, change, said):
    earlier = check(forecasts.iloc[:100])
    row = earlier.index[earlier["event_time"] == pd.Timestamp("2024-04-01", tz="UTC")][0]
    with pytest.raises(OutsideSignalError) as refused:
        known_before(changed(earlier, row, **change), earlier)
    assert said in str(refused.value)


def test_nothing_is_added_to_a_bar_that_an_import_covered(check, forecasts):
    earlier = check(forecasts.iloc[:100].drop(index=[50, 99]))
    with pytest.raises(OutsideSignalError, match=r"1 additions to bars up to 2024-.*earlier imports covered"):
        known_before(check(forecasts.drop(index=99)), earlier)
    with pytest.raises(OutsideSignalError, match="2 additions"):
        known_before(check(forecasts), earlier)
    assert known_before(check(forecasts.drop(index=[50, 99])), earlier).sum() == 98


def test_it_is_said_how_many_came_before_their_outcome(bring, grid, forecasts):
    assert bring(forecasts).num_witnessed == 4  # only the last bar's can't have been traded yet
    times_T, _ = first_price_after(grid)
    early = (pd.Timestamp(times_T[FIRST + 2]).tz_localize("UTC") - pd.Timedelta("1min")).to_pydatetime()
    rows = forecasts[forecasts["made_at"] <= early]
    assert bring(rows, variant="other", now=early).num_witnessed == 4


def at(text):
    return pd.Timestamp(text, tz="UTC")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entity_key": "Z"}, r"1 of an entity that is not traded in this market \(first row 9\)"),
        ({"event_time": at("2024-04-03 12:00")}, "1 of a bar that this market does not have"),
        ({"made_at": at("2024-04-04")}, "1 made at or after their first tradable price"),
        ({"made_at": at("2024-04-02 23:59")}, "1 made before their bar ended"),
        ({"score": np.nan}, "1 without a finite score"),
        ({"score": np.inf}, "1 score is not finite"),
        ({"confidence": 1.01}, "1 with a confidence outside 0 to 1"),
        ({"confidence": np.nan}, "1 with a confidence outside 0 to 1"),
        ({"entity_key": "B"}, "1 of a bar and entity that has another"),
        ({"entity_key": None}, "1 entity_key is null"),
    ],
)
def test_one_wrong_row_refuses_the_file_and_says_which(check, forecasts, change, said):
    assert forecasts.loc[8, "event_time"] == at("2024-04-03") + pd.Timedelta(0)
    with pytest.raises((OutsideSignalError, OwnModelError), match=said):
        check(changed(forecasts, 8, **change))


def test_a_forecast_just_before_its_first_tradable_price_is_taken(check, forecasts):
    assert check(changed(forecasts, 8, made_at=at("2024-04-03 23:59:59"))).shape == (len(forecasts), 5)


def test_forecasts_from_the_future_are_refused(check, forecasts):
    with pytest.raises(OwnModelError, match="4 made after now"):
        check(forecasts, now=datetime(2024, 5, 10, 0, 1, tzinfo=UTC))


def test_cells_that_do_not_read_are_refused_with_counts(check, forecasts):
    text = forecasts.astype(str).assign(score=["0.1", "high", "low"] + ["0.2"] * (len(forecasts) - 3))
    with pytest.raises(OutsideSignalError, match=r"of 160 forecasts are 2 score is not a number \(first row 2\)"):
        check(text)
    with pytest.raises(OutsideSignalError, match="160 made_at has no time zone"):
        check(forecasts.astype(str).assign(made_at="2024-05-01 00:00:00"))
    with pytest.raises(OutsideSignalError, match=r"lack the columns \['score'\] and have the unknown \['forecast'\]"):
        check(forecasts.rename(columns={"score": "forecast"}))
    with pytest.raises(OutsideSignalError, match="there is no forecast"):
        check(forecasts.iloc[:0])


def test_where_trained_to_is_given_it_must_lie_before_the_bar(check, forecasts):
    check(forecasts.assign(trained_to=forecasts["event_time"] - pd.Timedelta("1D")))
    with pytest.raises(OwnModelError, match="160 not later than what their model learned from"):
        check(forecasts.assign(trained_to=forecasts["event_time"]))


def test_without_confidence_a_file_says_nothing_of_its_signs(check, forecasts):
    assert (check(forecasts.drop(columns="confidence"))["confidence"] == 0.5).all()


def test_names_and_bars_are_kept_apart(bring, registry, forecasts, tmp_path):
    bring(forecasts)
    for options in ({"horizon": 5}, {"interval": "1h"}):
        with pytest.raises(OutsideSignalError, match="forecasts bars of 1d, 1 ahead"):
            bring(forecasts, **options)
    bring(forecasts, variant="slow-view", horizon=5)
    assert list(comparable(registry, interval="1d", horizon=5)) == ["slow-view"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text("{}")
    facts = {"strategy_type": "carry", "params": {}, "dataset_fingerprint": "d", "code_version": "v"}
    span = (datetime(2023, 1, 1, tzinfo=UTC), datetime(2023, 6, 1, tzinfo=UTC))
    registry.register_model(OwnModel(name="mine", source=tmp_path / "mine", training_span=span, **facts), now=NOW)
    with pytest.raises(OutsideSignalError, match="'mine' is registered, and not as outside signals"):
        bring(forecasts, variant="mine")
    with pytest.raises(RegistryError, match="is a variant of the factory"):
        bring(forecasts, variant="lstm-l30-technical-h64")


def test_tracks_are_cut_to_the_bars_of_those_they_stand_beside(bring, registry, grid, forecasts):
    bring(forecasts)
    panel = live_panel(grid, grid.close_TN[-1], horizon=1)
    whole = build_tracks(registry.signals, comparable(registry, interval="1d", horizon=1), panel, costs=CostModel())
    cut = over(whole, grid.event_times_T[FIRST + 5 : FIRST + 15])
    np.testing.assert_array_equal(cut.event_times_T, grid.event_times_T[FIRST + 5 : FIRST + 15])
    for name in ("net_VT", "gross_VT", "turnover_VT", "unit_impact_VT", "ic_VT"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name)[:, 5:15])


@pytest.mark.parametrize(("name", "said"), [("desk.xlsx", "neither .csv nor .parquet"), ("none.csv", "no file")])
def test_a_file_that_is_not_there_or_of_another_kind_says_so(tmp_path, name, said):
    with pytest.raises(OutsideSignalError, match=said):
        read_signals(tmp_path / name)
    broken = Path(tmp_path / "broken.parquet")
    broken.write_text("no parquet")
    with pytest.raises(OutsideSignalError, match=r"does not read as \.parquet"):
        read_signals(broken)
