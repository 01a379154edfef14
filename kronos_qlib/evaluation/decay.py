"""How long a signal stays informative: its IC when it is traded late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pandas as pd

from kronos_qlib.evaluation.ic import MIN_NAMES, daily_ic, daily_rank_ic, ic_summary
from kronos_qlib.evaluation.series import check_series, to_wide

LAGS = (0, 1, 2, 3, 5, 10, 20)


def lag_score(score: pd.Series, lag: int, sessions: pd.DatetimeIndex | None = None) -> pd.Series:
    """Return the score as it was ``lag`` sessions earlier: what is dated t was known at t - lag.

    Parameters
    ----------
    score : float Series with a unique index of the levels ``datetime`` and ``instrument``. NaN and infinite values are
        no scores and are left out.
    lag : sessions, 0 or more.
    sessions : all sessions to count by, unique and ascending; None: the dates that occur in ``score``, so that a date
        without any score is not counted. Scores on other dates are an error.

    Returns
    -------
    float64 Series indexed (datetime, instrument), sorted, named as ``score``: an instrument has a value at t when it
        had a finite one at t - lag, whether or not it has one at t.

    Raises
    ------
    ValueError : ``lag`` below 0, bad index, sessions unsorted or without a date of the score.
    """
    if lag < 0:
        raise ValueError(f"found lag={lag}; expected sessions, 0 or more (a negative lag would look ahead)")
    wide = to_wide("score", score)
    if sessions is not None:
        if not (sessions.is_monotonic_increasing and sessions.is_unique):
            raise ValueError("sessions must be ascending, each once")
        missing = wide.index.difference(sessions)
        if len(missing):
            raise ValueError(f"{len(missing)} dates of the score are no sessions, first {missing[0]}")
        wide = wide.reindex(sessions)
    wide.index.name = "datetime"
    lagged = cast(pd.Series, wide.shift(lag).stack()).dropna()
    lagged.index.names = ["datetime", "instrument"]
    lagged.name = score.name
    return lagged


def lagged_ic(
    score: pd.Series,
    label: pd.Series,
    lags: Sequence[int] = LAGS,
    *,
    rank: bool = True,
    min_names: int = MIN_NAMES,
) -> pd.DataFrame:
    """Daily IC of the label at t with the score of t - lag, for each lag, on the days that all lags have.

    Parameters
    ----------
    score, label : float Series with a unique index of the levels ``datetime`` and ``instrument``; a pair with a value
        that is not finite is dropped.
    lags : sessions, each once, 0 or more; counted over the dates that score or label have.
    rank : Rank IC (Spearman) or IC (Pearson).
    min_names : see :func:`kronos_qlib.evaluation.ic.daily_ic`.

    Returns
    -------
    float64 DataFrame, index ``datetime`` ascending, one column a lag. A day that any lag lacks (the first ``max(lags)``
        sessions, say) is left out of all, so that lags are compared on the same days; NaN where a side is constant.

    Raises
    ------
    ValueError : no lags, a lag twice or below 0, and as :func:`kronos_qlib.evaluation.ic.daily_ic`.
    """
    if len(lags) == 0 or len(set(lags)) != len(lags):
        raise ValueError(f"found lags={list(lags)}; expected at least one, each once")
    check_series("score", score)
    check_series("label", label)
    correlate = daily_rank_ic if rank else daily_ic
    dates = pd.DatetimeIndex(score.index.unique("datetime").union(label.index.unique("datetime")).sort_values())
    columns = {lag: correlate(lag_score(score, lag, dates), label, min_names=min_names) for lag in lags}
    return pd.concat(columns, axis=1, join="inner").rename_axis(columns="lag")


def ic_decay(
    score: pd.Series,
    label: pd.Series,
    lags: Sequence[int] = LAGS,
    *,
    rank: bool = True,
    min_names: int = MIN_NAMES,
    newey_west_lags: int | None = None,
) -> pd.DataFrame:
    """Summarise :func:`lagged_ic`: one row a lag (index ``lag``), the columns of ``ICSummary``.

    Parameters as for :func:`lagged_ic`; ``newey_west_lags`` as ``lags`` of
    :func:`kronos_qlib.evaluation.ic.ic_summary`. A signal that is worth as much 20 sessions late is not a view of the
    next days but a standing preference (a sector, a size, a volatility).
    """
    daily = lagged_ic(score, label, lags, rank=rank, min_names=min_names)
    rows = {lag: ic_summary(daily[lag], lags=newey_west_lags).to_dict() for lag in daily.columns}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("lag")
