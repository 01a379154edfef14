"""A synthetic A-share-like market whose predictability is planted and known.

The quickstart's embedded data, and an oracle for tests. See :mod:`kronos_qlib.market.synthetic_truth` for
what is planted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import exchange_calendars
import numpy as np
import pandas as pd

from kronos_qlib.market.synthetic_config import SyntheticConfig
from kronos_qlib.market.synthetic_members import make_index, make_members, members_on
from kronos_qlib.market.synthetic_simulation import Bars, simulate
from kronos_qlib.market.synthetic_truth import (
    PlantedIC,
    daily_correlations,
    label_from_bars,
    truth_from_bars,
)

INDEX_CODE = "SH000300"

__all__ = ["INDEX_CODE", "PlantedIC", "SyntheticConfig", "SyntheticMarket", "make_market"]


@dataclass(frozen=True)
class SyntheticMarket:
    """A market and its truth.

    Attributes
    ----------
    config : SyntheticConfig
    bars : DataFrame
        Vendor format: instrument (str), datetime, open, high, low, close (CNY, raw), volume (shares), amount
        (CNY), factor (float64). Sorted by instrument and day; a suspended day is an absent row. The index
        SH000300 is among them.
    members : DataFrame
        Membership spans: instrument, start, end (days, both inside the span), point in time.
    truth : DataFrame
        Indexed by (datetime, instrument), one row a stock's bar: ``expected_return``, the conditional
        expectation of Qlib's label at that bar (see
        :func:`~kronos_qlib.market.synthetic_truth.truth_from_bars`), ``expected_next`` and
        ``abnormal_volume``, all from bars up to the row's day; and ``intended_return``, the return of the
        row's own bar before the board's limit and the rounding to the cent.
    listings : DataFrame
        What is fixed about each stock, by instrument.
    sessions : DatetimeIndex
        All sessions of the market.
    """

    config: SyntheticConfig
    bars: pd.DataFrame = field(repr=False)
    members: pd.DataFrame = field(repr=False)
    truth: pd.DataFrame = field(repr=False)
    listings: pd.DataFrame = field(repr=False)
    sessions: pd.DatetimeIndex = field(repr=False)

    def label(self) -> pd.Series:
        """Qlib's label ``Ref($close, -2) / Ref($close, -1) - 1`` of all rows, by (datetime, instrument)."""
        return label_from_bars(self.bars)

    def planted_ic(
        self,
        start: str | pd.Timestamp | None = None,
        end: str | pd.Timestamp | None = None,
        *,
        members_only: bool = True,
        minimum_stocks: int = 5,
    ) -> PlantedIC:
        """Daily IC and Rank IC that the truth score attains: the most that a signal of past bars can expect
        to.

        Parameters
        ----------
        start, end : first and last day of the score, default the market's
        members_only : judge the index's members of each day only, as a workflow does
        minimum_stocks : days with fewer complete rows are left out

        Returns
        -------
        PlantedIC
            Means over days, and the daily values.
        """
        score = self.truth["expected_return"]
        days = score.index.get_level_values("datetime")
        keep = np.ones(len(score), dtype=bool)
        if start is not None:
            keep &= days >= pd.Timestamp(start)
        if end is not None:
            keep &= days <= pd.Timestamp(end)
        if members_only:
            keep &= members_on(self.members, cast(pd.MultiIndex, score.index))
        daily = daily_correlations(score[keep], self.label(), minimum_stocks)
        if daily.empty:
            raise ValueError(
                f"no day from {start} to {end} has {minimum_stocks} stocks with a score and a label; "
                f"the market runs from {self.sessions[0].date()} to {self.sessions[-1].date()}"
            )
        return PlantedIC(float(daily["ic"].mean()), float(daily["rank_ic"].mean()), len(daily), daily)


def make_market(config: SyntheticConfig | None = None) -> SyntheticMarket:
    """Simulate a market; the same configuration gives the same market, to the bit.

    Parameters
    ----------
    config : SyntheticConfig, optional
        Default: the quickstart's market.
    """
    config = config or SyntheticConfig()
    sessions = trading_sessions(config.start, config.end)
    simulated, listings = simulate(config, sessions)
    stocks = _bars_frame(simulated, sessions, listings.index)
    members = make_members(simulated, sessions, listings, config.n_members)
    index_bars = make_index(simulated, sessions, listings.index, members).assign(instrument=INDEX_CODE)
    bars = pd.concat([index_bars[stocks.columns], stocks], ignore_index=True)
    bars = bars.sort_values(["instrument", "datetime"], ignore_index=True)
    truth = truth_from_bars(stocks, listings, config)
    intended = pd.Series(simulated.intended.ravel(), pd.MultiIndex.from_product([sessions, listings.index]))
    truth["intended_return"] = intended.reindex(truth.index).to_numpy()
    return SyntheticMarket(config, bars, members, truth, listings, sessions)


def trading_sessions(start: str, end: str) -> pd.DatetimeIndex:
    """Sessions of the Shanghai exchange from start to end, both included."""
    calendar = exchange_calendars.get_calendar("XSHG", start=start, end=end)
    return pd.DatetimeIndex(calendar.sessions).as_unit("ns")


def _bars_frame(bars: Bars, sessions: pd.DatetimeIndex, codes: pd.Index) -> pd.DataFrame:
    """Lay arrays (T, I) out as rows sorted by instrument and day; days without a bar are left out."""
    names = ("open", "high", "low", "close", "volume", "amount", "factor")
    frame = pd.DataFrame(
        {
            "instrument": np.repeat(codes.to_numpy(dtype=object), len(sessions)),
            "datetime": np.tile(sessions.to_numpy(), len(codes)),
            **{name: getattr(bars, name).T.ravel() for name in names},
        }
    )
    return frame.dropna(subset=["close"]).reset_index(drop=True).astype({"instrument": str})
