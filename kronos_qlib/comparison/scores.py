"""Scores on the rows that all methods are judged on: one rule for suspended names, the same for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa


def read_scores(path: Path) -> pd.Series:
    """Read scores that were made elsewhere.

    Parameters
    ----------
    path : parquet file indexed (datetime, instrument), in any order, with a column ``score`` or one column only; what
        :class:`kronos_qlib.rolling.KronosRolling` writes as ``prediction.parquet``.

    Raises
    ------
    ValueError : no such file, another index, several columns without ``score``, a row that occurs twice.
    """
    try:
        frame = pd.read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"the scores {path} cannot be read: {error}; expected a parquet file") from error
    if set(frame.index.names) != {"datetime", "instrument"}:
        raise ValueError(f"{path} is indexed {list(frame.index.names)}; expected (datetime, instrument)")
    if "score" not in frame and frame.shape[1] != 1:
        raise ValueError(f"{path} has the columns {list(frame.columns)}; expected one named score")
    if not frame.index.is_unique:
        raise ValueError(f"{path} scores {frame.index[frame.index.duplicated()][0]} twice")
    return (frame["score"] if "score" in frame else frame.iloc[:, 0]).rename("score")


def blend(scores: Sequence[pd.Series]) -> pd.Series:
    """Mean of the z-scores within each date of several methods' laid-out scores, on one index.

    A row that one method has no score for takes its mean, 0, there; a row that none has stays NaN.
    """
    table = pd.concat([standardise(part).fillna(0.0) for part in scores], axis=1)
    known = pd.concat(list(scores), axis=1).notna().any(axis=1)
    return table.mean(axis=1).where(known).rename("score")


def standardise(values: pd.Series) -> pd.Series:
    """z-score within each date, as Qlib's CSZScoreNorm; NaN stays NaN, and a date without any spread is NaN."""
    days = values.groupby(level="datetime")
    return (values - days.transform("mean")) / days.transform("std").replace(0.0, np.nan)


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
