"""Forecasts small enough to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.forecast.paths import KlinePaths, window_index


def make_paths(closes: Any, last_close: Any, first_day: str = "2020-01-02") -> KlinePaths:
    """Flat bars at the given closes (W, P, S), volume 1, amount the close; windows on consecutive days."""
    close = np.asarray(closes, dtype=np.float32)
    windows, _, steps = close.shape
    ones = np.ones_like(close)
    days = pd.date_range(first_day, periods=windows + steps).to_numpy().astype("datetime64[ns]")
    return KlinePaths(
        values=np.stack([close, close, close, close, ones, close], axis=-1),
        index=window_index(days[:windows], [f"SH60000{i}" for i in range(windows)]),
        last_close=np.asarray(last_close, dtype=np.float32),
        center=np.zeros((windows, 6), dtype=np.float32),
        scale=np.ones((windows, 6), dtype=np.float32),
        timestamps=np.stack([days[i + 1 : i + 1 + steps] for i in range(windows)]),
    )
