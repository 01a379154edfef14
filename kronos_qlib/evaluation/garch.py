"""GARCH(1,1) with Student innovations: refit now and then, filtered every day, drawn forward to closes.

Log returns of one instrument in time order. Parameters come from returns before the day they are used from; the
variance of the day after t uses returns up to t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal, stats
from scipy.stats import qmc

Floats = NDArray[np.float64]
PERCENT = 100.0  # the fit works on per cent, where its numbers are near 1
FEWEST_RETURNS = 250
MOST_RETURNS = 1000


@dataclass(frozen=True)
class GarchParameters:
    """``variance[t+1] = omega + alpha r[t]^2 + beta variance[t]`` of log returns (fractions, mean 0).

    Attributes
    ----------
    omega, alpha, beta : as above. degrees : of freedom of the innovations, above 2. start : variance before the first
        return that a filter is given.
    """

    omega: float
    alpha: float
    beta: float
    degrees: float
    start: float


def fit_garch(log_returns: ArrayLike) -> GarchParameters:
    """Fit by maximum likelihood with ``arch``.

    Parameters
    ----------
    log_returns : (n,) fractions, finite, at least 250; give the last 1,000 or so.

    Raises
    ------
    ValueError : too few or unknown returns, no spread, or ``arch`` is not installed.
    """
    values = np.asarray(log_returns, dtype=np.float64)
    if values.ndim != 1 or len(values) < FEWEST_RETURNS or not np.isfinite(values).all():
        raise ValueError(f"found returns of shape {values.shape}; expected at least {FEWEST_RETURNS}, all finite")
    if not values.std() > 0:
        raise ValueError("all returns are the same; nothing can be fitted")
    try:
        from arch import arch_model
    except ModuleNotFoundError as error:
        raise ValueError("arch is not installed; pip install 'kronos-qlib[baselines]'") from error
    model = arch_model(values * PERCENT, mean="Zero", vol="GARCH", p=1, q=1, dist="t", rescale=False)
    fitted = model.fit(disp="off", show_warning=False).params
    return GarchParameters(
        omega=float(fitted["omega"]) / PERCENT**2,
        alpha=float(fitted["alpha[1]"]),
        beta=float(fitted["beta[1]"]),
        degrees=max(float(fitted["nu"]), 2.05),
        start=float((values**2).mean()),
    )


def filter_variance(log_returns: ArrayLike, parameters: GarchParameters) -> Floats:
    """Variance of the next return after each one.

    Parameters
    ----------
    log_returns : (T,); NaN (no return) counts as one as large as expected: the parameters' ``start``.

    Returns
    -------
    float64 (T,): that at t is the variance of the return at t + 1, from returns up to and including t.
    """
    squares = np.asarray(log_returns, dtype=np.float64) ** 2
    shocks = parameters.omega + parameters.alpha * np.where(np.isfinite(squares), squares, parameters.start)
    before = np.array([parameters.beta * parameters.start])
    filtered, _ = signal.lfilter([1.0], [1.0, -parameters.beta], shocks, zi=before)
    return np.asarray(filtered, dtype=np.float64)


def standard_points(n_paths: int, horizon: int, seed: int) -> Floats:
    """Uniform points (n_paths, horizon) in (0, 1), scrambled Sobol: they fill the cube evenly; a power of 2 of them."""
    if n_paths < 2 or n_paths & (n_paths - 1):
        raise ValueError(f"found n_paths={n_paths}; expected a power of 2, such as 256")
    points = qmc.Sobol(horizon, scramble=True, rng=np.random.default_rng(seed)).random(n_paths)
    return np.clip(points, 0.5 / n_paths**2, 1.0 - 0.5 / n_paths**2)


def draw_cumulative_returns(variance: ArrayLike, parameters: GarchParameters, points: Floats) -> Floats:
    """Cumulative returns of paths drawn forward.

    Parameters
    ----------
    variance : (W,) of the next return (see :func:`filter_variance`). points : (P, H) uniform, see
        :func:`standard_points`; all windows share them, so that the draws add no noise between windows.

    Returns
    -------
    float64 (W, P, H): ``exp(sum of log returns) - 1``. Innovations are Student t, scaled to variance 1.
    """
    degrees = parameters.degrees
    shocks = stats.t.ppf(points, degrees) * np.sqrt((degrees - 2.0) / degrees)
    now = np.repeat(np.asarray(variance, dtype=np.float64)[:, None], len(points), axis=1)
    total = np.zeros_like(now)
    paths = np.empty((*now.shape, points.shape[1]))
    for step in range(points.shape[1]):
        returns = np.sqrt(now) * shocks[:, step]
        total += returns
        paths[:, :, step] = total
        now = parameters.omega + parameters.alpha * returns**2 + parameters.beta * now
    return np.expm1(paths)


def refit_positions(months: ArrayLike, first: int) -> NDArray[np.int64]:
    """Positions at which parameters are fitted anew: ``first``, and the first bar of every later month.

    Parameters
    ----------
    months : (T,) month of each bar, ascending. first : position of the first bar that needs parameters.
    """
    values = np.asarray(months)
    change = np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.unique(np.concatenate([[first], change[change > first]])).astype(np.int64)


def forecast_garch(
    log_returns: ArrayLike, months: ArrayLike, wanted: ArrayLike, points: Floats
) -> tuple[Floats, NDArray[np.int64]]:
    """Paths from each wanted bar of one instrument, parameters refit at the first bar of each month.

    Parameters
    ----------
    log_returns : (T,) return of each bar over the bar before; NaN for the first. months : (T,).
    wanted : positions to forecast from, ascending. points : see :func:`standard_points`.

    Returns
    -------
    paths : float64 (n, P, H) of the bars that could be forecast; positions : int64 (n,), which of ``wanted`` they are.
        A bar whose month begins with fewer than 250 earlier returns has none. A fit uses the up to 1,000 returns before
        the first bar of the month (the month's own returns come through the filter only).
    """
    values, places = np.asarray(log_returns, dtype=np.float64), np.asarray(wanted, dtype=np.int64)
    if not len(places):
        return np.empty((0, *points.shape)), places
    starts = refit_positions(months, int(places[0]))
    block = np.searchsorted(starts, places, side="right") - 1
    parts, found = [], []
    for number in np.unique(block):
        known = values[: starts[number]]
        past = known[np.isfinite(known)][-MOST_RETURNS:]
        if len(past) < FEWEST_RETURNS or not past.std() > 0:
            continue
        parameters = fit_garch(past)
        mine = np.flatnonzero(block == number)
        first = max(int(starts[number]) - MOST_RETURNS, 0)
        variance = filter_variance(values[first : places[mine[-1]] + 1], parameters)
        parts.append(draw_cumulative_returns(variance[places[mine] - first], parameters, points))
        found.append(mine)
    if not parts:
        return np.empty((0, *points.shape)), np.empty(0, dtype=np.int64)
    return np.concatenate(parts), np.concatenate(found)
