"""Where markets come from: a registered name or a market directory."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from feature_repo.market.directory import read_market_directory
from feature_repo.market.schema import Market, MarketError
from feature_repo.market.us_stocks import NAME, load_us_stocks


class Source(Protocol):
    """Loads a market as it is known at ``now`` (aware)."""

    def __call__(self, *, now: datetime) -> Market: ...


def _load_simulated(*, now: datetime) -> Market:
    from feature_repo.market.simulated.market import load_simulated  # its kernels need numba: only who asks pays

    return load_simulated(now=now)


SOURCES: Final[Mapping[str, Source]] = {NAME: load_us_stocks, "sim": _load_simulated}


def load_market(source: str | Path, *, now: datetime) -> Market:
    """Load a market by its registered name or from its directory; write ``./NAME`` for a folder called like a name."""
    if isinstance(source, str) and source in SOURCES:
        return SOURCES[source](now=now)
    path = Path(source).expanduser()
    if not path.is_dir():
        raise MarketError(
            f"no market {str(source)!r}: it is neither a registered name ({', '.join(sorted(SOURCES))}) nor a "
            "directory; check the spelling, or give a market directory's path"
        )
    return read_market_directory(path, now=now)
