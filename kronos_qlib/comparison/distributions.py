"""Distributions of one kind of forecast on many windows, reduced to what scores and calibration need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.evaluation.bootstrap import SEED
from kronos_qlib.evaluation.garch import forecast_garch, standard_points
from kronos_qlib.evaluation.naive import random_walk_crps, random_walk_pit, random_walk_quantiles, trailing_volatility
from kronos_qlib.evaluation.probability import crps_ensemble, ensemble_pit
from kronos_qlib.forecast.reduction import LEVELS, ReducedForecasts
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel

Floats = NDArray[np.float64]
GARCH_PATHS = 256


@dataclass(frozen=True, eq=False)
class Distribution:
    """Cumulative returns of n windows over S steps; NaN where there is no forecast or no truth.

    Attributes
    ----------
    crps, pit : float64 (n, S). lower, upper : float64 (n, levels, S), ends of the central intervals of ``LEVELS``.
    centre : float64 (n, S), within all intervals.
    """

    crps: Floats
    pit: Floats
    lower: Floats
    centre: Floats
    upper: Floats


def histvol_distribution(panel: BarPanel, rows: NDArray[np.int64], truth: Floats) -> Distribution:
    """Random walk with the volatility of the last 20 returns up to each row."""
    returns = log_returns(panel)
    volatility = np.full(len(panel), np.nan)
    for part in _instruments(panel):
        volatility[part] = trailing_volatility(returns[part])
    spread = volatility[rows]
    ends = _ends()
    quantiles = random_walk_quantiles(spread, truth.shape[1], [*ends[:, 0], 0.5, *ends[:, 1]])
    count = len(LEVELS)
    return Distribution(
        random_walk_crps(spread, truth), random_walk_pit(spread, truth), quantiles[:, :count], quantiles[:, count],
        quantiles[:, count + 1 :],
    )  # fmt: skip


def garch_distribution(
    panel: BarPanel, rows: NDArray[np.int64], truth: Floats, progress: Callable[[int, int], None] | None = None
) -> Distribution:
    """GARCH(1,1)-t, refit at the first bar of each month and filtered daily, 256 evenly spread paths.

    The CRPS takes the paths as the whole distribution: evenly spread points are no independent draws, and stand for it
    closer than the correction for draws supposes.
    """
    returns, steps = log_returns(panel), truth.shape[1]
    points = standard_points(GARCH_PATHS, steps, SEED)
    months = panel.timestamps.astype("datetime64[M]").astype(np.int64)
    result = _empty(len(rows), steps)
    parts = [part for part in _instruments(panel) if part.stop > part.start]
    order = np.argsort(rows, kind="stable")
    for number, part in enumerate(parts):
        first, last = np.searchsorted(rows[order], [part.start, part.stop])
        mine = order[first:last]
        paths, found = forecast_garch(returns[part], months[part], rows[mine] - part.start, points)
        if len(found):
            _put(result, mine[found], _of_paths(paths, truth[mine[found]]))
        if progress is not None:
            progress(number + 1, len(parts))
    return result


def forecast_distribution(reduced: ReducedForecasts, n_paths: int) -> Distribution:
    """Of sampled paths, reduced; see :class:`ReducedForecasts`. PIT values of ties are spread evenly, seeded."""
    v = np.random.default_rng(SEED).random(reduced.below.shape)
    pit = (reduced.below + v * (reduced.equal + 1.0)) / (n_paths + 1.0)
    # the mean of few paths may lie outside their inner intervals
    centre = np.clip(reduced.mean, reduced.lower.max(axis=1), reduced.upper.min(axis=1))
    return Distribution(reduced.crps, pit, reduced.lower, centre, reduced.upper)


def log_returns(panel: BarPanel) -> Floats:
    """Log return of each bar's close over the bar before; NaN for an instrument's first, and without a price."""
    close = panel.values[:, BAR_FIELDS.index("close")].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(close > 0, np.log(close), np.nan)
    returns = np.full(len(panel), np.nan)
    returns[1:] = logs[1:] - logs[:-1]
    firsts = panel.offsets[:-1]
    returns[firsts[firsts < len(panel)]] = np.nan
    return returns


def _of_paths(paths: Floats, truth: Floats) -> Distribution:
    ends = _ends()
    quantiles = np.quantile(paths, [*ends[:, 0], 0.5, *ends[:, 1]], axis=1, method="hazen").transpose(1, 0, 2)
    count = len(LEVELS)
    return Distribution(
        crps_ensemble(paths, truth, estimator="standard"), ensemble_pit(paths, truth), quantiles[:, :count],
        quantiles[:, count], quantiles[:, count + 1 :],
    )  # fmt: skip


def _ends() -> Floats:
    return np.array([[(1.0 - level) / 2.0, (1.0 + level) / 2.0] for level in LEVELS])


def _instruments(panel: BarPanel) -> list[slice]:
    return [slice(int(a), int(b)) for a, b in zip(panel.offsets[:-1], panel.offsets[1:], strict=True)]


def _empty(n: int, steps: int) -> Distribution:
    flat, ends = (n, steps), (n, len(LEVELS), steps)
    return Distribution(*(np.full(shape, np.nan) for shape in (flat, flat, ends, flat, ends)))


def _put(result: Distribution, positions: NDArray[np.int64], part: Distribution) -> None:
    for name, values in vars(part).items():
        getattr(result, name)[positions] = values
