"""Many variants, one family: Romano–Wolf step-down p-values on resamples that all variants share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.evaluation.bootstrap import N_RESAMPLES, SEED, choose_block_length, resample_means, usable_days

ALTERNATIVES = ("two-sided", "greater")


@dataclass(frozen=True, eq=False)
class MultiplicityResult:
    """What remains significant when all variants are counted.

    Attributes
    ----------
    table : one row a variant, in the order given; columns ``mean`` (of the daily values), ``standard_error`` (of the
        mean, from the resamples), ``t`` (their ratio), ``p_value`` (for the variant alone), ``adjusted_p_value``.
    n_variants : variants tested here. n_tried : variants tried in all, these included.
    alternative : ``two-sided`` or ``greater``. block_length : mean block length in days.
    n_days, n_undefined, n_resamples, seed : days used, days left out, resamples, as used.
    """

    table: pd.DataFrame
    n_variants: int
    n_tried: int
    alternative: str
    block_length: float
    n_days: int
    n_undefined: int
    n_resamples: int
    seed: int


def romano_wolf(
    differences: pd.DataFrame,
    *,
    horizon: int = 1,
    n_tried: int | None = None,
    alternative: str = "two-sided",
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
    block_length: float | None = None,
) -> MultiplicityResult:
    """Test every column's mean against 0, with the chance of any false finding held.

    Parameters
    ----------
    differences : one column a variant (at least one), rows are days in ascending order: daily values whose mean is 0
        under the null, such as the variant's Rank IC minus a baseline's. A day with a value that is not finite in any
        column is left out of all, so that the variants share their resamples.
    horizon : days over which the label extends; the mean block length is at least that.
    n_tried : variants tried in all, also those without a column here; None: the columns. With more tried than given,
        each adjusted p-value is multiplied by ``n_tried / n_variants`` (at most 1): Bonferroni between these and the
        rest.
    alternative : ``two-sided``, or ``greater`` for means above 0.
    n_resamples, seed : see :func:`kronos_qlib.evaluation.bootstrap.resample_counts`; with equal days, block length and
        seed they are the very resamples of ``paired_bootstrap``.
    block_length : mean block length in days; None: the longest of the columns' optimal ones. Raised to ``horizon``.

    Returns
    -------
    MultiplicityResult. With one variant and nothing else tried, adjusted and own p-value are the same, and (two-sided)
    that of ``paired_bootstrap``. A variant whose values are all 0 has t = 0 and p-value 1; one whose values are all
    the same but not 0 has an infinite t.

    Raises
    ------
    ValueError : no columns or columns of one name, ``n_tried`` below the number of columns, an unknown alternative, and
        as :func:`kronos_qlib.evaluation.bootstrap.paired_bootstrap`.

    Notes
    -----
    Romano and Wolf (2005), p-values by the algorithm of Romano and Wolf (2016). Statistics are studentised by the
    resamples' own standard error, the same in every resample.
    """
    if not isinstance(differences, pd.DataFrame) or differences.shape[1] == 0 or not differences.columns.is_unique:
        raise ValueError("differences must be a DataFrame of days by variants with at least one column, each name once")
    if alternative not in ALTERNATIVES:
        raise ValueError(f"found alternative={alternative!r}; expected one of {list(ALTERNATIVES)}")
    n_variants = differences.shape[1]
    n_tried = n_variants if n_tried is None else n_tried
    if n_tried < n_variants:
        raise ValueError(f"found n_tried={n_tried} for {n_variants} variants; count every variant that was tried")
    values, undefined = usable_days({str(i): differences.iloc[:, i] for i in range(n_variants)})
    length = choose_block_length(values, horizon, block_length)
    mean = values.mean(axis=0)
    deviation = resample_means(values, length, n_resamples, seed) - mean
    error = deviation.std(axis=0)
    # Equal values have resampled means that differ by rounding only; that is no spread.
    flat = (values == values[0]).all(axis=0)
    error[flat] = deviation[:, flat] = 0.0
    statistic, null = _studentise(mean, error), _studentise(deviation, error)
    if alternative == "two-sided":
        own, adjusted = step_down(np.abs(statistic), np.abs(null))
    else:
        own, adjusted = step_down(statistic, null)
    columns = {
        "mean": mean,
        "standard_error": error,
        "t": statistic,
        "p_value": own,
        "adjusted_p_value": np.minimum(adjusted * (n_tried / n_variants), 1.0),
    }
    table = pd.DataFrame(columns, index=differences.columns.rename("variant"))
    return MultiplicityResult(
        table, n_variants, n_tried, alternative, length, len(values), undefined, n_resamples, seed
    )


def step_down(
    statistic: NDArray[np.float64], null: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each hypothesis' own p-value and its step-down adjusted one.

    Parameters
    ----------
    statistic : float64 (k,), large values speak against the null.
    null : float64 (n_resamples, k), the statistics as they fall under the null, resampled together.

    Returns
    -------
    own, adjusted : float64 (k,), ``(1 + count) / (1 + n_resamples)``. The hypothesis with the j-th largest statistic is
        compared with the resampled maximum over itself and all with smaller statistics; adjusted values never fall from
        one to the next.
    """
    n_resamples = len(null)
    own = (1 + (null >= statistic).sum(axis=0)) / (1 + n_resamples)
    order = np.argsort(-statistic, kind="stable")
    # Column j: maximum over hypotheses j, j + 1, ... in falling order of their statistics.
    highest = np.maximum.accumulate(null[:, order[::-1]], axis=1)[:, ::-1]
    stepwise = (1 + (highest >= statistic[order]).sum(axis=0)) / (1 + n_resamples)
    adjusted = np.empty_like(stepwise)
    adjusted[order] = np.maximum.accumulate(stepwise)
    return own, adjusted


def _studentise(values: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide by the standard error; 0 / 0 is 0, anything else over 0 infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values / error
    return np.where(np.isnan(ratio), 0.0, ratio)
