"""Where a result comes from: which costs it survives, which years it was made in, which names it was made with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kronos_qlib.evaluation.drawdown import max_drawdown
from kronos_qlib.evaluation.ic import MIN_NAMES, daily_ic, daily_rank_ic, ic_summary
from kronos_qlib.evaluation.series import check_series

BASIS_POINTS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
YEAR = 238  # days a year of Qlib's risk_analysis for daily returns, so that figures agree with its own


def cost_sensitivity(
    gross: pd.Series, traded: pd.Series, basis_points: Sequence[float] = BASIS_POINTS, *, days_a_year: int = YEAR
) -> pd.DataFrame:
    """Excess return after a proportional cost on everything that was traded.

    Parameters
    ----------
    gross : excess return a day before cost, by ``datetime``. traded : value bought plus value sold over the account's
        value, on the same days.
    basis_points : cost of each side, in 0.01 %.

    Returns
    -------
    DataFrame, index ``basis_points``: ``net_excess_return`` a year (sum of days, not compounded),
    ``information_ratio`` a year (NaN without spread), ``max_drawdown`` (:mod:`kronos_qlib.evaluation.drawdown`),
    ``cost`` a year. What is held does not change with the cost.

    Raises
    ------
    ValueError : other days on one side, a value that is not finite, a negative cost.
    """
    if not gross.index.equals(traded.index):
        raise ValueError("gross and traded must be of the same days, in the same order")
    values = np.column_stack([gross.to_numpy(dtype=np.float64), traded.to_numpy(dtype=np.float64)])
    if not np.isfinite(values).all() or not len(values):
        raise ValueError("gross and traded must have at least one day, and be finite on every one")
    if any(point < 0 for point in basis_points):
        raise ValueError(f"found basis_points={list(basis_points)}; expected none below 0")
    rows = []
    for point in basis_points:
        cost = values[:, 1] * point * 1e-4
        net = values[:, 0] - cost
        spread = float(net.std(ddof=1)) if len(net) > 1 else 0.0
        rows.append((
            net.mean() * days_a_year,
            net.mean() / spread * np.sqrt(days_a_year) if spread > 0 else np.nan,
            max_drawdown(pd.Series(net)),
            cost.mean() * days_a_year,
        ))  # fmt: skip
    names = ["net_excess_return", "information_ratio", "max_drawdown", "cost"]
    return pd.DataFrame(rows, columns=names, index=pd.Index(list(basis_points), name="basis_points"))


def by_year(daily: pd.DataFrame) -> pd.DataFrame:
    """Mean, Newey–West t and number of days of each column, year by year.

    Parameters
    ----------
    daily : float columns by ``datetime``, ascending; NaN days of a column are left out of it.

    Returns
    -------
    DataFrame, index ``year``, columns (column, ``mean`` | ``t`` | ``days``).
    """
    days = pd.DatetimeIndex(daily.index)
    years = {}
    for year in sorted(set(days.year)):
        part = daily[days.year == year]
        summaries = {name: ic_summary(part[name]) for name in part}
        years[year] = {
            (str(name), key): value
            for name, found in summaries.items()
            for key, value in (("mean", found.mean), ("t", found.newey_west_t), ("days", found.n_days))
        }
    columns = pd.MultiIndex.from_product([[str(name) for name in daily], ["mean", "t", "days"]])
    values = [[row[column] for column in columns] for row in years.values()]
    return pd.DataFrame(values, columns=columns, index=pd.Index(list(years), name="year"))


def by_group(
    score: pd.Series, label: pd.Series, known: pd.Series, *, groups: int = 3, min_names: int = MIN_NAMES
) -> pd.DataFrame:
    """IC and Rank IC inside groups of names that are alike in a known column, such as size or volatility.

    Parameters
    ----------
    score, label, known : float Series with a unique index of the levels ``datetime`` and ``instrument``. ``known``
        sorts each date's names, lowest first, into ``groups`` of equal numbers (ties go by their order in the index);
        names without a finite value are in none.
    min_names : see :func:`kronos_qlib.evaluation.ic.daily_ic`, in each group.

    Returns
    -------
    DataFrame, index ``group`` from 1 (lowest): ``ic``, ``ic_t``, ``rank_ic``, ``rank_ic_t``, ``n_days``.

    Raises
    ------
    ValueError : fewer than 2 groups, a bad index.
    """
    if groups < 2:
        raise ValueError(f"found groups={groups}; expected at least 2")
    check_series("known", known)
    finite = known[np.isfinite(known.to_numpy(dtype=np.float64))]
    within = finite.groupby(level="datetime")
    position = within.rank(method="first") - 1.0
    group = np.floor(position * groups / within.transform("size")).astype(np.int64) + 1
    rows = {}
    for number in range(1, groups + 1):
        part = score[score.index.isin(group.index[group == number])]
        ic = ic_summary(daily_ic(part, label, min_names=min_names))
        rank_ic = ic_summary(daily_rank_ic(part, label, min_names=min_names))
        rows[number] = {
            "ic": ic.mean,
            "ic_t": ic.newey_west_t,
            "rank_ic": rank_ic.mean,
            "rank_ic_t": rank_ic.newey_west_t,
            "n_days": rank_ic.n_days,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")
