"""A market from a directory of Parquet or CSV tables, the way anyone brings data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feature_repo.market.assembly import assemble
from feature_repo.market.facts import market_info, read_facts
from feature_repo.market.layout import KINDS, TEXTS, TIMES, find_kind
from feature_repo.market.parsing import NULL_WORDS
from feature_repo.market.records import aside
from feature_repo.market.schema import Market, MarketError
from feature_repo.market.validation import Validated, validate

# Tensor suffix: R rows of the file that have all their fields.

FACTS_FILE: Final = "market.yaml"
SUFFIXES: Final = (".parquet", ".csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class _TableFile:
    """A table as its file has it: the rows, their 0-based numbers, and the lines that are no row."""

    frame: pd.DataFrame
    row_R: NDArray[np.int64]
    broken: pd.DataFrame


def read_market_directory(path: Path, *, now: datetime) -> Market:
    """Read and validate a market directory.

    Every ``<table>.parquet`` or ``<table>.csv`` of the layout (:data:`feature_repo.market.layout.KINDS`) is a table;
    other data files are named in ``Market.ignored``. ``market.yaml`` may give the facts; what it leaves out is inferred
    and named in ``MarketInfo.inferred``. A CSV's times are ISO 8601 with a zone. A table without ``ingest_time`` needs
    a lag in ``market.yaml``. ``now`` (aware) is the time of reading: rows after it are quarantined.

    Raises
    ------
    MarketError
        No such directory, no table in it, a file that does not open, or facts that can't be.
    """
    if not path.is_dir():
        raise MarketError(f"there is no market directory {str(path)!r}; give a folder with any of {', '.join(KINDS)}")
    facts = read_facts(path / FACTS_FILE)
    files, ignored = _table_files(path)
    lags: Mapping[str, timedelta] = facts.get("lags", {})
    validated = {name: _validate_file(name, file, now, lags.get(name)) for name, file in files.items()}
    bars = {name: table.accepted for name, table in validated.items() if name.startswith("bars_")}
    return assemble(market_info(facts, folder=path.resolve().name, bars=bars), validated, ignored=ignored)


def _table_files(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The folder's tables by name, and the data files that are none."""
    data = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in SUFFIXES)
    files: dict[str, Path] = {}
    for file in data:
        if find_kind(file.stem) is None:
            continue
        if file.stem in files:
            raise MarketError(
                f"{folder} has both {files[file.stem].name} and {file.name}; a table is one file: remove one"
            )
        files[file.stem] = file
    ignored = tuple(file.name for file in data if file not in files.values())
    if not files:
        raise MarketError(
            f"{folder} holds no table of a market; it has {list(ignored) or 'no Parquet or CSV file'}, and a table is "
            f"one of {', '.join(KINDS)} as .parquet or .csv: rename or convert the files"
        )
    return files, ignored


def _validate_file(table: str, path: Path, now: datetime, lag: timedelta | None) -> Validated:
    try:
        file = _read_csv(table, path) if path.suffix == ".csv" else _read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise MarketError(f"{path} does not open as {path.suffix[1:]}: {error}; write the file again") from error
    found = validate(table, file.frame, now=now, lag=lag)
    quarantine = found.quarantine.assign(row=file.row_R[found.quarantine["row"]])
    return replace(
        found,
        quarantine=pd.concat([quarantine, file.broken], ignore_index=True) if len(file.broken) else quarantine,
        flags=found.flags.assign(row=file.row_R[found.flags["row"]]),
    )


def _read_parquet(path: Path) -> _TableFile:
    table = pq.ParquetFile(path).read()
    unnamed = [name for name in table.column_names if name.startswith("__index_level_")]
    frame = table.drop_columns(unnamed).to_pandas(ignore_metadata=True)
    return _TableFile(frame=frame, row_R=np.arange(len(frame)), broken=pd.DataFrame())


def _read_csv(table: str, path: Path) -> _TableFile:
    """Texts and times stay text, so that a ticker NA is no null and a time without a zone is seen."""
    broken: list[pa_csv.InvalidRow] = []

    def keep_aside(row: pa_csv.InvalidRow) -> str:
        broken.append(row)
        return "skip"

    frame = pa_csv.read_csv(
        path,
        read_options=pa_csv.ReadOptions(use_threads=False),  # a row knows its number only then
        parse_options=pa_csv.ParseOptions(invalid_row_handler=keep_aside),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(sorted(TEXTS | TIMES), pa.string()), null_values=list(NULL_WORDS)
        ),
    ).to_pandas()
    broken_rows = np.array([row.number - 2 for row in broken], dtype=np.int64)  # Arrow counts the header as line 1
    reasons = [f"has {row.actual_columns} fields where the header has {row.expected_columns}" for row in broken]
    all_rows = np.arange(len(frame) + len(broken))
    return _TableFile(
        frame=frame,
        row_R=np.setdiff1d(all_rows, broken_rows),
        broken=aside(
            table,
            pd.DataFrame({"line": [row.text for row in broken]}),
            np.arange(len(broken)),
            np.array(reasons, dtype=object),
        ).assign(row=broken_rows),
    )
