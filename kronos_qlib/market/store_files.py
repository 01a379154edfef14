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


def feature_folder(code: str) -> str:
    """Return the name of the folder in which Qlib looks for an instrument's features."""
    return f"_qlib_{code.lower()}" if code.lower() in _DEVICES else code.lower()


def write_calendars(
    folder: Path, freq: str, sessions: npt.NDArray[np.datetime64], future: npt.NDArray[np.datetime64]
) -> None:
    """Write ``<freq>.txt`` and ``<freq>_future.txt``, which Qlib expects to hold the past as well."""
    target = folder / "calendars"
    target.mkdir()
    known, later = _texts(sessions, freq), _texts(future, freq)
    (target / f"{freq}.txt").write_text("\n".join(known) + "\n", encoding="utf-8")
    (target / f"{freq}_future.txt").write_text("\n".join([*known, *later]) + "\n", encoding="utf-8")


def write_instruments(
    folder: Path, freq: str, region: str, layout: BarLayout, spans: Mapping[str, pd.DataFrame]
) -> None:
    """Write ``all.txt`` (first and last bar of each instrument, no indices) and one file a universe."""
    target = folder / "instruments"
    target.mkdir()
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


def _write_spans(path: Path, spans: pd.DataFrame, freq: str) -> None:
    ends = spans["end"]
    if freq != "day":
        # A last day without a time means all of that day; Qlib would read its midnight.
        ends = ends.where(ends != ends.dt.normalize(), ends + _END_OF_DAY)
    columns = (spans["instrument"], _texts(spans["start"].to_numpy(), freq), _texts(ends.to_numpy(), freq))
    lines = ["\t".join(span) for span in zip(*columns, strict=True)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _texts(times: npt.NDArray[np.datetime64], freq: str) -> list[str]:
    return list(pd.DatetimeIndex(times).strftime("%Y-%m-%d" if freq == "day" else "%Y-%m-%d %H:%M:%S"))
