"""When the next bars come: exchange sessions, intraday slots, markets that never close, a store's own days.

All stamps are naive and on the market's wall clock. Daily bars are stamped at midnight of their session,
intraday bars of an exchange at their end (China: 09:45 ... 11:30, 13:15 ... 15:00 for 15 minutes).
``exchange_calendars``' XSHG equals the sessions of the A-share files on all days of 2000-2020, and XNYS
those of the US file on all days of 2012-2017: no differences (tested).
"""

from __future__ import annotations

import difflib
import re
import warnings
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.layout import plain_times
from kronos_qlib.market.stamps import STAMP_FIELDS, time_stamps

ALWAYS_OPEN = "24/7"
# Exchanges whose calendar names no first or last session are built between these days.
FIRST_DAY, LAST_DAY = "1970-01-01", "2050-12-31"
_DAY = np.timedelta64(1, "D")


class TradingCalendar(Protocol):
    """What a forecast needs to know of a market's time. Hashable, so that answers can be cached."""

    name: str
    freq: str

    def __hash__(self) -> int: ...

    def future(self, after: pd.Timestamp, n: int) -> pd.DatetimeIndex:
        """Return the n next bar stamps strictly after ``after``."""

    def between(self, first: pd.Timestamp, last: pd.Timestamp) -> pd.DatetimeIndex:
        """Return all bar stamps from ``first`` to ``last``, both included."""


class SessionCalendar:
    """A market with known bar stamps; past the last of them, weekdays with the slots of a full day.

    Parameters
    ----------
    name, freq : str
    stamps : DatetimeIndex
        Known stamps, in any order.
    """

    def __init__(self, name: str, freq: str, stamps: pd.DatetimeIndex) -> None:
        self.name, self.freq = name, parse_freq(freq)[0]
        self._known = np.unique(plain_times(stamps))
        if len(self._known) == 0:
            raise ValueError(f"calendar {name!r} has no sessions: give at least one")
        self._stamps = self._known
        self._warned = False

    @property
    def first(self) -> pd.Timestamp:
        """First known stamp."""
        return pd.Timestamp(self._known[0])

    @property
    def last(self) -> pd.Timestamp:
        """Last known stamp; later ones follow the weekday rule."""
        return pd.Timestamp(self._known[-1])

    def future(self, after: pd.Timestamp, n: int) -> pd.DatetimeIndex:
        """Return the n next bar stamps strictly after ``after``.

        Past the last known session the stamps are weekdays (holidays unknown); the first such call warns.

        Raises
        ------
        ValueError
            ``after`` lies before the first known stamp, or n is negative.
        """
        moment = _moment(after)
        if n < 0 or moment < self._known[0]:
            raise ValueError(
                f"calendar {self.name!r} knows stamps from {self.first}: found after={after}, n={n}; "
                "expected a later time and n >= 0"
            )
        begin = int(np.searchsorted(self._stamps, moment, side="right"))
        while begin + n > len(self._stamps):
            self._extend(max(moment, self._stamps[-1]) + (n + 10) * _DAY)
            begin = int(np.searchsorted(self._stamps, moment, side="right"))
        if begin + n > len(self._known):
            self._warn()
        return pd.DatetimeIndex(self._stamps[begin : begin + n])

    def between(self, first: pd.Timestamp, last: pd.Timestamp) -> pd.DatetimeIndex:
        """Return all stamps from ``first`` to ``last``, both included; weekdays past the last known one."""
        begin, end = _moment(first), _moment(last)
        if end > self._stamps[-1]:
            self._extend(end)
        if end >= self._known[-1] + _DAY:
            self._warn()
        return pd.DatetimeIndex(self._stamps[(self._stamps >= begin) & (self._stamps <= end)])

    def _extend(self, until: np.datetime64) -> None:
        day = self._known[-1].astype("datetime64[D]")
        days = np.arange(day, until.astype("datetime64[D]") + _DAY * 2)
        days = days[np.is_busday(days) | (days == day)].astype("datetime64[ns]")
        stamps = (days[:, None] + self._slots()).ravel()
        self._stamps = np.concatenate([self._known, np.sort(stamps[stamps > self._known[-1]])])

    def _slots(self) -> npt.NDArray[np.timedelta64]:
        """Return the times of day of the fullest among the last ten known days."""
        days = self._known.astype("datetime64[D]")
        recent, counts = np.unique(days[days >= np.unique(days)[-10:][0]], return_counts=True)
        full = recent[counts == counts.max()][-1]
        return self._known[days == full] - full.astype("datetime64[ns]")

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"calendar {self.name!r} ends at {self.last}: later stamps are weekdays, holidays unknown. "
                "A newer exchange_calendars release, or a longer calendar in the store, knows them.",
                stacklevel=3,
            )


class ContinuousCalendar:
    """A market that never closes: a fixed grid from midnight, in the bars' own zone (normally UTC)."""

    def __init__(self, freq: str) -> None:
        self.name = ALWAYS_OPEN
        self.freq, minutes = parse_freq(freq)
        if minutes is not None and 1440 % minutes:
            raise ValueError(f"found freq={freq!r}; expected minutes that divide a day, such as 1, 5, 15, 60, 240")
        self._step = np.timedelta64(minutes or 1440, "m").astype("timedelta64[ns]")

    def future(self, after: pd.Timestamp, n: int) -> pd.DatetimeIndex:
        """Return the n next bar stamps strictly after ``after``."""
        if n < 0:
            raise ValueError(f"found n={n}; expected n >= 0")
        begin = self._slot(_moment(after)) + 1
        return self._grid(begin, begin + n)

    def between(self, first: pd.Timestamp, last: pd.Timestamp) -> pd.DatetimeIndex:
        """Return all bar stamps from ``first`` to ``last``, both included."""
        begin = -(-_moment(first).astype(np.int64) // self._step.astype(np.int64))
        return self._grid(int(begin), self._slot(_moment(last)) + 1)

    def _slot(self, moment: np.datetime64) -> int:
        return int(moment.astype(np.int64) // self._step.astype(np.int64))

    def _grid(self, begin: int, end: int) -> pd.DatetimeIndex:
        grid = np.arange(begin, end, dtype=np.int64) * self._step.astype(np.int64)
        return pd.DatetimeIndex(grid.astype("datetime64[ns]"))


def parse_freq(freq: str) -> tuple[str, int | None]:
    """Return (``"day"``, None) or (``"<n>min"``, n), with Qlib's spelling of a frequency.

    Raises
    ------
    ValueError
        The frequency is neither a day nor a number of minutes.
    """
    text = str(freq).strip().lower()
    if text in ("day", "1day", "d", "1d"):
        return "day", None
    found = re.fullmatch(r"([1-9]\d*)(min|minute|m|t)", text)
    if not found:
        raise ValueError(f"found freq={freq!r}; expected 'day' or minutes such as '15min', '5min', '1min'")
    return f"{found[1]}min", int(found[1])


@lru_cache(maxsize=32)
def get_calendar(name: str, freq: str = "day") -> TradingCalendar:
    """Return the calendar of an exchange or of a market that never closes.

    Parameters
    ----------
    name : str
        ``"24/7"``, or a name that ``exchange_calendars`` knows: ``"XSHG"``, ``"XNYS"``, ``"XHKG"``, ...
    freq : str
        ``"day"`` or minutes (``"15min"``). Intraday slots run from each opening and are stamped at their end;
        the last one of a trading period ends with it (an early close included).

    Raises
    ------
    ValueError
        Unknown name (the nearest known one is named) or frequency.
    """
    freq, minutes = parse_freq(freq)
    if name == ALWAYS_OPEN:
        return ContinuousCalendar(freq)
    import exchange_calendars  # a second to import, which a 24/7 market or a store's calendar need not pay

    known = exchange_calendars.get_calendar_names(include_aliases=True)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.3) or ["XSHG"]
        raise ValueError(
            f"found calendar {name!r}; expected '24/7' or a name that exchange_calendars knows, such as {near[0]!r}"
        )
    factory = type(exchange_calendars.get_calendar(name))
    exchange = factory(start=factory.bound_min() or FIRST_DAY, end=factory.bound_max() or LAST_DAY)
    stamps = exchange.sessions if minutes is None else _slots(exchange.schedule, str(exchange.tz), minutes)
    return SessionCalendar(name, freq, stamps)


def calendar_from_index(index: pd.DatetimeIndex, freq: str = "day", name: str = "index") -> SessionCalendar:
    """Return a calendar of explicit stamps, such as a Qlib store's ``day_future.txt``."""
    return SessionCalendar(name, freq, index)


def on_every(times: pd.Index, calendar: pd.DatetimeIndex, every: int) -> npt.NDArray[np.bool_]:
    """Say of each time whether it is one of every so many of a calendar, counted from its first: no span decides."""
    return np.asarray(pd.DatetimeIndex(times).isin(calendar[::every]))


def future_times(
    calendar: TradingCalendar, timestamps: npt.NDArray[np.datetime64] | pd.DatetimeIndex, n: int
) -> npt.NDArray[np.datetime64]:
    """Return the n next bar stamps after each time, datetime64[ns] (B, n); cached by time."""
    rows, inverse = _future_rows(calendar, timestamps, n)
    if not rows:
        return np.empty((0, n), dtype="datetime64[ns]")
    return np.stack([times for times, _ in rows])[inverse]


def future_stamps(
    calendar: TradingCalendar, timestamps: npt.NDArray[np.datetime64] | pd.DatetimeIndex, n: int
) -> npt.NDArray[np.int64]:
    """Return the calendar features of the n next bars after each time, int64 (B, n, 5); cached by time."""
    rows, inverse = _future_rows(calendar, timestamps, n)
    if not rows:
        return np.empty((0, n, len(STAMP_FIELDS)), dtype=np.int64)
    return np.stack([stamps for _, stamps in rows])[inverse]


_Row = tuple[npt.NDArray[np.datetime64], npt.NDArray[np.int64]]


def _future_rows(
    calendar: TradingCalendar, timestamps: npt.NDArray[np.datetime64] | pd.DatetimeIndex, n: int
) -> tuple[list[_Row], npt.NDArray[np.int64]]:
    unique, inverse = np.unique(plain_times(timestamps), return_inverse=True)
    return [_future_row(calendar, int(moment), n) for moment in unique.astype(np.int64)], inverse


@lru_cache(maxsize=16384)
def _future_row(calendar: TradingCalendar, nanoseconds: int, n: int) -> _Row:
    stamps = calendar.future(pd.Timestamp(nanoseconds, unit="ns"), n)
    return plain_times(stamps), time_stamps(stamps)


def _moment(time: object) -> np.datetime64:
    return plain_times([time])[0]


def _slots(schedule: pd.DataFrame, zone: str, minutes: int) -> pd.DatetimeIndex:
    """Return the bar-end stamps of all trading periods of an ``exchange_calendars`` schedule."""
    opens, break_start, break_end, closes = (
        plain_times(pd.DatetimeIndex(schedule[name]).tz_convert(zone), missing=True)
        for name in ("open", "break_start", "break_end", "close")
    )
    pause = ~np.isnat(break_start)
    begins = np.concatenate([opens, break_end[pause]])
    ends = np.concatenate([np.where(pause, break_start, closes), closes[pause]])
    step = np.timedelta64(minutes, "m").astype("timedelta64[ns]")
    counts = -((begins - ends) // step)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return pd.DatetimeIndex(np.minimum(np.repeat(begins, counts) + number * step, np.repeat(ends, counts)))
