"""Checks of stamps: frequency, calendar, missing bars, suspensions, instruments of one bar."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from kronos_qlib.market.checks import CheckContext
from kronos_qlib.market.columns import calendar_days, starts_day
from kronos_qlib.market.report import CheckResult, plain_rows


def time_checks(context: CheckContext) -> list[CheckResult]:
    """Every check of stamps."""
    return [
        _frequency(context),
        _future_bars(context),
        *_calendar(context),
        _missing_bars(context),
        _suspensions(context),
        _single_bars(context),
    ]


def _frequency(context: CheckContext) -> CheckResult:
    columns, minutes = context.columns, context.minutes
    of_day = (columns.stamps - columns.days) / np.timedelta64(1, "m")
    if minutes is None:
        text = "daily bars stamped within the day; expected midnight (are these intraday bars?)"
        return context.result("frequency", "error", of_day != 0, text)
    # Sessions open on the half hour, so that longer bars are aligned to 30 minutes only.
    off_grid = of_day % math.gcd(minutes, 30) != 0
    steps = np.diff(of_day)[~starts_day(columns)[1:]]
    usual = _mode(steps)
    if (usual is None and _has_two_days(context)) or (usual is not None and usual != minutes):
        found = "one bar a day" if usual is None else f"steps of {usual:g} minutes"
        text = f"{found} within days; expected steps of {minutes} minutes (is freq right?)"
        return context.result("frequency", "error", np.ones(len(columns), dtype=bool), text)
    return context.result("frequency", "error", off_grid, f"bars stamped off the grid of {minutes} minutes")


def latest_stamp() -> np.datetime64:
    """Return the latest wall clock on Earth now (UTC + 14 h) by this machine's clock, datetime64[ns]."""
    return (pd.Timestamp.now("UTC") + pd.Timedelta("14h")).tz_localize(None).as_unit("ns").to_datetime64()


def _future_bars(context: CheckContext) -> CheckResult:
    text = "bars stamped in the future by this machine's clock (wrong year, or a forecast among the bars?)"
    return context.result("future_bars", "error", context.columns.stamps > latest_stamp(), text)


def _mode(steps: np.ndarray) -> float | None:
    steps = steps[steps > 0]
    if not len(steps):
        return None
    found, counts = np.unique(steps, return_counts=True)
    return float(found[counts.argmax()])


def _has_two_days(context: CheckContext) -> bool:
    return bool((context.since > 0).any())


def _calendar(context: CheckContext) -> list[CheckResult]:
    if context.calendar is None:
        return []
    days, sessions = context.columns.days, calendar_days(context.calendar)
    found = np.unique(days)
    strange = np.isin(days, np.setdiff1d(found, sessions))
    text = "bars on dates that are no session of the calendar (wrong calendar, or wrong dates?)"
    inside = sessions[(sessions >= found[0]) & (sessions <= found[-1])] if len(found) else sessions[:0]
    empty = np.setdiff1d(inside, found)
    examples = plain_rows({"datetime": day} for day in empty[: context.max_examples])
    nobody = "sessions without a bar of any instrument"
    return [
        context.result("off_calendar", "error", strange, text),
        CheckResult("empty_sessions", "warning", len(empty), examples, nobody),
    ]


def _missing_bars(context: CheckContext) -> CheckResult:
    """Bars missing inside traded days (intraday), or inside the history of a market that never closes."""
    columns = context.columns
    if context.minutes is None:
        missing = np.zeros(len(columns), dtype=np.int64)
    elif context.region == "crypto":
        steps = np.diff(columns.stamps, prepend=columns.stamps[:1]) // np.timedelta64(context.minutes, "m")
        missing = np.where(columns.first, 0, np.maximum(steps - 1, 0))
    else:
        missing = _missing_in_days(context)
    text = "bars missing within traded days" if context.region != "crypto" else "bars missing before these"
    total, extra = int(missing.sum()), {"missing": missing}
    return context.result("missing_bars", "warning", missing > 0, text, extra=extra, count=total)


def _missing_in_days(context: CheckContext) -> np.ndarray:
    columns = context.columns
    starts = starts_day(columns)
    day_of_row, days = pd.factorize(columns.days)
    slots = pd.Series(pd.DatetimeIndex(np.unique(columns.stamps)).normalize()).value_counts()
    expected = slots.reindex(days).to_numpy()[day_of_row]
    group = np.cumsum(starts) - 1
    own = np.bincount(group)[group] if len(group) else group
    return np.where(starts, np.maximum(expected - own, 0), 0)


def _suspensions(context: CheckContext) -> CheckResult:
    absent = np.maximum(context.since - 1, 0) * starts_day(context.columns)
    message = "no instrument misses a session between its first and its last bar"
    if absent.any():
        worst = int(absent.argmax())
        name = context.columns.names[context.columns.code[worst]]
        message = (
            f"gaps of one or more sessions, {int(absent.sum()):,} sessions in all; the longest has"
            f" {int(absent.max())} ({name})"
        )
    return context.result("suspensions", "info", absent > 0, message, extra={"absent": absent}, by=absent)


def _single_bars(context: CheckContext) -> CheckResult:
    columns = context.columns
    counts = np.bincount(columns.code, minlength=len(columns.names))
    return context.result("single_bars", "info", counts[columns.code] == 1, "instruments with one bar only")
