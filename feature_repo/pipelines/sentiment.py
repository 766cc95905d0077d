"""Sentiment of the asset and of the whole market: level, change, surprise, decay-weighted, extremes, attention.

Levels come standardised from ``feature_repo.aggregates.sentiment``: all features are in standard deviations of the
series' own past but where a description says otherwise. A market with market-wide series only has no asset features.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from feature_repo.aggregates.sentiment import MEASURES
from feature_repo.kernels.elementwise import lagged, log_ratio, ratio
from feature_repo.kernels.rolling import (
    decay_weights,
    rolling_max,
    rolling_mean,
    rolling_min,
    rolling_std,
    weighted_average,
)
from feature_repo.pipelines.base import Columns, Feature, FloatArray, Formula, pipeline_of


def _decayed(series: FloatArray, half_life: int) -> FloatArray:
    """Exponential average over five half-lives, which leave out a thirtieth of the weight, made to sum to one."""
    return weighted_average(series, decay_weights(0.5 ** (1.0 / half_life), 5 * half_life))


def _level(columns: Columns, *, of: str) -> FloatArray:
    return columns[of]


def _change(columns: Columns, *, of: str, lag: int) -> FloatArray:
    return columns[of] - lagged(columns[of], lag)


def _surprise(columns: Columns, *, of: str) -> FloatArray:
    before = lagged(columns[of], 1)
    return ratio(columns[of] - _decayed(before, 10), np.maximum(rolling_std(before, 50, 1), 0.1))


def _decay(columns: Columns, *, of: str, half_life: int) -> FloatArray:
    return _decayed(columns[of], half_life)


def _dispersion(columns: Columns, *, of: str) -> FloatArray:
    return rolling_std(columns[of], 21, 1)


def _place(columns: Columns, *, of: str) -> FloatArray:
    low, high = rolling_min(columns[of], 63), rolling_max(columns[of], 63)
    return ratio(columns[of] - low, high - low)


def _attention(columns: Columns, *, of: str) -> FloatArray:
    heard = 1.0 + columns[of]
    return log_ratio(heard, rolling_mean(heard, 63))


def _difference(columns: Columns) -> FloatArray:
    return columns["asset_sentiment"] - columns["market_sentiment"]


def _difference_change(columns: Columns) -> FloatArray:
    difference = _difference(columns)
    return difference - lagged(difference, 5)


def _difference_decay(columns: Columns) -> FloatArray:
    return _decayed(_difference(columns), 10)


def _formulas(whose: str) -> dict[Feature, Formula]:
    """The features of ``asset`` or ``market``."""
    sentiment, disagreement, count = (f"{whose}_{measure}" for measure in MEASURES)
    what = f"the {whose}'s mean standardised sentiment"

    def feature(name: str, description: str, of: str = sentiment) -> Feature:
        return Feature(name=f"{whose}_{name}", inputs=(of,), description=description)

    changes: dict[Feature, Formula] = {
        feature(f"sentiment_change_{lag}", f"S[t] - S[t-{lag}], S {what}"): partial(_change, of=sentiment, lag=lag)
        for lag in (1, 5, 21)
    }
    decays: dict[Feature, Formula] = {
        feature(
            f"sentiment_decay_{half_life}",
            f"Exponential average of S, {what}: half-life {half_life} bars, over {5 * half_life}",
        ): partial(_decay, of=sentiment, half_life=half_life)
        for half_life in (3, 10)
    }
    return (
        {feature("sentiment_level", f"S, {what} over its named series"): partial(_level, of=sentiment)}
        | changes
        | decays
        | {
            feature(
                "sentiment_surprise",
                f"(S - average) / max(0.1, standard deviation, ddof 1) of the 50 bars before, half-life 10, S {what}",
            ): partial(_surprise, of=sentiment),
            feature("sentiment_dispersion_21", f"Standard deviation (ddof 1) of the last 21 S, {what}"): partial(
                _dispersion, of=sentiment
            ),
            feature("sentiment_place_63", f"Place of S, {what}, in its 63-bar range, 0 to 1"): partial(
                _place, of=sentiment
            ),
            feature(
                "sentiment_disagreement",
                f"Standard deviation (ddof 0) over the {whose}'s named series of their levels, from two series on",
                disagreement,
            ): partial(_level, of=disagreement),
            feature(
                "sentiment_attention_63",
                f"ln((1 + n) / mean of the last 63 (1 + n)), n observations of the {whose}'s series in a bar",
                count,
            ): partial(_attention, of=count),
        }
    )


_BOTH = ("asset_sentiment", "market_sentiment")

PIPELINE = pipeline_of(
    name="sentiment",
    version=1,
    warmup_bars=63,  # place in the range, and attention
    formulas=_formulas("asset")
    | _formulas("market")
    | {
        Feature(
            name="sentiment_difference",
            inputs=_BOTH,
            description="D = asset's less market's mean standardised sentiment",
        ): _difference,
        Feature(
            name="sentiment_difference_change_5",
            inputs=_BOTH,
            description="D[t] - D[t-5], D the asset's less the market's mean standardised sentiment",
        ): _difference_change,
        Feature(
            name="sentiment_difference_decay_10",
            inputs=_BOTH,
            description="Exponential average of asset's less market's sentiment: half-life 10 bars, over 50",
        ): _difference_decay,
    },
)
