"""Which calendar says when the bars to forecast will come: chosen by the caller, or evident, never guessed."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.market.calendars import TradingCalendar, future_times, get_calendar
from kronos_qlib.market.layout import plain_times

# Shanghai, Shenzhen and Beijing share their sessions.
_A_SHARE = re.compile(r"(SH|SZ|BJ)\d{6}", re.IGNORECASE)
_MINUTE, _DAY = np.timedelta64(1, "m"), np.timedelta64(1, "D")


def infer_freq(times: NDArray[np.datetime64]) -> str:
    """Return ``"day"`` or ``"<n>min"``: the smallest distance between neighbouring stamps.

    Raises
    ------
    ValueError : fewer than two times, a distance that is no whole number of minutes, or one of 5 days and
    more.
    """
    if len(times) < 2:
        raise ValueError(f"found {len(times)} bar times; at least 2 are needed to see the bars' frequency")
    step = np.diff(times).min()
    if step >= 5 * _DAY:
        raise ValueError(
            f"found bars at least {pd.Timedelta(step)} apart; only daily and intraday calendars are known: "
            "give calendar=DatetimeIndex of the stamps to come"
        )
    if step >= _DAY:
        return "day"
    if step < _MINUTE or step % _MINUTE:
        raise ValueError(f"found bars {pd.Timedelta(step)} apart; expected days or whole minutes")
    return f"{int(step // _MINUTE)}min"


def choose_calendar(
    calendar: TradingCalendar | str | None, times: NDArray[np.datetime64], instruments: list[str]
) -> TradingCalendar:
    """Return the calendar of bars with these stamps.

    Parameters
    ----------
    calendar : a calendar, the name of one (its frequency is read off the bars), or None: Shanghai's where
    every
        instrument is a Chinese code such as SH600000.
    times : datetime64[ns], ascending stamps of bars.
    instruments : codes, for the None case.

    Raises
    ------
    ValueError : None for other instruments, an unknown name, a frequency that no calendar has.
    """
    if calendar is None:
        if not instruments or not all(_A_SHARE.fullmatch(code) for code in instruments):
            raise ValueError(
                f"which market do the bars of {_shown(instruments)} belong to? Give calendar='XSHG', 'XNYS', '24/7', "
                "... or an instrument such as 'SH600000'; the stamps of future bars come from it"
            )
        calendar = "XSHG"
    if isinstance(calendar, str):
        return get_calendar(calendar, freq=infer_freq(times))
    if not hasattr(calendar, "future"):
        raise ValueError(
            f"found a calendar of type {type(calendar).__name__}; expected a name such as 'XSHG', a calendar of "
            "kronos_qlib.market.calendars, or (for one instrument) a DatetimeIndex of the stamps to come"
        )
    return calendar


def frame_future(
    calendar: TradingCalendar | pd.DatetimeIndex | str | None,
    times: NDArray[np.datetime64],
    instrument: str,
    horizon: int,
) -> NDArray[np.datetime64]:
    """Return the stamps of the next ``horizon`` bars of one instrument, datetime64[ns] (horizon,).

    Raises
    ------
    ValueError : no calendar can be chosen; explicit stamps are too few, out of order or not later than the
    last bar;
        the last bar's stamp is none of the calendar's (bars stamped at their start, or in another zone).
    """
    last = times[-1]
    if isinstance(calendar, pd.DatetimeIndex):
        return _explicit(calendar, last, horizon)
    chosen = choose_calendar(calendar, times, [instrument])
    stray = off_calendar(chosen, times[-1:])
    if len(stray):
        near = future_times(chosen, times[-1:] - _DAY, 3)[0]
        raise ValueError(
            f"the last bar is stamped {pd.Timestamp(last)}, no stamp of calendar {chosen.name!r} ({chosen.freq}), "
            f"whose stamps there are {', '.join(str(pd.Timestamp(t)) for t in near)}, ...: days are stamped at "
            "midnight, intraday bars at their end, on the market's wall clock"
        )
    return future_times(chosen, times[-1:], horizon)[0]


def off_calendar(calendar: TradingCalendar, times: NDArray[np.datetime64]) -> NDArray[np.datetime64]:
    """Return the unique times that are no stamps of the calendar."""
    unique = np.unique(times)
    if len(unique) == 0:
        return unique
    known = plain_times(calendar.between(pd.Timestamp(unique[0]), pd.Timestamp(unique[-1])))
    return unique[~np.isin(unique, known)]


def warn_off_calendar(calendar: TradingCalendar, times: NDArray[np.datetime64]) -> None:
    """Warn when bars to forecast from carry stamps that the calendar does not know."""
    stray = off_calendar(calendar, times)
    if len(stray):
        warnings.warn(
            f"{len(stray)} bar stamps, first {pd.Timestamp(stray[0])}, are none of calendar {calendar.name!r} "
            f"({calendar.freq}): the stamps of their forecasts may be wrong; is it this market's calendar?",
            stacklevel=3,
        )


def _explicit(stamps: pd.DatetimeIndex, last: np.datetime64, horizon: int) -> NDArray[np.datetime64]:
    future = plain_times(stamps)
    if len(future) < horizon or (np.diff(future) <= np.timedelta64(0)).any() or (len(future) and future[0] <= last):
        first = pd.Timestamp(future[0]) if len(future) else "none"
        raise ValueError(
            f"found {len(future)} stamps to come, first {first}; expected at least {horizon}, strictly ascending, "
            f"later than the last bar {pd.Timestamp(last)}"
        )
    return future[:horizon]


def _shown(instruments: list[str]) -> str:
    named = [code or "an unnamed instrument" for code in instruments[:3]]
    return ", ".join(named) if named else "no instrument"
