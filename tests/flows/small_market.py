"""A small market directory for end-to-end tests: a few assets, two years of daily closes."""

from pathlib import Path

import numpy as np
import pandas as pd


def write_small_market(folder: Path, *, num_assets: int = 6, num_days: int = 640, seed: int = 5) -> Path:
    """Write ``bars_1d.parquet`` and ``market.yaml`` of a random-walk market; the last asset is the benchmark."""
    rng = np.random.default_rng(seed)
    ends = pd.bdate_range("2019-01-01", periods=num_days, tz="UTC") + pd.Timedelta(hours=21)
    common = 0.006 * rng.standard_normal(num_days)
    parts = []
    for n in range(num_assets):
        returns = common + 0.012 * rng.standard_normal(num_days)
        parts.append(
            pd.DataFrame(
                {
                    "entity_key": f"A{n}" if n < num_assets - 1 else "INDEX",
                    "event_time": ends.astype("datetime64[us, UTC]"),
                    "ingest_time": (ends + pd.Timedelta(minutes=15)).astype("datetime64[us, UTC]"),
                    "close": 100 * np.exp(np.cumsum(returns)),
                }
            )
        )
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(parts).to_parquet(folder / "bars_1d.parquet", index=False)
    (folder / "market.yaml").write_text("name: small\nasset_class: test\ncalendar: weekdays\nbenchmark: INDEX\n")
    return folder
