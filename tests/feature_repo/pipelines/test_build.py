"""Feature tables in two times: what the rule reads from them is what the known bars give."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from feature_repo.kernels.elementwise import log_return
from feature_repo.kernels.rolling import rolling_mean, weighted_average, wilder_weights
from feature_repo.pipelines.base import Feature, Pipeline, pipeline_of
from feature_repo.pipelines.build import NotApplicableError, build_features
from feature_repo.pipelines.catalog import PIPELINES

WRITTEN_AT = datetime(2024, 1, 1, tzinfo=UTC)
ORIGIN = pd.Timestamp("2020-01-01", tz="UTC")
SMALL = pipeline_of(
    name="small",
    version=1,
    warmup_bars=5,
    formulas={
        Feature(name="mean", inputs=("close",), description=""): lambda columns: rolling_mean(columns["close"], 5),
        Feature(name="return", inputs=("close",), description=""): lambda columns: log_return(columns["close"], 2),
        Feature(name="volume", inputs=("volume",), description=""): lambda columns: weighted_average(
            columns["volume"], wilder_weights(1)
        ),
    },
)


def build(pipeline: Pipeline, bars: pd.DataFrame) -> pd.DataFrame:
    return build_features(
        pipeline, bars, producer="test", producer_version="abc123", run_id="run-1", written_at=WRITTEN_AT
    )


def random_bars(
    rng: np.random.Generator, *, num_bars: int, num_revisions: int, entities: tuple[str, ...]
) -> pd.DataFrame:
    """Bars an hour apart; some are published late, some restated, some several at once, some by a slow clock."""
    frames = []
    for entity in entities:
        hour = np.arange(num_bars)
        lag = (
            np.where(rng.random(num_bars) < 0.15, rng.integers(0, 12, num_bars), 0) - (rng.random(num_bars) < 0.1) / 900
        )
        again = rng.integers(0, num_bars, num_revisions)
        again_lag = rng.integers(0, 15, num_revisions)
        event = np.concatenate([hour, again])
        close = rng.integers(50, 150, len(event)).astype(float)
        close[rng.random(len(event)) < 0.02] = np.nan
        frames.append(
            pd.DataFrame(
                {
                    "entity_key": entity,
                    "event_time": ORIGIN + pd.to_timedelta(event, unit="h"),
                    "ingest_time": ORIGIN + pd.to_timedelta(event + np.concatenate([lag, again_lag]), unit="h"),
                    "close": close,
                    "volume": rng.integers(0, 5, len(event)),
                }
            )
        )
    bars = pd.concat(frames, ignore_index=True)
    bars["event_time"] = bars["event_time"].dt.as_unit("us")
    bars["ingest_time"] = bars["ingest_time"].dt.round("us").dt.as_unit("us")
    bars.loc[rng.random(len(bars)) < 0.01, "ingest_time"] = pd.NaT
    return bars.sample(frac=1.0, random_state=int(rng.integers(1 << 30)), ignore_index=True)


def known_at(table: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """Section 2's rule for every event time: of what is known, the latest ingest; of ties, the last written."""
    known = table[(table["event_time"] <= moment) & (table["ingest_time"] <= moment)]
    newest = known.sort_values(["entity_key", "event_time", "ingest_time"], kind="stable")
    return newest.drop_duplicates(["entity_key", "event_time"], keep="last")


def direct(pipeline: Pipeline, bars: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """Features computed one window at a time from the bars known at ``moment``."""
    rows = []
    for entity, known in known_at(bars, moment).groupby("entity_key"):
        for stop in range(pipeline.warmup_bars, len(known) + 1):
            window = known.iloc[stop - pipeline.warmup_bars : stop]
            computed = pipeline.compute({name: window[name].to_numpy(float) for name in bars.columns[3:]})
            values = {name: series[-1] for name, series in computed.items()}
            rows.append({"entity_key": entity, "event_time": window["event_time"].iloc[-1]} | values)
    return pd.DataFrame(rows, columns=["entity_key", "event_time", *(feature.name for feature in pipeline.features)])


def assert_agrees(pipeline: Pipeline, features: pd.DataFrame, bars: pd.DataFrame, moment: pd.Timestamp) -> None:
    want = direct(pipeline, bars, moment)
    got = known_at(features, moment)[want.columns]
    pd.testing.assert_frame_equal(
        got.reset_index(drop=True), want, check_exact=True, check_dtype=False, check_index_type=False
    )


def assert_agrees_hourly(pipeline: Pipeline, features: pd.DataFrame, bars: pd.DataFrame) -> None:
    for hours in range(10, 70, 5):
        assert_agrees(pipeline, features, bars, ORIGIN + pd.Timedelta(hours=hours))


@pytest.mark.parametrize("seed", range(10))
def test_rows_known_at_any_time_are_the_features_of_the_bars_known_then(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_revisions = int(rng.integers(0, 25))
    bars = random_bars(rng, num_bars=int(rng.integers(1, 60)), num_revisions=num_revisions, entities=("A", "B"))
    features = build(SMALL, bars)
    moments = [ORIGIN + pd.Timedelta(hours=h) for h in rng.uniform(-1, 80, 12)]
    for moment in [*moments, *bars["ingest_time"].dropna().head(5)]:
        assert_agrees(SMALL, features, bars, moment)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_every_pipeline_holds_the_rule_bit_for_bit(name: str) -> None:
    rng = np.random.default_rng(7)
    pipeline = PIPELINES[name]
    bars = random_bars(rng, num_bars=200, num_revisions=15, entities=("A",)).dropna()
    bars["high"], bars["low"], bars["open"] = bars["close"] + 2.0, bars["close"] - 1.0, bars["close"] + 0.5
    inputs = {name for feature in pipeline.features for name in (*feature.inputs, *feature.optional)}
    for name in sorted(inputs - set(bars.columns)):
        bars[name] = rng.lognormal(0.0, 0.3, len(bars))
    features = build(pipeline, bars)
    assert features["ingest_time"].nunique() > 50
    assert features[[feature.name for feature in pipeline.features]].notna().to_numpy().all()
    for hours in (130, 150, 170, 199.5, 230):
        assert_agrees(pipeline, features, bars, ORIGIN + pd.Timedelta(hours=hours))


def test_ignoring_revisions_breaks_the_rule() -> None:
    rng = np.random.default_rng(3)
    bars = random_bars(rng, num_bars=50, num_revisions=20, entities=("A",)).dropna()
    broken = build(SMALL, bars.sort_values("ingest_time").drop_duplicates(["entity_key", "event_time"], keep="last"))
    assert_agrees_hourly(SMALL, build(SMALL, bars), bars)
    with pytest.raises(AssertionError):
        assert_agrees_hourly(SMALL, broken, bars)


def test_deleting_the_future_changes_nothing_that_was_known() -> None:
    rng = np.random.default_rng(11)
    bars = random_bars(rng, num_bars=80, num_revisions=30, entities=("A", "B"))
    everything = build(SMALL, bars)
    for hours in (10, 30, 55.5, 79, 85):
        moment = ORIGIN + pd.Timedelta(hours=hours)
        past = build(SMALL, bars[(bars["event_time"] <= moment) & (bars["ingest_time"] <= moment)])
        expected = everything[everything["ingest_time"] <= moment].reset_index(drop=True)
        pd.testing.assert_frame_equal(past, expected, check_exact=True)


def test_a_restated_bar_restates_only_the_rows_it_changes() -> None:
    bars = random_bars(np.random.default_rng(1), num_bars=40, num_revisions=0, entities=("A",))
    bars = bars.assign(ingest_time=bars["event_time"], close=bars["close"].fillna(77.0)).sort_values("event_time")
    late = ORIGIN + pd.Timedelta(hours=100)
    restated = bars.iloc[[20]].assign(ingest_time=late, close=1234.5)
    plain, features = build(SMALL, bars), build(SMALL, pd.concat([bars, restated]))
    added = features[features["ingest_time"] == late]
    assert list(added["event_time"]) == [ORIGIN + pd.Timedelta(hours=h) for h in range(20, 25)]
    pd.testing.assert_frame_equal(features[features["ingest_time"] < late].reset_index(drop=True), plain)
    unchanged = build(SMALL, pd.concat([bars, bars.iloc[[20]].assign(ingest_time=late)]))
    pd.testing.assert_frame_equal(unchanged, plain)


def test_bars_ingested_all_at_once_give_one_row_each_at_that_time() -> None:
    bars = random_bars(np.random.default_rng(2), num_bars=30, num_revisions=0, entities=("A",))
    bars["ingest_time"] = ORIGIN + pd.Timedelta(days=10)
    features = build(SMALL, bars)
    assert len(features) == 30 - SMALL.warmup_bars + 1
    assert (features["ingest_time"] == ORIGIN + pd.Timedelta(days=10)).all()


def test_schema_is_the_views_whatever_the_bars_have() -> None:
    bars = random_bars(np.random.default_rng(4), num_bars=20, num_revisions=0, entities=("A", "B"))
    features = build(SMALL, bars.drop(columns="volume"))
    assert list(features.columns) == [
        *("entity_key", "event_time", "ingest_time", "mean", "return", "volume"),
        *("written_at", "producer", "producer_version", "run_id"),
    ]
    assert features["volume"].isna().all()
    assert features["mean"].notna().any()
    for name in ("event_time", "ingest_time", "written_at"):
        assert str(features[name].dtype) == "datetime64[us, UTC]"
    assert set(features["run_id"]) == {"run-1"}
    assert (features["written_at"] == WRITTEN_AT).all()


def test_too_little_history_gives_an_empty_table_of_the_same_schema() -> None:
    bars = random_bars(np.random.default_rng(4), num_bars=3, num_revisions=0, entities=("A",))
    for few in (bars, bars.iloc[:0]):
        features = build(SMALL, few)
        assert len(features) == 0
        assert list(features.dtypes) == list(
            build(SMALL, random_bars(np.random.default_rng(4), num_bars=30, num_revisions=0, entities=("A",))).dtypes
        )


def test_a_pipeline_without_inputs_is_not_applicable_and_says_why() -> None:
    bars = random_bars(np.random.default_rng(4), num_bars=20, num_revisions=0, entities=("A",))
    with pytest.raises(NotApplicableError, match=r"'technical' is not applicable: its features need .*'close'"):
        build(PIPELINES["technical"], bars.drop(columns="close"))
