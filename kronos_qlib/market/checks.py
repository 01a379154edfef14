"""What all checks of bars share: their settings, and how a mask becomes a result with examples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos_qlib.market.board import is_index
from kronos_qlib.market.columns import BarColumns, sessions_since
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.report import CheckResult, Severity, plain_rows


@dataclass(frozen=True)
class CheckSettings:
    """Settings of a run of checks.

    Attributes
    ----------
    minutes : int or None
        Length of a bar; None for daily bars.
    calendar : DatetimeIndex or None
        Sessions, None for the dates that occur.
    region : {"cn", "us", "crypto"}
    tick : float
        Smallest price step.
    max_examples : int
        How many examples a check keeps.
    stale_run : int or None
        From how many identical bars on a run is stale; None for the default of the frequency.
    """

    minutes: int | None
    calendar: pd.DatetimeIndex | None
    region: str
    tick: float
    max_examples: int
    stale_run: int | None


@dataclass(frozen=True)
class CheckContext:
    """Sorted bars and the settings of a run of checks.

    Attributes
    ----------
    columns : BarColumns
        All bars.
    minutes : int or None
        Length of a bar; None for daily bars.
    calendar : DatetimeIndex or None
        Sessions, None for the dates that occur.
    region : {"cn", "us", "crypto"}
    tick : float
        Smallest price step.
    max_examples : int
        How many examples a check keeps.
    stale_run : int
        From how many identical bars on a run is stale.
    since : int64 (R,)
        Sessions since the instrument's previous day, see ``sessions_since``.
    """

    columns: BarColumns
    minutes: int | None
    calendar: pd.DatetimeIndex | None
    region: str
    tick: float
    max_examples: int
    stale_run: int
    since: np.ndarray

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """Numeric columns."""
        return self.columns.values

    @property
    def of_index(self) -> np.ndarray:
        """True on bars of an A-share index, bool (R,)."""
        if self.region != "cn":
            return np.zeros(len(self.columns), dtype=bool)
        return is_index(self.columns.names)[self.columns.code]

    def result(
        self,
        name: str,
        severity: Severity,
        mask: np.ndarray,
        message: str,
        *,
        extra: Mapping[str, np.ndarray] | None = None,
        by: np.ndarray | None = None,
        count: int | None = None,
    ) -> CheckResult:
        """Result of a mask (R,): its count, and examples with the largest ``by`` first (else in order)."""
        rows = np.flatnonzero(mask)
        found = len(rows)
        if by is not None:
            rows = rows[np.argsort(-by[rows], kind="stable")]
        examples = [self._example(row, extra or {}) for row in rows[: self.max_examples]]
        return CheckResult(name, severity, found if count is None else count, plain_rows(examples), message)

    def _example(self, row: int, extra: Mapping[str, np.ndarray]) -> dict[str, object]:
        columns = self.columns
        example = {"instrument": columns.names[columns.code[row]], "datetime": columns.stamps[row]}
        example |= {name: columns.values[name][row] for name in BAR_FIELDS if name in columns.values}
        return example | {name: array[row] for name, array in extra.items()}


def session_calendar(columns: BarColumns, calendar: pd.DatetimeIndex | None, region: str) -> pd.DatetimeIndex | None:
    """Return the sessions to compare with: those given, every day for ``crypto``, else None."""
    if calendar is not None or region != "crypto" or not len(columns):
        return calendar
    return pd.date_range(columns.days.min(), columns.days.max(), freq="D")


def make_context(columns: BarColumns, settings: CheckSettings) -> CheckContext:
    """Bars and settings of a run of checks, with the settings that depend on the bars filled in."""
    calendar = session_calendar(columns, settings.calendar, settings.region)
    stale_run = settings.stale_run
    if stale_run is None:
        # An intraday price locked at its limit repeats for a whole day and is no fault.
        stale_run = 5 if settings.minutes is None else 1 + _most_bars_a_day(columns)
    return CheckContext(
        columns=columns,
        minutes=settings.minutes,
        calendar=calendar,
        region=settings.region,
        tick=settings.tick,
        max_examples=settings.max_examples,
        stale_run=stale_run,
        since=sessions_since(columns, calendar),
    )


def bar_minutes(freq: str) -> int | None:
    """Minutes of a bar, None for ``day``; ``ValueError`` for another text."""
    if freq == "day":
        return None
    match = re.fullmatch(r"([1-9]\d*)min", freq)
    if match is None:
        raise ValueError(f"unknown freq {freq!r}; expected 'day' or minutes such as '15min'")
    return int(match.group(1))


def _most_bars_a_day(columns: BarColumns) -> int:
    if not len(columns):
        return 1
    return int(pd.Series(columns.days).groupby([columns.code, columns.days]).size().max())
