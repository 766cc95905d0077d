"""Cross-asset: what an asset has in common with the others, who leads whom, and the state of the whole market.

The market is the equal-weighted mean of the *other* assets' log returns, so an asset is not regressed on itself. An
asset's own return is that of its last two bars; the aggregate ``cross_section`` gives the other columns and says which
assets count. Signs of the second and third component are a convention that can turn, so the only features that take
them alone are their loadings.
"""

from __future__ import annotations

import math
from functools import partial

from feature_repo.kernels.elementwise import lagged, log_return, ratio
from feature_repo.kernels.pairs import rolling_correlation, rolling_residual_std, rolling_slope
from feature_repo.kernels.rolling import rolling_mean, rolling_std, rolling_sum
from feature_repo.pipelines.base import Columns, Feature, FloatArray, Formula, pipeline_of

_CO = ("close", "others_return")
_CL = ("close", "leader_return")
_LOADINGS = ("pc1_loading", "pc2_loading", "pc3_loading")


def _own(columns: Columns) -> FloatArray:
    return log_return(columns["close"], 1)


def _column(columns: Columns, *, name: str) -> FloatArray:
    return columns[name]


def _beta(columns: Columns, *, window: int) -> FloatArray:
    return rolling_slope(_own(columns), columns["others_return"], window)


def _correlation(columns: Columns, *, window: int) -> FloatArray:
    return rolling_correlation(_own(columns), columns["others_return"], window)


def _idiosyncratic_vol(columns: Columns) -> FloatArray:
    return rolling_residual_std(_own(columns), columns["others_return"], 63)


def _residual_return(columns: Columns) -> FloatArray:
    return _own(columns) - _beta(columns, window=63) * columns["others_return"]


def _residual_momentum(columns: Columns) -> FloatArray:
    market = rolling_mean(columns["others_return"], 63)
    alpha = rolling_mean(_own(columns), 63) - _beta(columns, window=63) * market
    return math.sqrt(63.0) * ratio(alpha, _idiosyncratic_vol(columns))


def _relative_strength(columns: Columns) -> FloatArray:
    return rolling_sum(_own(columns) - columns["others_return"], 63)


def _autocorrelation(columns: Columns) -> FloatArray:
    return rolling_correlation(_own(columns), lagged(_own(columns), 1), 63)


def _lag_to_market(columns: Columns) -> FloatArray:
    return rolling_correlation(_own(columns), lagged(columns["others_return"], 1), 63)


def _lead_of_market(columns: Columns) -> FloatArray:
    return rolling_correlation(columns["others_return"], lagged(_own(columns), 1), 63)


def _lag_to_leaders(columns: Columns) -> FloatArray:
    return rolling_correlation(_own(columns), lagged(columns["leader_return"], 1), 63)


def _leader_pull(columns: Columns) -> FloatArray:
    leaders = columns["leader_return"]
    return rolling_slope(_own(columns), lagged(leaders, 1), 63) * leaders


def _explained(columns: Columns) -> FloatArray:
    first, second, third = (columns[name] for name in _LOADINGS)
    return first * first + second * second + third * third


def _residual_5(columns: Columns) -> FloatArray:
    return rolling_sum(columns["pc_residual"], 5) / math.sqrt(5.0)


def _market_momentum(columns: Columns) -> FloatArray:
    return rolling_sum(columns["pc1_return"], 21)


def _tilt_return(columns: Columns) -> FloatArray:
    second = columns["pc2_loading"] * columns["pc2_return"]
    return second + columns["pc3_loading"] * columns["pc3_return"]


def _market_vol(columns: Columns) -> FloatArray:
    return rolling_std(columns["market_return"], 21, 1)


def _mean_of(columns: Columns, *, name: str, window: int) -> FloatArray:
    return rolling_mean(columns[name], window)


def _correlation_change(columns: Columns) -> FloatArray:
    correlation = columns["market_correlation"]
    return correlation - lagged(correlation, 21)


def _absorption_shift(columns: Columns) -> FloatArray:
    absorption = columns["market_absorption"]
    return ratio(rolling_mean(absorption, 15) - rolling_mean(absorption, 63), rolling_std(absorption, 63, 1))


_MARKET: dict[Feature, Formula] = {
    **{
        Feature(
            name=f"beta_{window}",
            inputs=_CO,
            description=f"Slope of own on the market's log returns, {window} bars, least squares (Sharpe 1964)",
        ): partial(_beta, window=window)
        for window in (21, 63)
    },
    **{
        Feature(
            name=f"correlation_{window}",
            inputs=_CO,
            description=f"Correlation of own and the market's log returns over {window} bars, -1 to 1",
        ): partial(_correlation, window=window)
        for window in (21, 63)
    },
    Feature(
        name="idiosyncratic_vol_63",
        inputs=_CO,
        description="Standard error of the 63-bar regression on the market, log return per bar (Ang et al. 2006)",
    ): _idiosyncratic_vol,
    Feature(
        name="residual_return_1",
        inputs=_CO,
        description="Own log return less beta_63 times the market's",
    ): _residual_return,
    Feature(
        name="residual_momentum_63",
        inputs=_CO,
        description="63-bar sum of own less beta times the market's returns, over idiosyncratic_vol_63 sqrt(63) "
        "(Blitz, Huij & Martens 2011)",
    ): _residual_momentum,
    Feature(
        name="relative_strength_63",
        inputs=_CO,
        description="63-bar sum of own less the market's log returns (Levy 1967)",
    ): _relative_strength,
}
_LEAD_LAG: dict[Feature, Formula] = {
    Feature(
        name="autocorrelation_63",
        inputs=_CO,  # beside the two that follow: alone it would say nothing of other assets
        description="Correlation of own log return with the one a bar before, 63 bars, -1 to 1",
    ): _autocorrelation,
    Feature(
        name="lag_to_market_63",
        inputs=_CO,
        description="Correlation of own return with the market's a bar before, 63 bars (Lo & MacKinlay 1990)",
    ): _lag_to_market,
    Feature(
        name="lead_of_market_63",
        inputs=_CO,
        description="Correlation of the market's return with own a bar before, 63 bars (Lo & MacKinlay 1990)",
    ): _lead_of_market,
    Feature(
        name="lag_to_leaders_63",
        inputs=_CL,
        description="Correlation of own return with the most traded fifth's a bar before, 63 bars (Chordia & "
        "Swaminathan 2000)",
    ): _lag_to_leaders,
    Feature(
        name="leader_pull_1",
        inputs=_CL,
        description="63-bar slope of own return on the most traded fifth's a bar before, times its latest: log return",
    ): _leader_pull,
}
_COMPONENTS: dict[Feature, Formula] = {
    **{
        Feature(
            name=name,
            inputs=(name,),
            description=f"Correlation of own return with component {number} over 63 bars, -1 to 1 (standardised beta)",
        ): partial(_column, name=name)
        for number, name in enumerate(_LOADINGS, start=1)
    },
    Feature(
        name="pc_explained_63",
        inputs=_LOADINGS,
        description="R^2: share of own variance over 63 bars that three components explain, 0 to 1",
    ): _explained,
    Feature(
        name="pc_residual_1",
        inputs=("pc_residual",),
        description="Own return less what three components explain, in its standard deviations (Avellaneda & Lee 2010)",
    ): partial(_column, name="pc_residual"),
    Feature(
        name="pc_residual_5",
        inputs=("pc_residual",),
        description="Sum of the last 5 values of pc_residual_1 over sqrt(5), in standard deviations",
    ): _residual_5,
    Feature(
        name="pc1_momentum_21",
        inputs=("pc1_return",),
        description="21-bar sum of log returns of the first component's portfolio, weights loading / volatility",
    ): _market_momentum,
    Feature(
        name="pc_tilt_return_1",
        inputs=("pc2_loading", "pc2_return", "pc3_loading", "pc3_return"),
        description="Loading times return of components 2 and 3, summed: log return, whatever their signs",
    ): _tilt_return,
}
_STATE: dict[Feature, Formula] = {
    Feature(
        name="market_vol_21",
        inputs=("market_return",),
        description="Standard deviation (ddof 1) of all assets' mean log return (own included), 21 bars, per bar",
    ): _market_vol,
    Feature(
        name="dispersion_21",
        inputs=("market_dispersion",),
        description="21-bar mean of the standard deviation (ddof 1) of log returns across assets",
    ): partial(_mean_of, name="market_dispersion", window=21),
    Feature(
        name="breadth_5",
        inputs=("market_breadth",),
        description="5-bar mean of the share of assets that rise, 0 to 1",
    ): partial(_mean_of, name="market_breadth", window=5),
    Feature(
        name="average_correlation_63",
        inputs=("market_correlation",),
        description="Mean correlation of all pairs of assets over 63 bars (Pollet & Wilson 2010)",
    ): partial(_column, name="market_correlation"),
    Feature(
        name="correlation_change_21",
        inputs=("market_correlation",),
        description="average_correlation_63 less its value 21 bars before",
    ): _correlation_change,
    Feature(
        name="pc1_share_63",
        inputs=("market_pc1_share",),
        description="Share of all assets' standardised variance in the first component, 63 bars, 0 to 1",
    ): partial(_column, name="market_pc1_share"),
    Feature(
        name="absorption_shift",
        inputs=("market_absorption",),
        description="Absorption ratio (share of the first fifth of all components): 15- less 63-bar mean, over the "
        "63-bar standard deviation (Kritzman, Li, Page & Rigobon 2011)",
    ): _absorption_shift,
}
_RANKS: dict[Feature, Formula] = {
    Feature(
        name=name,
        inputs=(name,),
        description=f"Place of own {lag}-bar return among the assets known then, 0 (lowest) to 1",
    ): partial(_column, name=name)
    for lag, name in ((lag, f"return_rank_{lag}") for lag in (1, 21, 63))
}

PIPELINE = pipeline_of(
    name="cross_asset",
    version=1,
    warmup_bars=65,  # 63 pairs of a return and the one before it
    formulas=_MARKET | _LEAD_LAG | _COMPONENTS | _STATE | _RANKS,
)
