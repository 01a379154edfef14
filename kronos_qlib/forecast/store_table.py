"""Read columns of a forecast store so that each row comes from weights that may answer for it.

The rule is that of ``forecast.crossfit``, applied to what the store has: of the sources that hold a row, the best whose
weights have not seen what they should not have. Embeddings of several sets of weights are brought to one basis, or
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.alpha.alignment import Alignment, procrustes
from kronos_qlib.forecast.crossfit import LEFT_OUT, RowSpans, SeenBars, choose_weights
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.forecast.store_cards import read_card
from kronos_qlib.forecast.store_catalog import SavedSource
from kronos_qlib.forecast.store_columns import EMBEDDING_PATTERN, ColumnGroup
from kronos_qlib.forecast.store_files import KEY

ALIGNMENTS = ("procrustes",)
_MOST_PAIRS = 50_000
_ALWAYS = (pd.Timestamp("1678-01-01"), pd.Timestamp("2262-01-01"))


@dataclass(frozen=True, eq=False)
class AskedRows:
    """Traded bars whose values are wanted, n rows.

    Attributes
    ----------
    index : (datetime, instrument) of the bars; one that is carried on stands there once for each day that it is.
    spans : the days that the values and the label of each row touch.
    carried : bool (n,), the row only carries a bar's values on to a later day; left out where they leak.
    """

    index: pd.MultiIndex
    spans: RowSpans
    carried: NDArray[np.bool_]


@dataclass(frozen=True)
class ReadRules:
    """What may answer for what: see :class:`kronos_qlib.loader.KronosFactorLoader`."""

    fit_end: Any = None
    allow_in_sample: bool = False
    align: str | None = None
    leave_out: bool = False


@dataclass(frozen=True, eq=False)
class GroupValues:
    """Values of one group of columns.

    Attributes
    ----------
    columns : tuple of str
    values : float32 (n, F), NaN where the store has no row, or no window was there.
    weights : object (n,), fingerprint of each row's weights, empty where the store has no row.
    in_sample : bool (n,), weights that have seen what they should not have (only if allowed).
    alignments : by fingerprint of the weights whose embeddings were turned into the basis of the last weights.
    """

    columns: tuple[str, ...]
    values: NDArray[np.float32]
    weights: NDArray[np.object_]
    in_sample: NDArray[np.bool_]
    alignments: dict[str, Alignment]


def read_group(store: ForecastStore, group: ColumnGroup, asked: AskedRows, rules: ReadRules) -> GroupValues:
    """Read one group of columns for the asked rows.

    Raises
    ------
    ValueError
        Rows of which every stored version leaks (unless they may be left out), weights without a card, embeddings of
        several weights and no ``align``, too few rows in common to align, sources of one setting from other bars.
    """
    have = np.stack([_read(store, source, asked, [])[1] >= 0 for source in group.sources])
    kept = _one_of_each(store, group.sources, asked, have)
    group, have = replace(group, sources=tuple(group.sources[number] for number in kept)), have[kept]
    chosen, in_sample = _choose(store, group.sources, have, asked, rules)
    values = np.full((len(asked.index), len(group.columns)), np.nan, dtype=np.float32)
    names = np.array([*(source.weights for source in group.sources), ""], dtype=object)
    for number, source in enumerate(group.sources):
        rows = np.flatnonzero(chosen == number)
        if len(rows):
            values[rows] = _values(store, source, asked, rows, group.columns)
    alignments = _align(store, group, asked, have, chosen, values, rules)
    return GroupValues(group.columns, values, names[chosen], in_sample, alignments)


def _one_of_each(
    store: ForecastStore, sources: Sequence[SavedSource], asked: AskedRows, have: NDArray[np.bool_]
) -> list[int]:
    """Number of the source of each set of weights: of several, which differ in their columns alone, the fullest."""
    kept: dict[str, int] = {}
    # where even, the one with the fewest columns, as in a build
    for number in sorted(range(len(sources)), key=lambda i: (-have[i].sum(), len(sources[i].columns))):
        best = kept.setdefault(sources[number].weights, number)
        if best != number:
            _refuse_other_bars(store, sources[best], sources[number], asked)
    return sorted(kept.values())


def _refuse_other_bars(store: ForecastStore, one: SavedSource, other: SavedSource, asked: AskedRows) -> None:
    """Raise ``ValueError`` where two sources of one setting hold a row computed from different bars: one is stale."""
    (left, at), (right, there) = (_read(store, source, asked, [KEY]) for source in (one, other))
    both = (at >= 0) & (there >= 0)
    differ = int((left[KEY].to_numpy()[at[both]] != right[KEY].to_numpy()[there[both]]).sum())
    if differ:
        raise ValueError(
            f"sources {one.fingerprint[:12]} and {other.fingerprint[:12]} of {store.folder} hold {differ:,} rows of "
            "the same settings from different bars: remove the one that is out of date (kronos-qlib factors rm), or "
            "name one: sources: [...]"
        )


def _choose(
    store: ForecastStore, sources: Sequence[SavedSource], have: NDArray[np.bool_], asked: AskedRows, rules: ReadRules
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number of each row's source, -1 where none has it, and whether it is in-sample."""
    seen = [_seen(store, source, rules.allow_in_sample) for source in sources]
    chosen = np.full(have.shape[1], LEFT_OUT, dtype=np.int64)
    in_sample = np.zeros(have.shape[1], dtype=bool)
    spans, may_go = asked.spans, (asked.carried | rules.leave_out) & (not rules.allow_in_sample)
    # rows that the same sources hold are decided together
    kinds, kind = np.unique(np.vstack([have, may_go]), axis=1, return_inverse=True)
    for number in range(kinds.shape[1]):
        holders = np.flatnonzero(kinds[:-1, number])
        rows = np.flatnonzero(kind.ravel() == number)
        if not len(holders):
            continue
        part = RowSpans(spans.date[rows], spans.first[rows], spans.last[rows])
        try:
            choice = choose_weights(
                [seen[holder] for holder in holders], part, fit_end=rules.fit_end,
                allow_in_sample=rules.allow_in_sample, leave_out=bool(kinds[-1, number]),
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{store.folder}: {error}") from error
        chosen[rows] = np.where(choice.chosen == LEFT_OUT, LEFT_OUT, holders[choice.chosen])
        in_sample[rows] = choice.in_sample
    return chosen, in_sample


def _seen(store: ForecastStore, source: SavedSource, allow_in_sample: bool) -> SeenBars:
    card = read_card(store.folder, source.weights)
    try:
        if card is None:
            raise ValueError(f"{store.folder} has no card of the weights {source.weights}")
        return SeenBars.from_card(card, source.weights)
    except ValueError as error:
        if allow_in_sample:  # then they may have seen everything
            return SeenBars(source.weights, *_ALWAYS)
        raise ValueError(
            f"source {source.fingerprint[:12]}: {error}, so which rows its weights have seen is not known. Give the "
            "checkpoint a card.json with train_start and cutoff and run the same build again, which notes it and "
            "computes nothing twice; or leave the source out (sources: [...]); or say allow_in_sample: true"
        ) from error


def _read(
    store: ForecastStore, source: SavedSource, asked: AskedRows, columns: Sequence[str]
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Stored rows in the asked time range, and where each asked row stands in them, -1 where it does not."""
    times = pd.DatetimeIndex(asked.index.get_level_values(0))
    codes = sorted(set(asked.index.get_level_values(1)))
    frame = store.read(columns, times.min(), times.max(), codes, sources=source.fingerprint)
    return frame, np.asarray(frame.index.get_indexer(asked.index), dtype=np.int64)


def _values(
    store: ForecastStore, source: SavedSource, asked: AskedRows, rows: NDArray[np.int64], columns: Sequence[str]
) -> NDArray[np.float32]:
    part = AskedRows(asked.index[rows], asked.spans, asked.carried)
    frame, place = _read(store, source, part, columns)
    if (place < 0).any():
        raise ValueError(f"source {source.fingerprint[:12]} of {store.folder} lost rows while it was read; read again")
    return frame.to_numpy(dtype=np.float32)[place]


def _align(
    store: ForecastStore,
    group: ColumnGroup,
    asked: AskedRows,
    have: NDArray[np.bool_],
    chosen: NDArray[np.int64],
    values: NDArray[np.float32],
    rules: ReadRules,
) -> dict[str, Alignment]:
    """Turn the embeddings of all weights but the last into the last one's basis, in place."""
    where = np.array(
        [i for i, name in enumerate(group.columns) if fnmatchcase(name, EMBEDDING_PATTERN)], dtype=np.int64
    )
    used = np.unique(chosen[chosen >= 0])
    if not len(where) or len(used) < 2:
        return {}
    if rules.align is None:
        raise ValueError(_mixed_message(store, group, used))
    columns = [group.columns[i] for i in where]
    seen = {int(i): _seen(store, group.sources[i], rules.allow_in_sample) for i in used}
    last = max(seen, key=lambda i: seen[i].merit)  # as the rule prefers for rows after fit_end
    before = ~asked.carried  # each bar counts once
    if rules.fit_end is not None:
        before &= asked.spans.date <= np.datetime64(pd.Timestamp(rules.fit_end), "D")
    found = {}
    for number in seen:
        if number == last:
            continue
        both = np.flatnonzero(have[number] & have[last] & before)
        both = both[:: -(-len(both) // _MOST_PAIRS)] if len(both) else both
        source, target = group.sources[number], group.sources[last]
        try:
            fit = procrustes(
                _pair(store, source, asked, both, columns), _pair(store, target, asked, both, columns)
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(_overlap_message(store, source, target, str(error))) from error
        rows = np.flatnonzero(chosen == number)
        values[np.ix_(rows, where)] = fit.apply(values[np.ix_(rows, where)])
        found[source.weights] = fit
    return found


def _pair(
    store: ForecastStore, source: SavedSource, asked: AskedRows, rows: NDArray[np.int64], columns: Sequence[str]
) -> NDArray[np.float32]:
    if not len(rows):
        return np.empty((0, len(columns)), dtype=np.float32)
    return _values(store, source, asked, rows, columns)


def _mixed_message(store: ForecastStore, group: ColumnGroup, used: NDArray[np.int64]) -> str:
    names = ", ".join(group.sources[i].weights for i in used)
    return (
        f"the rows asked of {store.folder} have embeddings from {len(used)} sets of weights ({names}): component by "
        "component they mean different things. Leave the embeddings out (columns: null), take one set of weights "
        "(sources: [...]), or say align: procrustes, which turns them into the basis of the latest weights by rows up "
        "to fit_end_time that both have scored"
    )


def _overlap_message(store: ForecastStore, source: SavedSource, target: SavedSource, what: str) -> str:
    return (
        f"align: {what}; expected rows up to fit_end_time in {store.folder} scored by both {source.weights} and "
        f"{target.weights}. Add some of the latter: the same build with that checkpoint alone, --start and --end in "
        "the years of the former (no label is used for this, but the weights have seen those bars)"
    )
