"""Where the rows of one source lie: a parquet file a month, and parts that wait to be merged into months.

::

    sources/<fingerprint>/source.json
    sources/<fingerprint>/months/2014-03.parquet        sorted by (datetime, instrument)
    sources/<fingerprint>/parts/2014/000002-05.parquet  one batch, the third; written by who holds bucket 5
    sources/<fingerprint>/locks/…

A batch is a part as soon as it is computed, so a killed run loses the batch in flight only. Parts win over months,
and a later part over an earlier one. A file appears whole (written aside, put on disk, renamed); parts
are deleted, oldest first, only once the months that hold their rows are in place: whenever a process dies, reading
gives the same rows.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kronos_qlib.forecast.store_source import WantedRows

ID_COLUMNS = ("datetime", "instrument")
KEY, WEIGHTS = "key", "weights"
_TRIES = 20


def bucket_locks(folder: Path, year: int, buckets: Sequence[int]) -> list[Path]:
    """Return the locks of those who compute rows of a year's buckets."""
    return [folder / "locks" / f"{year}-{bucket:02d}.lock" for bucket in buckets]


def merge_lock(folder: Path, year: int) -> Path:
    """Return the lock of those who merge a year's parts into months."""
    return folder / "locks" / f"{year}-merge.lock"


def use_lock(folder: Path) -> Path:
    """Return the lock that builders share and that removing a source excludes. It lies outside the folder."""
    return folder.parent / f".{folder.name}.lock"


def part_years(folder: Path) -> list[int]:
    """Return the years that have parts."""
    return sorted({int(path.parent.name) for path in (folder / "parts").glob("*/*.parquet")})


def part_path(folder: Path, year: int, bucket: int) -> Path:
    """Return the name of a bucket's next part; the caller holds the bucket's lock."""
    target = folder / "parts" / str(year)
    # later than all that are there, so also than every part that has one of the bucket's rows
    taken = [int(path.stem[:6]) for path in target.glob("*.parquet")]
    return target / f"{max(taken, default=-1) + 1:06d}-{bucket:02d}.parquet"


def make_table(wanted: WantedRows, values: npt.NDArray[np.float32], columns: Sequence[str], weights: str) -> pa.Table:
    """Return rows as the table that the store keeps, sorted by (datetime, instrument)."""
    order = np.lexsort((wanted.codes, wanted.timestamps))
    codes, names = pd.factorize(wanted.codes[order], sort=True)
    instruments = [wanted.instruments[code] for code in names]
    data: dict[str, pa.Array] = {
        "datetime": pa.array(wanted.timestamps[order], pa.timestamp("ns")),
        "instrument": pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(instruments, pa.string())),
        KEY: pa.array(wanted.keys[order], pa.uint64()),
        WEIGHTS: pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(order), dtype=np.int32)), pa.array([weights], pa.string())
        ),
    }
    for position, name in enumerate(columns):
        data[name] = pa.array(np.ascontiguousarray(values[order, position]), pa.float32())
    return pa.table(data)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a parquet file whole or not at all; on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=["instrument", WEIGHTS],
            use_byte_stream_split=[f.name for f in table.schema if pa.types.is_float32(f.type)],
            write_page_checksum=True,
        )
        put_in_place(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be written: {error}; run again to resume") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_note(path: Path, content: Mapping[str, Any], default: Callable[[Any], Any] | None = None) -> None:
    """Write JSON whole or not at all; on disk when this returns. ``default`` as of ``json.dumps``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=default) + "\n", encoding="utf-8")
    put_in_place(temporary, path)


def put_in_place(temporary: Path, path: Path) -> None:
    """Put a written file on disk and under its name."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what killed writers left half written; the caller holds the lock of the files of this pattern."""
    for path in folder.glob(f".{pattern}.*.tmp"):
        path.unlink(missing_ok=True)


def read_rows(
    folder: Path,
    columns: Sequence[str],
    start: pd.Timestamp | None = None,
    end: pd.Timestamp | None = None,
    *,
    instruments: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Read rows of a source, one an (instrument, datetime), while others may write.

    Returns
    -------
    DataFrame
        ``datetime``, ``instrument`` (categorical) and ``columns``, sorted by (datetime, instrument).
    """
    for _ in range(_TRIES):
        try:
            return _read_once(folder, columns, start, end, instruments)
        except FileNotFoundError:
            continue  # a part was merged into its months after we listed it: list again
    raise OSError(f"{folder} changes faster than it can be read; wait for the build that writes it")


def merge_parts(folder: Path, year: int, columns: Sequence[str]) -> None:
    """Merge a year's parts into its months; the caller holds the year's merge lock."""
    remove_leftovers(folder / "months", f"{year}-*")
    parts = _parts(folder, year)
    if not parts:
        return
    new = pa.concat_tables([_load(path, None) for path in parts], promote_options="default")
    month = np.asarray(new["datetime"].to_numpy()).astype("datetime64[M]")
    for value in np.unique(month):
        path = folder / "months" / f"{value}.parquet"
        tables = [_load(path, None)] if path.exists() else []
        merged = _last_of_each(pa.concat_tables([*tables, new.filter(month == value)], promote_options="default"))
        write_table(merged.select([*ID_COLUMNS, KEY, WEIGHTS, *columns]).combine_chunks(), path)
    for path in parts:
        path.unlink()


def _read_once(
    folder: Path,
    columns: Sequence[str],
    start: pd.Timestamp | None,
    end: pd.Timestamp | None,
    instruments: Sequence[str] | None,
) -> pd.DataFrame:
    wanted = list(dict.fromkeys([*ID_COLUMNS, *columns]))
    # parts first: one that disappears later is by then in the months that are read after it
    parts = [_load(path, wanted) for year in _years(folder, start, end) for path in _parts(folder, year)]
    months = [_load(path, wanted) for path in _months(folder, start, end)]
    tables = [table for table in (*months, *parts) if table.num_rows]
    if not tables:
        return pd.DataFrame({name: [] for name in wanted})
    table = pa.concat_tables(tables, promote_options="default")
    if parts:
        table = _last_of_each(table)
    if start is not None or end is not None or instruments is not None:
        table = table.filter(_inside(table, start, end, instruments))
    return table.unify_dictionaries().combine_chunks().to_pandas(split_blocks=True)


def _inside(
    table: pa.Table, start: pd.Timestamp | None, end: pd.Timestamp | None, instruments: Sequence[str] | None
) -> npt.NDArray[np.bool_]:
    times = table["datetime"].to_numpy()
    inside = np.ones(len(times), dtype=bool)
    if start is not None:
        inside &= times >= start.to_datetime64()
    if end is not None:
        inside &= times <= end.to_datetime64()
    if instruments is not None:
        inside &= np.asarray(table.select(["instrument"]).to_pandas()["instrument"].isin(list(instruments)))
    return inside


def _last_of_each(table: pa.Table) -> pa.Table:
    """Keep the last row of each (datetime, instrument), sorted by them; equal rows give equal tables."""
    column = table.select(["instrument"]).unify_dictionaries().to_pandas()["instrument"].astype("category")
    names, rank = np.unique(np.asarray(column.cat.categories, dtype=str), return_inverse=True)
    codes, times = rank[np.asarray(column.cat.codes)], table["datetime"].to_numpy()
    order = np.lexsort((np.arange(len(codes)), codes, times))
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (np.diff(codes[order]) != 0) | (np.diff(times[order]) != np.timedelta64(0))
    chosen = order[last]
    kept, codes = pd.factorize(codes[chosen], sort=True)
    instrument = pa.DictionaryArray.from_arrays(pa.array(kept, pa.int32()), pa.array(names[codes], pa.string()))
    return table.take(chosen).set_column(table.column_names.index("instrument"), "instrument", instrument)


def _load(path: Path, columns: list[str] | None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, partitioning=None, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({error}): delete this file and build again") from error


def _parts(folder: Path, year: int) -> list[Path]:
    return sorted((folder / "parts" / str(year)).glob("*.parquet"))


def _years(folder: Path, start: pd.Timestamp | None, end: pd.Timestamp | None) -> Iterator[int]:
    for year in part_years(folder):
        if (start is None or year >= start.year) and (end is None or year <= end.year):
            yield year


def _months(folder: Path, start: pd.Timestamp | None, end: pd.Timestamp | None) -> list[Path]:
    first = "" if start is None else start.strftime("%Y-%m")
    last = "9999" if end is None else end.strftime("%Y-%m")
    return [path for path in sorted((folder / "months").glob("*.parquet")) if first <= path.stem <= last]


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
