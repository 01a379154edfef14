"""Which windows teach nothing: stretches in which nobody trades or the price stands still.

The paper (arXiv 2508.02739) leaves illiquid and stagnant stretches out of its corpus. Here a stretch is a run of
bars inside a window, so that whether a window is taken depends on its own bars and on nothing after them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from kronos_qlib.training.settings import Settings

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class StretchFilter(Settings):
    """Rules that leave windows out; ``StretchFilter.off()`` leaves none out.

    Attributes
    ----------
    max_idle : int or None
        Most bars in a row without volume or without amount. The rule sleeps for a source that has no volume at all.
        None: no limit.
    max_unchanged : int or None
        Most bars in a row that close exactly where the bar before closed. In any case a window's context must
        move once: at most lookback - 2 such bars in a row. None: no limit.
    min_history : int
        Fewest bars of the segment up to the window's last bar; a window never starts before its segment, so a
        number below lookback + horizon changes nothing. Use it to skip the first weeks of a listing.
    """

    max_idle: int | None = Field(3, ge=0)
    max_unchanged: int | None = Field(10, ge=1)
    min_history: int = Field(0, ge=0)

    @classmethod
    def off(cls) -> StretchFilter:
        """No rule."""
        return cls(max_idle=None, max_unchanged=None)


def idle_bars(values: npt.NDArray[np.float32]) -> BoolArray:
    """Return which bars (R, 6) have no volume or no amount."""
    return ~((values[:, 4] > 0) & (values[:, 5] > 0))


def unchanged_bars(values: npt.NDArray[np.float32]) -> BoolArray:
    """Return which bars (R, 6) close where the row before closed."""
    close = values[:, 3]
    same = np.zeros(len(close), dtype=bool)
    same[1:] = close[1:] == close[:-1]
    return same


def longest_run_within(flags: BoolArray, firsts: IntArray, ends: IntArray, limit: int) -> BoolArray:
    """Return which windows hold no run of more than ``limit`` flagged rows.

    Parameters
    ----------
    flags : bool (R,)
    firsts, ends : int64 (W,)
        First and last row of each window, both included; rows outside do not count.
    """
    rows = np.arange(len(flags))
    run = rows - np.maximum.accumulate(np.where(flags, -1, rows))
    # the last row up to each row at which a run exceeds the limit, wherever that run began
    latest = np.maximum.accumulate(np.where(run > limit, rows, -1))
    return latest[ends] < firsts + limit
