"""Which windows of a corpus are trained on, and how many each rule left out."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.training.stagnant import StretchFilter, idle_bars, longest_run_within, unchanged_bars

if TYPE_CHECKING:
    from kronos_qlib.training.corpus import Corpus

logger = logging.getLogger(__name__)
IntArray = npt.NDArray[np.int64]
DateLike = str | pd.Timestamp | None


@dataclass(frozen=True, eq=False)
class Selection:
    """Chosen windows.

    Attributes
    ----------
    ends : int64 (W,)
        Corpus rows of the windows' last bars, ascending.
    counts : dict of int
        ``candidates``: bars of the named instruments and sources up to ``end``. Then, in the order in which the
        rules apply, the windows each one removed: ``segment`` (fewer than lookback + horizon bars, or than
        ``min_history``), ``dates`` (a bar to predict before ``start``, or any bar before ``earliest``), ``idle``,
        ``unchanged``. ``kept``: the rest.
    """

    ends: IntArray
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.ends)

    def __str__(self) -> str:
        removed = ", ".join(
            f"{name} {count:,}" for name, count in self.counts.items() if name not in ("candidates", "kept")
        )
        return f"{self.counts['kept']:,} windows of {self.counts['candidates']:,} candidates; left out: {removed}"


@dataclass(frozen=True)
class Dates:
    """Where windows may lie in time.

    Attributes
    ----------
    first, last : datetime64[ns]
        Of the bars to predict, both included; no bar is later than ``last``.
    earliest : datetime64[ns]
        No bar is earlier.
    text : str
        As the user gave them.
    """

    first: np.datetime64
    last: np.datetime64
    earliest: np.datetime64
    text: str

    @classmethod
    def of(cls, start: DateLike, end: DateLike, earliest: DateLike = None) -> Dates:
        """Read dates; an ``end`` at midnight means all of that day."""
        first = pd.Timestamp.min if start is None else _moment(start, "start")
        last = pd.Timestamp.max if end is None else _moment(end, "end")
        begin = pd.Timestamp.min if earliest is None else _moment(earliest, "earliest")
        if end is not None and last == last.normalize():
            last += pd.Timedelta(days=1) - pd.Timedelta(1, "ns")
        if first > last or begin > last:
            raise ValueError(f"found start={start}, earliest={earliest}, end={end}; expected none after the end")
        text = f"{'the first bar' if start is None else start} to {'the last bar' if end is None else end}"
        if earliest is not None:
            text += f" and no bar before {earliest}"
        moments = [moment.to_datetime64().astype("M8[ns]") for moment in (first, last, begin)]
        return cls(moments[0], moments[1], moments[2], text)


def select_ends(
    corpus: Corpus,
    lookback: int,
    horizon: int,
    dates: Dates,
    codes: Iterable[str] | None,
    sources: Iterable[str] | None,
    filters: StretchFilter,
) -> Selection:
    """See ``Corpus.select``."""
    if lookback < 2 or horizon < 0:
        raise ValueError(f"found lookback={lookback}, horizon={horizon}; expected lookback >= 2 and horizon >= 0")
    length = lookback + horizon
    rows = _candidates(corpus, dates.last, codes, sources)
    counts = {"candidates": len(rows)}

    def keep(rule: str, good: npt.NDArray[np.bool_]) -> None:
        nonlocal rows
        counts[rule] = int(np.count_nonzero(~good))
        rows = rows[good]

    keep("segment", rows - corpus.segment[rows] + 1 >= max(length, filters.min_history))
    # a window without bars to predict (horizon 0) is dated by its last bar
    in_time = corpus.timestamps[rows - max(horizon - 1, 0)] >= dates.first
    keep("dates", in_time & (corpus.timestamps[rows - length + 1] >= dates.earliest))
    if filters.max_idle is not None:
        flags = idle_bars(corpus.values) & _sources_with_volume(corpus)
        keep("idle", longest_run_within(flags, rows - length + 1, rows, filters.max_idle))
    if filters.max_unchanged is not None:
        limit = max(1, min(filters.max_unchanged, lookback - 2))
        # whether a window's first bar moved cannot be seen inside the window
        firsts = np.minimum(rows - length + 2, rows)
        keep("unchanged", longest_run_within(unchanged_bars(corpus.values), firsts, rows, limit))
    counts["kept"] = len(rows)
    selection = Selection(rows, counts)
    if len(rows) == 0:
        raise ValueError(
            f"no window of {length} bars has its last {horizon} bars from {dates.text}: {selection}; "
            "take a longer span, a shorter lookback, other instruments or milder filters"
        )
    logger.info("%s", selection)
    return selection


def _moment(given: str | pd.Timestamp, name: str) -> pd.Timestamp:
    try:
        moment = pd.Timestamp(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"found {name}={given!r}; expected a date such as '2014-12-31'") from error
    if pd.isna(moment) or moment.tz is not None:
        raise ValueError(f"found {name}={given!r}; expected a date such as '2014-12-31', without a zone")
    return moment.as_unit("ns")


def _candidates(
    corpus: Corpus, last: np.datetime64, codes: Iterable[str] | None, sources: Iterable[str] | None
) -> IntArray:
    chosen = np.asarray(corpus.timestamps <= last)
    if sources is not None:
        chosen &= _chosen(sources, corpus.source_names, "sources")[corpus.source]
    if codes is not None:
        chosen &= _chosen(codes, corpus.instruments, "codes")[corpus.code]
    return np.flatnonzero(chosen).astype(np.int64)


def _chosen(wanted: Iterable[str], known: tuple[str, ...], name: str) -> npt.NDArray[np.bool_]:
    """Return which of the known names are wanted."""
    if isinstance(wanted, str):
        raise ValueError(f"found {name}={wanted!r}; expected a list of names")
    names = set(wanted)
    unknown = sorted(names.difference(known))
    if unknown or not names:
        near = difflib.get_close_matches(unknown[0], sorted(set(known)), n=1, cutoff=0.3) if unknown else []
        hint = f"; the nearest to {unknown[0]!r} is {near[0]!r}" if near else ""
        raise ValueError(f"{name}: {len(unknown)} of {len(names)} are not in the corpus: {unknown[:5]}{hint}")
    return np.array([item in names for item in known], dtype=bool)


def _sources_with_volume(corpus: Corpus) -> npt.NDArray[np.bool_]:
    """Return, for each row, whether its source knows volume at all, bool (R,)."""
    return np.array([fact["has_volume"] for fact in corpus.meta["sources"]], dtype=bool)[corpus.source]
