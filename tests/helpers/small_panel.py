"""A handful of instruments with random bars on real sessions, for tests of forecasting."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.panel import BarPanel

# Bars of each instrument before the last session: 600002 is younger than a window, 600003 too young for one.
HISTORY = {"SH600000": 60, "SH600001": 60, "SH600002": 36, "SH600003": 10, "SZ000001": 60}
LAST = pd.Timestamp("2020-01-23")  # the last session before a Spring Festival that lasted to 2020-02-03


def bars(n: int, last: pd.Timestamp = LAST, seed: int = 0) -> pd.DataFrame:
    """Daily bars of one instrument up to ``last``, indexed by session."""
    sessions = get_calendar("XSHG").between(pd.Timestamp("2019-06-03"), last)[-n:]
    random = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(random.normal(0, 0.02, n)))
    opens = close * np.exp(random.normal(0, 0.01, n))
    frame = pd.DataFrame({"open": opens, "high": np.maximum(opens, close) * 1.01}, index=sessions)
    frame["low"], frame["close"] = np.minimum(opens, close) * 0.99, close
    frame["volume"] = random.uniform(1e5, 1e6, n)
    frame["amount"] = frame["volume"] * frame["close"]
    return frame


def instrument_bars() -> dict[str, pd.DataFrame]:
    """Bars of every instrument of ``HISTORY``."""
    return {code: bars(n, seed=i) for i, (code, n) in enumerate(HISTORY.items())}


def make_panel(frames: dict[str, pd.DataFrame] | None = None) -> BarPanel:
    """All instruments in one panel."""
    frames = instrument_bars() if frames is None else frames
    return BarPanel.from_frame(pd.concat(frames, names=["instrument", "datetime"]))
