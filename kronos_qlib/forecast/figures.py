"""Tables of figures with their errors: signals against labels and references, and calibration by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.evaluation.attribution import attribution
from kronos_qlib.evaluation.bootstrap import SEED
from kronos_qlib.evaluation.ic import ICSummary, daily_ic, daily_rank_ic, ic_summary, newey_west_lags
from kronos_qlib.evaluation.probability import crps_normal, interval_coverage
from kronos_qlib.forecast.reduction import ReducedForecasts

REVERSAL = ("reversal_5", "reversal_20", "mean_reversion")


def overlap_lags(n_days: int, span: int, every: int) -> int:
    """Newey–West lags for labels of ``span`` sessions on every ``every``-th session: the rule, at least the overlap."""
    return max(newey_west_lags(n_days), math.ceil(span / every) - 1)


def signal_table(
    signals: pd.DataFrame,
    labels: pd.DataFrame,
    spans: Mapping[str, int],
    *,
    every: int = 1,
    references: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """IC and Rank IC of each signal with each label, and what is left when the references are removed.

    Parameters
    ----------
    signals, labels : columns on one (datetime, instrument) index.
    spans : sessions that each label extends over, for the Newey–West lags.
    every : dates are every so many sessions.
    references : columns to remove, see :func:`kronos_qlib.evaluation.attribution.attribution`; None: none.

    Returns
    -------
    DataFrame indexed (signal, label): ``ic``, ``ic_error``, ``ic_t``, ``rank_ic``, ``rank_ic_error``, ``rank_ic_t``,
    ``n_days``; with references ``after_reversal``, ``after_reversal_t`` (Rank IC without 5- and 20-day reversal and
    lookback-mean reversion), ``after_all``, ``after_all_t``, ``explained`` (share of the ranked signal's variance that
    all references hold). Errors are Newey–West's.
    """
    rows = {}
    for signal in signals:
        for label in labels:
            rows[signal, label] = _signal_row(signals[signal], labels[label], spans[str(label)], every, references)
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.set_axis(pd.MultiIndex.from_tuples(table.index, names=["signal", "label"]))


def _signal_row(
    signal: pd.Series, label: pd.Series, span: int, every: int, references: pd.DataFrame | None
) -> dict[str, float]:
    daily = {"ic": daily_ic(signal, label), "rank_ic": daily_rank_ic(signal, label)}
    row: dict[str, float] = {}
    lags = overlap_lags(len(daily["rank_ic"]), span, every)
    for name, series in daily.items():
        summary = ic_summary(series, lags=lags)
        row |= {name: summary.mean, f"{name}_error": _error(summary), f"{name}_t": summary.newey_west_t}
    row["n_days"] = ic_summary(daily["rank_ic"]).n_days
    if references is not None:
        row |= _without_references(signal, label, references, lags)
    return row


def _without_references(signal: pd.Series, label: pd.Series, references: pd.DataFrame, lags: int) -> dict[str, float]:
    """What :func:`attribution` leaves, NaN where no entry has everything (a label beyond the last bar)."""
    complete = np.isfinite(signal) & np.isfinite(label) & np.isfinite(references).all(axis=1)
    names = ("after_reversal", "after_reversal_t", "after_all", "after_all_t", "explained")
    if not complete.any():
        return dict.fromkeys(names, float("nan"))
    groups = {"reversal": [name for name in REVERSAL if name in references]}
    table = attribution(signal, label, references, groups=groups, newey_west_lags=lags).to_dict()
    values = [table[column][removed] for removed in ("reversal", "everything") for column in ("rank_ic", "rank_ic_t")]
    return dict(zip(names, [*values, table["explained"]["everything"]], strict=True))


def _error(summary: ICSummary) -> float:
    """Newey–West standard error of a mean, back from its t."""
    return abs(summary.mean / summary.newey_west_t) if summary.newey_west_t else float("nan")


def dated_mean(values: NDArray[np.float64], dates: pd.Index, lags: int) -> tuple[float, float]:
    """Mean over windows, and its Newey–West error from the means of the dates (windows of a date move together)."""
    known = np.isfinite(values)
    if not known.any():
        return float("nan"), float("nan")
    daily = pd.Series(values[known]).groupby(np.asarray(dates)[known]).mean()
    return float(values[known].mean()), _error(ic_summary(daily, lags=min(lags, max(len(daily) - 1, 0))))


def pit_of(reduced: ReducedForecasts, n_paths: int, seed: int = SEED) -> NDArray[np.float64]:
    """Randomised PIT (n, horizon) as :func:`kronos_qlib.evaluation.probability.ensemble_pit` defines it."""
    v = np.random.default_rng(seed).random(reduced.below.shape)
    return (reduced.below + v * (reduced.equal + 1.0)) / (n_paths + 1.0)


def pit_deviation(pit: NDArray[np.float64]) -> float:
    """Kolmogorov's distance of PIT values (n,) from uniform: 0 is perfect, NaN left out."""
    values = np.sort(pit[np.isfinite(pit)])
    n = len(values)
    if n == 0:
        return float("nan")
    above, below = np.arange(1, n + 1) / n - values, values - np.arange(n) / n
    return float(max(above.max(), below.max()))


def calibration_table(
    reduced: ReducedForecasts,
    truth: NDArray[np.float64],
    dates: pd.Index,
    *,
    levels: Sequence[float],
    n_paths: int,
    every: int = 1,
    volatility: NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """How right the distributions of the cumulative return are, by step.

    Parameters
    ----------
    truth : float64 (n, horizon) realised returns. dates : (n,) of the windows.
    volatility : float64 (n,) of daily returns, for a normal distribution with mean 0 and ``volatility sqrt(step)`` as a
        yardstick, judged on the same windows; None: left out.

    Returns
    -------
    DataFrame, index ``step`` from 1. For each level L in per cent: ``cover_L``, ``cover_L_error``, ``below_L``,
    ``above_L``, ``width_L`` (quantiles at i / (P + 1)) and ``cover_L_linear`` (numpy's default quantiles, too narrow
    for few paths); ``crps``, ``crps_error``, ``crps_normal``; ``pit_deviation``; ``n``.
    """
    table: dict[str, Any] = {}
    lags = [overlap_lags(len(pd.unique(np.asarray(dates))), step, every) for step in range(1, truth.shape[1] + 1)]
    for position, level in enumerate(levels):
        name = f"{100 * level:g}"
        lower, upper = reduced.lower[:, position], reduced.upper[:, position]
        found = interval_coverage(lower, upper, truth)
        known = np.isfinite(lower) & np.isfinite(upper) & np.isfinite(truth)
        inside = np.where(known, (lower <= truth) & (truth <= upper), np.nan)
        table[f"cover_{name}"] = found["coverage"]
        table[f"cover_{name}_error"] = [dated_mean(inside[:, s], dates, lag)[1] for s, lag in enumerate(lags)]
        table |= {f"{part}_{name}": found[part] for part in ("below", "above", "width")}
        linear = interval_coverage(reduced.lower_linear[:, position], reduced.upper_linear[:, position], truth)
        table[f"cover_{name}_linear"] = linear["coverage"]
        table["n"] = found["n"]
    scores = [dated_mean(reduced.crps[:, s], dates, lag) for s, lag in enumerate(lags)]
    table["crps"], table["crps_error"] = ([score[part] for score in scores] for part in (0, 1))
    if volatility is not None:
        steps = np.sqrt(np.arange(1, truth.shape[1] + 1))
        normal = crps_normal(0.0, volatility[:, None] * steps, truth)
        both = np.isfinite(normal) & np.isfinite(reduced.crps)
        table["crps_normal"] = [_mean(normal[both[:, s], s]) for s in range(truth.shape[1])]
        table["crps_skill"] = [
            1.0 - _mean(reduced.crps[both[:, s], s]) / _mean(normal[both[:, s], s]) for s in range(truth.shape[1])
        ]
    pit = pit_of(reduced, n_paths)
    table["pit_deviation"] = [pit_deviation(pit[:, s]) for s in range(truth.shape[1])]
    return pd.DataFrame(table, index=pd.RangeIndex(1, truth.shape[1] + 1, name="step"))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
