"""Bars of one instrument without the jumps of splits and dividends."""

from __future__ import annotations

import pandas as pd

from kronos_qlib.market.fields import PRICE_FIELDS


def adjust_bars(bars: pd.DataFrame, base: float = 1.0) -> pd.DataFrame:
    """Return adjusted bars: price × ``factor`` / ``base``, volume the other way round, amount as it is.

    Parameters
    ----------
    bars : DataFrame
        Raw ``open``, ``high``, ``low``, ``close``, ``volume`` and a positive ``factor``; other columns pass through.
    base : float
        Factor whose bar keeps its traded price. 1 gives the units of the Qlib store; the factor of a forecast's
        last bar gives prices as traded on that day, and uses nothing after it.

    Raises
    ------
    ValueError
        No column ``factor``, or a factor (or ``base``) that is missing or not positive.
    """
    if "factor" not in bars.columns:
        raise ValueError(f"adjusting needs the column 'factor'; found {list(map(str, bars.columns))}")
    if not base > 0 or not bool((bars["factor"] > 0).all()):
        wrong = bars.loc[~(bars["factor"] > 0), "factor"]
        found = f"base {base}" if not base > 0 else f"{wrong.iloc[0]} at {wrong.index[0]}"
        raise ValueError(f"adjustment factors must be positive; found {found}")
    ratio = bars["factor"] / base
    adjusted = {name: bars[name] * ratio for name in PRICE_FIELDS}
    return bars.assign(**adjusted, volume=bars["volume"] / ratio)
