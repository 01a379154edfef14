"""What a signal may turn out to be: reversal, reversion to the window's mean, volatility, size, beta.

Each reference is a column with one value a bar, built from that bar and bars before it, so a value dated t uses bars up
to t. No value uses bars on both sides of a long suspension or of an unexplained jump: the same windows hold as for
forecasts. Sums run over the lags in a fixed order, so bars after t leave values dated t bit-identical.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, segment_starts, window_lengths

REFERENCES = ("reversal_5", "reversal_20", "mean_reversion", "volatility", "size", "beta")
VOLATILITY_BARS = 20
SIZE_BARS = 60
BETA_BARS = 60

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def reference_columns(
    panel: BarPanel,
    *,
    policy: WindowPolicy | None = None,
    market_close: pd.Series | None = None,
) -> pd.DataFrame:
    """Build the reference columns of every bar.

    Parameters
    ----------
    panel : adjusted bars of all instruments whose signal is to be explained.
    policy : which bars may be used together, and the lookback of ``mean_reversion``; None: ``WindowPolicy()``. Give
        the forecast's own.
    market_close : closes of an index by ``datetime``, for beta; None: the equal-weighted mean of the one-session
        returns of all instruments in the panel.

    Returns
    -------
    float64 DataFrame indexed (datetime, instrument), sorted, one row a bar:

    - ``reversal_5``, ``reversal_20``: minus the return over the last 5, 20 bars, ``1 - c[t] / c[t-5]``.
    - ``mean_reversion``: mean of the window's closes over its last close, minus 1; the window is the policy's.
    - ``volatility``: population standard deviation of the last 20 close-to-close returns.
    - ``size``: natural logarithm of the mean amount of the last 60 bars. Bars carry no shares outstanding: this is
      traded money, which goes with capitalisation but is not it. Replace it where you have capitalisations.
    - ``beta``: slope of the last 60 bars' returns on the market's returns over the same sessions.

    NaN where the segment is too short (6, 21, the policy's ``min_bars``, 21, 60 and 61 bars), where a close in use is
    not positive, where the mean amount is not positive, and where the market did not move or is unknown.

    Raises
    ------
    ValueError : ``market_close`` without an ascending, unique index.
    """
    policy = WindowPolicy() if policy is None else policy
    close = panel.values[:, BAR_FIELDS.index("close")].astype(np.float64)
    close[~(close > 0)] = np.nan
    amount = panel.values[:, BAR_FIELDS.index("amount")].astype(np.float64)
    rows = np.arange(len(panel), dtype=np.int64)
    bars = rows - segment_starts(panel, policy) + 1
    returns = close / _earlier(close, 1) - 1.0
    columns = {
        "reversal_5": _reversal(close, bars, 5),
        "reversal_20": _reversal(close, bars, 20),
        "mean_reversion": _mean(close, window_lengths(panel, rows, policy)) / close - 1.0,
        "volatility": _volatility(returns, bars, VOLATILITY_BARS),
        "size": _log(_mean(amount, np.where(bars >= SIZE_BARS, SIZE_BARS, 0))),
        "beta": _beta(returns, _market_returns(panel, close, market_close), bars, BETA_BARS),
    }
    index = pd.MultiIndex.from_arrays(
        [pd.DatetimeIndex(panel.timestamps), panel.instrument_names(rows)], names=["datetime", "instrument"]
    )
    return pd.DataFrame(columns, index=index, columns=list(REFERENCES)).sort_index()


def _reversal(close: Floats, bars: Integers, span: int) -> Floats:
    return np.where(bars > span, 1.0 - close / _earlier(close, span), np.nan)


def _volatility(returns: Floats, bars: Integers, span: int) -> Floats:
    lengths = np.where(bars > span, span, 0)
    centre = _mean(returns, lengths)
    return np.sqrt(_moment(returns, centre, returns, centre, lengths))


def _beta(returns: Floats, market: Floats, bars: Integers, span: int) -> Floats:
    lengths = np.where(bars > span, span, 0)
    own, common = _mean(returns, lengths), _mean(market, lengths)
    variance = _moment(market, common, market, common, lengths)
    covariance = _moment(returns, own, market, common, lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0, covariance / variance, np.nan)


def _market_returns(panel: BarPanel, close: Floats, market_close: pd.Series | None) -> Floats:
    """Return of the market between each bar's session and that of the bar before it, float64 (R,)."""
    if market_close is None:
        level = _equal_weighted_level(panel, close)
    else:
        if not (market_close.index.is_monotonic_increasing and market_close.index.is_unique):
            raise ValueError("market_close must have each session once, in ascending order; sort it by its index")
        level = market_close.reindex(panel.calendar).to_numpy(dtype=np.float64)
    at_bar = level[panel.session]
    return at_bar / _earlier(at_bar, 1) - 1.0


def _equal_weighted_level(panel: BarPanel, close: Floats) -> Floats:
    """Level of a market of all instruments with equal weights each session, float64 (S,), 1 before the first return."""
    adjacent = np.zeros(len(panel), dtype=bool)
    adjacent[1:] = (np.diff(panel.session) == 1) & (np.diff(panel.codes) == 0)
    returns = close / _earlier(close, 1) - 1.0
    used = adjacent & np.isfinite(returns)
    sessions = len(panel.calendar)
    total = np.bincount(panel.session[used], weights=returns[used], minlength=sessions)
    count = np.bincount(panel.session[used], minlength=sessions)
    # A session on which nobody has a return (the first one) leaves the level where it is.
    return np.cumprod(1.0 + total / np.maximum(count, 1), dtype=np.float64)


def _earlier(values: Floats, lag: int) -> Floats:
    """The value ``lag`` rows before, NaN for the first rows; callers mask what belongs to another instrument."""
    earlier = np.full_like(values, np.nan)
    earlier[lag:] = values[:-lag]
    return earlier


def _trailing(values: Floats, lengths: Integers) -> Iterator[tuple[int, Floats, NDArray[np.bool_]]]:
    """Yield, lag by lag, the row's earlier value and whether the row's last ``lengths`` bars include it."""
    for lag in range(int(lengths.max(initial=0))):
        yield lag, values[: len(values) - lag], lengths[lag:] > lag


def _mean(values: Floats, lengths: Integers) -> Floats:
    """Mean of each row's last ``lengths`` values, NaN where that is 0."""
    total = np.zeros(len(values))
    for lag, earlier, inside in _trailing(values, lengths):
        total[lag:] += np.where(inside, earlier, 0.0)
    with np.errstate(invalid="ignore"):
        return np.where(lengths > 0, total / np.maximum(lengths, 1), np.nan)


def _moment(first: Floats, first_mean: Floats, second: Floats, second_mean: Floats, lengths: Integers) -> Floats:
    """Population covariance of each row's last ``lengths`` pairs around the row's own means, NaN where that is 0."""
    total = np.zeros(len(first))
    pairs = zip(_trailing(first, lengths), _trailing(second, lengths), strict=True)
    for (lag, one, inside), (_, other, _) in pairs:
        total[lag:] += np.where(inside, (one - first_mean[lag:]) * (other - second_mean[lag:]), 0.0)
    return np.where(lengths > 0, total / np.maximum(lengths, 1), np.nan)


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, np.log(values), np.nan)
