"""A bars frame as sorted flat arrays: the form that checks, events and repairs compute on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class BarColumns:
    """Bars of many instruments, sorted by instrument and time (ties keep the order of the frame).

    Attributes
    ----------
    names : str array (I,)
        Instruments, sorted.
    code : int64 (R,)
        Position in ``names`` of each bar's instrument.
    stamps : datetime64[ns] (R,)
        Stamp of each bar.
    days : datetime64[ns] (R,)
        Midnight of each stamp.
    first : bool (R,)
        True on the first bar of each instrument.
    order : int64 (R,)
        ``order[i]`` is the row of the frame that became row ``i`` here.
    values : mapping of float64 (R,)
        The numeric columns that the frame has, NaN where missing.
    """

    names: np.ndarray
    code: np.ndarray
    stamps: np.ndarray
    days: np.ndarray
    first: np.ndarray
    order: np.ndarray
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.code)

    @property
    def factor(self) -> np.ndarray:
        """The adjustment factor, 1 for a frame without one."""
        return self.values["factor"] if "factor" in self.values else np.ones(len(self))

    def keep(self, mask: np.ndarray) -> BarColumns:
        """The bars of a mask (R,) only; ``order`` still points into the whole frame."""
        code = self.code[mask]
        values = {name: array[mask] for name, array in self.values.items()}
        first = _first_of_instrument(code)
        return BarColumns(self.names, code, self.stamps[mask], self.days[mask], first, self.order[mask], values)

    def previous_bar(self, name: str) -> np.ndarray:
        """Values of ``name`` on the instrument's bar before, NaN on its first bar."""
        shifted = np.roll(self.factor if name == "factor" else self.values[name], 1)
        return np.where(self.first, np.nan, shifted)

    def to_frame_order(self, array: np.ndarray) -> np.ndarray:
        """Bring an array (R,) from the sorted order back to the order of the frame."""
        result = np.empty_like(array)
        result[self.order] = array
        return result

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, fields: tuple[str, ...]) -> BarColumns:
        """Sort a frame in the vendor format and take the columns of ``fields`` that it has.

        Parameters
        ----------
        frame : DataFrame
            Columns ``instrument`` (str or category, none missing) and ``datetime`` (naive, none missing),
            and numeric columns. It is not changed.
        fields : tuple of str
            Numeric columns to take; an absent one is left out of ``values``.

        Raises
        ------
        ValueError
            When ``instrument`` or ``datetime`` is absent or has missing values, or stamps have a time zone.
        """
        names, code = _instrument_codes(frame)
        stamps = _naive_stamps(frame)
        order = _sorting_order(code, stamps)
        code, stamps = code[order], stamps[order]
        values = {name: frame[name].to_numpy(dtype=float)[order] for name in fields if name in frame}
        days = stamps.astype("datetime64[D]").astype("datetime64[ns]")
        return cls(names, code, stamps, days, _first_of_instrument(code), order, values)


def session_positions(columns: BarColumns, calendar: pd.DatetimeIndex | None = None) -> np.ndarray:
    """Position of each bar's date among the sessions, int64 (R,).

    Sessions are the dates of ``calendar``; without one, the dates on which any instrument has a bar.
    A bar on a date outside the calendar counts as a session of its own, so that no position is ever missing.
    """
    codes, dates = pd.factorize(columns.days, sort=True)
    if calendar is None:
        return codes.astype(np.int64)
    sessions = np.union1d(calendar_days(calendar), dates.astype("datetime64[ns]"))
    return np.searchsorted(sessions, dates.astype("datetime64[ns]"))[codes].astype(np.int64)


def calendar_days(calendar: pd.DatetimeIndex) -> np.ndarray:
    """Dates of a calendar as sorted datetime64[ns]; stamps within a day and a time zone are dropped."""
    days = pd.DatetimeIndex(calendar).tz_localize(None).normalize()
    return np.unique(days.to_numpy().astype("datetime64[ns]"))


def starts_day(columns: BarColumns) -> np.ndarray:
    """True on the first bar of each instrument's day, bool (R,); always true on daily bars."""
    starts = columns.first.copy()
    starts[1:] |= columns.days[1:] != columns.days[:-1]
    return starts


def previous_day_row(columns: BarColumns) -> np.ndarray:
    """Row of the instrument's last bar of an earlier day, int64 (R,), -1 where there is none."""
    starts = np.flatnonzero(starts_day(columns))
    lengths = np.diff(np.append(starts, len(columns)))
    return np.repeat(np.where(columns.first[starts], -1, starts - 1), lengths)


def sessions_since(columns: BarColumns, calendar: pd.DatetimeIndex | None = None) -> np.ndarray:
    """Sessions from the instrument's previous traded day to the bar's day, int64 (R,).

    1 is the next session, 3 means that two sessions were missed, 0 stands on an instrument's first day.
    """
    session, row = session_positions(columns, calendar), previous_day_row(columns)
    return np.where(row >= 0, session - session[row], 0)


def _first_of_instrument(code: np.ndarray) -> np.ndarray:
    first = np.ones(len(code), dtype=bool)
    first[1:] = code[1:] != code[:-1]
    return first


def _instrument_codes(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    if "instrument" not in frame:
        raise ValueError(f"bars need a column 'instrument'; found {list(map(str, frame.columns))}")
    column = pd.Categorical(frame["instrument"])
    if (column.codes < 0).any():
        raise ValueError(f"{int((column.codes < 0).sum())} bars have no instrument; drop or name them first")
    names = column.categories.astype(str).to_numpy(dtype=object)
    ordered = np.argsort(names, kind="stable")
    rank = np.empty(len(names), dtype=np.int64)
    rank[ordered] = np.arange(len(names))
    return names[ordered], rank[column.codes]


def _naive_stamps(frame: pd.DataFrame) -> np.ndarray:
    if "datetime" not in frame:
        raise ValueError(f"bars need a column 'datetime'; found {list(map(str, frame.columns))}")
    column = frame["datetime"]
    if not pd.api.types.is_datetime64_dtype(column.dtype):
        raise ValueError(
            f"column 'datetime' is {column.dtype}; expected datetime64 without a time zone: parse it, and"
            " convert stamps with a zone to the exchange's own wall clock (read_bars does both)"
        )
    if column.isna().any():
        raise ValueError(f"{int(column.isna().sum())} bars have no datetime; drop or date them first")
    return column.to_numpy().astype("datetime64[ns]")


def _sorting_order(code: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    step = np.diff(code)
    sorted_already = (step > 0) | ((step == 0) & (stamps[1:] >= stamps[:-1]))
    return np.arange(len(code)) if sorted_already.all() else np.lexsort((stamps, code))
