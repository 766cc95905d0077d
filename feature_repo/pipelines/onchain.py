"""On-chain metrics: activity, fees, transfers, valuation, issuance and mining, their changes and z-scores.

The columns come from ``feature_repo.aggregates.onchain``: a daily bar has the blockchain's figures of the day before,
as Coin Metrics defines them. A z-score is of the logarithm, against the last 90 bars, the current one included.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from feature_repo.kernels.elementwise import log_ratio, log_return, ratio
from feature_repo.kernels.rolling import rolling_mean, rolling_std
from feature_repo.pipelines.base import Columns, Feature, FloatArray, Formula, pipeline_of

_ADDRESSES = "onchain_active_addresses"
_TRANSACTIONS = "onchain_transactions"
_TRANSFERS = "onchain_transfer_value_usd"
_FEES = "onchain_fees_usd"
_ISSUANCE = "onchain_issuance_usd"
_CAP = "onchain_market_cap_usd"
_HASH_RATE = "onchain_hash_rate"
_NVT = "onchain_nvt"
_MVRV = "onchain_mvrv"


def _log(series: FloatArray) -> FloatArray:
    return log_ratio(series, np.ones_like(series))


def _z(series: FloatArray) -> FloatArray:
    return ratio(series - rolling_mean(series, 90), rolling_std(series, 90, 1))


def _log_level(columns: Columns, *, of: str) -> FloatArray:
    return _log(columns[of])


def _change(columns: Columns, *, of: str, lag: int) -> FloatArray:
    return log_return(columns[of], lag)


def _z_score(columns: Columns, *, of: str) -> FloatArray:
    return _z(_log(columns[of]))


def _issuance_rate(columns: Columns) -> FloatArray:
    return ratio(columns[_ISSUANCE], columns[_CAP])


def _fee_share(columns: Columns) -> FloatArray:
    return ratio(columns[_FEES], columns[_FEES] + columns[_ISSUANCE])


def _fee_per_transaction_z(columns: Columns) -> FloatArray:
    return _z(log_ratio(columns[_FEES], columns[_TRANSACTIONS]))


def _network_value_gap(columns: Columns) -> FloatArray:
    return log_return(columns[_CAP], 30) - log_return(columns[_ADDRESSES], 30)


def _changes(name: str, of: str, what: str, lags: tuple[int, ...]) -> dict[Feature, Formula]:
    return {
        Feature(name=f"{name}_change_{lag}", inputs=(of,), description=f"ln(X[t] / X[t-{lag}]), X {what}"): partial(
            _change, of=of, lag=lag
        )
        for lag in lags
    }


def _z_scores(names: dict[str, tuple[str, str]]) -> dict[Feature, Formula]:
    return {
        Feature(
            name=f"{name}_z_90", inputs=(of,), description=f"z-score of ln X over 90 bars (ddof 1), X {what}"
        ): partial(_z_score, of=of)
        for name, (of, what) in names.items()
    }


_WHAT = {
    "active_addresses": (_ADDRESSES, "the number of addresses active in a day (AdrActCnt)"),
    "transactions": (_TRANSACTIONS, "the number of transactions in a day (TxCnt)"),
    "transfer_value": (_TRANSFERS, "the value transferred in a day, adjusted for change, USD (TxTfrValAdjUSD)"),
    "fees": (_FEES, "the fees paid in a day, USD (FeeTotUSD)"),
    "issuance": (_ISSUANCE, "the value of the coins issued in a day, USD (IssTotUSD)"),
    "hash_rate": (_HASH_RATE, "the mean hash rate of a day (HashRate)"),
    "nvt": (_NVT, "NVT, network value to the value transferred in a day (NVTAdj; Woo 2017)"),
    "mvrv": (_MVRV, "MVRV, market value to realised value (CapMVRVCur; Mahmudov & Puell 2018)"),
}

PIPELINE = pipeline_of(
    name="onchain",
    version=1,
    warmup_bars=90,  # the z-scores
    formulas=_changes("active_addresses", *_WHAT["active_addresses"], (1, 7, 30))
    | _changes("transactions", *_WHAT["transactions"], (7,))
    | _changes("transfer_value", *_WHAT["transfer_value"], (7,))
    | _changes("fees", *_WHAT["fees"], (1, 7, 30))
    | _changes("hash_rate", *_WHAT["hash_rate"], (30,))
    | _changes("nvt", *_WHAT["nvt"], (7, 30))
    | _changes("mvrv", *_WHAT["mvrv"], (7, 30))
    | _z_scores(_WHAT)
    | {
        Feature(name="nvt_log", inputs=(_NVT,), description=f"ln X, X {_WHAT['nvt'][1]}"): partial(_log_level, of=_NVT),
        Feature(name="mvrv_log", inputs=(_MVRV,), description=f"ln X, X {_WHAT['mvrv'][1]}"): partial(
            _log_level, of=_MVRV
        ),
        Feature(
            name="issuance_rate",
            inputs=(_ISSUANCE, _CAP),
            description="Coins issued in a day over the market value, a share per day (IssTotUSD / CapMrktCurUSD)",
        ): _issuance_rate,
        Feature(
            name="fee_share",
            inputs=(_FEES, _ISSUANCE),
            description="Fees over fees and issuance, the miners' income in a day, 0 to 1 (FeeTotUSD, IssTotUSD)",
        ): _fee_share,
        Feature(
            name="fee_per_transaction_z_90",
            inputs=(_FEES, _TRANSACTIONS),
            description="z-score over 90 bars (ddof 1) of ln of the mean fee in USD (FeeTotUSD / TxCnt)",
        ): _fee_per_transaction_z,
        Feature(
            name="network_value_gap_30",
            inputs=(_CAP, _ADDRESSES),
            description="ln growth over 30 bars of market value less that of active addresses (Metcalfe's law)",
        ): _network_value_gap,
    },
)
