"""Scores on the rows that all methods are judged on: one rule for suspended names, the same for everybody."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd


def carry_scores(raw: pd.Series, age: pd.Series, carry: int) -> pd.Series:
    """Lay a method's scores out on the rows of the table.

    Parameters
    ----------
    raw : float Series with the levels ``datetime`` and ``instrument``, in any order; values that are not finite are no
        scores. Rows outside the table are ignored.
    age : int Series on the table's rows, (datetime, instrument): sessions since the member last traded, 0 when it
        traded, -1 where no method is asked for a score.
    carry : sessions that a score is kept over a suspension.

    Returns
    -------
    float64 Series ``score`` on ``age``'s index. Where age is 0: the method's score, or NaN. Where it is above 0: the
        last score from a row of age 0, at most ``carry`` dates of the table earlier, whatever the method says of the
        suspended day (a learner would score it from missing values). Where it is -1: NaN.
    """
    if list(raw.index.names) != list(age.index.names):
        raw = raw.swaplevel()
    values = raw.astype(np.float64)
    fresh = values.where(np.isfinite(values)).reindex(age.index).where(age == 0)
    wide = fresh.unstack("instrument").sort_index()
    ages = age.unstack("instrument").reindex_like(wide)
    filled = wide.ffill(limit=carry) if carry else wide
    kept = wide.where(~(ages > 0), filled)
    laid = cast(pd.Series, kept.stack()).reindex(age.index)
    return laid.rename("score")
