"""The bar itself: price, return and volatility, of which labels and books are made."""

from __future__ import annotations

from feature_repo.kernels.elementwise import lagged, ratio
from feature_repo.kernels.rolling import rolling_std
from feature_repo.pipelines.base import Columns, Feature, FloatArray, pipeline_of

_CLOSE = ("close",)


def _close(columns: Columns) -> FloatArray:
    return columns["close"]


def _simple_return(columns: Columns) -> FloatArray:
    return ratio(columns["close"], lagged(columns["close"], 1)) - 1.0


def _vol(columns: Columns) -> FloatArray:
    return rolling_std(_simple_return(columns), 60, 1)


PIPELINE = pipeline_of(
    name="bar",
    version=1,
    warmup_bars=61,
    formulas={
        Feature(name="close", inputs=_CLOSE, description="Close, in the asset's quote currency"): _close,
        Feature(name="ret_1", inputs=_CLOSE, description="Simple return of the bar: C[t] / C[t-1] - 1"): _simple_return,
        Feature(
            name="vol_60",
            inputs=_CLOSE,
            description="Per-bar volatility: standard deviation (ddof 1) of the last 60 simple returns",
        ): _vol,
    },
)
