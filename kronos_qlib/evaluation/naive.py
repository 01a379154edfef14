"""Naive distributions of the closes to come: a random walk with the volatility of the last twenty days.

Returns here are of closes; a value dated t uses bars up to t. What is forecast is the cumulative return over h bars.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
BARS = 20


def trailing_volatility(log_returns: ArrayLike, bars: int = BARS) -> Floats:
    """Root mean square of the last ``bars`` log returns (no mean removed: that of twenty days is noise).

    Parameters
    ----------
    log_returns : (T,) of one instrument, in time order; NaN where there is none.
    bars : returns used, at least 1.

    Returns
    -------
    float64 (T,), that of t from returns up to and including t; NaN while there are fewer, or one of them is not finite.
    """
    values = np.asarray(log_returns, dtype=np.float64)
    if values.ndim != 1 or bars < 1:
        raise ValueError(f"found shape {values.shape} and bars={bars}; expected one dimension and at least 1 bar")
    volatility = np.full(len(values), np.nan)
    if len(values) >= bars:
        windows = np.lib.stride_tricks.sliding_window_view(values, bars)
        volatility[bars - 1 :] = np.sqrt((windows**2).mean(axis=1))
    return np.where(np.isfinite(volatility), volatility, np.nan)


def random_walk_quantiles(volatility: ArrayLike, horizon: int, levels: Sequence[float]) -> Floats:
    """Quantiles of the cumulative return of a random walk in log prices without drift.

    Parameters
    ----------
    volatility : (W,) standard deviation of a bar's log return. horizon : bars ahead. levels : (Q,) in (0, 1).

    Returns
    -------
    float64 (W, Q, horizon): ``exp(volatility sqrt(h) z) - 1``, z the normal quantile; NaN where volatility is.

    Raises
    ------
    ValueError : a horizon below 1, a level outside (0, 1), a negative volatility.
    """
    spread = _spread(volatility, horizon)
    wanted = np.asarray(levels, dtype=np.float64)
    if not ((wanted > 0) & (wanted < 1)).all():
        raise ValueError(f"found levels={list(levels)}; expected each between 0 and 1")
    return np.expm1(spread[:, None, :] * special.ndtri(wanted)[None, :, None])


def random_walk_pit(volatility: ArrayLike, truth: ArrayLike) -> Floats:
    """Probability that the random walk gives to a cumulative return of at most ``truth``, float64 (W, S)."""
    y = np.asarray(truth, dtype=np.float64)
    spread = _spread(volatility, y.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isfinite(y) & (spread > 0), special.ndtr(np.log1p(y) / spread), np.nan)


def random_walk_crps(volatility: ArrayLike, truth: ArrayLike) -> Floats:
    """CRPS of the random walk's cumulative return.

    Parameters
    ----------
    volatility : (W,). truth : (W, S) cumulative returns over 1 … S bars.

    Returns
    -------
    float64 (W, S), NaN where either is not finite.

    Notes
    -----
    Of a log-normal distribution with location 0: Baran and Lerch (2015).
    """
    y = np.asarray(truth, dtype=np.float64)
    return crps_lognormal(np.zeros_like(y), _spread(volatility, y.shape[1]), y + 1.0)


def crps_lognormal(location: ArrayLike, scale: ArrayLike, truth: ArrayLike) -> Floats:
    """CRPS of log-normal distributions: ``location`` and ``scale`` are those of the logarithm; scale above 0.

    Arrays broadcast; NaN where an argument is not finite or a scale is not above 0.
    """
    m, s, y = np.broadcast_arrays(*(np.asarray(values, dtype=np.float64) for values in (location, scale, truth)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(y > 0, (np.log(np.where(y > 0, y, 1.0)) - m) / s, -np.inf)
        first = y * (2.0 * special.ndtr(z) - 1.0)
        second = 2.0 * np.exp(m + s**2 / 2.0) * (special.ndtr(z - s) + special.ndtr(s / np.sqrt(2.0)) - 1.0)
    known = np.isfinite(m) & np.isfinite(s) & np.isfinite(y) & (s > 0)
    return np.where(known, first - second, np.nan)


def _spread(volatility: ArrayLike, horizon: int) -> Floats:
    values = np.asarray(volatility, dtype=np.float64)
    if values.ndim != 1 or horizon < 1:
        raise ValueError(f"found volatility of shape {values.shape} and horizon={horizon}; expected (window,) and >= 1")
    if (values < 0).any():
        raise ValueError(f"found a volatility of {float(np.nanmin(values)):g}; expected none below 0")
    return values[:, None] * np.sqrt(np.arange(1, horizon + 1))[None, :]
