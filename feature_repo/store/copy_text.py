"""Complete feature rows as Postgres' COPY reads them: put together by column, a batch is one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.store.tables import KEY, PROVENANCE, RESTATES, STATED
from feature_repo.store.values import object_pieces

REVISION: Final = "revision"
_NULL: Final = r"\N"
_ESCAPES: Final = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


def copy_text(rows: pa.RecordBatch, head: Sequence[Any], tail: Sequence[Any]) -> pa.Buffer:
    """The rows in COPY's text format, with the columns ``head`` before and ``tail`` after, which all rows share.

    ``rows`` are a part's, with ``REVISION``; features are numbers. The columns are ``<head>, entity_key, event_time,
    ingest_time, revision, features (JSON), stated, restates, written_at, producer, producer_version, run_id, <tail>``.
    """
    others = {*KEY, *PROVENANCE, RESTATES, STATED, REVISION}
    features = {name: rows[name] for name in rows.schema.names if name not in others}
    columns: list[list[str | pa.Array]] = [
        *([_escape(str(each))] for each in head),
        *([_text(rows[name])] for name in (*KEY, REVISION)),
        [_escape(each) if isinstance(each, str) else each for each in object_pieces(features)],
        [_lists(rows[STATED])],
        *([_text(rows[name])] for name in (RESTATES, *PROVENANCE)),
        *([_escape(str(each))] for each in tail),
    ]
    pieces = [piece for column in columns for piece in (*column, "\t")]
    joined = pc.binary_join_element_wise(*pieces[:-1], "\n", "")
    _, _, text = joined.buffers()
    return text.slice(0, pc.sum(pc.binary_length(joined)).as_py())


def _text(column: pa.Array) -> pa.Array:
    texts = _escaped(column) if pa.types.is_string(column.type) else column.cast(pa.string())
    return texts.fill_null(_NULL)


def _escaped(texts: pa.Array) -> pa.Array:
    coded = texts.dictionary_encode()
    distinct = pa.array([None if text is None else _escape(text) for text in coded.dictionary.to_pylist()], pa.string())
    return distinct.take(coded.indices)


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)


def _lists(column: pa.Array) -> pa.Array:
    """Lists of texts as array literals."""
    if column.null_count == len(column):
        return pa.array([_NULL] * len(column))
    return pa.array([_NULL if texts is None else _escape(_literal(texts)) for texts in column.to_pylist()], pa.string())


def _literal(texts: Sequence[str]) -> str:
    quoted = (text.replace("\\", r"\\").replace('"', r"\"") for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"
