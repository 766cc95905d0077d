"""What a pipeline promises of its window, for columns of any kind: what tests of pipelines with aggregates share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from feature_repo.pipelines.base import Pipeline
from feature_repo.pipelines.build import build_features

Series = dict[str, np.ndarray]


def build(pipeline: Pipeline, bars: pd.DataFrame) -> pd.DataFrame:
    written_at = datetime(2024, 6, 1, tzinfo=UTC)
    return build_features(pipeline, bars, producer="test", producer_version="abc", run_id="run", written_at=written_at)


def rows_of(columns: Series, part: slice) -> Series:
    return {name: series[part].copy() for name, series in columns.items()}


def assert_window_is_exact(pipeline: Pipeline, columns: Series) -> None:
    """Bit for bit a function of the last ``warmup_bars`` bars, of all of them, and of nothing after."""
    full = pipeline.compute(columns)
    num_bars = len(next(iter(columns.values())))
    for stop in (pipeline.warmup_bars, num_bars - 7, num_bars):
        cut = pipeline.compute(rows_of(columns, slice(stop - pipeline.warmup_bars, stop)))
        past = pipeline.compute(rows_of(columns, slice(0, stop)))
        for name, series in full.items():
            assert cut[name][-1] == series[stop - 1], name
            np.testing.assert_array_equal(past[name], series[:stop], err_msg=name)
    for series in full.values():
        assert np.isnan(series[: pipeline.warmup_bars - 1]).all()
        assert not np.isnan(series[pipeline.warmup_bars - 1 :]).any()
    oldest = num_bars - pipeline.warmup_bars
    for bar, matters in ((oldest, True), (oldest - 1, False)):
        changed = rows_of(columns, slice(None))
        for series in changed.values():
            series[bar] *= 1.5
        after = pipeline.compute(changed)
        assert any(after[name][-1] != full[name][-1] for name in full) is matters


def assert_rows_hold_the_rule(
    pipeline: Pipeline, bars: pd.DataFrame, moments: Iterable[pd.Timestamp], features: pd.DataFrame | None = None
) -> None:
    """At each moment the feature rows known are those of the bars known, one window at a time, bit for bit."""
    features = build(pipeline, bars) if features is None else features
    names = [feature.name for feature in pipeline.features]
    inputs = list(bars.columns[3:])
    for moment in moments:
        got = _known(features, moment).set_index(["entity_key", "event_time"])[names]
        want = {}
        for entity, visible in _known(bars, moment).groupby("entity_key"):
            for stop in range(pipeline.warmup_bars, len(visible) + 1):
                window = visible.iloc[stop - pipeline.warmup_bars : stop]
                computed = pipeline.compute({name: window[name].to_numpy(float) for name in inputs})
                want[(entity, window["event_time"].iloc[-1])] = [computed[name][-1] for name in names]
        assert len(want) > 3
        assert list(got.index) == list(want)
        np.testing.assert_array_equal(got.to_numpy(), np.array(list(want.values())))


def _known(table: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    visible = table[(table["event_time"] <= moment) & (table["ingest_time"] <= moment)]
    newest = visible.sort_values(["entity_key", "event_time", "ingest_time"], kind="stable")
    return newest.drop_duplicates(["entity_key", "event_time"], keep="last")
