"""The figures of a report: what a run's frames say, as small tables and series."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from kronos_qlib.evaluation.bootstrap import SEED
from kronos_qlib.evaluation.breakdown import YEAR
from kronos_qlib.evaluation.controls import shuffle_within_date
from kronos_qlib.evaluation.drawdown import max_drawdown
from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic, ic_summary
from kronos_qlib.evaluation.turnover import rank_autocorrelation

CONTROL_LIMIT = 3.0
BACKTEST_COLUMNS = ("return", "bench", "cost", "turnover")


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of.

    Attributes
    ----------
    score, label : float Series indexed (datetime, instrument); matched by index. The label is raw, as Qlib saves it.
    backtest : Qlib's ``report_normal`` of one frequency: columns ``return`` (before cost), ``bench``, ``cost``,
        ``turnover`` (value traded over the account), indexed by day; None: no backtest was made.
    pit : PIT of the realised close among the paths (:func:`kronos_qlib.evaluation.probability.ensemble_pit`), one
        column a step, one row a window; None: no paths were judged.
    title : of the page.
    facts : shown as they are: experiment, model, checkpoint, cutoff …
    lags : Newey–West lags; at least h - 1 for a label over h days. None: a rule by the number of days.
    control_seeds : shuffles of each kind.
    """

    score: pd.Series
    label: pd.Series
    backtest: pd.DataFrame | None = None
    pit: pd.DataFrame | None = None
    title: str = "Report"
    facts: dict[str, str] = field(default_factory=dict)
    lags: int | None = None
    control_seeds: int = 5

    def __post_init__(self) -> None:
        missing = [] if self.backtest is None else [name for name in BACKTEST_COLUMNS if name not in self.backtest]
        if missing:
            raise ValueError(f"report: the backtest has no column {missing}; expected Qlib's report_normal")
        if self.control_seeds < 1:
            raise ValueError(f"report: control_seeds must be at least 1, got {self.control_seeds}")


def net_excess(backtest: pd.DataFrame) -> pd.Series:
    """Return per day above the benchmark, after cost."""
    return (backtest["return"] - backtest["bench"] - backtest["cost"]).rename("net_excess")


def headline(inputs: ReportInputs) -> pd.DataFrame:
    """The few figures to look at first.

    Returns
    -------
    DataFrame indexed by the figure's name: ``value``, ``low`` and ``high`` (95 %, from the Newey–West standard error),
        ``t`` (Newey–West), ``unit`` (``number``, ``ratio`` or ``percent``). NaN where a figure has no interval.
    """
    rows = {}
    series = {
        "Rank IC": daily_rank_ic(inputs.score, inputs.label),
        "IC": daily_ic(inputs.score, inputs.label),
    }
    for name, daily in series.items():
        rows[name] = _mean_row(daily, inputs.lags, 1.0, "number")
        rows["ICIR, a day" if name == "IC" else "Rank ICIR, a day"] = _plain(ic_summary(daily).icir, "ratio")
    if inputs.backtest is not None:
        net = net_excess(inputs.backtest)
        rows["Net excess return a year"] = _mean_row(net, inputs.lags, float(YEAR), "percent")
        spread = net.std(ddof=1)
        ratio = net.mean() / spread * YEAR**0.5 if spread > 0 else float("nan")
        rows["Information ratio after cost"] = _plain(ratio, "ratio")
        rows["Deepest drawdown"] = _plain(max_drawdown(net), "percent")
        rows["Cost a year"] = _plain(inputs.backtest["cost"].mean() * YEAR, "percent")
        rows["Turnover a day"] = _plain(inputs.backtest["turnover"].mean(), "percent")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "t", "unit"])


def rolling_ic(daily: pd.Series, window: int) -> pd.DataFrame:
    """Mean of the last ``window`` days and the band of two standard errors around it.

    Returns
    -------
    float64 DataFrame by day: ``mean``, ``low``, ``high``; the first ``window - 1`` days are left out. The standard
        error is that of independent days, std / sqrt(window).
    """
    if window < 2:
        raise ValueError(f"report: a rolling window needs at least 2 days, got {window}")
    known = daily.dropna()
    mean = known.rolling(window).mean()
    error = known.rolling(window).std(ddof=1) / window**0.5
    return pd.DataFrame({"mean": mean, "low": mean - 2 * error, "high": mean + 2 * error}).dropna()


def quantile_returns(score: pd.Series, label: pd.Series, groups: int = 5) -> pd.DataFrame:
    """Mean label, above its day's mean, of each group of names by score.

    Parameters
    ----------
    groups : equal parts of each day's names, from the lowest scores (1) to the highest; a day with fewer names than
        groups is left out.

    Returns
    -------
    float64 DataFrame indexed by ``group``: ``mean`` and ``error`` (standard error over days), in the label's unit, one
        label's span long.
    """
    pairs = pd.concat({"score": score, "label": label}, axis=1, join="inner").dropna()
    days = pairs.groupby(level="datetime")
    names = days["score"].transform("size")
    pairs = pairs[names >= groups]
    days = pairs.groupby(level="datetime")
    place = (days["score"].rank(method="first") - 1) / days["score"].transform("size")
    excess = pairs["label"] - days["label"].transform("mean")
    group = (place * groups).astype(int).clip(upper=groups - 1) + 1
    daily = excess.groupby([pairs.index.get_level_values("datetime"), group.rename("group")]).mean().unstack("group")
    return pd.DataFrame({"mean": daily.mean(), "error": daily.std(ddof=1) / np.sqrt(daily.count())}).rename_axis(
        "group"
    )


def controls(score: pd.Series, label: pd.Series, seeds: int = 5, lags: int | None = None) -> pd.DataFrame:
    """Rank IC when labels, or scores, are dealt out at random within each day: what must fail.

    Returns
    -------
    DataFrame, one row a kind: ``mean`` Rank IC over the shuffles, ``largest_t`` (of the shuffle with the largest
        absolute Newey–West t), ``passed``: that t is below 3.
    """
    rows = {}
    for name in ("labels shuffled within each day", "scores shuffled within each day"):
        summaries = []
        for seed in range(SEED, SEED + seeds):
            shuffled = shuffle_within_date(label if name.startswith("labels") else score, seed)
            pair = (score, shuffled) if name.startswith("labels") else (shuffled, label)
            summaries.append(ic_summary(daily_rank_ic(*pair), lags=lags))
        largest = max((summary.newey_west_t for summary in summaries), key=abs)
        mean = float(np.mean([summary.mean for summary in summaries]))
        rows[name] = {"mean": mean, "largest_t": largest, "passed": bool(abs(largest) < CONTROL_LIMIT)}
    return pd.DataFrame.from_dict(rows, orient="index")


def worst_days(inputs: ReportInputs, count: int = 10) -> pd.DataFrame:
    """The days with the lowest net excess return, lowest first; without a backtest, with the lowest Rank IC.

    Returns
    -------
    DataFrame by day: ``return``, ``bench``, ``cost``, ``net_excess``, ``rank_ic`` of the scores two sessions
        before, whose default label is the day's return (NaN where there is none).
    """
    daily = daily_rank_ic(inputs.score, inputs.label)
    if inputs.backtest is None:
        return daily.nsmallest(count).to_frame()
    table = inputs.backtest[["return", "bench", "cost"]].assign(net_excess=net_excess(inputs.backtest))
    # a score of t is traded at the close of t + 1 and earns on t + 2, which is the default label's day
    scored = daily.reindex(table.index.union(daily.index)).shift(2)
    return table.assign(rank_ic=scored.reindex(table.index)).nsmallest(count, "net_excess")


def by_year(inputs: ReportInputs) -> pd.DataFrame:
    """Rank IC, its Newey–West t, and the sum of net excess returns, year by year."""
    daily = daily_rank_ic(inputs.score, inputs.label)
    rows = {}
    for year, part in daily.groupby(pd.DatetimeIndex(daily.index).year):
        summary = ic_summary(part, lags=inputs.lags)
        rows[int(year)] = {"rank_ic": summary.mean, "t": summary.newey_west_t, "days": summary.n_days}
    table = pd.DataFrame.from_dict(rows, orient="index")
    if inputs.backtest is not None:
        net = net_excess(inputs.backtest)
        table["net_excess"] = net.groupby(pd.DatetimeIndex(net.index).year).sum()
    return table


def score_persistence(score: pd.Series) -> pd.Series:
    """Rank autocorrelation of the scores from one score date to the next, by day."""
    return rank_autocorrelation(score).dropna()


def coverage(pit: pd.DataFrame, levels: tuple[float, ...] = (0.5, 0.8, 0.9)) -> pd.DataFrame:
    """Share of outcomes inside the central intervals of the paths, by step (rows) and nominal level (columns)."""
    values = pit.to_numpy(dtype=np.float64)
    known = np.isfinite(values)
    columns = {}
    for level in levels:
        inside = (values >= (1 - level) / 2) & (values <= (1 + level) / 2) & known
        with np.errstate(invalid="ignore"):
            columns[level] = inside.sum(axis=0) / known.sum(axis=0)
    return pd.DataFrame(columns, index=pd.RangeIndex(1, values.shape[1] + 1, name="step"))


def _mean_row(daily: pd.Series, lags: int | None, scale: float, unit: str) -> list[float | str]:
    summary = ic_summary(daily, lags=lags)
    width = float(stats.norm.ppf(0.975)) * abs(summary.mean / summary.newey_west_t)
    low, high = summary.mean - width, summary.mean + width
    return [summary.mean * scale, low * scale, high * scale, summary.newey_west_t, unit]


def _plain(value: float, unit: str) -> list[float | str]:
    return [float(value), float("nan"), float("nan"), float("nan"), unit]
