"""How far a running sum of returns lies below its highest point: the one rule of every figure and picture here."""

from __future__ import annotations

import pandas as pd


def drawdown(returns: pd.Series) -> pd.Series:
    """Fall of the running sum of returns below its highest value so far.

    Sums, not products, and counted from the first day, whose own value is the first high: the rule of Qlib's
    ``risk_analysis(mode="sum")``, so that the smallest value is its ``max_drawdown``. A loss on the first day is
    therefore no fall yet.

    Parameters
    ----------
    returns : float Series by day, ascending; fractions. A NaN day adds nothing.

    Returns
    -------
    Series named ``drawdown`` with the same index and unit: 0 at a high, negative below it; NaN where the return is.
    """
    total = returns.cumsum()
    return (total - total.cummax()).rename("drawdown")


def max_drawdown(returns: pd.Series) -> float:
    """Deepest value of :func:`drawdown`, 0 or below; NaN without any return."""
    return float(drawdown(returns).min())
