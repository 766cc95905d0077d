"""The default market: 20 S&P 500 stocks that ship inside a dependency, so nothing is downloaded."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import numpy as np
import pandas as pd

from feature_repo.market.assembly import assemble
from feature_repo.market.calendar import NEW_YORK, SESSIONS_PER_YEAR
from feature_repo.market.costs import CostModel
from feature_repo.market.schema import Market, MarketInfo
from feature_repo.market.validation import validate

NAME: Final = "us_stocks"
BENCHMARK: Final = "SP500"
LAG: Final = timedelta(minutes=15)


def load_us_stocks(*, now: datetime) -> Market:
    """Daily closes of 20 S&P 500 stocks and the index, 1990-01-02 to 2022-12-28, from ``skfolio.datasets``.

    8,313 sessions without a gap, closes only, rounded to a tenth of a cent. The closes are adjusted for splits and
    dividends as of the end of 2022: returns are total returns, but early levels are not what was quoted then (AAPL
    begins at 0.264), and the rounding moves the lowest (0.098) by up to 0.5 %. The index is the price index, without
    dividends. The 20 companies are survivors of 2022. The data set has no receive times: ``ingest_time`` is *assumed*
    to be 15 minutes after ``event_time``, which is 16:00 New York every day; on early closes that is late, never
    early. ``now`` (aware) is the time of reading: rows after it are quarantined.
    """
    from skfolio.datasets import load_sp500_dataset, load_sp500_index

    closes = load_sp500_dataset().join(load_sp500_index().set_axis([BENCHMARK], axis=1), how="outer")
    ends = (closes.index + pd.Timedelta(hours=16)).tz_localize(NEW_YORK).tz_convert("UTC")
    bars = pd.DataFrame(
        {
            "entity_key": np.repeat(closes.columns.to_numpy(dtype=object), len(closes)),
            "interval": "1d",
            "event_time": np.tile(ends, closes.shape[1]),
            "close": closes.to_numpy().T.ravel(),
        }
    )
    sessions = SESSIONS_PER_YEAR["XNYS"]
    info = MarketInfo(
        name=NAME,
        asset_class="equity",
        calendar="XNYS",
        sessions_per_year=sessions,
        benchmark=BENCHMARK,
        costs=CostModel(sessions_per_year=sessions),
        lags={"bars_1d": LAG},
    )
    return assemble(info, {"bars_1d": validate("bars_1d", bars, now=now, lag=LAG)})
