"""Small corpora whose numbers can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.corpus import Corpus

POLICY = WindowPolicy(max_gap=60, max_jump=None)


def walk(stamps: pd.DatetimeIndex, instrument: str, seed: int) -> pd.DataFrame:
    """A random walk with volume on these stamps."""
    random = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(random.normal(0, 0.02, len(stamps))))
    opens = close * np.exp(random.normal(0, 0.01, len(stamps)))
    volume = random.uniform(1e5, 1e6, len(stamps))
    return pd.DataFrame(
        {
            "datetime": stamps,
            "instrument": instrument,
            "open": opens,
            "high": np.maximum(opens, close) * 1.01,
            "low": np.minimum(opens, close) * 0.99,
            "close": close,
            "volume": volume,
            "amount": volume * close,
        }
    )


def daily_frame(n_bars: int = 60, codes: tuple[str, ...] = ("SH600000", "SH600001", "SZ000001")) -> pd.DataFrame:
    """Daily bars of some instruments on the first sessions of 2019; each code starts five sessions later."""
    days = get_calendar("XSHG").between(pd.Timestamp("2019-01-01"), pd.Timestamp("2019-12-31"))
    frames = [walk(days[5 * i : 5 * i + n_bars], code, i) for i, code in enumerate(codes)]
    return pd.concat(frames, ignore_index=True)


def intraday_frame(n_bars: int = 64, code: str = "SH600000") -> pd.DataFrame:
    """15-minute bars of one instrument."""
    slots = get_calendar("XSHG", "15min").between(pd.Timestamp("2019-01-01"), pd.Timestamp("2019-02-28"))
    return walk(slots[:n_bars], code, 9)


def corpus_of(folder: Path, **frames: pd.DataFrame) -> Corpus:
    """One source for each frame."""
    return Corpus.from_panels(folder, {name: BarPanel.from_frame(frame) for name, frame in frames.items()}, POLICY)
