"""Block mode: one forward pass answers for K consecutive bars of an instrument.

A block is a stretch of absolute time. The window that ends at the block's first bar is normalised by itself; the next
bars of the block follow in the same units, as in training. Nothing of a block depends on where a run, a panel or a
calendar begins, and, the network being causal, no bar's value depends on later ones. K = 1 is the exact per-day mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.market.calendars import ALWAYS_OPEN, TradingCalendar, parse_freq
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, segment_starts, window_lengths

# Counted from a Monday, so that blocks of five sessions are weeks.
EPOCH = np.datetime64("1970-01-05", "D")
BLOCK_RULE = 1  # raised whenever the same bars would be cut into other blocks


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """Which window answers for each row of a panel.

    Attributes
    ----------
    size : K, most bars a block answers for.
    anchors : int64 (R,)
        Row of the block's first bar that has a window; -1 where the row has none.
    lengths : int64 (R,)
        Bars of the window that ends at the anchor; 0 where the row has none.
    """

    size: int
    anchors: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def sequence(self, anchors: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Panel rows (n, length + K - 1) of the sequences of some anchors, all with windows of ``length`` bars.

        A block that holds fewer than K bars (so far) is padded with its last one.
        """
        after = np.minimum(anchors[:, None] + np.arange(self.size), len(self.anchors) - 1)
        within = self.anchors[after] == anchors[:, None]
        after = np.maximum.accumulate(np.where(within, after, anchors[:, None]), axis=1)
        return np.concatenate([anchors[:, None] + np.arange(1 - length, 0), after], axis=1)


def plan_blocks(panel: BarPanel, policy: WindowPolicy, size: int, calendar: TradingCalendar) -> BlockPlan:
    """Cut a panel into blocks of at most ``size`` bars.

    A block ends where the absolute index // size changes (:func:`absolute_index`), where the instrument or the window
    policy's segment ends, and after ``size`` bars. Whether a row begins a block is decided by bars up to it.

    Raises
    ------
    ValueError : a size below 1.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"found block={size!r}; expected a whole number of bars, 1 for exact windows")
    rows = np.arange(len(panel))
    own = window_lengths(panel, rows, policy)
    has = own > 0
    block = absolute_index(panel.timestamps, calendar) // size
    segment = segment_starts(panel, policy)
    begins = has.copy()
    begins[1:] &= ~has[:-1] | (block[1:] != block[:-1]) | (segment[1:] != segment[:-1])
    anchors = np.maximum.accumulate(np.where(begins, rows, 0))
    anchors += (rows - anchors) // size * size
    anchors = np.where(has, anchors, -1)
    return BlockPlan(int(size), anchors, np.where(has, own[anchors], 0))


def absolute_index(timestamps: NDArray[np.datetime64], calendar: TradingCalendar) -> NDArray[np.int64]:
    """Return a bar's position in absolute time, int64 (n,), from its stamp and the calendar's kind alone.

    Daily bars of an exchange: weekdays since 1970-01-05, holidays included, so that holidays make blocks shorter and
    no list of holidays ever moves them. Bars of a market that never closes, and intraday bars: steps of the frequency
    since then.
    """
    _, minutes = parse_freq(calendar.freq)
    if minutes is None and calendar.name != ALWAYS_OPEN:
        return np.busday_count(EPOCH, timestamps.astype("datetime64[D]")).astype(np.int64)
    passed = (timestamps.astype("datetime64[m]") - EPOCH.astype("datetime64[m]")).astype(np.int64)
    # an intraday stamp is the end of its bar: the bar that ends at midnight belongs to the day before
    return passed // 1440 if minutes is None else -(-passed // minutes) - 1
