"""Reading through: what is missing is computed, with the bits that the offline store has, or refused with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.pipelines.base import Pipeline
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import PIPELINES
from feature_repo.store.online_embedded import EmbeddedBackend
from feature_repo.store.online_values import OnlineValues
from feature_repo.store.read_through import ReadThrough, view_of

ORIGIN = pd.Timestamp("2024-01-01", tz="UTC").as_unit("us")
MOMENTUM = PIPELINES["momentum"]
ENTITIES = ["A", "B"]


@pytest.fixture
def values(tmp_path: Path) -> Iterator[OnlineValues]:
    opened = OnlineValues(EmbeddedBackend(tmp_path), project="p")
    yield opened
    opened.backend.close()


def random_bars(rng: np.random.Generator, num_bars: int) -> pd.DataFrame:
    """Hourly bars of two entities, some late, some restated, shuffled."""
    frames = []
    for entity in ENTITIES:
        event = np.concatenate([np.arange(num_bars), rng.integers(0, num_bars, num_bars // 4)])
        lag = np.where(rng.random(len(event)) < 0.2, rng.integers(0, 30, len(event)) + 0.3, 0.0)
        lag[num_bars:] += 0.5
        close = 100.0 * np.exp(rng.normal(0.0, 0.02, len(event)).cumsum())
        frame = {"entity_key": entity, "close": close, "high": close * 1.01, "low": close * 0.99, "open": close}
        times = {"event_time": hours(event), "ingest_time": hours(event + lag)}
        frames.append(pd.DataFrame(frame | times).assign(volume=rng.integers(1, 9, len(event)).astype(float)))
    return pd.concat(frames).sample(frac=1.0, random_state=int(rng.integers(1 << 30)), ignore_index=True)


def hours(number: np.ndarray) -> pd.Series:
    return pd.Series(ORIGIN + pd.to_timedelta(number, unit="h")).dt.as_unit("us")


def at_hour(hour: float) -> datetime:
    return ORIGIN.to_pydatetime() + timedelta(hours=hour)


class Bars:
    """All the bars there are, and what was asked for."""

    def __init__(self, bars: pd.DataFrame) -> None:
        self.bars = bars
        self.asked: list[list[str]] = []

    def __call__(self, entities: Sequence[str], now: datetime) -> pd.DataFrame:
        self.asked.append(list(entities))
        return self.bars[self.bars["entity_key"].isin(entities)]


def reader(
    values: OnlineValues, bars: Bars, pipeline: Pipeline = MOMENTUM, ttl: timedelta | None = None
) -> ReadThrough:
    return ReadThrough(values=values, pipeline=pipeline, bars_of=bars, ttl=ttl)


def offline(pipeline: Pipeline, bars: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Each entity's answer by the rule, from the whole history."""
    rows = build_features(
        pipeline, bars, producer="t", producer_version="v", run_id="r", written_at=datetime(2024, 6, 1, tzinfo=UTC)
    )
    known = rows[(rows["event_time"] <= now) & (rows["ingest_time"] <= now)]
    known = known.sort_values(["event_time", "ingest_time"], kind="stable")
    return known.drop_duplicates("entity_key", keep="last").set_index("entity_key")


@pytest.mark.parametrize("name", ["momentum", "technical", "volatility", "bar"])
def test_a_miss_is_computed_as_the_offline_store_has_it(values: OnlineValues, name: str) -> None:
    pipeline = PIPELINES[name]
    rng = np.random.default_rng(3)
    num_bars = pipeline.warmup_bars + 40
    bars = random_bars(rng, num_bars)
    features = [feature.name for feature in pipeline.features]
    num_restated = 0
    for _ in range(6):
        now = at_hour(float(rng.uniform(pipeline.warmup_bars + 5, num_bars)))
        values.drop_view(view_of(pipeline, ttl=None))
        result = reader(values, Bars(bars), pipeline).read_features(ENTITIES, now=now)
        want = offline(pipeline, bars, now).loc[ENTITIES]
        assert result.reasons == {}
        assert result.found.values_NF.tobytes() == want[features].to_numpy().tobytes()
        assert pd.DatetimeIndex(result.found.event_N, tz="UTC").tolist() == want["event_time"].tolist()
        assert (pd.DatetimeIndex(result.found.ingest_N, tz="UTC") == want["ingest_time"]).all()
        num_restated += int((want["ingest_time"] > want["event_time"]).sum())
    assert num_restated, "some answers rest on late or restated bars"


def test_a_miss_is_written_back_and_a_hit_computes_nothing(values: OnlineValues) -> None:
    bars = Bars(random_bars(np.random.default_rng(4), MOMENTUM.warmup_bars + 20))
    now = at_hour(MOMENTUM.warmup_bars + 15)
    first = reader(values, bars).read_features(["A", "B", "A"], now=now)
    second = reader(values, bars).read_features(["A", "B", "A"], now=now)
    assert bars.asked == [["A", "B"]]
    assert second.found.values_NF.tobytes() == first.found.values_NF.tobytes()
    assert second.found.values_NF[0].tobytes() == second.found.values_NF[2].tobytes()
    assert second.reasons == {}
    stored = values.read_features(view_of(MOMENTUM, ttl=None), ["A"], now=now)
    assert stored.values_NF.tobytes() == first.found.values_NF[:1].tobytes()


def test_only_what_is_missing_or_too_old_is_asked_for(values: OnlineValues) -> None:
    bars = Bars(random_bars(np.random.default_rng(4), MOMENTUM.warmup_bars + 60))
    early, later = (at_hour(MOMENTUM.warmup_bars + hour) for hour in (20, 50))
    through = reader(values, bars, ttl=timedelta(hours=40))
    through.read_features(["A"], now=early)
    through.read_features(["A", "B"], now=early)
    through = reader(values, bars, ttl=timedelta(hours=20))
    result = through.read_features(["A", "B"], now=later)
    assert bars.asked == [["A"], ["B"], ["A", "B"]]
    want = offline(MOMENTUM, bars.bars, later).loc[ENTITIES]
    assert result.found.values_NF.tobytes() == want[[f.name for f in MOMENTUM.features]].to_numpy().tobytes()


def test_too_few_bars_are_a_reason_and_no_value(values: OnlineValues) -> None:
    bars = random_bars(np.random.default_rng(5), MOMENTUM.warmup_bars + 5)
    bars = bars[(bars["entity_key"] == "A") | (bars["event_time"] < ORIGIN + pd.Timedelta(hours=7))]
    bars = bars.drop_duplicates(["entity_key", "event_time"]).assign(ingest_time=lambda frame: frame["event_time"])
    now = at_hour(MOMENTUM.warmup_bars + 1)
    result = reader(values, Bars(bars)).read_features(["A", "B", "C"], now=now)
    assert np.isnat(result.found.event_N).tolist() == [False, True, True]
    assert np.isnan(result.found.values_NF[1:]).all()
    needs = f"momentum_v1 needs {MOMENTUM.warmup_bars} bars and"
    assert result.reasons == {"B": f"{needs} 7 are known", "C": f"{needs} 0 are known"}
    stored = values.read_features(view_of(MOMENTUM, ttl=None), ["A", "B", "C"], now=now)
    assert np.isnat(stored.event_N).tolist() == [False, True, True]


def test_bars_that_ended_too_long_ago_are_a_reason(values: OnlineValues) -> None:
    bars = Bars(random_bars(np.random.default_rng(6), MOMENTUM.warmup_bars + 5))
    now = at_hour(MOMENTUM.warmup_bars + 100)
    result = reader(values, bars, ttl=timedelta(hours=10)).read_features(["A"], now=now)
    assert np.isnan(result.found.values_NF).all()
    assert list(result.reasons) == ["A"]
    assert "more than 10:00:00 ago" in result.reasons["A"]
    assert np.isnat(values.read_features(view_of(MOMENTUM, ttl=None), ["A"], now=now).event_N).all()


def test_bars_without_the_inputs_are_a_reason(values: OnlineValues) -> None:
    bars = random_bars(np.random.default_rng(6), 5)[["entity_key", "event_time", "ingest_time", "volume"]]
    result = reader(values, Bars(bars)).read_features(["A"], now=at_hour(5))
    assert np.isnat(result.found.event_N).all()
    assert "pipeline 'momentum' is not applicable" in result.reasons["A"]


def test_bars_known_later_are_left_out_though_they_are_handed_over(values: OnlineValues) -> None:
    """The broken variant, which trusts whoever hands over the bars, would serve other values."""
    rng = np.random.default_rng(7)
    bars = random_bars(rng, MOMENTUM.warmup_bars + 30)
    now = at_hour(MOMENTUM.warmup_bars + 10)
    result = reader(values, Bars(bars)).read_features(ENTITIES, now=now)
    trusting = offline(MOMENTUM, bars, at_hour(10_000)).loc[ENTITIES, [f.name for f in MOMENTUM.features]].to_numpy()
    assert (result.found.event_N <= np.datetime64(now.replace(tzinfo=None))).all()
    assert result.found.values_NF.tobytes() != trusting.tobytes()


def test_a_late_write_back_does_not_replace_a_newer_value(values: OnlineValues) -> None:
    bars = Bars(random_bars(np.random.default_rng(8), MOMENTUM.warmup_bars + 30))
    early, later = (at_hour(MOMENTUM.warmup_bars + hour) for hour in (10, 25))
    newest = reader(values, bars).read_features(["A"], now=later)
    replayed = reader(values, bars).read_features(["A"], now=early)
    want = offline(MOMENTUM, bars.bars, early).loc[["A"], [f.name for f in MOMENTUM.features]]
    assert replayed.found.values_NF.tobytes() == want.to_numpy().tobytes()
    again = values.read_features(view_of(MOMENTUM, ttl=None), ["A"], now=later)
    assert again.values_NF.tobytes() == newest.found.values_NF.tobytes()
