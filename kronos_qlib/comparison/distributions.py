"""Distributions of one kind of forecast on many windows, reduced to what scores and calibration need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kronos_qlib.evaluation.bootstrap import SEED
from kronos_qlib.evaluation.garch import FEWEST_RETURNS, MOST_RETURNS, forecast_garch, standard_points
from kronos_qlib.evaluation.naive import random_walk_crps, random_walk_pit, random_walk_quantiles, trailing_volatility
from kronos_qlib.evaluation.probability import crps_ensemble, ensemble_pit
from kronos_qlib.evaluation.spread_calibration import SpreadCalibration, calibrate_spread, recalibrated_crps
from kronos_qlib.forecast.reduction import LEVELS
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel

Floats = NDArray[np.float64]
GARCH_PATHS = 256
CHUNK_INSTRUMENTS = 16  # neighbours in the panel
SLICE_WINDOWS = 4096


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

    def select(self, kept: NDArray[np.bool_]) -> Distribution:
        """Those of some windows."""
        return Distribution(*(values[kept] for values in vars(self).values()))


def histvol_distribution(spread: Floats, truth: Floats) -> Distribution:
    """Random walk with a bar's standard deviation ``spread`` (n,), such as :func:`recent_volatility`'s."""
    ends = _ends()
    quantiles = random_walk_quantiles(spread, truth.shape[1], [*ends[:, 0], 0.5, *ends[:, 1]])
    count = len(LEVELS)
    return Distribution(
        random_walk_crps(spread, truth), random_walk_pit(spread, truth), quantiles[:, :count], quantiles[:, count],
        quantiles[:, count + 1 :],
    )  # fmt: skip


def recent_volatility(panel: BarPanel, rows: NDArray[np.int64]) -> Floats:
    """Standard deviation of a bar's log return over the last 20 returns up to each row, float64 (n,)."""
    returns = log_returns(panel)
    volatility = np.full(len(panel), np.nan)
    for part in _instruments(panel):
        volatility[part] = trailing_volatility(returns[part])
    return volatility[rows]


def garch_distribution(panel: BarPanel, rows: NDArray[np.int64], truth: Floats) -> Distribution:
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
    for part in parts:
        first, last = np.searchsorted(rows[order], [part.start, part.stop])
        mine = order[first:last]
        paths, found = forecast_garch(returns[part], months[part], rows[mine] - part.start, points)
        if len(found):
            _put(result, mine[found], _of_paths(paths, truth[mine[found]]))
    return result


@dataclass(frozen=True, eq=False)
class GarchFigures:
    """The GARCH-t distribution as work that is kept chunk by chunk, float64 (n, figures, S): see :meth:`read`.

    Attributes
    ----------
    rows, truth : as for :func:`garch_distribution`. origin : what determines both, plain JSON.
    """

    rows: NDArray[np.int64]
    truth: Floats
    origin: Mapping[str, Any]
    name: ClassVar[str] = "garch_t"
    dtype: ClassVar[DTypeLike] = np.float64

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, figures, S)."""
        return len(self.rows), 3 + 2 * len(LEVELS), self.truth.shape[1]

    @property
    def note(self) -> Mapping[str, Any]:
        """See :class:`kronos_qlib.comparison.kept.WindowWork`."""
        return {
            "what": "GARCH-t: CRPS, PIT, centre, lower and upper ends of the intervals, (window, figure, step)",
            "levels": LEVELS, "horizon": self.truth.shape[1], "paths": GARCH_PATHS, "seed": SEED,
            "returns": [FEWEST_RETURNS, MOST_RETURNS], "chunk_instruments": CHUNK_INSTRUMENTS, **self.origin,
        }  # fmt: skip

    def chunks(self, panel: BarPanel) -> Sequence[NDArray[np.int64]]:
        """Whole instruments: the parameters are fitted once for all windows of a month."""
        _, place = np.unique(panel.codes[self.rows], return_inverse=True)
        number = place // CHUNK_INSTRUMENTS
        return [np.flatnonzero(number == chunk).astype(np.int64) for chunk in np.unique(number)]

    def compute(self, panel: BarPanel, positions: NDArray[np.int64]) -> Floats:
        """Fit, filter and draw."""
        found = garch_distribution(panel, self.rows[positions], self.truth[positions])
        flat = (found.crps[:, None], found.pit[:, None], found.centre[:, None])
        return np.concatenate([*flat, found.lower, found.upper], axis=1)

    @staticmethod
    def read(figures: Floats) -> Distribution:
        """The distribution that :meth:`compute` laid out."""
        lower, upper = np.split(figures[:, 3:], 2, axis=1)
        return Distribution(figures[:, 0], figures[:, 1], lower, figures[:, 2], upper)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Sampled paths of n windows.

    Attributes
    ----------
    paths : float32 (n, P, S), cumulative returns. reference : float64 (n, S), standard deviations that the spread may
        be drawn towards. estimator : of the CRPS, see :func:`kronos_qlib.forecast.reduction.choose_estimator`.
    """

    paths: NDArray[np.float32]
    reference: Floats
    estimator: str

    def select(self, kept: NDArray[np.bool_]) -> Ensemble:
        """Those of some windows."""
        return Ensemble(self.paths[kept], self.reference[kept], self.estimator)

    def distribution(self, truth: Floats) -> Distribution:
        """Of the paths as they are."""
        return _of_ensemble(self.paths, truth, crps_ensemble(self.paths, truth, estimator=self.estimator))

    def recalibrated(self, truth: Floats, calibration: SpreadCalibration) -> Distribution:
        """Of the recalibrated paths."""
        crps = recalibrated_crps(self.paths, truth, self.reference, calibration, estimator=self.estimator)
        moved = np.empty_like(self.paths)
        for part in _slices(len(moved)):
            moved[part] = calibration.apply(self.paths[part], self.reference[part])
        return _of_ensemble(moved, truth, crps)

    def learn(self, truth: Floats) -> SpreadCalibration:
        """Recalibration of the lowest CRPS."""
        return calibrate_spread(self.paths, truth, self.reference, estimator=self.estimator)


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


def _of_ensemble(paths: NDArray[np.float32], truth: Floats, crps: Floats) -> Distribution:
    """Quantiles at i / (P + 1), and the mean as centre; ties of the PIT are spread evenly, seeded."""
    n, steps = truth.shape
    result = replace(_empty(n, steps), crps=crps, pit=ensemble_pit(paths, truth))
    ends = _ends()
    for part in _slices(n):
        some = paths[part].astype(np.float64)
        low, high = (np.quantile(some, ends[:, side], axis=1, method="weibull").transpose(1, 0, 2) for side in (0, 1))
        result.lower[part], result.upper[part] = low, high
        # the mean of few paths may lie outside their inner intervals
        result.centre[part] = np.clip(some.mean(axis=1), low.max(axis=1), high.min(axis=1))
    return result


def _slices(n: int) -> list[slice]:
    return [slice(start, start + SLICE_WINDOWS) for start in range(0, n, SLICE_WINDOWS)]


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
