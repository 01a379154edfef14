"""Recalibration of ensembles: paths scaled around their median and pulled towards no change, three numbers a horizon.

At each step of a window a path x becomes ``c m + k (x - m)``: m is the median of the window's paths there, and
``k = exp(a + b log(reference / spread))`` with the standard deviation of those paths as ``spread`` and that of another
forecast as ``reference``. With b = 0 there is one factor a horizon; b = 1 takes the reference's spread, times
``exp(a)``, and leaves the ensemble its shape and centre. All are cumulative returns (window, path, step); truths lie
after the forecast, so a calibration is learned on windows whose truths were known before those that it is applied to.
A (window, step) is NaN where a path, the reference or (in a score) the truth is not finite, or a spread not above 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from kronos_qlib.evaluation.probability import CHUNK_CELLS, ESTIMATORS, crps_ensemble

Floats = NDArray[np.float64]
FEWEST_WINDOWS = 30
BOUNDS = ((-3.0, 3.0), (0.0, 1.0), (0.0, 1.0))  # of a, b, c
GRID = tuple(product((-0.3, 0.0, 0.3), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0)))
FIRST_STEPS = (0.1, 0.2, 0.2)


@dataclass(frozen=True, eq=False)
class SpreadCalibration:
    """Numbers learned by :func:`calibrate_spread`.

    Attributes
    ----------
    log_factor, shrinkage, centre : float64 (S,), a, b and c of each step.
    counts : int64 (S,), windows that they were learned from.
    """

    log_factor: Floats
    shrinkage: Floats
    centre: Floats
    counts: NDArray[np.int64]

    def apply(self, paths: ArrayLike, reference: ArrayLike) -> Floats:
        """Recalibrate paths (W, P, S) with the reference's standard deviations (W, S); float64 (W, P, S).

        Raises
        ------
        ValueError : shapes that do not fit, another number of steps than learned.
        """
        x, other = _paths_and(paths, reference, "reference")
        if x.shape[2] != len(self.centre):
            raise ValueError(f"found {x.shape[2]} steps; this calibration was learned for {len(self.centre)}")
        middle = np.median(x, axis=1)
        factor = np.exp(self.log_factor + self.shrinkage * _log_ratio(other, x.std(axis=1)))
        return (self.centre * middle)[:, None] + factor[:, None] * (x - middle[:, None])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> SpreadCalibration:
        """Read what :meth:`to_dict` wrote."""
        a, b, c = (np.asarray(content[name], dtype=np.float64) for name in ("log_factor", "shrinkage", "centre"))
        return cls(a, b, c, np.asarray(content["counts"], dtype=np.int64))


def recalibrated_crps(
    paths: ArrayLike, truth: ArrayLike, reference: ArrayLike, calibration: SpreadCalibration, *, estimator: str = "fair"
) -> Floats:
    """CRPS of the recalibrated distribution, float64 (W, S).

    Parameters
    ----------
    paths : (W, P, S), not recalibrated. truth, reference : (W, S).
    estimator : as for :func:`kronos_qlib.evaluation.probability.crps_ensemble`. ``fair`` needs 4 paths.

    Raises
    ------
    ValueError : shapes that do not fit, an unknown estimator, too few paths.

    Notes
    -----
    The median and the spread come from the draws that they are applied to, which leaves a bias in 1 / P that the fair
    score does not know of: with 64 normal paths .2 to .8 % of the score, in the ensemble's favour. The scores of all
    paths and of their halves tell its size, and ``fair`` takes it away (.05 % are left). ``standard`` takes the paths
    as they are.
    """
    x, y = _paths_and(paths, truth, "truth")
    _, other = _paths_and(x, reference, "reference")
    shares = _shares(x.shape[1], estimator)
    result = np.full(y.shape, np.nan)
    size = max(1, CHUNK_CELLS // max(1, x.shape[1] * x.shape[2]))
    for start in range(0, len(y), size):
        some = slice(start, start + size)
        scores = [
            weight * crps_ensemble(calibration.apply(x[some, part], other[some]), y[some], estimator=estimator)
            for weight, part in shares
        ]
        result[some] = np.sum(scores, axis=0)
    return result


def calibrate_spread(
    paths: ArrayLike, truth: ArrayLike, reference: ArrayLike, *, estimator: str = "fair"
) -> SpreadCalibration:
    """Find, step by step, the a, b in [0, 1] and c in [0, 1] of the lowest mean :func:`recalibrated_crps`.

    A coarse grid, then Nelder–Mead from its best point: the same arguments give the same numbers.

    Parameters
    ----------
    paths : (W, P, S). truth, reference : (W, S). estimator : as for :func:`recalibrated_crps`.

    Raises
    ------
    ValueError : as :func:`recalibrated_crps`, and a step with fewer than 30 windows.
    """
    x, y = _paths_and(paths, truth, "truth")
    _, other = _paths_and(x, reference, "reference")
    shares = _shares(x.shape[1], estimator)
    steps = x.shape[2]
    numbers, counts = np.empty((steps, 3)), np.empty(steps, dtype=np.int64)
    for step in range(steps):
        parts = [_part(weight, x[:, part, step], other[:, step], estimator) for weight, part in shares]
        known = np.isfinite(y[:, step]) & np.all([np.isfinite(part.log_ratio) for part in parts], axis=0)
        counts[step] = known.sum()
        if counts[step] < FEWEST_WINDOWS:
            raise ValueError(
                f"step {step + 1} has {counts[step]} windows with paths, a truth and a reference; "
                f"expected at least {FEWEST_WINDOWS}"
            )
        numbers[step] = _lowest([part.select(known) for part in parts], y[known, step])
    return SpreadCalibration(numbers[:, 0], numbers[:, 1], numbers[:, 2], counts)


class _Part(NamedTuple):
    """What a score of one step needs of some of the paths: their deviations from the median, and half mean distance."""

    weight: float
    deviation: Floats
    median: Floats
    half_distance: Floats
    log_ratio: Floats

    def select(self, known: NDArray[np.bool_]) -> _Part:
        return _Part(self.weight, *(values[known] for values in self[1:]))


def _part(weight: float, x: Floats, reference: Floats, estimator: str) -> _Part:
    n = x.shape[1]
    median = np.median(x, axis=1)
    deviation = np.sort(x - median[:, None], axis=1)
    # sum_ij |x_i - x_j| = 2 sum_i (2 i - n - 1) x_(i) over the sorted values
    distance = deviation @ (2.0 * np.arange(1, n + 1) - n - 1.0)
    return _Part(
        weight, deviation, median, distance / (n * (n - 1) if estimator == "fair" else n * n),
        _log_ratio(reference, x.std(axis=1)),
    )  # fmt: skip


def _lowest(parts: list[_Part], truth: Floats) -> Floats:
    def score(numbers: ArrayLike) -> float:
        a, b, c = np.asarray(numbers, dtype=np.float64)
        total = 0.0
        for part in parts:
            factor = np.exp(a + b * part.log_ratio)
            errors = factor[:, None] * part.deviation + (c * part.median - truth)[:, None]
            total += part.weight * float(np.mean(np.abs(errors).mean(axis=1) - factor * part.half_distance))
        return total

    start = np.array(min(GRID, key=score))
    # away from the bound that a start on the grid may lie on
    moves = np.diag([step if at <= 0.5 else -step for step, at in zip(FIRST_STEPS, start, strict=True)])
    found = optimize.minimize(
        score, start, method="Nelder-Mead", bounds=BOUNDS,
        options={"initial_simplex": np.vstack([start, start + moves]), "xatol": 1e-3, "fatol": 1e-8},
    )  # fmt: skip
    return np.asarray(found.x, dtype=np.float64)


def _shares(n_paths: int, estimator: str) -> list[tuple[float, slice]]:
    """Which paths are scored together, and the weights of their scores, which sum to 1."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"found estimator={estimator!r}; expected one of {list(ESTIMATORS)}")
    if estimator == "standard":
        return [(1.0, slice(None))]
    half = n_paths // 2
    if half < 2:
        raise ValueError(f"found {n_paths} paths; expected at least 4, or estimator='standard'")
    rest = n_paths - half
    minus = -half / rest / 2.0
    return [(n_paths / rest, slice(None)), (minus, slice(half)), (minus, slice(half, 2 * half))]


def _log_ratio(reference: Floats, spread: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        usable = np.isfinite(reference) & np.isfinite(spread) & (reference > 0) & (spread > 0)
        return np.where(usable, np.log(reference / spread), np.nan)


def _paths_and(paths: ArrayLike, beside: ArrayLike, name: str) -> tuple[Floats, Floats]:
    x, other = np.asarray(paths, dtype=np.float64), np.asarray(beside, dtype=np.float64)
    if x.ndim != 3 or other.shape != (x.shape[0], x.shape[2]):
        raise ValueError(
            f"found paths {x.shape} and {name} {other.shape}; expected (window, path, step) and (window, step)"
        )
    return x, other
