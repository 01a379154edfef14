"""Paired stationary block bootstrap over days: is one method better than another, and by how much?

Politis and Romano (1994): blocks start at uniform days, have geometric lengths, and wrap around the end. A resample is
kept as how often it draws each day, so that any number of methods share the same resamples at the cost of one product.
These are figures to judge by: a day's value (an IC, a CRPS) is known only when that day's label is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

N_RESAMPLES = 10_000
SEED = 20_150_101  # any fixed number; the same everywhere, so that figures of one report share their resamples
CHUNK_CELLS = 1 << 20  # resample x day cells held at a time: about 8 MB an array


def optimal_block_length(values: ArrayLike) -> float:
    """Return the mean block length that suits the stationary bootstrap of these values' mean.

    Parameters
    ----------
    values : (n,) floats in time order, all finite, n at least 10. Units do not matter.

    Returns
    -------
    float in days, between 1 and ``ceil(min(3 sqrt(n), n / 3))``; 1 for constant values. Not rounded: the stationary
    bootstrap needs no whole number.

    Raises
    ------
    ValueError : another shape, fewer than 10 values, a value that is not finite.

    Notes
    -----
    Politis and White (2004) with the correction of Patton, Politis and White (2009), in the form of
    ``arch.bootstrap.optimal_block_length``: flat-top kernel, bandwidth twice the first lag from which
    ``max(5, log10 n)`` autocorrelations in a row lie within ``2 sqrt(log10(n) / n)``.
    """
    series = _finite_vector(values)
    n = len(series)
    if (series == series[0]).all():
        return 1.0
    errors = series - series.mean()
    run = max(5, int(np.log10(n)))
    largest = min(int(np.ceil(np.sqrt(n))) + run, n - 2)
    covariance = np.array([errors[lag:] @ errors[: n - lag] / n for lag in range(largest + 1)])
    bandwidth = _bandwidth(errors, covariance, run)
    lags = np.arange(1, bandwidth + 1)
    weights = np.minimum(1.0, 2.0 * (1.0 - lags / bandwidth))
    slope = 2.0 * (weights * lags) @ covariance[1 : bandwidth + 1]
    long_run = covariance[0] + 2.0 * weights @ covariance[1 : bandwidth + 1]
    longest = float(np.ceil(min(3.0 * np.sqrt(n), n / 3.0)))
    if long_run == 0.0:
        return longest
    return float(np.clip((slope**2 / long_run**2 * n) ** (1.0 / 3.0), 1.0, longest))


def _bandwidth(errors: NDArray[np.float64], covariance: NDArray[np.float64], run: int) -> int:
    """Lags that count: twice the first lag of the first run of insignificant autocorrelations."""
    n, largest = len(errors), len(covariance) - 1
    squares = np.concatenate([[0.0], np.cumsum(errors**2)])
    lags = np.arange(largest + 1)
    # arch scales lag k by the sums of squares without the first, and without the last, k + 1 values
    scale = np.sqrt((squares[n] - squares[lags + 1]) * squares[n - lags - 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.abs(covariance * n) / scale
    small = correlation < 2.0 * np.sqrt(np.log10(n) / n)
    for first in range(largest - run + 1):
        if small[first : first + run].all():
            return min(2 * max(first, 1), largest)
    return largest


def resample_counts(
    n: int, block_length: float, n_resamples: int = N_RESAMPLES, seed: int = SEED, *, chunk_cells: int = CHUNK_CELLS
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each day is drawn, a chunk of resamples at a time.

    Parameters
    ----------
    n : days.
    block_length : mean block length in days, from 1 (independent days) on; need not be whole.
    n_resamples : resamples in all.
    seed : of the generator (PCG64); equal arguments give equal resamples, whatever ``chunk_cells``.
    chunk_cells : most resample x day cells in memory at a time (at least one resample).

    Yields
    ------
    float64 (r, n) whole numbers; each row sums to n. Rows over all chunks: ``n_resamples``.

    Raises
    ------
    ValueError : n or ``n_resamples`` below 1, ``block_length`` below 1.
    """
    if n < 1 or n_resamples < 1 or not block_length >= 1:
        found = f"n={n}, n_resamples={n_resamples}, block_length={block_length}"
        raise ValueError(f"found {found}; expected each to be at least 1")
    starts, restarts = (np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(2))
    rows = max(1, chunk_cells // n)
    for done in range(0, n_resamples, rows):
        size = min(rows, n_resamples - done)
        # plain uniforms are consumed one a cell, so the chunks' size cannot change the stream
        start = np.minimum((starts.random((size, n)) * n).astype(np.int64), n - 1)
        restart = restarts.random((size, n)) < 1.0 / block_length
        day = np.arange(n)
        # the first day begins a block in any case
        began = np.maximum.accumulate(np.where(restart, day, 0), axis=1)
        drawn = (np.take_along_axis(start, began, axis=1) + day - began) % n
        cell = (drawn + np.arange(size)[:, None] * n).ravel()
        yield np.bincount(cell, minlength=size * n).reshape(size, n).astype(np.float64)


def resample_means(
    values: NDArray[np.float64], block_length: float, n_resamples: int = N_RESAMPLES, seed: int = SEED
) -> NDArray[np.float64]:
    """Return the mean of each column in each resample.

    Parameters
    ----------
    values : float64 (n, k), days by methods, in time order, finite. All columns share the resamples.
    block_length, n_resamples, seed : see :func:`resample_counts`.

    Returns
    -------
    float64 (n_resamples, k)
    """
    n = len(values)
    return np.concatenate([counts @ values for counts in resample_counts(n, block_length, n_resamples, seed)]) / n


@dataclass(frozen=True)
class BootstrapResult:
    """A figure, its interval and its p-value.

    Attributes
    ----------
    estimate : the figure on the days as they were: a mean difference, or a skill.
    lower, upper : symmetric interval ``estimate ± q``, q the ``level`` quantile of ``|resampled - estimate|``; it
        leaves 0 out when the p-value is below ``1 - level``, up to one resample.
    p_value : two-sided, of estimate = 0: ``(1 + #{|resampled - estimate| >= |estimate|}) / (1 + n_resamples)``.
    standard_error : standard deviation of the resampled figures.
    level : of the interval. block_length : mean block length in days.
    n_days : days used; n_undefined : days left out because a value was not finite. n_resamples, seed : as used.
    """

    estimate: float
    lower: float
    upper: float
    p_value: float
    standard_error: float
    level: float
    block_length: float
    n_days: int
    n_undefined: int
    n_resamples: int
    seed: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the figures as plain numbers, for JSON or a recorder."""
        return asdict(self)


def paired_bootstrap(
    first: pd.Series,
    second: pd.Series,
    *,
    horizon: int = 1,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
    block_length: float | None = None,
) -> BootstrapResult:
    """Compare two methods by their daily values: the mean of ``first - second``, day by day.

    Parameters
    ----------
    first, second : daily values (IC, Rank IC, return, CRPS) indexed by the same days, ascending, in the same unit.
        A day on which either is NaN or infinite is left out of both and counted.
    horizon : days over which the label extends; the mean block length is at least that.
    level : of the interval. n_resamples, seed : see :func:`resample_counts`.
    block_length : mean block length in days; None: :func:`optimal_block_length` of the differences. Raised to
        ``horizon`` if below.

    Returns
    -------
    BootstrapResult of the difference, in the unit of the values.

    Raises
    ------
    ValueError : not Series, other days on one side, days not ascending or twice, fewer than 10 usable days or than two
        blocks, ``horizon`` or ``n_resamples`` below 1, ``level`` outside (0, 1).
    """
    pair, undefined = usable_days({"first": first, "second": second})
    difference = pair[:, :1] - pair[:, 1:]
    length = choose_block_length(difference, horizon, block_length)
    resampled = resample_means(difference, length, n_resamples, seed)[:, 0]
    return _result(float(difference.mean()), resampled, level, length, len(pair), undefined, seed)


def bootstrap_skill(
    loss: pd.Series,
    reference: pd.Series,
    *,
    horizon: int = 1,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
    block_length: float | None = None,
) -> BootstrapResult:
    """Compare two methods by the skill ``1 - mean(loss) / mean(reference)``, as a CRPS is compared.

    Parameters as for :func:`paired_bootstrap`; lower values are better, and ``reference`` is positive on average. Each
    resample has its own ratio of means; without ``block_length`` the block is the optimal one of
    ``loss - ratio x reference``, the series whose mean decides the skill to first order.

    Returns
    -------
    BootstrapResult of the skill: 0.01 is one per cent better than the reference.

    Raises
    ------
    ValueError : as :func:`paired_bootstrap`, and when the mean reference is not positive.
    """
    pair, undefined = usable_days({"loss": loss, "reference": reference})
    mean_loss, mean_reference = pair.mean(axis=0)
    if not mean_reference > 0:
        raise ValueError(f"the mean of reference is {mean_reference:g}; a skill needs a positive loss to compare with")
    ratio = mean_loss / mean_reference
    length = choose_block_length(pair[:, :1] - ratio * pair[:, 1:], horizon, block_length)
    means = resample_means(pair, length, n_resamples, seed)
    if not (means[:, 1] > 0).all():
        raise ValueError("reference has resamples with a mean that is not positive; a skill needs a positive loss")
    resampled = 1.0 - means[:, 0] / means[:, 1]
    return _result(1.0 - float(ratio), resampled, level, length, len(pair), undefined, seed)


def usable_days(series: dict[str, pd.Series]) -> tuple[NDArray[np.float64], int]:
    """Return the days on which all series are finite, float64 (n, k), and how many others there were.

    Raises
    ------
    ValueError : not Series, days that differ, are not ascending or occur twice, or fewer than 10 usable days.
    """
    index: pd.Index | None = None
    for name, values in series.items():
        if not isinstance(values, pd.Series):
            raise ValueError(f"{name} must be a pandas Series of daily values, got {type(values).__name__}")
        if not (values.index.is_monotonic_increasing and values.index.is_unique):
            raise ValueError(f"{name} must have each day once, in ascending order; sort it by its index")
        index = values.index if index is None else index
        if not values.index.equals(index):
            other = len(values.index.symmetric_difference(index))
            raise ValueError(f"{name} differs from {next(iter(series))} in {other} days; compare on the same days")
    table = np.column_stack([values.to_numpy(dtype=np.float64) for values in series.values()])
    finite = np.isfinite(table).all(axis=1)
    if finite.sum() < 10:
        raise ValueError(f"only {int(finite.sum())} days have a finite value; a block bootstrap needs at least 10")
    return table[finite], int((~finite).sum())


def choose_block_length(values: NDArray[np.float64], horizon: int, block_length: float | None = None) -> float:
    """Return the longest of the columns' optimal lengths (or ``block_length``) and the horizon, in days.

    Raises
    ------
    ValueError : ``horizon`` below 1, a length below 1, or one of more than half the days.
    """
    if horizon < 1:
        raise ValueError(f"found horizon={horizon}; expected the label's days, at least 1")
    if block_length is None:
        block_length = max(optimal_block_length(column) for column in values.T)
    elif not block_length >= 1:
        raise ValueError(f"found block_length={block_length}; expected days, at least 1")
    length = float(max(block_length, horizon))
    if length > len(values) / 2:
        raise ValueError(f"blocks of {length:g} days are too long for {len(values)} days; two must fit")
    return length


def _result(
    estimate: float,
    resampled: NDArray[np.float64],
    level: float,
    block_length: float,
    n_days: int,
    n_undefined: int,
    seed: int,
) -> BootstrapResult:
    if not 0.0 < level < 1.0:
        raise ValueError(f"found level={level}; expected a share between 0 and 1, such as 0.95")
    deviation = np.abs(resampled - estimate)
    reach = float(np.quantile(deviation, level))
    return BootstrapResult(
        estimate=estimate,
        lower=estimate - reach,
        upper=estimate + reach,
        p_value=float((1 + (deviation >= abs(estimate)).sum()) / (1 + len(resampled))),
        standard_error=float(resampled.std(ddof=1)) if len(resampled) > 1 else float("nan"),
        level=level,
        block_length=block_length,
        n_days=n_days,
        n_undefined=n_undefined,
        n_resamples=len(resampled),
        seed=seed,
    )


def _finite_vector(values: ArrayLike) -> NDArray[np.float64]:
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or len(series) < 10:
        raise ValueError(f"found values of shape {series.shape}; expected one dimension with at least 10 days")
    if not np.isfinite(series).all():
        raise ValueError(f"{int((~np.isfinite(series)).sum())} values are not finite; leave those days out first")
    return series
