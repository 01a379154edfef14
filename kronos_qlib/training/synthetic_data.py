"""Training windows of a synthetic market: which bars they hold, and how a batch is normalised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from kronos_qlib.kronos.normalise import normalise
from kronos_qlib.market.adjust import adjust_bars
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.synthetic import INDEX_CODE, SyntheticMarket
from kronos_qlib.market.windows import WindowPolicy, window_lengths


def market_panel(market: SyntheticMarket) -> BarPanel:
    """All stocks' bars in store units; the index is left out."""
    stocks = market.bars[market.bars["instrument"] != INDEX_CODE]
    return BarPanel.from_frame(adjust_bars(stocks), calendar=market.sessions)


@dataclass(frozen=True, eq=False)
class TrainingWindows:
    """Windows of ``lookback`` context bars and the bars to predict after them.

    Attributes
    ----------
    panel : BarPanel
    ends : int64 (W,)
        Panel row of each window's last bar.
    lookback, horizon : int
        A window holds ``lookback + horizon`` bars, all of one segment of the window policy.
    """

    panel: BarPanel
    ends: np.ndarray
    lookback: int
    horizon: int

    @classmethod
    def between(
        cls, panel: BarPanel, policy: WindowPolicy, horizon: int, start: pd.Timestamp, end: pd.Timestamp
    ) -> TrainingWindows:
        """All windows whose bars to predict lie from ``start`` to ``end``, both included.

        The context may begin before ``start``; no bar lies after ``end``.
        """
        length = policy.lookback + horizon
        whole = policy.of_length(length)
        times = panel.timestamps
        rows = np.flatnonzero(times <= np.datetime64(end))
        rows = rows[window_lengths(panel, rows, whole) == length]
        rows = rows[times[rows - horizon + 1] >= np.datetime64(start)]
        if len(rows) == 0:
            raise ValueError(
                f"no window of {length} bars has its last {horizon} bars from {start.date()} to {end.date()}; "
                "take a longer span or a shorter lookback"
            )
        return cls(panel, rows, policy.lookback, horizon)

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def _calendar_stamps(self) -> np.ndarray:
        return time_stamps(self.panel.calendar)

    def batch(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bars (B, L + H, 6) float32, normalised by the first L bars only and clipped, and stamps int64 (…, 5)."""
        index = self.ends[positions][:, None] + np.arange(1 - self.lookback - self.horizon, 1)
        x, _, _ = normalise(self.panel.values[index], context=self.lookback)
        return x, self._calendar_stamps[self.panel.session[index]]
