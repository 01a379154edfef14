"""The synthetic index: who is in it when, and its own bars."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_qlib.market.synthetic_simulation import Bars

REVIEW_MONTHS = (1, 7)
SEASONING = 120  # bars before a new listing may enter
MEASURED = 120  # sessions over which traded value is averaged at a review
BUFFER = 0.15  # members stay while they rank within (1 + BUFFER) × size, as real index rules have it
INDEX_BASE = 3_000.0


def make_members(bars: Bars, sessions: pd.DatetimeIndex, listings: pd.DataFrame, size: int) -> pd.DataFrame:
    """Membership spans from half-yearly reviews, each of which reads bars before its day only.

    On the first session, and on the first sessions of January and July, stocks are ranked by mean traded
    value over the last 120 sessions; the largest ``size`` are in, with a buffer in favour of members. A stock
    that is delisted leaves at its last session and is not replaced before the next review. On the first day
    the choice is by number of shares.

    Returns
    -------
    DataFrame
        instrument, start, end: days, both inside the span; sorted by instrument and start.
    """
    reviews = [0, *(d for d in range(1, len(sessions)) if _is_review(sessions, d))]
    delisted = listings["delisted"].to_numpy()
    codes = listings.index.to_numpy()
    inside = np.zeros((len(sessions), len(codes)), dtype=bool)
    members = np.zeros(len(codes), dtype=bool)
    for begin, until in zip(reviews, [*reviews[1:], len(sessions)], strict=True):
        members = _review(bars, listings, members, begin, size)
        days = np.arange(begin, until)[:, None]
        inside[begin:until] = members & (days < delisted)
    return _spans(inside, sessions, codes)


def _is_review(sessions: pd.DatetimeIndex, day: int) -> bool:
    return sessions[day].month in REVIEW_MONTHS and sessions[day].month != sessions[day - 1].month


def _review(bars: Bars, listings: pd.DataFrame, members: np.ndarray, day: int, size: int) -> np.ndarray:
    """Members from the session at position ``day``, bool (I,), chosen from bars before it."""
    listed, delisted = listings["listed"].to_numpy(), listings["delisted"].to_numpy()
    if day == 0:
        value = np.where(listed == 0, listings["shares"].to_numpy() * listings["first_price"].to_numpy(), 0.0)
    else:
        value = np.nan_to_num(bars.amount[max(0, day - MEASURED) : day]).mean(axis=0)
        seasoned = (listed == 0) | ((~np.isnan(bars.close[:day])).sum(axis=0) >= SEASONING)
        value = np.where(seasoned & (delisted > day), value, 0.0)
    rank = np.empty(len(value), dtype=np.int64)
    rank[np.argsort(-value, kind="stable")] = np.arange(len(value))
    # a member inside the buffer is placed before every newcomer; then the first `size` are taken
    kept = members & (rank < (1 + BUFFER) * size)
    order = np.lexsort((rank, ~kept))
    chosen = np.zeros(len(value), dtype=bool)
    chosen[order[:size]] = True
    return chosen & (value > 0)


def _spans(inside: np.ndarray, sessions: pd.DatetimeIndex, codes: np.ndarray) -> pd.DataFrame:
    edges = np.diff(np.pad(inside.astype(np.int8), ((1, 1), (0, 0))), axis=0)
    first_column, first = np.nonzero(edges.T == 1)
    _, last = np.nonzero(edges.T == -1)
    return pd.DataFrame(
        {"instrument": codes[first_column].astype(str), "start": sessions[first], "end": sessions[last - 1]}
    )


def members_on(members: pd.DataFrame, index: pd.MultiIndex) -> np.ndarray:
    """Whether each (datetime, instrument) of the index is a member on its day, bool (len(index),)."""
    days = index.get_level_values("datetime").to_numpy()
    codes = index.get_level_values("instrument")
    inside = np.zeros(len(index), dtype=bool)
    positions = pd.Series(np.arange(len(index))).groupby(np.asarray(codes)).indices
    starts, ends = (members[side].to_numpy(dtype="datetime64[ns]") for side in ("start", "end"))
    for instrument, start, end in zip(members["instrument"], starts, ends, strict=True):
        rows = positions.get(instrument)
        if rows is not None:
            inside[rows] |= (days[rows] >= start) & (days[rows] <= end)
    return inside


def make_index(bars: Bars, sessions: pd.DatetimeIndex, codes: pd.Index, members: pd.DataFrame) -> pd.DataFrame:
    """Bars of an equally weighted, daily rebalanced total-return index of the members, factor 1, points with
    two decimals.

    Each field is the last close times the mean of the traded members' own field over their reference price,
    so the index's extremes are a little wider than a real one's. Volume and amount are sums over members.
    """
    grid = pd.MultiIndex.from_product([sessions, codes], names=["datetime", "instrument"])
    inside = members_on(members, grid).reshape(len(sessions), len(codes)) & ~np.isnan(bars.close)
    adjusted = pd.DataFrame(bars.close * bars.factor).ffill().shift(1).to_numpy()
    level, rows = INDEX_BASE, []
    for day in range(len(sessions)):
        held = inside[day] & ~np.isnan(adjusted[day])  # nobody on the first day: the index starts flat, at its base
        prices = [level] * 4
        if held.any():
            before = adjusted[day, held] / bars.factor[day, held]
            fields = (bars.open, bars.high, bars.low, bars.close)
            prices = [round(level * float((f[day, held] / before).mean()), 2) for f in fields]
        turnover = (float(bars.volume[day, inside[day]].sum()), float(bars.amount[day, inside[day]].sum()))
        rows.append((*prices, *turnover, 1.0))
        level = prices[3]
    frame = pd.DataFrame(rows, columns=["open", "high", "low", "close", "volume", "amount", "factor"])
    frame.insert(0, "datetime", sessions)
    return frame
