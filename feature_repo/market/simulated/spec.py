"""What to simulate: everything that decides a simulated market."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from types import MappingProxyType
from typing import Final

import numpy as np

from feature_repo.market.schema import MarketError

PRICE_SIGNALS: Final = ("momentum", "technical", "volatility", "cross_asset")
OUTSIDE_SIGNALS: Final = ("ohlcv", "order_flow", "sentiment", "onchain")
SIGNALS: Final = (*PRICE_SIGNALS, *OUTSIDE_SIGNALS)
"""The planted signals, each named as the pipeline that sees it: first those made of past returns, then the others."""
MAX_IC: Final = 0.2  # beyond it the returns' own dependence changes the signals that are made of them
MAX_PLANTED: Final = 10  # more rows out of order could be read as all the others being so
LAST_END: Final = date(2026, 1, 1)
_DRIFTING: Final = ("onchain", "sentiment", "volume")
_SHARE_TOLERANCE: Final = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime:
    """A stretch of the history.

    Parameters
    ----------
    share
        Of the history's days; the regimes follow each other and their shares sum to one.
    drift_ann
        Expected simple return of every asset a year, not compounded. It counts only where some alpha is planted:
        without alpha nothing may be predictable, and a drift that lasts is.
    vol_factor
        Multiplies every asset's volatility.
    """

    name: str
    share: float
    drift_ann: float
    vol_factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """A feature's distribution shifts for good; its planted signal stays what it was.

    ``feature`` is ``sentiment`` (``news_tone``), ``volume`` or ``onchain`` (the activity), ``at`` the share of the
    history that has passed by then, ``size`` the shift in standard deviations of the series below the feature.
    """

    feature: str
    at: float
    size: float


DEFAULT_ALPHA: Final[Mapping[str, float]] = MappingProxyType(
    {"momentum": 0.05, "order_flow": 0.05, "sentiment": 0.05, "onchain": 0.05}
)
DEFAULT_REGIMES: Final = (
    Regime(name="sideways", share=0.18, drift_ann=0.0, vol_factor=0.8),
    Regime(name="trend_up", share=0.24, drift_ann=0.9, vol_factor=0.9),
    Regime(name="crisis", share=0.05, drift_ann=-3.0, vol_factor=2.0),
    Regime(name="trend_down", share=0.17, drift_ann=-0.7, vol_factor=1.2),
    Regime(name="sideways", share=0.16, drift_ann=0.0, vol_factor=0.7),
    Regime(name="trend_up", share=0.20, drift_ann=0.8, vol_factor=1.0),
)
DEFAULT_DRIFTS: Final = (Drift(feature="sentiment", at=0.85, size=1.0),)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimSpec:
    """A simulated market; the same spec gives the same tables, byte for byte.

    Parameters
    ----------
    start, num_days
        First day and number of days; the history ends before 2026 whatever the clock says.
    alpha
        Strength by signal (:data:`SIGNALS`): its information coefficient, the correlation over all assets and days of
        the signal at a day's end with the next day's return in units of its volatility. ``{}``: no return can be
        predicted from anything.
    num_sectors
        Assets belong to sectors in turn; the first of each leads it.
    vol_ann
        Volatility of a typical asset a year.
    tail_dof
        Degrees of freedom of the daily Student-t shocks, above 4.
    late_share, restated_share, gap_share
        Of the rows of a table: known hours or days late, first published wrong, missing.
    num_bad_rows
        Rows planted for each kind of fault in each table that can have it.
    num_odd_rows
        Ticks planted for each kind of oddity that validation flags and accepts.
    num_delistings
        Assets that end before the history does.
    num_days_15m, num_tick_days, num_tick_assets
        Newest days with 15-minute bars, and newest days and first assets with trades and quotes.
    benchmark
        Whether there is an ``INDEX``, the average of the assets listed on each day.
    """

    seed: int = 0
    num_assets: int = 12
    start: date = date(2021, 1, 1)
    num_days: int = 1_500
    alpha: Mapping[str, float] = field(default_factory=lambda: DEFAULT_ALPHA)
    regimes: tuple[Regime, ...] = DEFAULT_REGIMES
    drifts: tuple[Drift, ...] = DEFAULT_DRIFTS
    num_sectors: int = 3
    vol_ann: float = 0.7
    tail_dof: float = 5.0
    late_share: float = 0.003
    restated_share: float = 0.003
    gap_share: float = 0.002
    num_bad_rows: int = 3
    num_odd_rows: int = 3
    num_delistings: int = 2
    num_days_15m: int = 60
    num_tick_days: int = 5
    num_tick_assets: int = 3
    benchmark: bool = False

    def __post_init__(self) -> None:
        self._check_size()
        self._check_parts()
        self._check_alpha()
        self._check_time()

    def regime_days(self) -> tuple[int, ...]:
        """First day of each regime, and at last ``num_days``."""
        passed = np.cumsum([0.0, *(regime.share for regime in self.regimes)])
        return tuple(int(day) for day in np.rint(passed * self.num_days))

    @property
    def is_silent(self) -> bool:
        """Whether nothing is planted."""
        return not any(self.alpha.values())

    def _check_size(self) -> None:
        _require("seed", self.seed, least=0)
        _require("num_sectors", self.num_sectors, least=2)
        _require("num_assets", self.num_assets, least=self.num_sectors)
        _require("num_days", self.num_days, least=30)
        _require("num_bad_rows", self.num_bad_rows, least=0, most=MAX_PLANTED)
        _require("num_odd_rows", self.num_odd_rows, least=0, most=MAX_PLANTED)
        _require("num_delistings", self.num_delistings, least=0, most=self.num_assets - self.num_sectors)
        _require("num_days_15m", self.num_days_15m, least=0, most=self.num_days)
        _require("num_tick_days", self.num_tick_days, least=0, most=self.num_days_15m)
        _require("num_tick_assets", self.num_tick_assets, least=0, most=self.num_assets - self.num_delistings)

    def _check_parts(self) -> None:
        for name in ("late_share", "restated_share", "gap_share"):
            _require(name, getattr(self, name), least=0.0, most=0.1)
        _require("vol_ann", self.vol_ann, least=0.01, most=3.0)
        if not self.tail_dof > 4:
            raise MarketError(f"tail_dof is {self.tail_dof}; it must be above 4, so that volatility has a variance")
        total = math.fsum(regime.share for regime in self.regimes)
        if abs(total - 1.0) > _SHARE_TOLERANCE or any(regime.share <= 0 for regime in self.regimes):
            raise MarketError(f"the regimes' shares are {[r.share for r in self.regimes]}; make them positive, sum 1")
        for regime in self.regimes:
            _require(f"vol_factor of regime {regime.name!r}", regime.vol_factor, least=0.1, most=10.0)
            _require(f"drift_ann of regime {regime.name!r}", regime.drift_ann, least=-10.0, most=10.0)
        for drift in self.drifts:
            _require(f"at of the drift of {drift.feature!r}", drift.at, least=0.0, most=1.0)
            if drift.feature not in _DRIFTING:
                raise MarketError(f"no drift of {drift.feature!r} can be injected; choose among {list(_DRIFTING)}")

    def _check_alpha(self) -> None:
        unknown = sorted(set(self.alpha) - set(SIGNALS))
        if unknown:
            raise MarketError(f"no alpha can be planted in {unknown}; choose among {sorted(SIGNALS)}")
        for name, ic in self.alpha.items():
            _require(f"the alpha of {name!r}", ic, least=-MAX_IC, most=MAX_IC)

    def _check_time(self) -> None:
        end = self.start + timedelta(days=self.num_days)
        if self.start < date(1970, 1, 1) or end > LAST_END - timedelta(days=30):
            raise MarketError(
                f"the history from {self.start} to {end} must lie between 1970 and a month before {LAST_END}, so that "
                "all of it is past whenever it is read: choose an earlier start or fewer days"
            )


def _require(name: str, value: float, *, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:  # False for NaN too
        raise MarketError(f"{name} is {value}; it must lie between {least} and {most}")


def random_stream(spec: SimSpec, purpose: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that one part's draws never move another's."""
    return np.random.default_rng([spec.seed, zlib.crc32(purpose.encode())])
