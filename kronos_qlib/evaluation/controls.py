"""Controls that must fail: the same scores or labels, dealt out at random within each date."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd

from kronos_qlib.evaluation.bootstrap import SEED
from kronos_qlib.evaluation.series import check_series


def shuffle_within_date(series: pd.Series, seed: int = SEED) -> pd.Series:
    """Permute the finite values among the names that have one, date by date.

    What a date as a whole knows (its level, its spread) stays; who gets which value is lost. An IC of shuffled labels,
    or of shuffled scores, that is not near 0 shows a fault in the evaluation, not a signal.

    Parameters
    ----------
    series : float Series, scores or labels, with a unique index of the levels ``datetime`` and ``instrument``.
    seed : of the permutations.

    Returns
    -------
    Series of the same index, order, dtype and name. NaN and infinite values stay where they are, so that the rows of an
        evaluation stay the same. A date's permutation depends on the seed, the date and its finite values with their
        names only: not on the order of rows, nor on other dates.

    Raises
    ------
    ValueError : bad index.
    """
    check_series("series", series)
    values = series.to_numpy(copy=True)
    finite = np.flatnonzero(np.isfinite(series.to_numpy(dtype=np.float64)))
    dates = pd.DatetimeIndex(series.index.get_level_values("datetime")).as_unit("ns").asi8
    codes, _ = cast(pd.MultiIndex, series.index).droplevel("datetime").factorize(sort=True)
    # By date and name, so that the order in which the rows come cannot matter.
    order = finite[np.lexsort((codes[finite], dates[finite]))]
    days, first = np.unique(dates[order], return_index=True)
    for day, rows in zip(days, np.split(order, first[1:]), strict=False):
        # A seed sequence takes no negative numbers, and dates before 1970 are negative.
        generator = np.random.default_rng([seed, int(day) % 2**64])
        values[rows] = values[generator.permutation(rows)]
    return pd.Series(values, index=series.index, name=series.name)
