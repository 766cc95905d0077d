"""What is true of a simulated market, for whoever claims to have found it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from feature_repo.market.simulated.faults import Faults
from feature_repo.market.simulated.signals import Planting
from feature_repo.market.simulated.world import DAY, World


@dataclass(frozen=True, kw_only=True, slots=True)
class RegimeDates:
    """A regime from its first day's start to its last day's end."""

    name: str
    start: datetime
    end: datetime
    drift_ann: float
    vol_factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftDate:
    """From when a feature's distribution is another, by so many of its standard deviations."""

    feature: str
    start: datetime
    size: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Delisting:
    """The end of an asset's last bar, and what its holders then earned."""

    entity: str
    end: datetime
    delisting_return: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SimTruth:
    """The truth of a market; times are UTC.

    ``alpha`` is what the spec asked for; ``planting`` how it was planted, and what the signals then predict.
    ``leaders`` are whom each asset follows (the ``cross_asset`` signal), ``sectors`` their groups. ``faults`` count
    what was planted, by table. ``regimes`` have the drift that was in force: none where nothing is planted.
    """

    seed: int
    start: datetime
    end: datetime
    sectors: Mapping[str, int]
    leaders: Mapping[str, str]
    alpha: Mapping[str, float]
    planting: Planting
    regimes: tuple[RegimeDates, ...]
    drifts: tuple[DriftDate, ...]
    delistings: tuple[Delisting, ...]
    faults: Mapping[str, Faults]

    def to_json(self) -> str:
        """As JSON, keys sorted; times as ISO 8601."""
        return json.dumps(asdict(self), default=datetime.isoformat, indent=2, sort_keys=True) + "\n"


def tell_truth(world: World, actions: pd.DataFrame, faults: Mapping[str, Faults]) -> SimTruth:
    """The truth of a world, of its corporate actions and of what went wrong with its tables."""
    spec = world.spec
    names = world.entities
    return SimTruth(
        seed=spec.seed,
        start=_utc(world.ends_T[0] - DAY),
        end=_utc(world.ends_T[-1]),
        sectors=dict(zip(names, world.sector_N.tolist(), strict=True)),
        leaders={name: names[leader] for name, leader in zip(names, world.leader_N.tolist(), strict=True)},
        alpha=dict(spec.alpha),
        planting=world.planting,
        regimes=_regimes(world),
        drifts=tuple(
            DriftDate(feature=drift.feature, start=_day_start(world, round(drift.at * spec.num_days)), size=drift.size)
            for drift in spec.drifts
        ),
        delistings=tuple(
            Delisting(entity=row.entity_key, end=row.event_time.to_pydatetime(), delisting_return=row.delisting_return)
            for row in actions.itertuples()
        ),
        faults=dict(faults),
    )


def _regimes(world: World) -> tuple[RegimeDates, ...]:
    days = world.spec.regime_days()
    return tuple(
        RegimeDates(
            name=regime.name,
            start=_day_start(world, first),
            end=_day_start(world, last),
            drift_ann=0.0 if world.spec.is_silent else regime.drift_ann,
            vol_factor=regime.vol_factor,
        )
        for regime, first, last in zip(world.spec.regimes, days, days[1:], strict=False)
    )


def _day_start(world: World, day: int) -> datetime:
    return _utc(world.ends_T[0] + (day - 1) * DAY)


def _utc(time: np.datetime64) -> datetime:
    return datetime.fromtimestamp(int(time.astype("datetime64[s]").astype(np.int64)), tz=UTC)
