"""The files of a Qlib store: calendars, instruments, and one binary file a field and instrument."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.layout import BarLayout
from kronos_qlib.market.store_fields import STORE_FIELDS, StoreBars

# Names that Windows reserves for devices; Qlib looks for their features under a prefix on every system.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_INDEX_CODES = re.compile(r"(SH000|SZ399)\d{3}")
_END_OF_DAY = pd.Timedelta(hours=23, minutes=59, seconds=59)


def is_index(code: str, region: str = "cn") -> bool:
    """Return whether a code is that of a Chinese index (SH000xxx, SZ399xxx) rather than of a stock."""
    return region == "cn" and _INDEX_CODES.fullmatch(code.upper()) is not None


def without_indices(bars: pd.DataFrame, region: str) -> pd.DataFrame:
    """Return the rows of a frame, as ``read_bars`` gives it, whose instrument is no index."""
    indices = [name for name in bars["instrument"].cat.categories if is_index(name, region)]
    return bars[~bars["instrument"].isin(indices)] if indices else bars


def feature_folder(code: str) -> str:
    """Return the name of the folder in which Qlib looks for an instrument's features."""
    return f"_qlib_{code.lower()}" if code.lower() in _DEVICES else code.lower()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside and rename it, so that another link to the old content keeps that."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_calendars(
    folder: Path, freq: str, sessions: npt.NDArray[np.datetime64], future: npt.NDArray[np.datetime64]
) -> None:
    """Write ``<freq>.txt`` and ``<freq>_future.txt``, which Qlib expects to hold the past as well."""
    target = folder / "calendars"
    target.mkdir(exist_ok=True)
    known, later = _texts(sessions, freq), _texts(future, freq)
    replace_file(target / f"{freq}.txt", "".join(f"{text}\n" for text in known).encode())
    replace_file(target / f"{freq}_future.txt", "".join(f"{text}\n" for text in [*known, *later]).encode())


def write_instruments(
    folder: Path, freq: str, region: str, layout: BarLayout, spans: Mapping[str, pd.DataFrame]
) -> None:
    """Write ``all.txt`` (first and last bar of each instrument, no indices) and one file a universe."""
    target = folder / "instruments"
    target.mkdir(exist_ok=True)
    listed = pd.DataFrame(
        {
            "instrument": layout.instruments,
            "start": layout.timestamps[layout.offsets[:-1]],
            "end": layout.timestamps[layout.offsets[1:] - 1],
        }
    )
    stocks = [not is_index(code, region) for code in layout.instruments]
    _write_spans(target / "all.txt", listed[stocks], freq)
    for name, frame in spans.items():
        _write_spans(target / f"{name.lower()}.txt", frame, freq)


def write_features(folder: Path, freq: str, bars: StoreBars, sessions: npt.NDArray[np.datetime64]) -> None:
    """Write ``features/<code>/<field>.<freq>.bin``: the first bar's session, then a value a session, float32.

    Sessions without a bar between the first and the last one are NaN.
    """
    layout = bars.layout
    position = np.searchsorted(sessions, layout.timestamps)
    for number, code in enumerate(layout.instruments):
        begin, end = int(layout.offsets[number]), int(layout.offsets[number + 1])
        place = position[begin:end] - position[begin]
        block = np.full((len(STORE_FIELDS), int(place[-1]) + 2), np.nan, dtype="<f4")
        block[:, 0] = position[begin]
        block[:, 1 + place] = bars.values[begin:end].T
        target = folder / "features" / feature_folder(code)
        target.mkdir(parents=True)
        for field, column in zip(STORE_FIELDS, block, strict=True):
            (target / f"{field}.{freq}.bin").write_bytes(column.tobytes())


def append_features(folder: Path, freq: str, bars: StoreBars, sessions: npt.NDArray[np.datetime64], known: int) -> None:
    """Append the bars of sessions from number ``known`` on; files of instruments without such bars are not touched.

    The bytes of old sessions are copied. Instruments that have no file yet are written whole.
    """
    layout = bars.layout
    position = np.searchsorted(sessions, layout.timestamps)
    for number, code in enumerate(layout.instruments):
        rows = np.arange(int(layout.offsets[number]), int(layout.offsets[number + 1]))
        target = folder / "features" / feature_folder(code)
        if target.is_dir() and position[rows[-1]] < known:
            continue
        old = {field: _stored_bytes(target / f"{field}.{freq}.bin") for field in STORE_FIELDS}
        # the first number says at which session the column begins
        begin = int(position[rows[0]])
        length = max(len(content) // 4 - 1 for content in old.values())
        rows = rows[position[rows] >= begin + max(length, 0)]
        block = np.full((len(STORE_FIELDS), int(position[rows[-1]]) - begin - max(length, 0) + 1), np.nan, dtype="<f4")
        block[:, position[rows] - begin - max(length, 0)] = bars.values[rows].T
        target.mkdir(parents=True, exist_ok=True)
        for field, column in zip(STORE_FIELDS, block, strict=True):
            before = old[field] or np.array([begin], dtype="<f4").tobytes()
            replace_file(target / f"{field}.{freq}.bin", before + column.tobytes())


def _stored_bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _write_spans(path: Path, spans: pd.DataFrame, freq: str) -> None:
    ends = spans["end"]
    if freq != "day":
        # A last day without a time means all of that day; Qlib would read its midnight.
        ends = ends.where(ends != ends.dt.normalize(), ends + _END_OF_DAY)
    columns = (spans["instrument"], _texts(spans["start"].to_numpy(), freq), _texts(ends.to_numpy(), freq))
    lines = ["\t".join(span) for span in zip(*columns, strict=True)]
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())


def _texts(times: npt.NDArray[np.datetime64], freq: str) -> list[str]:
    return list(pd.DatetimeIndex(times).strftime("%Y-%m-%d" if freq == "day" else "%Y-%m-%d %H:%M:%S"))
