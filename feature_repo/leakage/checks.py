"""The checks of feature tables and of what is read from them.

A builder makes a feature table of a market: ``entity_key, event_time, ingest_time`` and numbers, whatever else it does.
A reader answers questions (``entity_key, event_timestamp``, as Feast's ``entity_df``) with one row each, in their
order, of at least the table's features: an online store, an offline store, a log of what was served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from feature_repo.leakage.challenges import Challenge, challenges
from feature_repo.leakage.findings import (
    WHOLE_ROW,
    Checked,
    FloatArray,
    LeakageError,
    Place,
    Places,
    compare,
    found,
    micros,
    together,
)
from feature_repo.market.assembly import known_at
from feature_repo.market.schema import Market, MarketError
from feature_repo.pipelines.build import NotApplicableError
from feature_repo.store.join import NO_ROW, find_answers
from feature_repo.store.tables import KEY, PROVENANCE, append_rows, read_rows

Builder: TypeAlias = Callable[[Market], pd.DataFrame]
Reader: TypeAlias = Callable[[pd.DataFrame], pd.DataFrame]
Made = TypeVar("Made")

# Array suffixes: R rows, F features, Q questions.

_WHY: Final = {
    "truncation": "it changes when what became known later is deleted, so it rests on the future",
    "restatement": "a restatement that became known later moved it, so it rests on values before they were known",
    "changed future": "it changes with values that became known later, so it rests on the future",
    "replay": "replaying the ingest batches in their order would have answered otherwise",
    "online": "the rule answers otherwise from the rows known then",
}


def check_features(
    builders: Mapping[str, Builder], market: Market, moments: Sequence[pd.Timestamp], *, rng: np.random.Generator
) -> dict[str, Checked]:
    """Whether anything that becomes known after a moment moves a feature row known at it: truncation, restatement.

    The rows known at a moment, keys and values, must be the same bit for bit whichever the market's future is
    (:func:`challenges`); so what the rule answers at the moment is the same too. Every builder must apply to the
    whole market; where it does not to a truncated one, the rows known then must be all null.
    """
    tables = {name: build(market) for name, build in builders.items()}
    parts: dict[str, list[Checked]] = {name: [] for name in builders}
    for challenge in challenges(market, moments, rng=rng):
        for name, build in builders.items():
            parts[name].append(_meet(challenge, build, tables[name]))
    return {name: together(checked) for name, checked in parts.items()}


def check_replay(
    builders: Mapping[str, Builder], market: Market, moments: Sequence[pd.Timestamp], *, folder: Path
) -> dict[str, Checked]:
    """Whether a table built at once answers as one that grew with the ingest batches, at every moment of knowledge.

    The batches end at ``moments`` and with the market; both tables are written by ``append_rows`` below ``folder``.
    """
    tables = {name: build(market) for name, build in builders.items()}
    for moment in sorted(moments):
        known = known_at(market, moment)
        for name, build in builders.items():
            batch = _build_or_nothing(build, known)
            if batch is not None and len(batch):
                append_rows(folder / name / "replayed", _with_provenance(batch, moment))
    return {name: _check_replayed(table, folder / name) for name, table in tables.items()}


def check_reader(
    read: Reader, table: pd.DataFrame, questions: pd.DataFrame, *, ttl: timedelta | None = None, check: str = "online"
) -> Checked:
    """Whether what is read, served or materialised is what the rule answers from the table at the same moments."""
    names = feature_names(table)
    got = read(questions)
    missing = [name for name in names if name not in got.columns]
    if missing or len(got) != len(questions):
        raise LeakageError(
            f"the reader gave {len(got)} rows for {len(questions)} questions and lacks the features {missing}: have it "
            "answer one row a question, in their order, with all the table's features"
        )
    expected = rule_answers(table, questions, ttl=ttl)
    places = Places(
        entity_R=questions["entity_key"].to_numpy(dtype=object),
        event_R=micros(expected["event_time"]),
        moment_R=micros(questions["event_timestamp"]),
    )
    values = {"expected_RF": _numbers(expected, names), "got_RF": _numbers(got, names)}
    return compare(check, _WHY.get(check, _WHY["online"]), places=places, names=names, **values)


def rule_answers(table: pd.DataFrame, questions: pd.DataFrame, *, ttl: timedelta | None = None) -> pd.DataFrame:
    """What the rule answers from a table's rows, in the order written: ``event_time`` and features, null for none."""
    entities, entity_R = np.unique(table["entity_key"].to_numpy(dtype=str), return_inverse=True)
    event_R, ingest_R = (micros(table[name]).astype(np.int64) for name in KEY[1:])
    answers = find_answers(entity_R, event_R, ingest_R, len(entities))
    entity_Q = pd.Index(entities).get_indexer(questions["entity_key"])
    asked_Q = micros(questions["event_timestamp"]).astype(np.int64)
    limit = None if ttl is None else ttl // timedelta(microseconds=1)
    row_Q = answers.as_of(entity_Q.astype(np.int64), asked_Q, ttl=limit)
    columns = ["event_time", *feature_names(table)]
    return table[columns].reset_index(drop=True).reindex(np.where(row_Q == NO_ROW, -1, row_Q)).reset_index(drop=True)


def questions_at(entities: Sequence[str], moments: Sequence[pd.Timestamp] | pd.Series) -> pd.DataFrame:
    """Every entity asked at every moment."""
    times = pd.DatetimeIndex(moments).as_unit("us")
    return pd.DataFrame(
        {
            "entity_key": np.tile(np.array(entities, dtype=object), len(times)),
            "event_timestamp": times.repeat(len(entities)),
        }
    )


def once_a_market(make: Callable[[Market], Made]) -> Callable[[Market], Made]:
    """``make``, which remembers the last market's answer: builders that share their bars make them once a challenge."""
    last: list[tuple[Market, Made]] = []

    def made(market: Market) -> Made:
        if not last or last[0][0] is not market:
            last[:] = [(market, make(market))]
        return last[0][1]

    return made


def feature_names(table: pd.DataFrame) -> list[str]:
    """The columns of a feature table that are features."""
    return [str(name) for name in table.columns if name not in (*KEY, *PROVENANCE)]


def _check_replayed(table: pd.DataFrame, folder: Path) -> Checked:
    last = _known(table).max()
    for name in ("at_once", "replayed"):
        append_rows(folder / name, _with_provenance(table, last))
    at_once, replayed = read_rows(folder / "at_once"), read_rows(folder / "replayed")
    moments = pd.concat([_known(replayed), _known(at_once)]).dropna().drop_duplicates().sort_values()
    questions = questions_at(sorted(set(table["entity_key"])), moments)
    return check_reader(partial(rule_answers, at_once), replayed, questions, check="replay")


def _meet(challenge: Challenge, build: Builder, whole: pd.DataFrame) -> Checked:
    moment = challenge.moment
    as_is = _known_rows(whole, moment)
    challenged = _build_or_nothing(build, challenge.market)
    if challenged is None:  # it has no say yet; rows of nulls say nothing either
        challenged, as_is = whole.iloc[:0], as_is[as_is[feature_names(as_is)].notna().any(axis=1)]
    other = _known_rows(challenged, moment)
    expected, got = (other, as_is) if challenge.check == "truncation" else (as_is, other)
    return _compare_rows(challenge.check, moment, expected=expected, got=got)


def _compare_rows(check: str, moment: pd.Timestamp, *, expected: pd.DataFrame, got: pd.DataFrame) -> Checked:
    """Two tables row by row, in any order: a row that only one has differs in each value it holds."""
    names = list(dict.fromkeys([*feature_names(expected), *feature_names(got)]))
    keyed = [table.set_index(_row_index(table)) for table in (expected, got)]
    index = keyed[0].index.union(keyed[1].index)
    expected_RF, got_RF = (_numbers(table.reindex(index, columns=names), names) for table in keyed)
    places = Places(
        entity_R=index.get_level_values(0).to_numpy(dtype=object),
        event_R=micros(pd.DatetimeIndex(index.get_level_values(1))),
        moment_R=np.full(len(index), micros(pd.DatetimeIndex([moment]))[0]),
    )
    values = compare(check, _WHY[check], places=places, names=names, expected_RF=expected_RF, got_RF=got_RF)
    there = [index.isin(table.index) for table in keyed]
    return together([values, _blank_rows(check, places, there[0], there[1], expected_RF, got_RF)])


def _blank_rows(
    check: str, places: Places, wanted_R: np.ndarray, got_R: np.ndarray, expected_RF: FloatArray, got_RF: FloatArray
) -> Checked:
    """Rows of nulls that only one table has: they hide older values, so they count."""
    blank_R = np.isnan(expected_RF).all(axis=1) & np.isnan(got_RF).all(axis=1)
    rows = np.flatnonzero(blank_R & (wanted_R != got_R))
    if not len(rows):
        return Checked()
    expected, got = ("a row of nulls" if is_there_R[rows[0]] else None for is_there_R in (wanted_R, got_R))
    place = Place(places=places, row=int(rows[0]), feature=WHOLE_ROW)
    finding = found(check, _WHY[check], place, expected=expected, got=got, num=len(rows))
    return Checked(findings=(finding,), num_compared=len(rows))


def _row_index(table: pd.DataFrame) -> pd.MultiIndex:
    """A row's key, and which of the rows of that key it is."""
    keys = table[list(KEY)].reset_index(drop=True)
    nth = keys.groupby(list(KEY), dropna=False).cumcount()
    return pd.MultiIndex.from_frame(keys.assign(nth=nth))


def _known_rows(table: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    return table[(table["event_time"] <= moment) & (table["ingest_time"] <= moment)]


def _known(table: pd.DataFrame) -> pd.Series:
    """When rows became known; null where a time is."""
    known = np.maximum(micros(table["event_time"]), micros(table["ingest_time"]))
    return pd.Series(pd.DatetimeIndex(known).tz_localize("UTC"), index=table.index)


def _build_or_nothing(build: Builder, market: Market) -> pd.DataFrame | None:
    """The table, or nothing where the market has not (yet) what the builder needs."""
    try:
        return build(market)
    except (MarketError, NotApplicableError):
        return None


def _with_provenance(table: pd.DataFrame, written_at: pd.Timestamp) -> pd.DataFrame:
    words = dict.fromkeys([name for name in PROVENANCE if name != "written_at"], "leakcheck")
    written = pd.Series(written_at, index=table.index, dtype="datetime64[us, UTC]")
    return table.assign(**words, written_at=written)


def _numbers(table: pd.DataFrame, names: Sequence[str]) -> FloatArray:
    try:
        return table[list(names)].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        kinds = table[list(names)].dtypes.astype(str).to_dict()
        raise LeakageError(f"features must be numbers to be compared; got {kinds} ({error}): split vectors") from error
