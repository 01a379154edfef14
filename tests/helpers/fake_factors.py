"""A source of factors without a network: means of the last bars, with a log of what was computed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.market.panel import BarPanel

LENGTH = 5
COLUMNS = ("mean_close", "last_return")


class FakeSource:
    """Mean close and return over the last five bars of each row; NaN with fewer.

    ``log``: a file that gets one line ``instrument date`` for each row computed. ``pause``: seconds a batch takes.
    """

    def __init__(self, panel: BarPanel, log: Path | None = None, pause: float = 0.0, **description: Any) -> None:
        self.panel, self.log, self.pause = panel, log, pause
        self.columns = COLUMNS
        self.description = {"weights": "w0", "sampling": {"n_paths": 10}, **description}

    def windows(self, rows: np.ndarray) -> list[np.ndarray]:
        starts = self.panel.offsets[self.panel.codes[rows]]
        return [
            self.panel.values[max(start, row - LENGTH + 1) : row + 1] for row, start in zip(rows, starts, strict=True)
        ]

    def data_keys(self, rows: np.ndarray) -> np.ndarray:
        digests = (hashlib.blake2b(window.tobytes(), digest_size=8).digest() for window in self.windows(rows))
        return np.frombuffer(b"".join(digests), dtype=np.uint64)

    def compute(self, rows: np.ndarray) -> np.ndarray:
        time.sleep(self.pause)
        values = np.full((len(rows), len(COLUMNS)), np.nan, dtype=np.float32)
        for position, window in enumerate(self.windows(rows)):
            if len(window) == LENGTH:
                values[position] = window[:, 3].mean(), window[-1, 3] / window[0, 3] - 1
        if self.log is not None:
            names = self.panel.instrument_names(rows)
            days = pd.DatetimeIndex(self.panel.timestamps[rows]).strftime("%Y-%m-%d")
            text = "".join(f"{name} {day}\n" for name, day in zip(names, days, strict=True))
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, text.encode())  # one write, so that two processes do not mix lines
            os.close(descriptor)
        return values


def fake_bars(instruments: int = 6, sessions: int = 60, last: str = "2020-02-14", seed: int = 0) -> pd.DataFrame:
    """Bars of a few instruments over the turn of a year, with the keys as columns."""
    days = pd.bdate_range(end=last, periods=sessions, name="datetime")
    random = np.random.default_rng(seed)
    frames = []
    for number in range(instruments):
        close = 10 * np.exp(np.cumsum(random.normal(0, 0.02, sessions)))
        frame = pd.DataFrame({"open": close, "high": close * 1.01, "low": close * 0.99, "close": close}, index=days)
        frame["volume"] = random.uniform(1e5, 1e6, sessions)
        frame["amount"] = frame["volume"] * close
        frames.append(frame.assign(instrument=f"SH60000{number}").reset_index())
    return pd.concat(frames, ignore_index=True)


def fake_panel(frame: pd.DataFrame | None = None) -> BarPanel:
    return BarPanel.from_frame(fake_bars() if frame is None else frame)


def logged(log: Path) -> list[str]:
    """Rows computed so far."""
    return log.read_text().splitlines() if log.exists() else []
