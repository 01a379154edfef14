"""How much of a signal is something known: its IC before and after known columns are regressed out, date by date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.evaluation.ic import MIN_NAMES, daily_ic, daily_rank_ic, ic_summary
from kronos_qlib.evaluation.series import check_series

NEGLIGIBLE = 1e-9  # residuals this small beside the score are rounding: the references explain all of it


def neutralise(score: pd.Series, references: pd.DataFrame, *, rank: bool = True) -> pd.Series:
    """Remove from each date's scores what a linear cross-sectional regression on the references explains.

    Parameters
    ----------
    score : float Series with a unique index of the levels ``datetime`` and ``instrument``.
    references : float columns on the same levels, known at the same time as the score (bars up to t).
    rank : take score and references as within-date ranks (ties share their mean) first, so that fat tails do not decide
        the regression; else as they are.

    Returns
    -------
    float64 Series ``residual`` on the entries that both have, in the score's order: residuals of ordinary least squares
        of the score on a constant and the references. NaN in a row with a value that is not finite in the score or any
        reference (it takes no part), and on a date with too few names to leave a degree of freedom. Exactly 0 on a date
        whose scores the references explain entirely. References that depend on each other are no error.

    Raises
    ------
    ValueError : bad index, no references, or the same name twice.
    """
    table, names = _aligned(score, references)
    complete = np.isfinite(table.to_numpy()).all(axis=1)
    used = table[complete]
    if rank:
        used = used.groupby(level="datetime").rank()
    residual = np.full(len(table), np.nan)
    position = np.flatnonzero(complete)
    values = used.to_numpy()
    for rows in used.groupby(level="datetime").indices.values():
        if len(rows) > len(names) + 1:
            residual[position[rows]] = _residuals(values[rows, 0], values[rows, 1:])
    return pd.Series(residual, index=table.index, name="residual")


def attribution(
    score: pd.Series,
    label: pd.Series,
    references: pd.DataFrame,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    rank: bool = True,
    min_names: int = MIN_NAMES,
    newey_west_lags: int | None = None,
) -> pd.DataFrame:
    """IC and Rank IC of a score as it is, and with references removed one at a time, in groups, and all together.

    Parameters
    ----------
    score, label : float Series with a unique index of the levels ``datetime`` and ``instrument``.
    references, rank : see :func:`neutralise`; :func:`kronos_qlib.evaluation.references.reference_columns` builds them.
        With ``rank`` the first row is of the ranked score, too.
    groups : further sets to remove, by name, such as ``{"reversal": ["reversal_5", "reversal_20"]}``.
    min_names : see :func:`kronos_qlib.evaluation.ic.daily_ic`.
    newey_west_lags : as ``lags`` of :func:`kronos_qlib.evaluation.ic.ic_summary`.

    Returns
    -------
    DataFrame, index ``removed``: ``nothing``, each reference, each group, ``everything``. All rows are judged on the
    same entries: those where score, label and every reference are finite. Columns:

    - ``ic``, ``ic_t``, ``rank_ic``, ``rank_ic_t``: means over days with Newey–West t, of the residual; NaN when nothing
      is left of the score.
    - ``explained``: mean over days of the share of the (ranked) score's variance that was removed.
    - ``reference_rank_ic``: for a single reference its own Rank IC with the label, on the same entries; else NaN.
    - ``n_days``, ``coverage``: days with a Rank IC, and entries used as a share of those where score and label are
      finite.

    Raises
    ------
    ValueError : as :func:`neutralise`; a group that names no reference, or has a name taken by another row; no entry
        left to judge on.
    """
    table, names = _aligned(score, references)
    check_series("label", label)
    removals = _removals(names, groups or {})
    joined = table.join(label.rename("label"), how="inner")
    judged = np.isfinite(joined[["score", "label"]].to_numpy(dtype=np.float64)).all(axis=1)
    joined = joined[np.isfinite(joined.to_numpy(dtype=np.float64)).all(axis=1)]
    if joined.empty:
        raise ValueError("no entry has a finite score, label and reference at once; check their dates and instruments")
    target = joined["label"]
    start = joined["score"].groupby(level="datetime").rank() if rank else joined["score"]
    rows = {}
    for name, removed in removals.items():
        residual = neutralise(joined["score"], joined[removed], rank=rank) if removed else start
        ic = ic_summary(daily_ic(residual, target, min_names=min_names), lags=newey_west_lags)
        rank_ic = ic_summary(daily_rank_ic(residual, target, min_names=min_names), lags=newey_west_lags)
        own = daily_rank_ic(joined[removed[0]], target, min_names=min_names).mean() if name in names else np.nan
        rows[name] = {
            "ic": ic.mean,
            "ic_t": ic.newey_west_t,
            "rank_ic": rank_ic.mean,
            "rank_ic_t": rank_ic.newey_west_t,
            "explained": _explained(start, residual) if removed else 0.0,
            "reference_rank_ic": own,
            "n_days": rank_ic.n_days,
            "coverage": len(joined) / judged.sum(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("removed")


def _aligned(score: pd.Series, references: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return score and references side by side on the entries that both have."""
    check_series("score", score)
    if not isinstance(references, pd.DataFrame) or references.shape[1] == 0 or not references.columns.is_unique:
        raise ValueError("references must be a DataFrame with at least one column, each name once")
    names = [str(name) for name in references.columns]
    if {"score", "label"} & set(names):
        raise ValueError("a reference may not be named 'score' or 'label'; rename it")
    check_series("references", references.iloc[:, 0])
    if set(references.index.names) != set(score.index.names):
        raise ValueError(
            f"score has the index levels {list(score.index.names)}, references {list(references.index.names)}; "
            "they must be the same."
        )
    if list(references.index.names) != list(score.index.names):
        references = references.reorder_levels([str(level) for level in score.index.names])
    both = score.index.isin(references.index)
    frame = references.set_axis(names, axis=1).reindex(score.index[both]).astype(np.float64)
    frame.insert(0, "score", score[both].astype(np.float64))
    return frame, names


def _removals(names: list[str], groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    removals: dict[str, list[str]] = {"nothing": [], **{name: [name] for name in names}}
    for group, members in groups.items():
        unknown = [member for member in members if member not in names]
        if unknown or not members:
            raise ValueError(f"group {group!r} names {unknown or 'nothing'}; the references are {names}")
        if group in removals or group == "everything":
            raise ValueError(f"the name {group!r} is taken; name the group otherwise")
        removals[group] = list(members)
    removals["everything"] = names
    return removals


def _residuals(target: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Residuals of least squares on a constant and the scaled columns; 0 where only rounding is left."""
    centred = target - target.mean()
    design = columns - columns.mean(axis=0)
    spread = np.sqrt((design**2).mean(axis=0))
    design = design / np.where(spread > 0, spread, 1.0)
    residual = centred - design @ np.linalg.lstsq(design, centred, rcond=None)[0]
    if np.linalg.norm(residual) <= NEGLIGIBLE * max(np.linalg.norm(centred), np.finfo(np.float64).tiny):
        return np.zeros_like(residual)
    return residual


def _explained(before: pd.Series, after: pd.Series) -> float:
    """Mean over days of 1 - residual variance / variance, over the days that have both."""
    spread = before.groupby(level="datetime").var(ddof=0)
    left = after.groupby(level="datetime").var(ddof=0)
    return float((1.0 - left / spread.where(spread > 0)).mean())
