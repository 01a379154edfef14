"""Which of several checkpoints answers for each bar of a table of factors, and which bars stay in-sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.forecast.crossfit import LEFT_OUT, RowSpans, SeenBars, choose_weights, may_answer, row_spans
from kronos_qlib.forecast.cutoff import before_cutoff, card_date
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.market.calendars import TradingCalendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy

Rows = npt.NDArray[np.int64]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightRules:
    """What the choice goes by.

    Attributes
    ----------
    fit_end : last date that a learner is fitted on, see ``forecast.crossfit``; None: by cutoff alone.
    reach : bars after a row that its label reaches, by which rows are purged.
    block : of the token factors; their windows reach back up to ``block`` - 1 bars further.
    allow_in_sample, leave_out : what becomes of rows that every checkpoint has seen; neither: an error.
    """

    fit_end: Any
    reach: int
    block: int
    allow_in_sample: bool
    leave_out: bool


@dataclass(frozen=True, eq=False)
class RowWeights:
    """Which weights answer.

    Attributes
    ----------
    chosen : int64 (R,), number of the checkpoint of each bar; ``LEFT_OUT`` for none.
    in_sample : bool (R,), its weights have seen what they should not have, or no card says what they have seen.
    left_out : bool (M,), member rows that carry a bar on to a day whose label its weights have seen.
    """

    chosen: Rows
    in_sample: npt.NDArray[np.bool_]
    left_out: npt.NDArray[np.bool_]

    def refuse_in_sample(self, days: pd.DatetimeIndex) -> None:
        """Raise ``ValueError`` where a bar is in-sample; ``days`` (R,) of the bars."""
        if self.in_sample.any():
            found = days[self.in_sample]
            raise ValueError(
                f"{len(found):,} of {len(days):,} rows, dated {found.min():%Y-%m-%d} to {found.max():%Y-%m-%d}, have "
                "factors from weights that have seen their bars (or whose card names no cutoff), and as fields nothing "
                "would mark them: begin after the cutoff (--start), leave them out (--leave-out), give weights that "
                "never saw these years as a further --checkpoint with --fit-end, or say --allow-in-sample"
            )


def weigh_rows(
    forecasters: Sequence[KronosForecaster],
    panel: BarPanel,
    rows: Rows,
    members: pd.DataFrame,
    *,
    policy: WindowPolicy,
    calendar: TradingCalendar,
    rules: WeightRules,
) -> RowWeights:
    """Give each bar to weights that have not seen it.

    One checkpoint without ``fit_end`` and ``leave_out`` answers for every bar; those up to its cutoff are warned of.

    Parameters
    ----------
    rows : int64 (R,), ascending, of the panel.
    members : indexed (datetime, instrument): ``row`` (of the panel; -1: none) and ``age``, see ``KlineDataset.rows``.
    policy : with the longest lookback of the checkpoints.

    Raises
    ------
    ValueError : rows that every checkpoint has seen, unless the rules allow them; a card without dates.
    """
    nothing = np.zeros(len(members), dtype=bool)
    if len(forecasters) == 1 and rules.fit_end is None and not rules.leave_out:
        seen = _seen_by(forecasters[0], panel.timestamps[rows])
        return RowWeights(np.zeros(len(rows), dtype=np.int64), seen, nothing)

    def spans_of(rows: Rows, used: npt.NDArray[np.datetime64] | None = None) -> RowSpans:
        return row_spans(
            panel, rows, policy=policy, horizon=rules.reach, calendar=calendar, block=rules.block, used=used
        )

    spans = spans_of(rows)
    seen_bars = [SeenBars.from_card(forecaster.card, forecaster.fingerprint) for forecaster in forecasters]
    choice = choose_weights(
        seen_bars, spans, fit_end=rules.fit_end, allow_in_sample=rules.allow_in_sample, leave_out=rules.leave_out
    )
    if (choice.chosen == LEFT_OUT).any():
        days = spans.date[choice.chosen == LEFT_OUT]
        logger.warning(
            "%d of %d rows, dated %s to %s, are left out: every checkpoint has seen their window or label",
            len(days), len(rows), days.min(), days.max(),
        )  # fmt: skip
    if choice.in_sample.any():
        logger.warning("%d of %d rows are in-sample", int(choice.in_sample.sum()), len(rows))
    left_out = nothing
    if not rules.allow_in_sample:
        by_bar = pd.Series(choice.chosen, index=rows)
        left_out = _leaking_carries(by_bar, members, seen_bars, spans_of, rules.fit_end)
    return RowWeights(choice.chosen, choice.in_sample, left_out)


def _leaking_carries(
    by_bar: pd.Series,
    members: pd.DataFrame,
    seen_bars: Sequence[SeenBars],
    spans_of: Callable[..., RowSpans],
    fit_end: Any,
) -> npt.NDArray[np.bool_]:
    """Mark the member rows that carry a bar on to a day whose label its weights have seen; ``by_bar``: who answers."""
    leaks = np.zeros(len(members), dtype=bool)
    carried = np.flatnonzero((members["age"] > 0).to_numpy())
    bars = members["row"].to_numpy()[carried]
    days = members.index.get_level_values("datetime").to_numpy().astype("datetime64[ns]")[carried]
    given = by_bar.loc[bars].to_numpy()
    for number in np.unique(given[given != LEFT_OUT]):
        mine = given == number
        leaks[carried[mine]] = ~may_answer(seen_bars[number], spans_of(bars[mine], days[mine]), fit_end)
    if leaks.any():
        logger.info("%d rows of suspended members are left out: carried on, they leak", int(leaks.sum()))
    return leaks


def _seen_by(forecaster: KronosForecaster, times: npt.NDArray[np.datetime64]) -> npt.NDArray[np.bool_]:
    """Say of each bar that the weights have seen it; of every bar where their card names no cutoff."""
    cutoff = card_date(forecaster.card, "cutoff")
    if cutoff is None:
        return np.ones(len(times), dtype=bool)
    seen = before_cutoff(times, cutoff)
    if seen.any():
        logger.warning(
            "%d of %d rows are dated up to the checkpoint's cutoff %s: their factors are in-sample, and a "
            "learner fitted on them learns from what the weights remember",
            int(seen.sum()), len(times), cutoff.date(),
        )  # fmt: skip
    return seen
