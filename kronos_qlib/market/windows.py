"""The one rule that says which bars a window may hold, and the cutting of windows from a panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps

POLICY_VERSION = "1"


@dataclass(frozen=True)
class WindowPolicy:
    """Which bars may share a window; the same policy holds in training and in inference.

    Attributes
    ----------
    lookback : int
        Most bars in a window.
    min_bars : int
        Fewest bars; an instrument with fewer has no window. 30 bars (six weeks) are about what a z-score with
        a standard deviation known to some 13 % needs; younger listings get no score rather than a guess.
    max_gap : int or None
        Longest suspension inside a window, in trading days of the panel's calendar that pass without a bar,
        whatever the frequency (the days of a 24/7 market are those of its calendar); one day more starts a new
        segment. Bars missing within a day never do. None: never.
    max_jump : float or None
        Largest |close / previous traded close - 1| in adjusted prices. A larger one is no trading under a
        price limit but a resumption or a missing adjustment; its bar starts a new segment. None: never,
        which suits markets without limits (US stocks, crypto).
    version : str
        Version of the rule; changes whenever the same fields would cut other windows.
    """

    lookback: int = 90
    min_bars: int = 30
    max_gap: int | None = 60
    max_jump: float | None = 0.30
    version: str = POLICY_VERSION

    def __post_init__(self) -> None:
        if self.lookback < 1 or not 1 <= self.min_bars <= self.lookback:
            found = f"min_bars={self.min_bars}, lookback={self.lookback}"
            raise ValueError(f"found {found}; expected 1 <= min_bars <= lookback")
        if self.max_gap is not None and self.max_gap < 0:
            raise ValueError(f"found max_gap={self.max_gap}; expected sessions >= 0, or None for no limit")
        if self.max_jump is not None and not self.max_jump > 0:
            raise ValueError(f"found max_jump={self.max_jump}; expected a fraction > 0 (0.3 for 30 %) or None")
        if self.version != POLICY_VERSION:
            raise ValueError(
                f"found window policy version {self.version!r}; this release cuts version {POLICY_VERSION!r}"
            )

    @classmethod
    def up_to(cls, lookback: int, **rules: Any) -> WindowPolicy:
        """Return the default rule for this lookback; ``min_bars`` is lowered where the lookback is shorter still."""
        return cls(lookback=lookback, min_bars=min(cls.min_bars, lookback), **rules)

    def of_length(self, bars: int) -> WindowPolicy:
        """Return the rule for windows of just so many bars, with the same gaps and jumps."""
        return replace(self, lookback=bars, min_bars=bars)

    def to_dict(self) -> dict[str, int | float | str | None]:
        """Return the fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class WindowBatch:
    """Windows of one length.

    Attributes
    ----------
    rows : int64 (B,)
        Panel row of each window's last bar.
    positions : int64 (B,)
        Where these rows stand in the ``rows`` given to ``iter_windows``.
    values : float32 (B, L, 6)
        Bars in panel units, oldest first.
    stamps : int64 (B, L, 5)
    timestamps : datetime64[ns] (B,)
        Stamp of each window's last bar.
    instruments : list of str, length B
    """

    rows: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    stamps: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.datetime64]
    instruments: list[str]


def segment_starts(panel: BarPanel, policy: WindowPolicy) -> npt.NDArray[np.int64]:
    """Return, for each row, the earliest row that a window ending there may hold.

    Whether a bar starts a segment is decided by it and the bar before it, so row r uses bars up to r only.

    Returns
    -------
    int64 (R,)
    """
    count = len(panel)
    starts = np.zeros(count, dtype=bool)
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    if policy.max_gap is not None:
        starts[1:] |= np.diff(panel.day) - 1 > policy.max_gap
    if policy.max_jump is not None:
        close = panel.values[:, 3].astype(np.float64)
        # A zero or negative close is no base for a ratio; the comparison is then made as a product and cuts.
        starts[1:] |= ~(np.abs(close[1:] - close[:-1]) <= policy.max_jump * close[:-1])
    starts[panel.offsets[:-1]] = True
    return np.maximum.accumulate(np.where(starts, np.arange(count), 0)).astype(np.int64)


def window_lengths(panel: BarPanel, rows: npt.NDArray[np.int64], policy: WindowPolicy) -> npt.NDArray[np.int64]:
    """Return the number of bars in the window that ends at each row.

    Parameters
    ----------
    rows : int64 (n,)
        Panel rows; -1 (no bar) has no window.

    Returns
    -------
    int64 (n,)
        0 where fewer than ``min_bars`` bars may be used.
    """
    rows = _checked(panel, rows)
    lengths = np.zeros(len(rows), dtype=np.int64)
    known = rows >= 0
    first = segment_starts(panel, policy)[rows[known]]
    lengths[known] = np.minimum(rows[known] - first + 1, policy.lookback)
    lengths[lengths < policy.min_bars] = 0
    return lengths


def iter_windows(
    panel: BarPanel, rows: npt.NDArray[np.int64], policy: WindowPolicy, batch_size: int
) -> Iterator[WindowBatch]:
    """Yield the windows that end at the given rows, one length a batch, longest first.

    A row without a window is left out. Rows of one length keep the given order, and a window's content does
    not depend on the other rows. Memory is bounded by ``batch_size``.
    """
    if batch_size < 1:
        raise ValueError(f"found batch_size={batch_size}; expected at least 1")
    rows = _checked(panel, rows)
    lengths = window_lengths(panel, rows, policy)
    calendar_stamps = time_stamps(panel.calendar)
    for length in np.unique(lengths[lengths > 0])[::-1]:
        positions = np.flatnonzero(lengths == length)
        for begin in range(0, len(positions), batch_size):
            chosen = positions[begin : begin + batch_size]
            yield _cut(panel, rows[chosen], chosen, int(length), calendar_stamps)


def _cut(
    panel: BarPanel,
    rows: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    length: int,
    calendar_stamps: npt.NDArray[np.int64],
) -> WindowBatch:
    index = rows[:, None] + np.arange(1 - length, 1)
    return WindowBatch(
        rows=rows,
        positions=positions,
        values=panel.values[index],
        stamps=calendar_stamps[panel.session[index]],
        timestamps=panel.timestamps[rows],
        instruments=panel.instrument_names(rows),
    )


def _checked(panel: BarPanel, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    rows = np.asarray(rows, dtype=np.int64)
    if rows.ndim != 1:
        raise ValueError(f"found rows of shape {rows.shape}; expected one dimension")
    if len(rows) and (rows.min() < -1 or rows.max() >= len(panel)):
        raise ValueError(f"found rows from {rows.min()} to {rows.max()}; expected -1 to {len(panel) - 1}")
    return rows
