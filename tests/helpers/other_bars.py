"""Small made-up bars of markets other than daily A-shares, each as its vendor delivers them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos_qlib.market.calendars import get_calendar


@dataclass(frozen=True)
class Market:
    """A market and what must come after its last bar, written by hand."""

    calendar: str
    freq: str
    region: str
    qlib_region: str
    codes: tuple[str, ...]
    first: str
    last: str
    following: tuple[str, ...]

    @property
    def options(self) -> dict[str, str]:
        return {"calendar": self.calendar, "freq": self.freq, "region": self.region}


MARKETS = {
    # Spring Festival: no session from 2025-01-28 to 2025-02-04
    "ashare_15min": Market(
        "XSHG", "15min", "cn", "cn", ("SH600001", "SH600002", "SH600003", "SH600004", "SH600005", "SH688001"),
        "2025-01-14", "2025-01-27 15:00", (
            "2025-02-05 09:45", "2025-02-05 10:00", "2025-02-05 10:15", "2025-02-05 10:30", "2025-02-05 10:45",
            "2025-02-05 11:00", "2025-02-05 11:15", "2025-02-05 11:30", "2025-02-05 13:15", "2025-02-05 13:30",
            "2025-02-05 13:45", "2025-02-05 14:00", "2025-02-05 14:15", "2025-02-05 14:30", "2025-02-05 14:45",
            "2025-02-05 15:00", "2025-02-06 09:45",
        ),
    ),
    # Labor Day: no session on Monday 2017-09-04
    "us_daily": Market(
        "XNYS", "day", "us", "us", ("AAPL", "BRK-B", "GE", "XOM"), "2017-04-03", "2017-09-01",
        ("2017-09-05", "2017-09-06", "2017-09-07", "2017-09-08", "2017-09-11"),
    ),
    "btc_5min": Market(
        "24/7", "5min", "crypto", "us", ("BTCUSDT",), "2026-01-31", "2026-01-31 23:50",
        ("2026-01-31 23:55", "2026-02-01 00:00", "2026-02-01 00:05", "2026-02-01 00:10"),
    ),
}  # fmt: skip


def make_bars(name: str) -> pd.DataFrame:
    """Random walks on all stamps of the market between its first and its last bar, columns as in the vendor's file."""
    market = MARKETS[name]
    stamps = get_calendar(market.calendar, market.freq).between(pd.Timestamp(market.first), pd.Timestamp(market.last))
    frames = [_walk(code, stamps, seed) for seed, code in enumerate(market.codes)]
    bars = pd.concat(frames, ignore_index=True)
    if name == "ashare_15min":
        return bars.assign(amount=bars["volume"] * bars[["open", "high", "low", "close"]].mean(axis=1).round(4))
    if name == "us_daily":  # a split into two after 2017-06-30, seen in adj_close only
        split = bars["datetime"] <= "2017-06-30"
        return bars.assign(adj_close=bars["close"].where(~split, bars["close"] * 0.5))
    return bars


def _walk(code: str, stamps: pd.DatetimeIndex, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    close = (20 * np.exp(np.cumsum(random.normal(0, 0.001, len(stamps))))).round(2)
    opens = np.concatenate([[20.0], close[:-1]])
    frame = pd.DataFrame({"instrument": code, "datetime": stamps, "open": opens})
    frame["high"] = np.maximum(opens, close) + 0.01
    frame["low"], frame["close"] = np.minimum(opens, close) - 0.01, close
    return frame.assign(volume=random.integers(10, 1000, len(stamps)) * 100.0)
