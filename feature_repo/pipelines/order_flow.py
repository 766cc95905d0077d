"""Order flow and liquidity: who pressed the market, how one-sidedly, and what a trade moves.

A bar's volume is bought in the share that its trades say where the market has trades (the columns ``buy_volume`` and
``sell_volume`` of ``feature_repo.aggregates.order_flow``), and where not by bulk volume classification of its return.
Signed volume is what was bought less what was sold. Returns, spreads and impacts are in logs, volumes over their own
averages, so no feature has a currency or a unit of size.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from feature_repo.kernels.elementwise import lagged, log_ratio, log_return, log_share, ratio
from feature_repo.kernels.order_flow import (
    bulk_buy_share,
    corwin_schultz_spread,
    roll_spread,
    rolling_illiquidity,
    rolling_vpin,
)
from feature_repo.kernels.pairs import rolling_correlation, rolling_slope
from feature_repo.kernels.rolling import rolling_mean, rolling_std, rolling_sum
from feature_repo.pipelines.base import Columns, Feature, FloatArray, Formula, pipeline_of

_C = ("close",)
_CV = ("close", "volume")
_HLC = ("high", "low", "close")
_TRADED = ("buy_volume", "sell_volume")


def _returns(columns: Columns) -> FloatArray:
    return log_return(columns["close"], 1)


def _buy_share(columns: Columns) -> FloatArray:
    returns = _returns(columns)
    bulk = bulk_buy_share(returns, rolling_std(returns, 20, 1))
    if not columns.keys() >= set(_TRADED):
        return bulk
    traded = ratio(columns["buy_volume"], columns["buy_volume"] + columns["sell_volume"])
    return np.where(np.isnan(traded), bulk, traded)


def _imbalance(columns: Columns) -> FloatArray:
    return 2.0 * _buy_share(columns) - 1.0


def _mean_imbalance(columns: Columns, *, window: int) -> FloatArray:
    volume = columns["volume"]
    return ratio(rolling_sum(_imbalance(columns) * volume, window), rolling_sum(volume, window))


def _persistence(columns: Columns) -> FloatArray:
    imbalance = _imbalance(columns)
    return rolling_correlation(imbalance, lagged(imbalance, 1), 42)


def _vpin(columns: Columns, *, window: int) -> FloatArray:
    share, volume = _buy_share(columns), columns["volume"]
    return rolling_vpin(share * volume, (1.0 - share) * volume, window, window // 3)


def _kyle_lambda(columns: Columns, *, window: int) -> FloatArray:
    volume = columns["volume"]
    impact = rolling_slope(_returns(columns), _imbalance(columns) * volume, window)
    return impact * rolling_mean(volume, window)


def _illiquidity(columns: Columns, window: int) -> FloatArray:
    return rolling_illiquidity(_returns(columns), columns["close"] * columns["volume"], window)


def _amihud(columns: Columns) -> FloatArray:
    scaled = _illiquidity(columns, 21) * rolling_mean(columns["close"] * columns["volume"], 21)
    return log_ratio(scaled, np.ones_like(scaled))


def _amihud_ratio(columns: Columns) -> FloatArray:
    return log_ratio(_illiquidity(columns, 21), _illiquidity(columns, 63))


def _roll_spread(columns: Columns) -> FloatArray:
    return roll_spread(_returns(columns), 21)


def _corwin_schultz(columns: Columns) -> FloatArray:
    return rolling_mean(corwin_schultz_spread(columns["high"], columns["low"], columns["close"]), 21)


def _trade_vpin(columns: Columns, *, window: int) -> FloatArray:
    return rolling_mean(columns["vpin"], window)


def _trade_intensity(columns: Columns) -> FloatArray:
    return log_share(columns["num_trades"], rolling_mean(columns["num_trades"], 20))


def _trade_size_ratio(columns: Columns) -> FloatArray:
    volume, num_trades = columns["volume"], columns["num_trades"]
    return log_share(ratio(volume, num_trades), ratio(rolling_sum(volume, 20), rolling_sum(num_trades, 20)))


def _quote_flow(columns: Columns, *, window: int) -> FloatArray:
    return ratio(rolling_sum(columns["ofi"], window), rolling_mean(columns["depth"], window))


def _quoted_spread(columns: Columns) -> FloatArray:
    return columns["quoted_spread"]


def _quoted_spread_ratio(columns: Columns) -> FloatArray:
    return ratio(columns["quoted_spread"], rolling_mean(columns["quoted_spread"], 20))


def _depth_imbalance(columns: Columns) -> FloatArray:
    return columns["depth_imbalance"]


def _depth_ratio(columns: Columns) -> FloatArray:
    return log_ratio(columns["depth"], rolling_mean(columns["depth"], 20))


_IMBALANCES: dict[Feature, Formula] = {
    Feature(
        name=f"flow_imbalance_{window}",
        inputs=_CV,
        optional=_TRADED,
        description=f"Signed volume over volume of the last {window} bars, -1 to 1 (trades, else bulk volume)",
    ): partial(_mean_imbalance, window=window)
    for window in (5, 21, 63)
}
_TOXICITY: dict[Feature, Formula] = {
    Feature(
        name=f"vpin_{window}",
        inputs=_CV,
        optional=_TRADED,
        description=(
            f"Mean |bought - sold| share of {window // 3} equal-volume buckets of the last {window} bars, 0 to 1 "
            "(Easley, Lopez de Prado & O'Hara 2012; trades, else bulk volume)"
        ),
    ): partial(_vpin, window=window)
    for window in (21, 63)
}
_IMPACTS: dict[Feature, Formula] = {
    Feature(
        name=f"kyle_lambda_{window}",
        inputs=_CV,
        optional=_TRADED,
        description=(
            f"Slope of log returns on signed volume, least squares over {window} bars, times their mean volume "
            "(Kyle 1985; trades, else bulk volume)"
        ),
    ): partial(_kyle_lambda, window=window)
    for window in (21, 63)
}
_QUOTE_FLOWS: dict[Feature, Formula] = {
    Feature(
        name=f"ofi_{window}",
        inputs=("ofi", "depth"),
        description=(
            f"Order flow imbalance of the last {window} bars' best quotes over their mean depth, in depths "
            "(Cont, Kukanov & Stoikov 2014)"
        ),
    ): partial(_quote_flow, window=window)
    for window in (1, 5, 21)
}

PIPELINE = pipeline_of(
    name="order_flow",
    version=1,
    warmup_bars=83,  # 63 bars of signed volume, the first classified by the 20 returns up to it
    formulas={
        Feature(
            name="flow_imbalance",
            inputs=_C,
            optional=_TRADED,
            description=(
                "Signed volume over volume of the bar, -1 to 1: of its trades, else 2 Phi(r / s) - 1, s the standard "
                "deviation (ddof 1) of 20 log returns (Easley, Lopez de Prado & O'Hara 2012)"
            ),
        ): _imbalance
    }
    | _IMBALANCES
    | {
        Feature(
            name="flow_persistence_42",
            inputs=_C,
            optional=_TRADED,
            description="Correlation of flow_imbalance with its value of the bar before, 42 bars",
        ): _persistence
    }
    | _TOXICITY
    | _IMPACTS
    | {
        Feature(
            name="amihud_21",
            inputs=_CV,
            description=(
                "ln of the mean |log return| / CV of the last 21 bars that traded, times their mean CV: how far an "
                "average bar's value moves the price (Amihud 2002)"
            ),
        ): _amihud,
        Feature(
            name="amihud_ratio_21_63",
            inputs=_CV,
            description="ln of the mean |log return| / CV of 21 bars over that of 63, where they traded (Amihud 2002)",
        ): _amihud_ratio,
        Feature(
            name="roll_spread_21",
            inputs=_C,
            description="2 sqrt(-cov(r[t], r[t-1])) of the last 21 log returns, 0 where that has no root (Roll 1984)",
        ): _roll_spread,
        Feature(
            name="corwin_schultz_21",
            inputs=_HLC,
            description="Mean of the last 21 high-low spread estimates (Corwin & Schultz 2012), a share of the price",
        ): _corwin_schultz,
        Feature(
            name="trade_vpin_1",
            inputs=("vpin",),
            description="Mean |bought - sold| share of 10 equal-volume buckets of the bar's trades, 0 to 1",
        ): partial(_trade_vpin, window=1),
        Feature(
            name="trade_vpin_21",
            inputs=("vpin",),
            description="Mean of the last 21 trade_vpin_1",
        ): partial(_trade_vpin, window=21),
        Feature(
            name="trade_intensity_20",
            inputs=("num_trades",),
            description="ln(1 + number of trades / its mean of the last 20 bars), ln 2 for an average bar",
        ): _trade_intensity,
        Feature(
            name="trade_size_ratio_20",
            inputs=("volume", "num_trades"),
            description="ln(1 + volume per trade / that of the last 20 bars), ln 2 for an average bar",
        ): _trade_size_ratio,
    }
    | _QUOTE_FLOWS
    | {
        Feature(
            name="quoted_spread",
            inputs=("quoted_spread",),
            description="Time-weighted (ask - bid) / midpoint of the bar, a share of the price",
        ): _quoted_spread,
        Feature(
            name="quoted_spread_ratio_20",
            inputs=("quoted_spread",),
            description="Time-weighted quoted spread over its mean of the last 20 bars",
        ): _quoted_spread_ratio,
        Feature(
            name="depth_imbalance",
            inputs=("depth_imbalance",),
            description="Time-weighted (bid size - ask size) / (bid size + ask size) of the bar's best quotes, -1 to 1",
        ): _depth_imbalance,
        Feature(
            name="depth_ratio_20",
            inputs=("depth",),
            description="ln of the bar's mean size at the best quotes over its mean of the last 20 bars",
        ): _depth_ratio,
    },
)
