"""Vendor files (csv, parquet) as one frame of bars, with an error that helps for every file that is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import union_categoricals

from kronos_qlib.market.fields import BAR_FIELDS, PRICE_FIELDS
from kronos_qlib.market.reading_stamps import read_stamps, to_wall_clock

REQUIRED_COLUMNS = ("instrument", "datetime", *PRICE_FIELDS, "volume")
NUMBER_COLUMNS = (*BAR_FIELDS, "factor", "adj_close")
COLUMN_ALIASES = {
    "vol": "volume",
    "amt": "amount",
    "turnover_value": "amount",
    "date": "datetime",
    "time": "datetime",
    "timestamp": "datetime",
    "timestamps": "datetime",
    "symbol": "instrument",
    "code": "instrument",
    "ticker": "instrument",
    "adjclose": "adj_close",
    "adj close": "adj_close",
}
SUFFIXES = (".parquet", ".csv", ".csv.gz")


class BarFileError(ValueError):
    """A file cannot be read as bars; the message names the file, what was found and what to do."""


def read_bars(
    paths: str | Path | Iterable[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    instrument: str | None = None,
    timezone: str | None = None,
) -> pd.DataFrame:
    """Read one or several files of bars.

    Parameters
    ----------
    paths : path or iterable of paths
        ``.parquet``, ``.csv`` or ``.csv.gz``. Rows of several files follow each other; duplicates are kept.
    columns : mapping, optional
        The file's names to ours, such as ``{"px_last": "close"}``. Common names (``COLUMN_ALIASES``) and
        differences of case are understood without it.
    instrument : str, optional
        Code of the bars in a file without a column ``instrument``.
    timezone : str, optional
        Zone of the exchange. Needed when stamps name a zone: they are converted to its wall clock.

    Returns
    -------
    DataFrame
        ``instrument`` (category, sorted), ``datetime`` (datetime64[ns], naive), ``open``, ``high``, ``low``,
        ``close``, ``volume`` and, if the file has them, ``amount`` and ``factor``. Float columns keep their
        precision, missing numbers stay NaN, rows keep their order; other columns are left out.
        ``adj_close`` without ``factor`` becomes ``factor = adj_close / close``.

    Raises
    ------
    BarFileError
        (a ``ValueError``) A missing, empty or damaged file, an unknown extension, a missing column, text
        among numbers, stamps that cannot be read, mixed time zones, files with different columns.
    """
    listed = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not listed:
        raise BarFileError("no file was given; name at least one .parquet or .csv file of bars")
    frames = []
    for path in listed:
        try:
            frames.append(_read_one(path, columns or {}, instrument))
        except BarFileError:
            raise
        except ValueError as error:
            raise BarFileError(str(error)) from error
    return _join(frames, listed, timezone)


def _read_one(path: Path, columns: Mapping[str, str], instrument: str | None) -> pd.DataFrame:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise BarFileError(f"{path}: {found}; expected a file of bars")
    if not path.name.lower().endswith(SUFFIXES):
        known = ", ".join(SUFFIXES)
        raise BarFileError(f"{path}: unknown extension {path.suffix!r}; expected one of {known}")
    if path.stat().st_size == 0:
        raise BarFileError(f"{path}: the file is empty (0 bytes); was the download interrupted?")
    read = _read_parquet if path.name.lower().endswith(".parquet") else _read_csv
    raw, header = read(path, columns)
    if raw.empty:
        raise BarFileError(f"{path}: the file has columns and no row; expected at least one bar")
    if "instrument" not in raw and instrument is not None:
        raw["instrument"] = instrument
    _require_columns(raw, header, path)
    bars = {"instrument": _instruments(raw["instrument"], path)}
    bars["datetime"] = read_stamps(raw["datetime"], str(path))
    bars |= {name: _numbers(raw[name], name, path) for name in NUMBER_COLUMNS if name in raw}
    frame = pd.DataFrame(bars)
    frame.attrs = {"offsets": bars["datetime"].attrs.get("offsets", [])}
    return _with_factor(frame)


def _read_parquet(path: Path, columns: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    try:
        file = pq.ParquetFile(path)
        header = list(file.schema_arrow.names)
        names = _our_names(header, columns, path)
        frame = file.read(columns=list(names), use_threads=True).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        raise BarFileError(f"{path}: not a whole parquet file ({error}); fetch it again") from error
    return frame.rename(columns=names), header


def _read_csv(path: Path, columns: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    try:
        header = list(pd.read_csv(path, nrows=0).columns)
        names = _our_names(header, columns, path)
        texts = {found: str for found, ours in names.items() if ours in ("instrument", "datetime")}
        frame = pd.read_csv(path, usecols=list(names), dtype=texts, low_memory=False)
    except UnicodeDecodeError as error:
        raise BarFileError(f"{path}: not UTF-8 ({error}); convert it (many vendors write GBK)") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError, EOFError) as error:
        raise BarFileError(f"{path}: no csv ({error}); expected a header line and commas") from error
    return frame.rename(columns=names), header


def _our_names(found: Iterable[str], columns: Mapping[str, str], path: Path) -> dict[str, str]:
    """Map the columns of a file that we use to our names; the explicit mapping first, aliases last."""
    found = [str(name) for name in found]
    absent = [name for name in columns if name not in found]
    if absent:
        raise BarFileError(f"{path}: the column mapping names {absent}, which the file lacks; it has {found}")
    known = {"instrument", "datetime", *NUMBER_COLUMNS}
    wrong = sorted(set(columns.values()) - known)
    if wrong:
        raise BarFileError(f"the column mapping leads to {wrong}; expected names among {sorted(known)}")
    names = dict(columns)
    plain = {name: name.strip().lower() for name in found}
    for translate in (str, lambda name: COLUMN_ALIASES.get(name, "")):
        taken = set(names.values())
        new = {name: translate(plain[name]) for name in found if name not in names}
        new = {name: ours for name, ours in new.items() if ours in known and ours not in taken}
        rivals = [name for name, ours in new.items() if list(new.values()).count(ours) > 1]
        if rivals:
            meant = sorted({new[name] for name in rivals})
            raise BarFileError(f"{path}: the columns {rivals} could be {meant}; choose with columns={{...}}")
        names |= new
    return names


def _require_columns(raw: pd.DataFrame, found: list[str], path: Path) -> None:
    absent = [name for name in REQUIRED_COLUMNS if name not in raw]
    if not absent:
        return
    others = [name for name in found if name.strip().lower() not in REQUIRED_COLUMNS]
    nearest = {name: difflib.get_close_matches(name, others, 1) for name in absent}
    hints = [f"{name!r} may be {near[0]!r}" for name, near in nearest.items() if near]
    advice = "map the file's own name with columns={'theirs': 'ours'}"
    if absent == ["instrument"]:
        advice = "name the code of a single-instrument file with instrument='SH600000', or map its column"
    raise BarFileError(
        f"{path}: the columns {absent} are missing; found {found}{'; ' + ', '.join(hints) if hints else ''}; {advice}"
    )


def _instruments(column: pd.Series, path: Path) -> pd.Series:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        if pd.api.types.is_numeric_dtype(column.dtype):
            raise BarFileError(
                f"{path}: column 'instrument' holds numbers (first {column.iloc[0]}); expected codes as text,"
                " such as SH600000 (numbers lose their leading zeros)"
            )
        column = column.astype("category")
    if column.isna().any():
        row = int(column.isna().to_numpy().argmax()) + 1
        count = int(column.isna().sum())
        raise BarFileError(f"{path}: {count} rows have no instrument, the first is data row {row}")
    names = [str(name) for name in column.cat.categories]
    return column.cat.rename_categories(names).cat.reorder_categories(sorted(names))


def _numbers(column: pd.Series, name: str, path: Path) -> pd.Series:
    if pd.api.types.is_bool_dtype(column.dtype):
        raise BarFileError(f"{path}: column {name!r} holds true/false; expected numbers")
    if pd.api.types.is_float_dtype(column.dtype):
        return column
    if pd.api.types.is_integer_dtype(column.dtype) or column.isna().all():
        return column.astype(float)
    parsed = pd.to_numeric(column, errors="coerce")
    wrong = (parsed.isna() & column.notna()).to_numpy()
    row = int(wrong.argmax()) if wrong.any() else 0
    found = f"{int(wrong.sum())} values that are no number" if wrong.any() else "numbers stored as text"
    raise BarFileError(
        f"{path}: column {name!r} holds {found}, first {column.iloc[row]!r} in data row {row + 1}; expected"
        " plain numbers (no thousands separators; leave a missing value empty)"
    )


def _with_factor(frame: pd.DataFrame) -> pd.DataFrame:
    if "adj_close" not in frame:
        return frame
    if "factor" not in frame:
        with np.errstate(divide="ignore", invalid="ignore"):
            frame["factor"] = frame["adj_close"] / frame["close"]
    return frame.drop(columns="adj_close")


def _join(frames: list[pd.DataFrame], paths: list[Path], timezone: str | None) -> pd.DataFrame:
    zones = {str(frame["datetime"].dt.tz): path for frame, path in zip(frames, paths, strict=True)}
    if len(zones) > 1 and (timezone is None or "None" in zones):
        zones = {zone.replace("None", "no zone"): path for zone, path in zones.items()}
        found = ", ".join(f"{path} ({zone})" for zone, path in zones.items())
        raise BarFileError(f"mixed time zones across files: {found}; write all of them in one zone")
    shapes = {tuple(frame.columns): path for frame, path in zip(frames, paths, strict=True)}
    if len(shapes) > 1:
        found = "; ".join(f"{path} has {list(names)}" for names, path in shapes.items())
        raise BarFileError(f"files with different columns: {found}; read them apart or complete them")
    for frame, path in zip(frames, paths, strict=True):
        stamps = frame["datetime"]
        stamps.attrs = frame.attrs
        try:
            frame["datetime"] = to_wall_clock(stamps, timezone, str(path))
        except ValueError as error:
            raise BarFileError(str(error)) from error
        frame.attrs = {}
    if len(frames) == 1:
        return frames[0]
    joined = pd.concat([frame.drop(columns="instrument") for frame in frames], ignore_index=True)
    codes = union_categoricals([frame["instrument"] for frame in frames], sort_categories=True)
    joined["instrument"] = codes
    return joined[list(frames[0].columns)]
