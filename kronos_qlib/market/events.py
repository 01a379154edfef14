"""Events of a bar as bits of an integer: what happened on it that a model or a backtest should know."""

from __future__ import annotations

import enum

import numpy as np
import pandas as pd

from kronos_qlib.market.board import TICK, column_fractions, limit_prices, reference_prices
from kronos_qlib.market.columns import BarColumns, sessions_since, starts_day
from kronos_qlib.market.fields import PRICE_FIELDS

# Smallest price step of each region; a coin's step depends on the coin: only float noise is forgiven there.
REGION_TICKS = {"cn": TICK, "us": TICK, "crypto": 0.0}


class Event(enum.IntFlag):
    """Bits of ``$event``. Each is known once the bar has closed.

    Attributes
    ----------
    RESUMED
        First bar after at least one session without a bar of this instrument.
    LIMIT_UP, LIMIT_DOWN
        The close is the day's limit price (region ``cn``; the reference is the close of the day before).
    GAP
        The open lies more than a tick outside the previous bar's low to high, put into today's price scale.
    REPAIRED
        A value of the bar was repaired, see ``kronos_qlib.market.repair``.
    """

    RESUMED = 1
    LIMIT_UP = 2
    LIMIT_DOWN = 4
    GAP = 8
    REPAIRED = 16


def event_bits(
    frame: pd.DataFrame,
    *,
    calendar: pd.DatetimeIndex | None = None,
    region: str = "cn",
    tick: float | None = None,
) -> np.ndarray:
    """Events of every bar.

    Parameters
    ----------
    frame : DataFrame
        Bars in the vendor format (raw prices and ``factor``, 1 when absent), one row a traded bar, any order.
        A boolean column ``repaired`` marks repaired bars.
    calendar : DatetimeIndex, optional
        Sessions. Without it, the dates on which any instrument of the frame has a bar.
    region : {"cn", "us", "crypto"}
        Only ``cn`` has price limits.
    tick : float, optional
        Smallest price step; by default that of the region.

    Returns
    -------
    int64 (R,)
        Bits of ``Event``, in the order of the frame. A comparison with a missing price sets no bit.

    Raises
    ------
    ValueError
        When a column is absent, a key is missing, stamps have a time zone, or the region is unknown.

    Notes
    -----
    A bar dated t uses bars up to t, and the calendar only up to t: later bars never change it.
    """
    tick = region_tick(region) if tick is None else tick
    absent = [name for name in PRICE_FIELDS if name not in frame]
    if absent:
        raise ValueError(f"bars lack the columns {absent}; found {list(map(str, frame.columns))}")
    columns = BarColumns.from_frame(frame, (*PRICE_FIELDS, "factor", "repaired"))
    bits = np.zeros(len(columns), dtype=np.int64)
    bits[resumptions(columns, calendar)] |= Event.RESUMED
    if region == "cn":
        at_down, at_up = closes_at_limit(columns, tick)
        bits[at_up] |= Event.LIMIT_UP
        bits[at_down] |= Event.LIMIT_DOWN
    bits[opening_gaps(columns, tick)] |= Event.GAP
    if "repaired" in columns.values:
        bits[columns.values["repaired"] == 1] |= Event.REPAIRED
    return columns.to_frame_order(bits)


def resumptions(columns: BarColumns, calendar: pd.DatetimeIndex | None = None) -> np.ndarray:
    """True on the first bar after one or more sessions without a bar, bool (R,)."""
    return starts_day(columns) & (sessions_since(columns, calendar) > 1)


def closes_at_limit(columns: BarColumns, tick: float = TICK) -> tuple[np.ndarray, np.ndarray]:
    """Where the close is the day's lower and upper limit price, two bool (R,).

    Within half a tick on the inner side and one tick on the outer; a close farther out had no such limit.
    """
    reference = reference_prices(columns)
    down, up = limit_prices(reference, column_fractions(columns), tick)
    close = columns.values["close"]
    outer, inner = price_slack(reference, tick), 0.5 * tick
    return (close <= down + inner) & (close >= down - outer), (close >= up - inner) & (close <= up + outer)


def opening_gaps(columns: BarColumns, tick: float = TICK) -> np.ndarray:
    """True where the open is over a tick outside the previous bar's range in today's scale, bool (R,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = columns.previous_bar("factor") / columns.factor
    open_ = columns.values["open"]
    high, low = columns.previous_bar("high") * scale, columns.previous_bar("low") * scale
    slack = price_slack(open_, tick)
    return (open_ > high + slack) | (open_ < low - slack)


def price_slack(prices: np.ndarray, tick: float = TICK) -> np.ndarray:
    """One tick and the noise of float32, in price, float64 (R,)."""
    return 1.01 * tick + 1e-6 * np.abs(prices)


def region_tick(region: str) -> float:
    """Smallest price step of a region; ``ValueError`` when the region is unknown."""
    if region not in REGION_TICKS:
        raise ValueError(f"unknown region {region!r}; expected one of {', '.join(REGION_TICKS)}")
    return REGION_TICKS[region]
