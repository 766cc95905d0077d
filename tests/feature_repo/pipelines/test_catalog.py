"""What every pipeline of the catalogue promises: its window, its features, its silence about the future."""

from __future__ import annotations

import numpy as np
import pytest

from feature_repo.pipelines.base import Feature, Pipeline, PipelineError, pipeline_of
from feature_repo.pipelines.catalog import CATALOGUE, PIPELINES, pipeline

NUM_BARS = 300
PRICES = ("open", "high", "low", "close")
EIGHT = {"ohlcv", "technical", "momentum", "volatility", "order_flow", "cross_asset", "sentiment", "onchain"}
BESIDE = sorted(
    {name for declared in PIPELINES.values() for each in declared.features for name in (*each.inputs, *each.optional)}
    - {*PRICES, "volume"}
)


def columns(scale: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    close = scale * np.exp(np.cumsum(rng.normal(0.0, 0.02, NUM_BARS)))
    open_ = close * np.exp(rng.normal(0.0, 0.01, NUM_BARS))
    return {
        "open": open_,
        "high": np.maximum(open_, close) * 1.01,
        "low": np.minimum(open_, close) * 0.98,
        "close": close,
        "volume": rng.integers(1, 1000, NUM_BARS).astype(float),
    } | {name: np.exp(rng.normal(0.0, 0.3, NUM_BARS)) for name in BESIDE}


def rows(of: dict[str, np.ndarray], part: slice) -> dict[str, np.ndarray]:
    return {name: series[part].copy() for name, series in of.items()}


every_pipeline = pytest.mark.parametrize("chosen", PIPELINES.values(), ids=lambda declared: declared.name)


def test_catalogue_holds_the_eight_and_leaves_the_bar_out() -> None:
    assert set(CATALOGUE) == EIGHT
    assert set(PIPELINES) - set(CATALOGUE) == {"bar"}
    assert pipeline("bar").view_name == "bar_v1"


def test_unknown_pipeline_error_lists_what_there_is() -> None:
    with pytest.raises(PipelineError, match=r"no pipeline 'tecnical'; there are \['bar', 'cross_asset'"):
        pipeline("tecnical")


@every_pipeline
def test_features_are_named_once_and_described(chosen: Pipeline) -> None:
    names = [feature.name for feature in chosen.features]
    assert len(names) == len(set(names))
    assert all(len(feature.description) > 10 for feature in chosen.features)
    assert chosen.warmup_bars <= 130


@every_pipeline
def test_value_is_a_function_of_exactly_the_last_warmup_bars(chosen: Pipeline) -> None:
    full = chosen.compute(columns())
    for stop in (chosen.warmup_bars, 200, 251, NUM_BARS):
        cut = chosen.compute(rows(columns(), slice(stop - chosen.warmup_bars, stop)))
        for name, series in cut.items():
            assert series[-1] == full[name][stop - 1], name


@every_pipeline
def test_warmup_is_not_longer_than_it_must_be(chosen: Pipeline) -> None:
    at = NUM_BARS - 1
    oldest = at - chosen.warmup_bars + 1
    better = {name for feature in chosen.features for name in feature.optional}  # a market may lack them

    def bars() -> dict[str, np.ndarray]:
        return {name: series for name, series in columns().items() if name not in better}

    before = chosen.compute(bars())
    for bar, matters in ((oldest, True), (oldest - 1, False)):
        market = bars()
        for series in market.values():
            series[bar] *= 1.5
        after = chosen.compute(market)
        assert any(after[name][at] != before[name][at] for name in before) is matters


@every_pipeline
def test_nothing_is_said_before_warmup(chosen: Pipeline) -> None:
    for series in chosen.compute(columns()).values():
        assert np.isnan(series[: chosen.warmup_bars - 1]).all()
        assert not np.isnan(series[chosen.warmup_bars - 1 :]).any()


def test_a_longer_recursion_than_its_warmup_is_caught() -> None:
    def endless(market: dict[str, np.ndarray]) -> np.ndarray:
        return np.cumsum(market["close"])

    broken = pipeline_of(
        name="broken",
        version=1,
        warmup_bars=10,
        formulas={Feature(name="total", inputs=("close",), description="sum since the first bar"): endless},
    )
    with pytest.raises(AssertionError):
        test_value_is_a_function_of_exactly_the_last_warmup_bars(broken)


@every_pipeline
def test_deleting_the_future_changes_nothing(chosen: Pipeline) -> None:
    full, past = chosen.compute(columns()), chosen.compute(rows(columns(), slice(0, 220)))
    for name, series in past.items():
        np.testing.assert_array_equal(series, full[name][:220])


@every_pipeline
@pytest.mark.parametrize(
    "given", [("close",), ("close", "volume"), ("high", "low"), ("high", "low", "close"), PRICES, (*PRICES, "volume")]
)
def test_computed_are_the_applicable_features(chosen: Pipeline, given: tuple[str, ...]) -> None:
    market = {name: series for name, series in columns().items() if name in given}
    assert set(chosen.compute(market)) == {feature.name for feature in chosen.applicable(frozenset(given))}


def test_what_closes_alone_are_enough_for() -> None:
    assert {name: len(declared.applicable(frozenset({"close"}))) for name, declared in PIPELINES.items()} == {
        "bar": 3,
        "cross_asset": 0,
        "momentum": 18,
        "ohlcv": 3,
        "onchain": 0,
        "order_flow": 3,
        "sentiment": 0,
        "technical": 10,
        "volatility": 12,
    }


@pytest.mark.parametrize("chosen", CATALOGUE.values(), ids=lambda declared: declared.name)
def test_features_do_not_depend_on_the_price_level(chosen: Pipeline) -> None:
    cheap, dear = chosen.compute(columns()), chosen.compute(columns(scale=4096.0))
    for name, series in cheap.items():
        np.testing.assert_allclose(dear[name], series, rtol=1e-7, atol=1e-10, err_msg=name)


@every_pipeline
def test_missing_bar_blanks_its_window_without_a_warning(chosen: Pipeline) -> None:
    market = columns()
    for series in market.values():
        series[150] = np.nan
    for name, series in chosen.compute(market).items():
        assert np.isnan(series[150 : 150 + chosen.warmup_bars]).any(), name
        assert not np.isnan(series[150 + chosen.warmup_bars :]).any(), name


@every_pipeline
def test_compute_leaves_its_input_alone(chosen: Pipeline) -> None:
    market, untouched = columns(), columns()
    chosen.compute(market)
    for name, series in market.items():
        np.testing.assert_array_equal(series, untouched[name])
