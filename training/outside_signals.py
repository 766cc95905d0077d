"""Outside signals: a desk's own forecasts from a file, checked against the market and rated like any variant's.

They enter by the door of a desk's own models, as a version that holds the forecasts themselves, so that the registry,
the signal store and the ratings know one kind of newcomer. What a file can't prove is when its forecasts were made:
that is the desk's word, except for those that were imported before their first tradable price.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from feature_repo.market.calendar import PriceGrid, first_price_after
from feature_repo.market.parsing import parse_numbers, parse_texts, parse_times
from training.dataset import TimeArray
from training.model_registry import ModelCard, ModelRegistry, RegistryError
from training.own_model import FORECAST_COLUMNS, OwnModel, checked_forecasts
from training.rating.tracks import Tracks
from training.tracking import TrackingError

OUTSIDE: Final = "outside"
NO_CONFIDENCE: Final = 0.5
"""What a file without the column says of its forecasts' signs: nothing."""
_NEEDED: Final = ("entity_key", "event_time", "made_at", "score")
_ALLOWED: Final = (*FORECAST_COLUMNS, "trained_to")
_MOMENT: Final = timedelta(microseconds=1)


class OutsideSignalError(TrackingError):
    """Forecasts that can't be taken as they are; the message says what and how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import did.

    ``num_new`` forecasts were added to those of earlier imports, ``num_known`` were there already; of the new ones
    ``num_witnessed`` came before their first tradable price, so that no outcome can have been known. Without new ones
    nothing was written.
    """

    variant: str
    version: int
    num_new: int
    num_known: int
    num_witnessed: int


def read_signals(path: Path) -> pd.DataFrame:
    """A CSV (text as it stands) or Parquet file of forecasts."""
    if path.suffix not in (".csv", ".parquet"):
        raise OutsideSignalError(f"{path.name} is neither .csv nor .parquet; save the forecasts as one of them")
    if not path.is_file():
        raise OutsideSignalError(f"there is no file {path}; give the path of the forecasts")
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        return pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors of content are ValueErrors
        raise OutsideSignalError(f"{path.name} does not read as {path.suffix}: {error}") from None


def import_signals(
    registry: ModelRegistry,
    raw: pd.DataFrame,
    *,
    variant: str,
    grid: PriceGrid,
    interval: str,
    horizon: int,
    now: datetime,
) -> Imported:
    """Register forecasts of a market's bars as the variant's, after all that earlier imports brought.

    ``raw`` is as ``checked_signals`` takes it, ``grid`` has the market's traded entities. What was imported stands:
    the same rows again change nothing, later bars are added as a new version, and a file that says something else of an
    earlier bar, or adds to one, is refused, for a track can't be rewritten. Every forecast is traded (threshold 0): one
    tuned afterwards would be hindsight.
    """
    forecasts = checked_signals(raw, variant=variant, grid=grid, interval=interval, horizon=horizon, now=now)
    card, earlier = _earlier(registry, variant, interval=interval, horizon=horizon)
    known = known_before(forecasts, earlier)
    if card is not None and known.all():
        return Imported(variant=variant, version=card.version, num_new=0, num_known=int(known.sum()), num_witnessed=0)
    new = forecasts[~known]
    together = pd.concat([earlier, new], ignore_index=True) if len(earlier) else new
    registered = registry.register_model(_as_model(variant, together, interval=interval, horizon=horizon), now=now)
    tradable = _first_tradable(new, grid)
    return Imported(
        variant=variant,
        version=registered.version,
        num_new=len(new),
        num_known=int(known.sum()),
        num_witnessed=int((tradable.isna() | (tradable > pd.Timestamp(now))).sum()),
    )


def checked_signals(
    raw: pd.DataFrame, *, variant: str, grid: PriceGrid, interval: str, horizon: int, now: datetime
) -> pd.DataFrame:
    """Typed forecasts in time and entity order; the whole file is refused, with counts, unless every row is right.

    ``raw`` has the columns ``entity_key``, ``event_time`` (the end of the bar forecast from), ``made_at``, ``score``
    (the expected return over the horizon divided by its volatility), and may have ``confidence`` (0 to 1; 0.5 where
    there is no such column) and ``trained_to`` (the last sample time behind the forecast, which must lie before its
    bar).

    Every row must be whole, of a bar and traded entity of the market, made at its bar's end or later and before its
    first tradable price.
    """
    parsed = _parsed(raw)
    _refuse(_market_faults(parsed, grid), _rows(parsed))
    return checked_forecasts(_as_model(variant, parsed, interval=interval, horizon=horizon), now=now)


def comparable(registry: ModelRegistry, *, interval: str, horizon: int) -> dict[str, dict[str, float]]:
    """``registry.thresholds()`` of those that forecast the same bars as far ahead: what can be rated side by side."""
    found = {}
    for variant, by_version in registry.thresholds().items():
        rows = registry.signals.read(variant, model_versions=list(by_version), kind="oos")
        if (rows["interval"].eq(interval) & rows["horizon"].eq(horizon)).all():
            found[variant] = by_version
    return found


def over(tracks: Tracks, event_times_T: TimeArray) -> Tracks:
    """The tracks over these bars alone: newcomers may have more history than those they are rated beside."""
    at = np.isin(tracks.event_times_T, event_times_T)
    cut = {name: getattr(tracks, name)[:, at] for name in ("net_VT", "gross_VT", "turnover_VT", "unit_impact_VT")}
    return replace(tracks, event_times_T=tracks.event_times_T[at], ic_VT=tracks.ic_VT[:, at], **cut)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Forecasts:
    """Forecasts that write themselves as the files of a version, the same bytes for the same rows."""

    rows: pd.DataFrame

    def text(self) -> str:
        times = {name: self.rows[name].map(pd.Timestamp.isoformat) for name in ("event_time", "made_at")}
        text: str = self.rows.assign(**times)[list(FORECAST_COLUMNS)].to_csv(index=False, lineterminator="\n")
        return text

    def save(self, folder: Path) -> Path:
        path = folder / "forecasts.csv"
        path.write_text(self.text(), encoding="utf-8")
        return path


def _as_model(variant: str, forecasts: pd.DataFrame, *, interval: str, horizon: int) -> OwnModel:
    """Forecasts as an own model; what it learned from is unknown, so its span is the moment before they begin."""
    before = (forecasts["event_time"].min() - _MOMENT).to_pydatetime()
    source = _Forecasts(rows=forecasts)
    return OwnModel(
        name=variant,
        source=source,
        strategy_type=OUTSIDE,
        params={},
        training_span=(before, before),
        dataset_fingerprint=hashlib.sha256(source.text().encode()).hexdigest(),
        code_version=OUTSIDE,
        forecasts=forecasts,
        interval=interval,
        horizon=horizon,
        architecture=OUTSIDE,
    )


def _parsed(raw: pd.DataFrame) -> pd.DataFrame:
    """Typed columns; refused where a cell does not read."""
    lacking = [name for name in _NEEDED if name not in raw]
    unknown = [str(name) for name in raw.columns if name not in _ALLOWED]
    if lacking or unknown:
        raise OutsideSignalError(
            f"the forecasts lack the columns {lacking} and have the unknown {unknown}; they need {', '.join(_NEEDED)} "
            "and may have confidence and trained_to"
        )
    if raw.empty:
        raise OutsideSignalError("there is no forecast in the file; it needs a row a bar and entity")
    typed, faults = {}, []
    for name in raw.columns:
        parse = {"entity_key": parse_texts, "score": parse_numbers, "confidence": parse_numbers}.get(name, parse_times)
        typed[name], found = parse(raw[name].reset_index(drop=True))
        faults += found
    _refuse(dict(faults), _rows(raw))
    parsed = pd.DataFrame(typed)
    return parsed if "confidence" in parsed else parsed.assign(confidence=NO_CONFIDENCE)


def _market_faults(forecasts: pd.DataFrame, grid: PriceGrid) -> dict[str, np.ndarray]:
    """Rows that the market speaks against, by what is wrong with them."""
    bars = pd.DatetimeIndex(grid.event_times_T).tz_localize("UTC")
    tradable = _first_tradable(forecasts, grid)
    return {
        "of an entity that is not traded in this market": ~forecasts["entity_key"].isin(grid.entities).to_numpy(),
        "of a bar that this market does not have": ~forecasts["event_time"].isin(bars).to_numpy(),
        "made at or after their first tradable price (hindsight)": (forecasts["made_at"] >= tradable).to_numpy(),
    }


def _first_tradable(forecasts: pd.DataFrame, grid: PriceGrid) -> pd.Series:
    """The time of the first price that each forecast's bar can be traded at; NaT where there is none yet."""
    times_T, _ = first_price_after(grid)
    bars = pd.DatetimeIndex(grid.event_times_T).tz_localize("UTC")
    return forecasts["event_time"].map(pd.Series(pd.DatetimeIndex(times_T).tz_localize("UTC"), index=bars))


def _earlier(
    registry: ModelRegistry, variant: str, *, interval: str, horizon: int
) -> tuple[ModelCard | None, pd.DataFrame]:
    """The newest version and the forecasts of all imports so far; None and no rows before the first."""
    try:
        card = registry.get_model(variant)
    except RegistryError:  # no such model; a name that can't be one is refused where it is registered
        return None, pd.DataFrame(columns=FORECAST_COLUMNS)
    if card.architecture != OUTSIDE:
        raise OutsideSignalError(f"{variant!r} is registered, and not as outside signals; give yours another name")
    rows = registry.signals.read(variant, model_versions=[card.training_key], kind="oos")
    facts = (str(rows["interval"].iloc[0]), int(rows["horizon"].iloc[0]))
    if facts != (interval, horizon):
        raise OutsideSignalError(
            f"{variant!r} forecasts bars of {facts[0]}, {facts[1]} ahead, not of {interval}, {horizon} ahead; "
            "give those another name"
        )
    return card, rows[list(FORECAST_COLUMNS)]


def known_before(forecasts: pd.DataFrame, earlier: pd.DataFrame) -> np.ndarray:
    """Which forecasts were imported before; refused where they would change what was said of earlier bars."""
    if earlier.empty:
        return np.zeros(len(forecasts), dtype=bool)
    key = ["event_time", "entity_key"]
    before = forecasts[key].merge(earlier, on=key, how="left", indicator="found")
    there = before["found"].eq("both").to_numpy()
    same = np.logical_and.reduce([before[name] == forecasts[name] for name in ("made_at", "score", "confidence")])
    last = earlier["event_time"].max()
    faults = {
        "other than what was imported earlier": there & ~same,
        f"additions to bars up to {last.isoformat()}, which earlier imports covered": ~there
        & (forecasts["event_time"] <= last).to_numpy(),
    }
    labels = [f"{entity} at {time.isoformat()}" for time, entity in forecasts[key].itertuples(index=False)]
    _refuse(faults, labels, advice="a track can't be rewritten; leave out these rows, or take another name")
    return there


def _rows(frame: pd.DataFrame) -> list[str]:
    return [f"row {row}" for row in range(1, len(frame) + 1)]


def _refuse(
    faults: Mapping[str, np.ndarray], labels: Sequence[str], *, advice: str = "correct or leave out these rows"
) -> None:
    """Refuse rows with counts and the first of each fault, by its label."""
    found = [
        f"{int(wrong.sum()):,} {said} (first {labels[int(np.argmax(wrong))]})"
        for said, wrong in faults.items()
        if wrong.any()
    ]
    if found:
        raise OutsideSignalError(f"of {len(labels):,} forecasts are {'; '.join(found)}: {advice}")
