"""The canary: a column that equals the future return, to be read only once that return has happened.

Sent the whole way that features go (table, store, panel), it shows any step that hands out rows before they are known.
It needs no second opinion on what should have been read: each of its values is marked, so that wherever one turns up it
tells when it became known.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from feature_repo.leakage.findings import Checked, LeakageError, Place, Places, found, micros
from feature_repo.store.tables import KEY, PROVENANCE
from training.dataset import Panel

CANARY: Final = "canary"
_MARK: Final = 1e-6  # added at random, it tells equal returns apart, in 32 bits too

# Array suffixes: B bars of an entity, R values read.


def canary_rows(bars: pd.DataFrame, *, horizon: int, rng: np.random.Generator) -> pd.DataFrame:
    """A feature table of the return from each bar to the one ``horizon`` later: ``entity_key, event_time, canary``.

    ``event_time`` is the earlier bar's end and ``ingest_time`` when both closes are known, the later one's included.
    Bars count as first published; those without a later bar have no row.
    """
    known = np.maximum(micros(bars["event_time"]), micros(bars["ingest_time"]))
    first = bars.assign(known=known).sort_values("known", kind="stable").drop_duplicates(["entity_key", "event_time"])
    parts = []
    for entity, own in first.sort_values("event_time").groupby("entity_key"):
        close_B, known_B = own["close"].to_numpy(np.float64), own["known"].to_numpy("datetime64[us]")
        num = max(0, len(own) - horizon)
        ingest = pd.DatetimeIndex(np.maximum(known_B[:num], known_B[horizon:])).tz_localize("UTC")
        marked = close_B[horizon:] / close_B[:num] - 1.0 + rng.uniform(0.0, _MARK, num)
        columns = {"event_time": own["event_time"].to_numpy()[:num], "ingest_time": ingest, CANARY: marked}
        parts.append(pd.DataFrame({"entity_key": entity, **columns}))
    rows = pd.concat(parts, ignore_index=True).dropna()
    rows["event_time"] = pd.DatetimeIndex(rows["event_time"]).as_unit("us").tz_convert("UTC")
    return rows


def check_canary(reads: pd.DataFrame, canary: pd.DataFrame) -> Checked:
    """Whether a value of the canary was read before it was known.

    Parameters
    ----------
    reads
        ``entity_key``, ``as_of`` (when it was read) and any columns of what was read; see :func:`panel_reads`,
        :func:`table_reads`.

    Raises
    ------
    LeakageError
        When no value of the canary turns up: it did not go this way, or was transformed.
    """
    mark_R, known_R, event_R = _marks(canary)
    findings, num_recognised = [], 0
    for name in reads.columns.difference(["entity_key", "as_of"], sort=False):
        read_R = reads[name].to_numpy(np.float32)
        at_R = np.minimum(np.searchsorted(mark_R, read_R), len(mark_R) - 1)
        is_canary_R = mark_R[at_R] == read_R
        num_recognised += int(is_canary_R.sum())
        as_of_R = micros(reads["as_of"])
        early = np.flatnonzero(is_canary_R & (known_R[at_R] > as_of_R))
        if len(early):
            places = Places(
                entity_R=reads["entity_key"].to_numpy(dtype=object), event_R=event_R[at_R], moment_R=as_of_R
            )
            worst = int(early[np.argmin(as_of_R[early])])
            why = f"this is a return that became known at {known_R[at_R[worst]]} only"
            place = Place(places=places, row=worst, feature=str(name))
            findings.append(found("canary", why, place, expected=None, got=float(read_R[worst]), num=len(early)))
    if not num_recognised:
        raise LeakageError(
            f"none of {len(canary)} canary values is among {len(reads)} rows read, so nothing was checked: plant it in "
            "the table that is read, and read what was not scaled"
        )
    return Checked(findings=tuple(findings), num_compared=num_recognised)


def panel_reads(panel: Panel) -> pd.DataFrame:
    """What a panel shows its models: every feature of every entity, at the sample's time."""
    shape = panel.x_TNF.shape
    taken = pd.DatetimeIndex(np.repeat(panel.sample_times_T, shape[1])).tz_localize("UTC")
    flat = np.asarray(panel.x_TNF).reshape(-1, shape[2])
    keys = {"entity_key": np.tile(np.array(panel.entities, dtype=object), shape[0]), "as_of": taken}
    return pd.DataFrame(keys | {name: flat[:, f] for f, name in enumerate(panel.feature_names)})


def table_reads(table: pd.DataFrame) -> pd.DataFrame:
    """What a feature table tells: its features, at the time that its rows say they were known."""
    known = np.maximum(micros(table["event_time"]), micros(table["ingest_time"]))
    as_of = pd.DatetimeIndex(known).tz_localize("UTC")
    features = table.drop(columns=[name for name in (*KEY, *PROVENANCE) if name in table])
    return features.assign(entity_key=table["entity_key"], as_of=as_of)


def _marks(canary: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct values in order (float32), when each was first known, and its event time."""
    value, known, event = (
        canary[CANARY].to_numpy(np.float32),
        micros(canary["ingest_time"]),
        micros(canary["event_time"]),
    )
    known = np.maximum(known, event)
    order = np.lexsort((known, value))
    value, known, event = value[order], known[order], event[order]
    is_first = np.append(True, value[1:] != value[:-1])
    return value[is_first], known[is_first], event[is_first]
