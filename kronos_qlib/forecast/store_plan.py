"""What a build has to compute, why, and in which pieces."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.forecast.store_files import KEY, read_rows
from kronos_qlib.forecast.store_source import FactorSource, WantedRows

MISSING, CHANGED, PRESENT = 0, 1, 2
BUCKETS = 8
_SHOWN = 5


@dataclass(frozen=True)
class Unit:
    """Rows that one process computes at a time: some buckets of the instruments in one year, of one source.

    A year at a time, because a source may get several days of an instrument from one pass over its bars.
    """

    source: int
    folder: Path
    year: int
    buckets: tuple[int, ...]
    wanted: WantedRows


@dataclass(frozen=True)
class SourcePlan:
    """What the store has of the rows that one source is asked for.

    Attributes
    ----------
    fingerprint, weights : str, of the stored source that answers
    wanted : WantedRows
    state : int8 (n,): MISSING, CHANGED (stored from other data) or PRESENT.
    reasons : lines that say why rows are to be computed; empty when none is.
    columns : tuple of str, all that the stored source has.
    source : computes all of them; None where nothing does any more, and no row is to be computed.
    among : number of columns asked for, where the stored source has others beside them or another order; else 0.
    """

    fingerprint: str
    weights: str
    wanted: WantedRows
    state: npt.NDArray[np.int8]
    reasons: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ()
    source: FactorSource | None = None
    among: int = 0

    @property
    def todo(self) -> WantedRows:
        """Rows to compute."""
        return self.wanted.take(self.state != PRESENT)

    def count(self, state: int) -> int:
        """Return how many rows are in a state."""
        return int(np.count_nonzero(self.state == state))

    def __str__(self) -> str:
        head = f"source {self.fingerprint[:12]}: {len(self.wanted):,} rows wanted, {self.count(PRESENT):,} in the store"
        lines = list(self.reasons)
        if self.among:
            head += f" ({self.among} of its {len(self.columns)} columns wanted)"
            lines += [f"they get all {len(self.columns)} columns of this source"] if lines else []
        return "\n".join([head, *(f"  {line}" for line in lines)])


def row_states(folder: Path, wanted: WantedRows) -> npt.NDArray[np.int8]:
    """Compare wanted rows with the stored ones, int8 (n,)."""
    state = np.zeros(len(wanted), dtype=np.int8)
    if not len(wanted):
        return state
    first, last = pd.Timestamp(wanted.timestamps.min()), pd.Timestamp(wanted.timestamps.max())
    stored = read_rows(folder, [KEY], first, last)
    if stored.empty:
        return state
    codes = _codes(stored["instrument"], wanted.instruments)
    known = codes >= 0
    stored_times, stored_keys = stored["datetime"].to_numpy()[known], stored[KEY].to_numpy()[known]
    times = np.unique(wanted.timestamps)
    place = np.searchsorted(times, stored_times)
    place[place == len(times)] = 0
    on_time = times[place] == stored_times
    have = codes[known][on_time] * len(times) + place[on_time]
    order = np.argsort(have)
    have, keys = have[order], stored_keys[on_time][order]
    ask = wanted.codes.astype(np.int64) * len(times) + np.searchsorted(times, wanted.timestamps)
    at = np.minimum(np.searchsorted(have, ask), max(len(have) - 1, 0))
    found = have[at] == ask if len(have) else np.zeros(len(ask), dtype=bool)
    state[found] = CHANGED
    if len(have):
        state[found & (keys[at] == wanted.keys)] = PRESENT
    return state


def reasons(wanted: WantedRows, state: npt.NDArray[np.int8], new_source: Sequence[str]) -> list[str]:
    """Say why rows are to be computed: a new source, changed data, rows not asked for before."""
    lines = list(new_source)
    for value, what in ((CHANGED, "rest on changed data"), (MISSING, "are not there yet")):
        chosen = wanted.take(state == value)
        if len(chosen):
            lines.append(f"{len(chosen):,} rows {what}: {_places(chosen)}")
    return lines


def split_units(number: int, folder: Path, todo: WantedRows, least: int) -> list[Unit]:
    """Cut rows into units of at least ``least`` rows where a year has so many, oldest first."""
    years = todo.timestamps.astype("datetime64[Y]").astype(np.int64) + 1970
    bucket_of = np.array([zlib.crc32(name.encode()) % BUCKETS for name in todo.instruments], dtype=np.int64)
    bucket = bucket_of[todo.codes] if len(todo) else np.zeros(0, dtype=np.int64)
    units = []
    for year in np.unique(years):
        here = years == year
        counts = np.bincount(bucket[here], minlength=BUCKETS)
        for group in _groups(counts, least):
            units.append(Unit(number, folder, int(year), group, todo.take(here & np.isin(bucket, group))))
    return units


def split_batches(wanted: WantedRows, size: int) -> list[WantedRows]:
    """Cut rows, sorted by instrument and time, between instruments once a batch has ``size``; anywhere at twice it."""
    starts = np.flatnonzero(np.diff(wanted.codes, prepend=-1) != 0)
    cuts, begin = [0], 0
    for start in [*starts[1:], len(wanted)]:
        while start - begin > 2 * size:
            begin += size
            cuts.append(begin)
        if start - begin >= size and start < len(wanted):
            begin = int(start)
            cuts.append(begin)
    edges = [*cuts, len(wanted)]
    return [wanted.take(np.arange(a, b)) for a, b in pairwise(edges) if b > a]


def _groups(counts: npt.NDArray[np.int64], least: int) -> list[tuple[int, ...]]:
    """Put neighbouring buckets together until a group has ``least`` rows; empty buckets are left out."""
    groups: list[tuple[int, ...]] = []
    current: list[int] = []
    for bucket in np.flatnonzero(counts):
        current.append(int(bucket))
        if counts[current].sum() >= least:
            groups.append(tuple(current))
            current = []
    if current:
        groups.append(tuple(current))
    return groups


def _codes(instrument: pd.Series, instruments: tuple[str, ...]) -> npt.NDArray[np.int64]:
    column = instrument.astype("category")
    place = pd.Index(instruments, dtype=object).get_indexer(pd.Index(column.cat.categories).astype(object))
    return np.asarray(place, dtype=np.int64)[np.asarray(column.cat.codes)]


def _places(rows: WantedRows) -> str:
    codes = np.unique(rows.codes)
    names = ", ".join(rows.instruments[code] for code in codes[:_SHOWN])
    more = ", ..." if len(codes) > _SHOWN else ""
    first, last = pd.Timestamp(rows.timestamps.min()), pd.Timestamp(rows.timestamps.max())
    days = f"{first:%Y-%m-%d}" if first == last else f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
    return f"{len(codes):,} instruments ({names}{more}), {days}"
