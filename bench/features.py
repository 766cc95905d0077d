"""Features: all eight pipelines over daily bars, and ten features a trade, beside pandas and a plain jitted loop.

Pipelines. The simulated exchange's bars with every other table, without late, restated and missing rows, so that
pandas, which has one time only, does the same work, in its quickest form too. (A week's news is known a day after it,
as it really is, so every week restates ``sentiment`` for all assets.) ``seconds`` and ``rows/s`` are of all the
pipeline's features into its table of two times. The last four columns are of the ``same`` features, those that pandas
has in a line or two: into our table; by our kernels alone (``Pipeline.compute`` on arrays in memory, asset by asset);
by pandas asset by asset (``groupby``); by pandas on frames with a column an asset. All start from bars with the
aggregates' columns, which ``pipeline_bars`` makes. ``restated`` is ``seconds`` on the market as it comes, with 0.3% of
the rows late, 0.3% restated and 0.2% missing in every table; that has no peer.

Ticks. The same kernel over the series and called for each trade from Python; a jitted loop that slices every window
and sums it; pandas' ``rolling``. In turns within one process, for the ratio is of times too short to be compared
across the moods of a busy machine. Signs are part of the work, by the tick rule.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pandas as pd
from numba import njit

from bench import features_pandas
from bench.features_pandas import KEYS
from bench.report import (
    Report,
    Row,
    alone,
    at_least,
    median_seconds,
    options,
    peak_mb,
    progress,
    publish,
    ratio,
)
from feature_repo.aggregates.attach import pipeline_bars
from feature_repo.kernels.microstructure import new_tick_state, tick_features, update_tick
from feature_repo.kernels.signing import tick_rule
from feature_repo.market.schema import Market
from feature_repo.market.simulated.market import simulate
from feature_repo.market.simulated.spec import SimSpec
from feature_repo.pipelines.base import Pipeline, pipeline_of
from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import CATALOGUE

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
BARS: Final = "bars.parquet"
FORMS: Final = {"by_asset": features_pandas.by_asset, "all_assets": features_pandas.all_assets}
OURS, ONE, LOOP, PANDAS = "tick kernel", "tick by tick", "tick slices", "tick pandas"
TICK_RUNS: Final = 7

Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """``num_assets`` x ``num_days`` bars, ``num_ticks`` trades, and ``num_long`` of them to look for drift."""

    num_assets: int
    num_days: int
    num_ticks: int
    num_long: int
    runs: int


FULL: Final = Plan(num_assets=100, num_days=1826, num_ticks=1_000_000, num_long=10_000_000, runs=3)
QUICK: Final = Plan(num_assets=20, num_days=730, num_ticks=1_000_000, num_long=2_000_000, runs=3)


def market(plan: Plan, *, is_clean: bool) -> Market:
    """The simulated exchange with all its tables; clean is without late, restated and missing rows."""
    spec = SimSpec(num_assets=plan.num_assets, num_days=plan.num_days, start=date(2020, 6, 1), num_delistings=0)
    if is_clean:
        spec = replace(spec, late_share=0.0, restated_share=0.0, gap_share=0.0)
    return simulate(spec).read(now=NOW)


def build(pipeline: Pipeline, bars: pd.DataFrame) -> pd.DataFrame:
    return build_features(pipeline, bars, producer="bench", producer_version="0", run_id="bench", written_at=NOW)


def warm_up(pipeline: Pipeline, bars: pd.DataFrame) -> None:
    """Compile on one asset."""
    build(pipeline, bars[bars["entity_key"] == bars["entity_key"].iloc[0]])


def compute(pipeline: Pipeline, series: list[dict[str, np.ndarray]]) -> None:
    for of_asset in series:
        pipeline.compute(of_asset)


def compared(name: str, bars: pd.DataFrame) -> Pipeline:
    """The pipeline with those features only that pandas has too."""
    names = features_pandas.FEATURES[name](bars[bars["entity_key"] == bars["entity_key"].iloc[0]]).keys()
    whole = CATALOGUE[name]
    formulas = whole.compute.args[0]  # type: ignore[attr-defined]  # as pipeline_of made it
    chosen = {feature: formula for feature, formula in formulas.items() if feature.name in names}
    return pipeline_of(name=name, version=whole.version, warmup_bars=whole.warmup_bars, formulas=chosen)


def last_known(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop_duplicates(list(KEYS), keep="last", ignore_index=True)


def inputs_of(pipeline: Pipeline, bars: pd.DataFrame) -> pd.DataFrame:
    """The keys and what the pipeline's features read."""
    needed = {name for feature in pipeline.features for name in (*feature.inputs, *feature.optional)}
    return bars[[*KEYS, *(name for name in bars.columns if name in needed)]]


def run_ours(plan: Plan, folder: Path) -> Figures:
    """Bars with all aggregates, and each pipeline's table."""
    clean = market(plan, is_clean=True)
    seconds, bars = median_seconds(lambda: pipeline_bars(clean, "1d"), 1)
    bars.to_parquet(folder / BARS)
    figures: Figures = {"pipeline_bars": {"seconds": seconds, "rows": len(bars)}}
    final = last_known(bars)
    for name in features_pandas.FEATURES:
        whole, part = CATALOGUE[name], compared(name, final)
        series = [
            {column: own[column].to_numpy(np.float64, copy=True) for column in own.columns.difference(KEYS)}
            for _, own in inputs_of(part, final).groupby("entity_key")
        ]
        warm_up(whole, bars)
        seconds, table = median_seconds(partial(build, whole, bars), plan.runs)
        table_s, of_part = median_seconds(partial(build, part, bars), plan.runs)
        kernels_s, _ = median_seconds(partial(compute, part, series), plan.runs)
        last_known(of_part).to_parquet(folder / f"{name}.ours.parquet")
        figures[name] = {
            "seconds": seconds,
            "rows": len(table),
            "features": len(whole.applicable(frozenset(bars.columns))),
            "same": len(part.features),
            "table_s": table_s,
            "kernels_s": kernels_s,
        }
    return figures | {"peak_mb": peak_mb()}


def run_restated(plan: Plan, _folder: Path) -> Figures:
    """The market as it comes, in two times; once."""
    real = market(plan, is_clean=False)
    seconds, bars = median_seconds(lambda: pipeline_bars(real, "1d"), 1)
    figures: Figures = {"pipeline_bars": {"seconds": seconds, "rows": len(bars)}}
    for name in features_pandas.FEATURES:
        warm_up(CATALOGUE[name], bars)
        seconds, table = median_seconds(partial(build, CATALOGUE[name], bars), 1)
        figures[name] = {"seconds": seconds, "rows": len(table)}
    return figures | {"peak_mb": peak_mb()}


def run_pandas(plan: Plan, folder: Path) -> Figures:
    """The same features in both forms."""
    final = last_known(pd.read_parquet(folder / BARS))
    figures: Figures = {}
    for name in features_pandas.FEATURES:
        bars = inputs_of(compared(name, final), final)
        times = {}
        for form, function in FORMS.items():
            times[form], found = median_seconds(partial(function, name, bars), plan.runs)
            found.to_parquet(folder / f"{name}.{form}.parquet")
        figures[name] = times
    return figures


def tick_data(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, prices and sizes of trades as those of a bitcoin future: 60,000 by steps of 0.1, sizes from 0.001."""
    rng = np.random.default_rng(0)
    price = np.round(60_000.0 + 0.1 * np.cumsum(rng.integers(-2, 3, num)), 1)
    size = np.round(np.maximum(rng.exponential(0.1, num), 0.001), 3)
    return 1_700_000_000_000_000 + np.cumsum(rng.integers(0, 100_000, num)), price, size


@njit(nogil=True)
def slice_windows(time: np.ndarray, price: np.ndarray, size: np.ndarray, sign: np.ndarray, out: np.ndarray) -> None:
    """The features as they are defined: a slice of each window, summed."""
    out[:10] = np.nan
    for i in range(10, len(price)):
        p, v, s = price[i - 9 : i + 1], size[i - 9 : i + 1], sign[i - 9 : i + 1]
        returns = np.diff(np.log(price[i - 10 : i + 1]))
        volume, high, low = np.sum(v), np.max(p), np.min(p)
        out[i, 0] = np.log(price[i] / price[i - 1])
        out[i, 1] = np.log(price[i] / price[i - 5])
        out[i, 2] = np.log(price[i] / price[i - 10])
        out[i, 3] = price[i] / (np.sum(p * v) / volume) - 1.0 if volume > 0 else np.nan
        out[i, 4] = np.sqrt(np.sum(returns**2))
        out[i, 5] = np.sum(s * v) / volume if volume > 0 else np.nan
        out[i, 6] = sign[i]
        out[i, 7] = (time[i] - time[i - 1]) / 1e6
        out[i, 8] = 2.0 * (high - low) / (high + low)
        out[i, 9] = (np.mean(v[5:]) - np.mean(v[:5])) / np.mean(v) if volume > 0 else np.nan


def in_loop(time: np.ndarray, price: np.ndarray, size: np.ndarray) -> np.ndarray:
    out = np.empty((len(price), 10))
    slice_windows(time, price, size, tick_rule(price), out)
    return out


def by_kernel(time: np.ndarray, price: np.ndarray, size: np.ndarray) -> np.ndarray:
    return tick_features(time, price, size, np.full(len(price), np.nan))


def one_at_a_time(time: np.ndarray, price: np.ndarray, size: np.ndarray) -> np.ndarray:
    state = new_tick_state()
    rows = [update_tick(state, *trade) for trade in zip(time.tolist(), price.tolist(), size.tolist(), strict=True)]
    return np.array(rows)


TICKS: Final[dict[str, Callable[..., np.ndarray]]] = {
    OURS: by_kernel,
    LOOP: in_loop,
    PANDAS: features_pandas.ticks,
}


def run_ticks(plan: Plan, _folder: Path) -> Figures:
    """Every form over the series, in turns, so that whatever else the machine does falls on all of them."""
    series = tick_data(plan.num_ticks)
    for form in (*TICKS.values(), one_at_a_time):
        form(*(values[:100] for values in series))
    seconds: dict[str, list[float]] = {name: [] for name in TICKS}
    out: dict[str, np.ndarray] = {}
    for _ in range(TICK_RUNS):
        for name, form in TICKS.items():
            out.pop(name, None)
            took, out[name] = median_seconds(partial(form, *series), 1)
            seconds[name].append(took)
    one_s, one = median_seconds(partial(one_at_a_time, *series), 1)
    if one.tobytes() != out[OURS].tobytes():
        raise SystemExit("one tick at a time the kernel gives other bits than over the series")
    np.testing.assert_allclose(out[OURS], out[LOOP], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(out[OURS], out[PANDAS], rtol=1e-6, atol=1e-6)
    return {name: median(times) for name, times in seconds.items()} | {ONE: one_s}


def run_long(plan: Plan, _folder: Path) -> Figures:
    """The kernel over a long series, and whether its end is what the last trades alone give."""
    time, price, size = tick_data(plan.num_long)
    sign = tick_rule(price)
    tick_features(time[:100], price[:100], size[:100], sign[:100])
    seconds, out = median_seconds(lambda: tick_features(time, price, size, sign), 3)
    fresh = tick_features(time[-11:], price[-11:], size[-11:], sign[-11:])
    same = bool(fresh[-1].tobytes() == out[-1].tobytes())
    return {"seconds": seconds, "rows": len(out), "peak_mb": peak_mb(), "same": same}


CONTENDERS: Final[dict[str, Callable[[Plan, Path], Figures]]] = {
    "pipelines": run_ours,
    "pandas": run_pandas,
    "restated": run_restated,
    "ticks": run_ticks,
    "many ticks": run_long,
}


def compare(plan: Plan, folder: Path, *, is_quick: bool) -> Report:
    """Run each contender alone and check what they computed against each other."""
    figures: dict[str, Figures] = {}
    for name in CONTENDERS:
        progress(f"running {name}")
        quick = ["--quick"] if is_quick else []
        figures[name] = alone("bench.features", "--contender", name, "--folder", str(folder), *quick)
    require_agreement(folder)
    if not figures["many ticks"]["same"]:
        raise SystemExit("the kernel has drifted: the last row of the long series is not that of its last trades")
    return judge(plan, figures)


def require_agreement(folder: Path) -> None:
    """Contenders that disagree are an error, not a slow result."""
    for name in features_pandas.FEATURES:
        ours = pd.read_parquet(folder / f"{name}.ours.parquet")
        for form in FORMS:
            theirs = pd.read_parquet(folder / f"{name}.{form}.parquet")
            both = ours.merge(theirs, on=list(KEYS), suffixes=("", " pandas"))
            for feature in theirs.columns.difference(KEYS):
                mine, other = both[feature].to_numpy(), both[f"{feature} pandas"].to_numpy()
                is_there = np.isfinite(mine)
                off = np.abs(mine - other) > 1e-6 * (1.0 + np.abs(mine))
                if len(both) < len(ours) or is_there.mean() < 0.9 or (off | np.isnan(other))[is_there].any():
                    raise SystemExit(f"{name} {feature}: pandas ({form}) disagrees, so its times mean nothing")


def judge(plan: Plan, figures: dict[str, Figures]) -> Report:
    """Rows and bars."""
    ours, pandas_ = figures["pipelines"], figures["pandas"]
    kernels_s = sum(ours[name]["kernels_s"] for name in features_pandas.FEATURES)
    by_asset_s, all_assets_s = (sum(times[form] for times in pandas_.values()) for form in FORMS)
    tick_s = figures["ticks"]
    return Report(
        bench="features",
        rows=list(_rows(plan, figures)),
        bars=[
            at_least("ticks: times faster than the jitted slicing loop", ratio(tick_s[LOOP], tick_s[OURS]), 6),
            at_least("ticks: times faster than pandas rolling", ratio(tick_s[PANDAS], tick_s[OURS]), 2),
            at_least("kernels: times faster than pandas, asset by asset", ratio(by_asset_s, kernels_s), 2),
            at_least("kernels: times faster than pandas, a column an asset", ratio(all_assets_s, kernels_s), 1),
        ],
        facts=[
            f"{plan.num_assets} assets x {plan.num_days:,} daily bars: {ours['pipeline_bars']['rows']:,} rows in two "
            f"times, restated {figures['restated']['pipeline_bars']['rows']:,}; seconds, medians of {plan.runs}, "
            "pipeline_bars and restated once",
            "table, kernels, by asset, columns: the same features by our table, our kernels, pandas groupby, pandas "
            "with a column an asset; all agree within 1e-6",
            f"{plan.num_ticks:,} ticks x 10: the slicing loop agrees within 1e-9, pandas within 1e-6, tick by tick bit "
            f"for bit; the last of {plan.num_long:,} rows is bit for bit that of its last eleven ticks alone",
        ],
    )


def _rows(plan: Plan, figures: dict[str, Figures]) -> Iterator[Row]:
    ours, pandas_, restated = figures["pipelines"], figures["pandas"], figures["restated"]
    more: Figures = {"features": None, "restated": restated["pipeline_bars"]["seconds"]}
    yield _row("pipeline_bars", ours["pipeline_bars"], ours["peak_mb"], more)
    for name in features_pandas.FEATURES:
        figure, times = ours[name], pandas_[name]
        more = {
            "features": figure["features"],
            "restated": restated[name]["seconds"],
            "same": figure["same"],
            "table": figure["table_s"],
            "kernels": figure["kernels_s"],
            "by asset": times["by_asset"],
            "columns": times["all_assets"],
        }
        yield _row(name, figure, None, more)
    for name, seconds in figures["ticks"].items():
        yield _row(name, {"seconds": seconds, "rows": plan.num_ticks}, None, {})
    yield _row("many ticks", figures["many ticks"], figures["many ticks"]["peak_mb"], {})


def _row(name: str, figure: Figures, peak: float | None, more: Figures) -> Row:
    rate = {"rows/s": figure["rows"] / figure["seconds"]}
    return Row(name=name, seconds=figure["seconds"], peak_mb=peak, more=rate | more)


def main() -> int:
    """Run the bench, or one contender of it."""
    parser: argparse.ArgumentParser = options(__doc__)
    parser.add_argument("--contender", choices=list(CONTENDERS), help="run one alone")
    parser.add_argument("--folder", type=Path, help="where contenders leave what they computed")
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else FULL
    if chosen.contender:
        print(json.dumps(CONTENDERS[chosen.contender](plan, chosen.folder)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return publish(compare(plan, Path(folder), is_quick=chosen.quick), as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
