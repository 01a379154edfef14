"""Daily information coefficients and what they say together.

Pure functions on Series indexed (datetime, instrument). A day's value uses that day's scores and labels only;
the label lies in the future of the score, so these are figures to judge by, never to trade on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.evaluation.series import check_series

MIN_NAMES = 3


def daily_ic(score: pd.Series, label: pd.Series, *, min_names: int = MIN_NAMES) -> pd.Series:
    """Pearson correlation of score and label across instruments, day by day.

    Parameters
    ----------
    score, label : float Series with a unique MultiIndex that has a level named ``datetime``; the other level
        names must be the same in both. Units do not matter.
    min_names : a day with fewer complete pairs is left out of the result; at least 2.

    Returns
    -------
    float64 Series named ``ic``, indexed by ``datetime``, ascending. Pairs are matched by index; a pair with a
    NaN or an infinity on either side is dropped; a day on which score or label is constant has NaN.

    Raises
    ------
    ValueError : not a Series, no ``datetime`` level, duplicate index entries, differing levels, ``min_names``
        < 2.
    """
    return _correlate(complete_pairs(score, label), min_names).rename("ic")


def daily_rank_ic(score: pd.Series, label: pd.Series, *, min_names: int = MIN_NAMES) -> pd.Series:
    """Spearman correlation, day by day: as :func:`daily_ic` on within-day ranks (ties share their mean rank).

    Ranks are taken after incomplete pairs are dropped, so both sides rank the same names. Named ``rank_ic``.
    """
    pairs = complete_pairs(score, label)
    ranks = pairs.groupby(level="datetime").rank()
    return _correlate(ranks, min_names).rename("rank_ic")


@dataclass(frozen=True)
class ICSummary:
    """Figures of a series of daily ICs.

    Attributes
    ----------
    mean, std : of the days that have a value; std is the sample one (n - 1).
    icir : mean / std, per day, not annualised.
    newey_west_t : t of mean = 0 with a Newey–West (Bartlett) standard error, no small-sample factor.
    lags : lags that went into it.
    positive_share : share of days with IC > 0.
    n_days : days with a value; n_undefined : days that had NaN (constant score or label).
    """

    mean: float
    std: float
    icir: float
    newey_west_t: float
    lags: int
    positive_share: float
    n_days: int
    n_undefined: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the figures as plain numbers, for JSON or a recorder."""
        return asdict(self)


def ic_summary(series: pd.Series, *, lags: int | None = None) -> ICSummary:
    """Summarise daily ICs.

    Parameters
    ----------
    series : daily values in time order, as :func:`daily_ic` gives them; NaN days are left out and counted.
    lags : Newey–West lags; None: the rule ``floor(4 (n / 100) ** (2 / 9))``. For a label that overlaps over h
        days give at least h - 1. Cut to n - 1.

    Returns
    -------
    ICSummary; with fewer than 2 days everything that needs a spread is NaN, and so is a ratio with zero
    spread.

    Raises
    ------
    ValueError : not a Series, an index that is not ascending, negative ``lags``.
    """
    if not isinstance(series, pd.Series):
        raise ValueError(f"ic_summary expects a pandas Series of daily values, got {type(series).__name__}.")
    if not series.index.is_monotonic_increasing:
        raise ValueError("ic_summary expects days in ascending order; sort the series by its index first.")
    if lags is not None and lags < 0:
        raise ValueError(f"lags must be 0 or more, got {lags}.")
    raw = series.to_numpy(dtype=np.float64)
    values = raw[np.isfinite(raw)]
    n = len(values)
    used = min(newey_west_lags(n) if lags is None else lags, max(n - 1, 0))
    mean = float(values.mean()) if n else float("nan")
    std = float(values.std(ddof=1)) if n > 1 else float("nan")
    if n > 1 and (values == values[0]).all():
        std = 0.0
    return ICSummary(
        mean=mean,
        std=std,
        icir=mean / std if std > 0 else float("nan"),
        newey_west_t=newey_west_t(values, used) if n > 1 else float("nan"),
        lags=used,
        positive_share=float((values > 0).mean()) if n else float("nan"),
        n_days=n,
        n_undefined=int(len(raw) - n),
    )


def newey_west_lags(n: int) -> int:
    """Lags by the common rule of thumb ``floor(4 (n / 100) ** (2 / 9))`` (Newey and West, 1994)."""
    return int(4 * (n / 100) ** (2 / 9)) if n > 0 else 0


def newey_west_t(values: NDArray[np.float64], lags: int) -> float:
    """t of the mean against 0: mean / sqrt(S / n), S = g_0 + 2 sum_l (1 - l / (lags + 1)) g_l.

    g_l = sum_t e_t e_{t-l} / n is the l-th autocovariance (Newey and West, 1987).

    NaN when all values are equal (no spread to judge by).
    """
    n = len(values)
    if n < 2 or (values == values[0]).all():
        return float("nan")
    mean = values.mean()
    errors = values - mean
    long_run = errors @ errors / n
    for lag in range(1, lags + 1):
        long_run += 2.0 * (1.0 - lag / (lags + 1)) * (errors[lag:] @ errors[:-lag]) / n
    return float(mean / np.sqrt(long_run / n)) if long_run > 0 else float("nan")


def complete_pairs(score: pd.Series, label: pd.Series) -> pd.DataFrame:
    """Match two Series by index: columns score and label, float64, complete and finite pairs only."""
    for name, series in (("score", score), ("label", label)):
        check_series(name, series)
    if set(score.index.names) != set(label.index.names):
        raise ValueError(
            f"score has the index levels {list(score.index.names)}, label {list(label.index.names)}; "
            "they must be the same."
        )
    if list(score.index.names) != list(label.index.names):
        label = label.reorder_levels([label.index.names.index(name) for name in score.index.names])
    pairs = pd.concat({"score": score.astype(np.float64), "label": label.astype(np.float64)}, axis=1, join="inner")
    return pairs[np.isfinite(pairs.to_numpy()).all(axis=1)]


def _correlate(pairs: pd.DataFrame, min_names: int) -> pd.Series:
    """Pearson correlation per day in two passes: means first, so that large offsets do not cost digits."""
    if min_names < 2:
        raise ValueError(f"min_names must be at least 2, got {min_names}: one name has no correlation.")
    days = pairs.index.get_level_values("datetime")
    grouped = pairs.groupby(days)
    constant = (grouped.max() == grouped.min()).any(axis=1)
    centred = pairs - grouped.transform("mean")
    products = pd.DataFrame(
        {
            "both": centred["score"] * centred["label"],
            "score": centred["score"] ** 2,
            "label": centred["label"] ** 2,
        }
    )
    sums = products.groupby(days).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = sums["both"] / (np.sqrt(sums["score"]) * np.sqrt(sums["label"]))
    correlation = correlation.mask(constant)
    kept: pd.Series = correlation[grouped.size() >= min_names].sort_index()
    kept.index.name = "datetime"
    return kept
