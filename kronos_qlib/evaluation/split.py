"""Figures of a signal on either side of a checkpoint's cutoff: what it may have seen, and what it cannot have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.evaluation.ic import complete_pairs, daily_ic, daily_rank_ic, ic_summary


def cutoff_masks(
    days: pd.DatetimeIndex, cutoff: pd.Timestamp | None, valid_end: pd.Timestamp | None = None
) -> dict[str, np.ndarray]:
    """Split days at the cutoff.

    Parameters
    ----------
    days : stamps, in any order.
    cutoff : last day of the data that the weights were trained on; None: not known, then there is only ``all``.
    valid_end : last day of the span that the weights were chosen by.

    Returns
    -------
    dict of bool arrays (n,)
        ``all``; ``before_cutoff`` (on the day of the cutoff or before) and ``after_cutoff``; and ``after_valid``, where
        the valid span ends after the cutoff: the days that had no part in making the weights.
    """
    masks = {"all": np.ones(len(days), dtype=bool)}
    if cutoff is None:
        return masks
    masks["before_cutoff"] = _up_to(days, cutoff)
    masks["after_cutoff"] = ~masks["before_cutoff"]
    if valid_end is not None and valid_end > cutoff:
        masks["after_valid"] = ~_up_to(days, valid_end)
    return masks


def split_figures(
    score: pd.Series,
    label: pd.Series,
    cutoff: pd.Timestamp | None,
    valid_end: pd.Timestamp | None = None,
    *,
    lags: int | None = None,
) -> dict[str, dict[str, Any]]:
    """IC and Rank IC of all days and of each side of the cutoff.

    Parameters
    ----------
    score, label : Series indexed (datetime, instrument), matched by index.
    cutoff, valid_end : see :func:`cutoff_masks`.
    lags : Newey–West lags, see :func:`kronos_qlib.evaluation.ic.ic_summary`; at least h - 1 for a label over h days.

    Returns
    -------
    dict
        Part -> ``rows`` (complete pairs), ``days``, ``first``, ``last`` (ISO dates), and the figures of an
        ``ICSummary`` under ``ic`` and ``rank_ic``. Figures that are not defined (a part without
        days) are None, as JSON needs.
    """
    daily = {"ic": daily_ic(score, label), "rank_ic": daily_rank_ic(score, label)}
    row_days = pd.DatetimeIndex(complete_pairs(score, label).index.get_level_values("datetime"))
    rows = {name: int(mask.sum()) for name, mask in cutoff_masks(row_days, cutoff, valid_end).items()}
    days = pd.DatetimeIndex(daily["ic"].index)
    return {
        name: {
            "rows": rows[name],
            "days": int(mask.sum()),
            "first": days[mask].min().date().isoformat() if mask.any() else None,
            "last": days[mask].max().date().isoformat() if mask.any() else None,
            **{kind: _plain(ic_summary(series[mask], lags=lags).to_dict()) for kind, series in daily.items()},
        }
        for name, mask in cutoff_masks(days, cutoff, valid_end).items()
    }


def _up_to(days: pd.DatetimeIndex, last: pd.Timestamp) -> np.ndarray:
    # the whole day of the cutoff counts, so that intraday bars of it lie before
    return np.asarray(days < last.normalize() + pd.Timedelta(days=1))


def _plain(figures: dict[str, float | int]) -> dict[str, float | int | None]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in figures.items()}
