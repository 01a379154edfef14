"""The contract of bars: everything a frame must satisfy before a model may read it, as one report."""

from __future__ import annotations

import pandas as pd

from kronos_qlib.market.checks import CheckSettings, bar_minutes, make_context
from kronos_qlib.market.checks_limits import limit_checks
from kronos_qlib.market.checks_structure import form_checks, key_checks, missing_keys
from kronos_qlib.market.checks_time import time_checks
from kronos_qlib.market.checks_values import empty_bar_check, value_checks
from kronos_qlib.market.columns import BarColumns
from kronos_qlib.market.events import region_tick
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.reading import read_bars
from kronos_qlib.market.report import CheckResult, ContractReport, format_stamp
from kronos_qlib.market.rules import empty_bars

__all__ = ["CONTRACT_VERSION", "CheckResult", "ContractReport", "check_bars", "read_bars"]

CONTRACT_VERSION = "1"


def check_bars(
    frame: pd.DataFrame,
    *,
    freq: str = "day",
    calendar: pd.DatetimeIndex | None = None,
    region: str = "cn",
    tick: float | None = None,
    max_examples: int = 10,
    stale_run: int | None = None,
) -> ContractReport:
    """Check a frame of bars and report what is wrong or odd. The frame is not changed.

    Parameters
    ----------
    frame : DataFrame
        Bars in the vendor format: ``instrument``, ``datetime``, ``open``, ``high``, ``low``, ``close`` and,
        where known, ``volume``, ``amount``, ``factor``. Raw prices; a suspended day is an absent row.
    freq : str
        ``day``, or minutes such as ``15min``.
    calendar : DatetimeIndex, optional
        Sessions. Without it, the dates that occur (every day for ``crypto``).
    region : {"cn", "us", "crypto"}
        Only ``cn`` has price limits and indices; it also sets the tick.
    tick : float, optional
        Smallest price step, by default that of the region.
    max_examples : int
        Examples kept for each check.
    stale_run : int, optional
        Identical bars in a row that count as stale: 5 by default, for intraday bars more than a whole day.

    Returns
    -------
    ContractReport
        When columns, dtypes or the time zone are wrong, only those checks are in it.

    Raises
    ------
    ValueError
        An unknown ``freq`` or ``region``; never because of the bars.
    """
    minutes = bar_minutes(freq)
    tick = region_tick(region) if tick is None else tick
    checks = form_checks(frame)
    columns = None
    if not any(check.severity == "error" and check.count for check in checks):
        checks += key_checks(frame, max_examples)
        columns = BarColumns.from_frame(frame[~missing_keys(frame)], (*BAR_FIELDS, "factor"))
        settings = CheckSettings(minutes, calendar, region, tick, max_examples, stale_run)
        checks.append(empty_bar_check(make_context(columns, settings)))
        context = make_context(columns.keep(~empty_bars(columns.values)), settings)
        checks += [*time_checks(context), *value_checks(context), *limit_checks(context)]
    return _report(checks, frame, columns, freq, region)


def _report(
    checks: list[CheckResult], frame: pd.DataFrame, columns: BarColumns | None, freq: str, region: str
) -> ContractReport:
    checks = [_bars_check(frame), *checks]
    if columns is None or not len(columns):
        return ContractReport(checks, len(frame), 0, None, None, freq, region, CONTRACT_VERSION)
    start, end = (format_stamp(pd.Timestamp(stamp)) for stamp in (columns.stamps.min(), columns.stamps.max()))
    instruments = int(columns.first.sum())
    return ContractReport(checks, len(frame), instruments, start, end, freq, region, CONTRACT_VERSION)


def _bars_check(frame: pd.DataFrame) -> CheckResult:
    return CheckResult("bars", "error", 0 if len(frame) else 1, [], "the frame must hold at least one bar")
