"""The planted signal: abnormal volume, as a recursion over past bars only, and what it lets one expect.

For one stock let ``l(t)`` be the log of its adjusted volume (``volume / factor``, as the store holds it) on
its t-th traded bar. ::

    average(t)  = (1 - decay) average(t-1) + decay l(t)          average(0) = l(0)
    abnormal(t) = average(t) - mean of l over the last reference_bars bars (all bars while there are fewer)
    drift(t+1)  = -strength × volatility × abnormal(t) / state_scale       added to the next bar's return
    E l(t+1)    = base + pull × (average(t) - base)                           which makes the average an AR(1)

So heavy volume foretells low returns, as abnormal turnover does on the real market, and the drift lasts for
weeks. Since ``abnormal`` is linear in ``l``, the conditional expectation of the drift one bar further on is
exact: put E l(t+1) for l(t+1). That is the expected value of Qlib's label ``Ref($close, -2) / Ref($close, -1)
- 1`` at t, apart from what is common to all stocks, and from rounding to the cent and truncation at the
board's limit, which are small and near symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pandas as pd

from kronos_qlib.market.synthetic_config import SyntheticConfig


@dataclass
class VolumeState:
    """Running state of the recursion for many instruments at once; it holds past bars only.

    Attributes
    ----------
    average : float64 (I,)
        Exponential average of log volume.
    window : float64 (I, reference_bars)
        Ring of the latest log volumes; the cell ``count % reference_bars`` is the next to be written.
    count : int64 (I,)
        Bars seen.
    """

    config: SyntheticConfig
    n_instruments: int
    average: np.ndarray = field(init=False)
    window: np.ndarray = field(init=False)
    count: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.average = np.zeros(self.n_instruments)
        self.window = np.zeros((self.n_instruments, self.config.reference_bars))
        self.count = np.zeros(self.n_instruments, dtype=np.int64)

    def update(self, traded: np.ndarray, log_volume: np.ndarray) -> None:
        """Take one session: ``traded`` bool (I,), ``log_volume`` float64 (I,), read where traded."""
        rows = np.flatnonzero(traded)
        new = log_volume[rows]
        decay = self.config.decay
        moved = (1 - decay) * self.average[rows] + decay * new
        self.average[rows] = np.where(self.count[rows] == 0, new, moved)
        self.window[rows, self.count[rows] % self.config.reference_bars] = new
        self.count[rows] += 1

    def abnormal(self) -> np.ndarray:
        """Abnormal log volume now, float64 (I,); 0 for an instrument without bars."""
        held = np.minimum(self.count, self.config.reference_bars)
        return np.where(held > 0, self.average - self.window.sum(axis=1) / np.maximum(held, 1), 0.0)

    def expected_log_volume(self, base: np.ndarray) -> np.ndarray:
        """Expected log volume of the next bar, float64 (I,), given each stock's base log volume."""
        return base + self.config.pull * (self.average - base)

    def expected_abnormal(self, base: np.ndarray) -> np.ndarray:
        """Abnormal log volume to be expected after the next bar, float64 (I,); exact, for it is linear."""
        limit = self.config.reference_bars
        new = self.expected_log_volume(base)
        held = np.minimum(self.count, limit)
        leaving = np.where(self.count >= limit, self.window[np.arange(self.n_instruments), self.count % limit], 0.0)
        mean = (self.window.sum(axis=1) - leaving + new) / np.minimum(held + 1, limit)
        average = (1 - self.config.decay) * self.average + self.config.decay * new
        return np.where(self.count > 0, average - mean, 0.0)


def drift(abnormal: np.ndarray, volatility: np.ndarray, config: SyntheticConfig) -> np.ndarray:
    """Planted expected return of a bar, float64, from the abnormal log volume before it."""
    return -config.strength * volatility * abnormal / config.state_scale


def truth_from_bars(bars: pd.DataFrame, listings: pd.DataFrame, config: SyntheticConfig) -> pd.DataFrame:
    """Compute the truth score of every bar from the bars up to it.

    Parameters
    ----------
    bars : DataFrame
        Vendor format; ``instrument``, ``datetime``, ``volume`` and ``factor`` are read. Rows in any order.
    listings : DataFrame
        Indexed by instrument: ``base_log_volume`` and ``volatility``, fixed when the stock lists.
    config : SyntheticConfig
        The market's.

    Returns
    -------
    DataFrame
        Indexed by (datetime, instrument), sorted; columns ``abnormal_volume`` (log), ``expected_return`` (the
        expected label: of the return from t+1 to t+2, known at t) and ``expected_next`` (of the return from t
        to t+1). Instruments that are not in ``listings`` (the index) are left out.
    """
    frame = bars[bars["instrument"].isin(listings.index)]
    volume = frame.pivot(index="datetime", columns="instrument", values="volume")
    factor = frame.pivot(index="datetime", columns="instrument", values="factor")
    log_volume = np.log(volume.to_numpy(float) / factor.to_numpy(float))
    traded = ~np.isnan(log_volume)
    fixed = listings.loc[volume.columns]
    base, volatility = fixed["base_log_volume"].to_numpy(float), fixed["volatility"].to_numpy(float)

    state = VolumeState(config, len(base))
    columns = {name: np.empty(traded.shape) for name in ("abnormal_volume", "expected_return", "expected_next")}
    for day in range(len(traded)):
        state.update(traded[day], log_volume[day])
        columns["abnormal_volume"][day] = state.abnormal()
        columns["expected_next"][day] = drift(state.abnormal(), volatility, config)
        columns["expected_return"][day] = drift(state.expected_abnormal(base), volatility, config)
    index = pd.MultiIndex.from_product([volume.index, volume.columns], names=["datetime", "instrument"])
    truth = pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index)
    return truth[traded.ravel()]


def label_from_bars(bars: pd.DataFrame) -> pd.Series:
    """Qlib's label ``Ref($close, -2) / Ref($close, -1) - 1``, float64, by (datetime, instrument).

    It is dated t and reads the closes of the two following sessions: an outcome, never an input. Sessions are
    the union of the bars' days; a label is NaN where either close is missing (suspended, not listed, end of
    data).
    """
    adjusted = bars.assign(adjusted=bars["close"] * bars["factor"])
    close = adjusted.pivot(index="datetime", columns="instrument", values="adjusted").sort_index()
    label = close.shift(-2) / close.shift(-1) - 1
    stacked = cast(pd.Series, label.stack(future_stack=True))
    return stacked.rename("label").rename_axis(["datetime", "instrument"])


@dataclass(frozen=True)
class PlantedIC:
    """What the truth score attains: ``daily`` (columns ``ic``, ``rank_ic``, ``stocks``), means, and days."""

    ic: float
    rank_ic: float
    days: int
    daily: pd.DataFrame


def daily_correlations(score: pd.Series, label: pd.Series, minimum: int = 5) -> pd.DataFrame:
    """Pearson and Spearman correlation of each day that has at least ``minimum`` complete rows."""
    both = pd.DataFrame({"score": score, "label": label.reindex(score.index)}).dropna()
    by_day = both.groupby(level="datetime")
    stocks = by_day.size()
    ranks = by_day.rank()
    daily = pd.DataFrame(
        {
            "ic": _columns_correlation(both),
            "rank_ic": _columns_correlation(ranks),
            "stocks": stocks,
        }
    )
    return daily[daily["stocks"] >= minimum]


def _columns_correlation(frame: pd.DataFrame) -> pd.Series:
    centred = frame - frame.groupby(level="datetime").transform("mean")
    products = pd.DataFrame(
        {
            "xy": centred["score"] * centred["label"],
            "xx": centred["score"] ** 2,
            "yy": centred["label"] ** 2,
        }
    )
    sums = products.groupby(level="datetime").sum()
    scale = (sums["xx"] * sums["yy"]) ** 0.5
    return sums["xy"] / scale.replace(0.0, np.nan)
