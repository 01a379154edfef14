"""Which weights may answer for which rows, so that a learner on their factors learns from nothing they have seen.

The rule, with ``fit_end`` the last date that the learner is fitted on:

* A row dated **up to** ``fit_end`` gets weights that have seen no bar from the first of its window to the last of its
  label (``horizon`` bars after it): purged by lookback + horizon. Of several, those trained on the past before those
  trained on the future; of the past the latest cutoff, of the future the earliest start; then the longer training.
* A row dated **after** ``fit_end``, like every row when nothing is fitted, gets weights whose cutoff lies before it,
  the latest; then the longer training. Its window may reach back into what they were trained on, as in any live use.
* For any other row every choice leaks, which is an error, unless the caller allows it (then the row gets the weights
  with the latest cutoff and is marked) or leaves such rows out.
* A suspended member carries the values of its last bar on. Each day that does is a row of its own: the date and window
  of that bar, but the label of the day. Such a row is left out where these values leak; the bar's own day stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.forecast.cutoff import card_date
from kronos_qlib.market.calendars import TradingCalendar, future_times
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, window_lengths

Days = NDArray[np.datetime64]
LEFT_OUT = -1
LABEL_REACH = 2  # bars that Qlib's default label reads ahead


@dataclass(frozen=True)
class SeenBars:
    """What some weights were made from, whole days, ends included.

    Attributes
    ----------
    fingerprint : of the weights.
    train_start, cutoff : first and last bar that trained them.
    held_out : spans within that no bar of was used.
    chosen_on : the validation span by which they were chosen among others, or None; a row that a learner is fitted on
        may not lie in it either.
    """

    fingerprint: str
    train_start: pd.Timestamp
    cutoff: pd.Timestamp
    held_out: tuple[tuple[pd.Timestamp, pd.Timestamp], ...] = ()
    chosen_on: tuple[pd.Timestamp, pd.Timestamp] | None = None

    @classmethod
    def from_card(cls, card: Mapping[str, Any], fingerprint: str) -> SeenBars:
        """Read ``train_start``, ``cutoff``, ``valid_start``, ``valid_end`` and ``held_out`` (pairs of dates) of a card.

        Raises
        ------
        ValueError : the first two are missing, a date is none, a span ends before it begins.
        """
        dates = {key: card_date(card, key) for key in ("train_start", "cutoff", "valid_start", "valid_end")}
        start, cutoff = dates["train_start"], dates["cutoff"]
        if start is None or cutoff is None:
            raise ValueError(
                f"the card of {card.get('name', fingerprint)} gives train_start={card.get('train_start')!r}, "
                f"cutoff={card.get('cutoff')!r}; both are needed to tell which rows its weights have seen"
            )
        spans = [_span(span, card) for span in card.get("held_out") or ()]
        first, last = dates["valid_start"], dates["valid_end"]
        chosen = None if first is None or last is None else _span((first, last), card)
        return cls(fingerprint, *_span((start, cutoff), card), tuple(spans), chosen)

    def untouched(self, first: Days, last: Days) -> NDArray[np.bool_]:
        """Say for each span of days, ends included, that no bar of it trained or chose these weights."""
        seen = _overlaps(first, last, self.train_start, self.cutoff)
        for begin, end in self.held_out:
            seen &= ~((first >= _day(begin)) & (last <= _day(end)))
        if self.chosen_on is not None:
            seen |= _overlaps(first, last, *self.chosen_on)
        return ~seen

    @property
    def merit(self) -> tuple[pd.Timestamp, int, str]:
        """Larger is better: later cutoff, then more days learned (years held out do not count), then a fixed order."""
        learned = _days(self.train_start, self.cutoff) - sum(_days(begin, end) for begin, end in self.held_out)
        return self.cutoff, learned, self.fingerprint


@dataclass(frozen=True, eq=False)
class RowSpans:
    """Days of rows (n,), datetime64[D]: of the bar each is from, of its window's first bar, of its label's last."""

    date: Days
    first: Days
    last: Days


@dataclass(frozen=True, eq=False)
class WeightChoice:
    """Which weights each row gets.

    Attributes
    ----------
    candidates : the weights to choose from.
    chosen : int64 (n,), position in ``candidates``; -1 (``LEFT_OUT``) for a row left out.
    in_sample : bool (n,), the row's weights have seen what they should not have.
    """

    candidates: tuple[SeenBars, ...]
    chosen: NDArray[np.int64]
    in_sample: NDArray[np.bool_]

    def weights(self) -> NDArray[np.str_]:
        """Fingerprint of each row's weights, (n,); empty for a row left out."""
        names = np.array([*(candidate.fingerprint for candidate in self.candidates), ""])
        return names[self.chosen]


def row_spans(
    panel: BarPanel,
    rows: NDArray[np.int64],
    *,
    policy: WindowPolicy,
    horizon: int,
    calendar: TradingCalendar,
    block: int = 1,
    used: NDArray[np.datetime64] | None = None,
) -> RowSpans:
    """Return the days that the values and the label of each row may touch.

    Parameters
    ----------
    rows : int64 (n,), of the panel, none -1. A row without a window spans itself and its label.
    horizon : bars after the row that its label reaches, at least 1.
    block : of the source; its windows reach back up to ``block`` - 1 bars further.
    used : datetime64[ns] (n,), the times of the rows that carry the values on, none before the bar's: their labels
        begin there. None: the bars' own.

    Raises
    ------
    ValueError : a horizon below 1, rows of -1, values used before their bar.
    """
    if horizon < 1:
        raise ValueError(f"found horizon={horizon}; expected at least 1 bar, the reach of the label")
    rows = np.asarray(rows, dtype=np.int64)
    if len(rows) and rows.min() < 0:
        raise ValueError("found rows of -1; rows without a bar have no date to choose weights by, leave them out")
    longer = dataclasses.replace(policy, lookback=policy.lookback + block - 1)
    lengths = np.maximum(window_lengths(panel, rows, longer), 1)
    times = panel.timestamps[rows]
    used = times if used is None else used
    if (used < times).any():
        raise ValueError(f"found {int((used < times).sum())} rows used before their bar; expected its time or later")
    last = future_times(calendar, used, horizon)[:, -1]
    days = (part.astype("datetime64[D]") for part in (times, panel.timestamps[rows - lengths + 1], last))
    return RowSpans(*days)


def choose_weights(
    candidates: Sequence[SeenBars],
    spans: RowSpans,
    *,
    fit_end: str | pd.Timestamp | None,
    allow_in_sample: bool = False,
    leave_out: bool = False,
) -> WeightChoice:
    """Choose the weights of each row by the rule of this module.

    Parameters
    ----------
    candidates : at least one.
    spans : of the rows.
    fit_end : last date of the rows that a learner is fitted on; None: none is fitted.
    allow_in_sample : give leaking rows the weights with the latest cutoff, and mark them.
    leave_out : leave leaking rows out instead.

    Raises
    ------
    ValueError : no candidate, both options, or leaking rows and neither option.
    """
    if not candidates:
        raise ValueError("found no weights to choose from; give at least one checkpoint with a card")
    if allow_in_sample and leave_out:
        raise ValueError("found allow_in_sample and leave_out; expected one of them at most")
    fitted = np.zeros(len(spans.date), dtype=bool) if fit_end is None else spans.date <= _day(pd.Timestamp(fit_end))
    order = sorted(range(len(candidates)), key=lambda i: candidates[i].merit)
    chosen = np.full(len(spans.date), LEFT_OUT, dtype=np.int64)
    # from the least to the most wanted, each overwriting the one before: first the future, latest start first
    for i in sorted(order, key=lambda i: candidates[i].train_start, reverse=True):
        future = spans.last < _day(candidates[i].train_start)
        chosen[fitted & future & candidates[i].untouched(spans.first, spans.last)] = i
    for i in order:
        past = spans.date > _day(candidates[i].cutoff)
        chosen[past & (~fitted | candidates[i].untouched(spans.first, spans.last))] = i
    # within its training years, but held out
    for i in order:
        within = (chosen == LEFT_OUT) & fitted & candidates[i].untouched(spans.first, spans.last)
        chosen[within] = i
    leaking = chosen == LEFT_OUT
    if leaking.any() and not allow_in_sample and not leave_out:
        raise ValueError(_leak_message(candidates, spans, leaking, fit_end))
    if allow_in_sample:
        chosen[leaking] = order[-1]
    return WeightChoice(tuple(candidates), chosen, leaking & allow_in_sample)


def may_answer(candidate: SeenBars, spans: RowSpans, fit_end: str | pd.Timestamp | None) -> NDArray[np.bool_]:
    """Say of each row, (n,), that it does not leak when it gets these weights."""
    return choose_weights((candidate,), spans, fit_end=fit_end, leave_out=True).chosen != LEFT_OUT


def _leak_message(candidates: Sequence[SeenBars], spans: RowSpans, leaking: NDArray[np.bool_], fit_end: object) -> str:
    dates = spans.date[leaking]
    seen = "; ".join(f"{c.fingerprint}: {c.train_start:%Y-%m-%d} to {c.cutoff:%Y-%m-%d}" for c in candidates)
    return (
        f"{int(leaking.sum())} of {len(leaking)} rows, dated {dates.min()} to {dates.max()}, would get factors from "
        f"weights that have seen their window or label (fit_end {fit_end}; weights and what trained them: {seen}). Add "
        "weights trained without these years (cross-fitting), leave such rows out (--leave-out), or say "
        "allow_in_sample: true (--allow-in-sample)"
    )


def _overlaps(first: Days, last: Days, begin: pd.Timestamp, end: pd.Timestamp) -> NDArray[np.bool_]:
    return (first <= _day(end)) & (last >= _day(begin))


def _day(date: pd.Timestamp) -> np.datetime64:
    return date.to_datetime64().astype("datetime64[D]")


def _days(begin: pd.Timestamp, end: pd.Timestamp) -> int:
    return int((_day(end) - _day(begin)).astype(np.int64))


def _span(span: Any, card: Mapping[str, Any]) -> tuple[pd.Timestamp, pd.Timestamp]:
    try:
        begin, end = (pd.Timestamp(part) for part in span)
        ordered = begin <= end
    except (TypeError, ValueError) as error:
        raise ValueError(f"the card of {card.get('name')} has the span {span!r}; expected two dates") from error
    if not ordered:
        raise ValueError(f"the card of {card.get('name')} has a span from {begin} to {end}; expected the first before")
    return begin, end
