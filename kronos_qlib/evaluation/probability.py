"""Are the probabilities right? CRPS, coverage of intervals and PIT of ensembles and of distributions, as plain arrays.

Forecasts are arrays (window, path, step), truths (window, step), in one unit: cumulative returns compare across
instruments, prices do not. Truths lie after the forecast; nothing here may feed a signal. A result is NaN where the
truth or any path of that window and step is not finite, and nowhere else. Slices run over windows, so that memory stays
bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from kronos_qlib.evaluation.bootstrap import SEED

Floats = NDArray[np.float64]
ESTIMATORS = ("fair", "standard")
CHUNK_CELLS = 1 << 21  # path values held at a time, in float64: 16 MB an array


def crps_ensemble(paths: ArrayLike, truth: ArrayLike, *, estimator: str = "fair") -> Floats:
    """Continuous ranked probability score of an ensemble, in the unit of the values; lower is better.

    Parameters
    ----------
    paths : (W, P, S). truth : (W, S).
    estimator : ``fair``: what P draws say of the distribution they come from, unbiased in P, for comparing ensembles of
        different sizes and with analytic forecasts; needs 2 paths. ``standard``: the ensemble taken as the whole
        distribution, which favours large ensembles.

    Returns
    -------
    float64 (W, S): ``mean |x_i - y| - sum_ij |x_i - x_j| / D``, D = 2 P (P - 1) if fair, else 2 P². A fair score can be
    negative.

    Raises
    ------
    ValueError : shapes that do not fit, an unknown estimator, too few paths.

    Notes
    -----
    Gneiting and Raftery (2007); fair: Ferro (2014). ``scoringrules.crps_ensemble`` has them as "fair" and "nrg".
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"found estimator={estimator!r}; expected one of {list(ESTIMATORS)}")
    smallest = 2 if estimator == "fair" else 1

    def score(x: Floats, y: Floats) -> Floats:
        n = x.shape[1]
        pairs = n * (n - 1) if estimator == "fair" else n * n
        # sum_ij |x_i - x_j| = 2 sum_i (2 i - n - 1) x_(i) over the sorted values; taken around the truth, which keeps
        # digits when values are large beside their spread
        ordered = np.sort(x - y[:, None, :], axis=1)
        weights = 2.0 * np.arange(1, n + 1) - n - 1.0
        return np.abs(ordered).mean(axis=1) - np.einsum("p,wps->ws", weights, ordered) / pairs

    return _by_window(score, paths, truth, smallest)


def crps_normal(mean: ArrayLike, std: ArrayLike, truth: ArrayLike) -> Floats:
    """CRPS of normal distributions.

    Parameters
    ----------
    mean, std, truth : arrays that broadcast, in one unit; std 0 is a forecast of a point.

    Returns
    -------
    float64 of the broadcast shape, NaN where an argument is not finite.

    Raises
    ------
    ValueError : a negative std.

    Notes
    -----
    Gneiting, Raftery, Westveld and Goldman (2005), equation 5.
    """
    mean, std, truth = _finite_or_nan(mean, std, truth)
    _refuse_negative("std", std)
    z = _standardise(truth - mean, std)
    score = std * (z * (2.0 * special.ndtr(z) - 1.0) + 2.0 * stats.norm.pdf(z) - 1.0 / np.sqrt(np.pi))
    return np.where(std == 0, np.abs(truth - mean), score)


def crps_student_t(location: ArrayLike, scale: ArrayLike, degrees: ArrayLike, truth: ArrayLike) -> Floats:
    """CRPS of Student t distributions.

    Parameters
    ----------
    location, scale, truth : arrays that broadcast, in one unit. ``scale`` is that of the standard t, not its standard
        deviation, which is ``scale sqrt(degrees / (degrees - 2))``; 0 is a forecast of a point.
    degrees : degrees of freedom, above 1 (the score is infinite otherwise).

    Returns
    -------
    float64 of the broadcast shape, NaN where an argument is not finite.

    Raises
    ------
    ValueError : a negative scale, or degrees of 1 or less.

    Notes
    -----
    Jordan, Krüger and Lerch (2019), appendix A.
    """
    location, scale, degrees, truth = _finite_or_nan(location, scale, degrees, truth)
    _refuse_negative("scale", scale)
    if (degrees <= 1).any():
        raise ValueError(f"found degrees={float(np.nanmin(degrees)):g}; expected more than 1")
    z = _standardise(truth - location, scale)
    beta = special.beta(0.5, degrees - 0.5) / special.beta(0.5, degrees / 2.0) ** 2
    density = stats.t.pdf(z, degrees)
    score = scale * (
        z * (2.0 * stats.t.cdf(z, degrees) - 1.0)
        + 2.0 * density * (degrees + z**2) / (degrees - 1.0)
        - 2.0 * np.sqrt(degrees) / (degrees - 1.0) * beta
    )
    return np.where(scale == 0, np.abs(truth - location), score)


def interval_coverage(lower: ArrayLike, upper: ArrayLike, truth: ArrayLike) -> pd.DataFrame:
    """How often intervals hold the truth, horizon by horizon.

    Parameters
    ----------
    lower, upper, truth : (W, S) in one unit; ends belong to the interval.

    Returns
    -------
    DataFrame, index ``step`` from 1: ``coverage`` (share of windows), ``below``, ``above`` (shares of truths under and
        over the interval), ``width`` (mean, in the values' unit), ``n`` (windows with three finite values). Shares are
        NaN where n is 0.

    Raises
    ------
    ValueError : shapes that differ, or an upper end below its lower one.
    """
    low, high, y = (np.asarray(values, dtype=np.float64) for values in (lower, upper, truth))
    if not low.shape == high.shape == y.shape or y.ndim != 2:
        raise ValueError(
            f"found shapes {low.shape}, {high.shape}, {y.shape}; expected the same (window, step) three times"
        )
    if (low > high).any():
        raise ValueError(f"{int((low > high).sum())} intervals have an upper end below their lower one")
    known = np.isfinite(low) & np.isfinite(high) & np.isfinite(y)
    n = known.sum(axis=0)
    parts = {
        "coverage": (low <= y) & (y <= high),
        "below": y < low,
        "above": y > high,
        "width": np.subtract(high, low, where=known, out=np.zeros(y.shape)),
    }
    with np.errstate(invalid="ignore"):
        table = {name: np.where(known, part, 0).sum(axis=0) / n for name, part in parts.items()}
    return pd.DataFrame({**table, "n": n}, index=pd.RangeIndex(1, y.shape[1] + 1, name="step"))


@dataclass(frozen=True, eq=False)
class EnsembleCoverage:
    """Coverage of central intervals of an ensemble.

    Attributes
    ----------
    table : as :func:`interval_coverage` returns it. nominal : the level asked for.
    calibrated : what ``coverage`` would be near for an ensemble whose paths and truth come from one distribution (exact
        for a uniform one). Ten paths cannot span 90 %: compare with this, not with ``nominal``.
    """

    table: pd.DataFrame
    nominal: float
    calibrated: float


def ensemble_coverage(
    paths: ArrayLike, truth: ArrayLike, level: float = 0.9, *, method: str = "weibull"
) -> EnsembleCoverage:
    """Coverage of the central interval between two quantiles of the paths.

    Parameters
    ----------
    paths : (W, P, S). truth : (W, S).
    level : share that the interval should hold, in (0, 1).
    method : how ``numpy.quantile`` places quantiles among the paths. ``weibull`` puts the i-th of P sorted paths at
        i / (P + 1), where a calibrated ensemble has it; the customary ``linear`` makes intervals of few paths too
        narrow.

    Raises
    ------
    ValueError : shapes that do not fit, ``level`` outside (0, 1), a method numpy does not know.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"found level={level}; expected a share between 0 and 1, such as 0.9")
    ends = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]

    def quantile(end: float) -> Callable[[Floats, Floats], Floats]:
        return lambda x, y: np.quantile(x, end, axis=1, method=method)  # type: ignore[call-overload]

    lower, upper = (_by_window(quantile(end), paths, truth, 1) for end in ends)
    n = np.shape(paths)[1]
    low, high = np.quantile(np.arange(1, n + 1) / (n + 1.0), ends, method=method)  # type: ignore[call-overload]
    return EnsembleCoverage(interval_coverage(lower, upper, truth), level, float(high - low))


def ensemble_pit(paths: ArrayLike, truth: ArrayLike, *, seed: int = SEED) -> Floats:
    """Probability integral transform of the truth among the paths, randomised.

    ``(below + v (equal + 1)) / (P + 1)`` with v uniform on [0, 1): the rank of the truth among the paths and itself,
    spread evenly over the ranks it may claim. When paths and truth come from one distribution this is exactly uniform,
    for any number of paths and with ties (a close at its limit).

    Parameters
    ----------
    paths : (W, P, S). truth : (W, S).
    seed : of v; equal arguments give equal results.

    Returns
    -------
    float64 (W, S) in [0, 1).

    Raises
    ------
    ValueError : shapes that do not fit.

    Notes
    -----
    Rank histogram and randomised PIT: Czado, Gneiting and Held (2009).
    """
    below = _by_window(lambda x, y: (x < y[:, None, :]).sum(axis=1).astype(np.float64), paths, truth, 1)
    equal = _by_window(lambda x, y: (x == y[:, None, :]).sum(axis=1).astype(np.float64), paths, truth, 1)
    v = np.random.default_rng(seed).random(below.shape)
    return (below + v * (equal + 1.0)) / (np.shape(paths)[1] + 1.0)


def pit_histogram(pit: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Share of PIT values in equal bins of [0, 1], horizon by horizon; each is 1 / bins when calibrated.

    Parameters
    ----------
    pit : (W, S) in [0, 1]; NaN is left out. bins : at least 2.

    Returns
    -------
    float64 DataFrame, index ``step`` from 1, columns the bins' left ends; rows sum to 1, or are NaN without any value.

    Raises
    ------
    ValueError : another shape, fewer than 2 bins, values outside [0, 1].
    """
    values = np.asarray(pit, dtype=np.float64)
    if values.ndim != 2 or bins < 2:
        raise ValueError(f"found shape {values.shape} and bins={bins}; expected (window, step) and at least 2 bins")
    if (values < 0).any() or (values > 1).any():
        raise ValueError("a PIT lies between 0 and 1; found values outside")
    edges = np.linspace(0.0, 1.0, bins + 1)
    counts = np.array([np.histogram(column[np.isfinite(column)], edges)[0] for column in values.T]).reshape(-1, bins)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    return pd.DataFrame(shares, index=pd.RangeIndex(1, values.shape[1] + 1, name="step"), columns=edges[:-1])


def _by_window(score: Callable[[Floats, Floats], Floats], paths: ArrayLike, truth: ArrayLike, smallest: int) -> Floats:
    """Apply ``score`` to slices of windows in float64, and set NaN where a value is not finite."""
    x, y = np.asarray(paths), np.asarray(truth)
    if x.ndim != 3 or y.shape != (x.shape[0], x.shape[2]):
        raise ValueError(f"found paths {x.shape} and truth {y.shape}; expected (window, path, step) and (window, step)")
    if x.shape[1] < smallest:
        raise ValueError(f"found {x.shape[1]} paths; expected at least {smallest}")
    result = np.full(y.shape, np.nan)
    size = max(1, CHUNK_CELLS // max(1, x.shape[1] * x.shape[2]))
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        some, true = x[part].astype(np.float64), y[part].astype(np.float64)
        known = np.isfinite(some).all(axis=1) & np.isfinite(true)
        # what is unknown is scored as 0 and then dropped, so that it raises no warnings
        some, true = np.where(known[:, None, :], some, 0.0), np.where(known, true, 0.0)
        result[part] = np.where(known, score(some, true), np.nan)
    return result


def _finite_or_nan(*values: ArrayLike) -> list[Floats]:
    arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
    known = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    return [np.where(known, array, np.nan) for array in arrays]


def _refuse_negative(name: str, values: Floats) -> None:
    if (values < 0).any():
        raise ValueError(f"found {name}={float(np.nanmin(values)):g}; expected 0 or more")


def _standardise(difference: Floats, scale: Floats) -> Floats:
    return difference / np.where(scale == 0, 1.0, scale)
