"""The forecast store: factors by row and source, computed once and never stale."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from kronos_qlib.forecast.store_build import COMPUTED, FOUND, describe_seconds, fill_in_processes, fill_units
from kronos_qlib.forecast.store_catalog import (
    StoredSource,
    fingerprints,
    register,
    resolve,
    saved_source,
    source_folder,
    stored_source,
)
from kronos_qlib.forecast.store_cover import plan_source, serving
from kronos_qlib.forecast.store_files import (
    KEY,
    WEIGHTS,
    merge_lock,
    merge_parts,
    part_years,
    read_rows,
    use_lock,
)
from kronos_qlib.forecast.store_lock import try_lock
from kronos_qlib.forecast.store_plan import SourcePlan, split_units
from kronos_qlib.forecast.store_source import FactorSource, refuse_shared_rows, wanted_rows
from kronos_qlib.forecast.store_verify import VerifyReport, verify_source
from kronos_qlib.market.panel import BarPanel

Rows = npt.NDArray[np.int64]
Task = tuple[FactorSource, Rows]
BATCH_ROWS = 2048


@dataclass
class BuildReport:
    """What a build did: the plan it made, rows computed, rows that another build had computed meanwhile, seconds."""

    plans: list[SourcePlan]
    computed: int = 0
    found: int = 0
    seconds: float = 0.0

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of the stored sources that answer, in the order of the tasks."""
        return [plan.fingerprint for plan in self.plans]

    def __str__(self) -> str:
        lines = [str(plan) for plan in self.plans]
        other = f", {self.found:,} by another build" if self.found else ""
        return "\n".join([*lines, f"{self.computed:,} rows computed{other} in {describe_seconds(self.seconds)}"])


@dataclass(frozen=True)
class SourceSpan:
    """Rows of one source between two times, both included: what a table from several weights is put together of."""

    fingerprint: str
    start: pd.Timestamp | None = field(default=None)
    end: pd.Timestamp | None = field(default=None)


class ForecastStore:
    """Factors on disk: float32, a parquet file a month, a folder a source.

    A row is (datetime, instrument) of a traded bar, and carries a hash of the data that its values depend on and the
    fingerprint of its weights. A source is known by the hash of its description, so nothing is ever stale: other
    weights, sampling or definitions are another source, and other bars are another key. A source whose columns a stored
    one has by the same settings and definitions is built in that one and read from it (``forecast.store_cover``).

    Parameters
    ----------
    folder : path
        Created with the first build. Several processes may build, read and verify at the same time.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file; expected the folder of a forecast store, or nothing yet")

    def plan(self, tasks: Sequence[Task], panel: BarPanel) -> list[SourcePlan]:
        """Say what a build would compute, in which stored source and why; nothing is written."""
        wanted = [wanted_rows(source, panel, rows) for source, rows in tasks]
        refuse_shared_rows(wanted, [source.columns for source, _ in tasks])
        return [plan_source(self.folder, source, rows) for (source, _), rows in zip(tasks, wanted, strict=True)]

    def build(
        self,
        tasks: Sequence[Task],
        panel: BarPanel,
        *,
        jobs: int = 1,
        batch_rows: int = BATCH_ROWS,
        progress: bool = True,
        plans: list[SourcePlan] | None = None,
    ) -> BuildReport:
        """Compute the rows that are missing or rest on changed data.

        Parameters
        ----------
        tasks : (source, panel rows) for each source; no row twice. Several sources, with the same columns, where
            different rows come from different weights.
        panel : the bars that the rows count in.
        jobs : processes. The values do not depend on it. Sources must then be picklable.
        batch_rows : rows that a source is asked for at a time and that a killed build loses at most, per process.
        progress : a bar with rows a second and time left, when the output is a terminal.
        plans : what ``plan`` gave for the same tasks, to save making it again.

        Raises
        ------
        ValueError
            Rows shared by sources, columns that differ, a description that is no JSON, values of another shape.
        """
        if jobs < 1 or batch_rows < 1:
            raise ValueError(f"found jobs={jobs}, batch_rows={batch_rows}; expected whole numbers >= 1")
        begin = time.monotonic()
        plans = self.plan(tasks, panel) if plans is None else plans
        report = BuildReport(plans)
        with self._in_use(plans):
            sources: list[FactorSource] = []
            units = []
            for plan in plans:
                if plan.source is None:
                    continue  # every row is there
                register(self.folder, plan.fingerprint, plan.source)
                folder = source_folder(self.folder, plan.fingerprint)
                units += split_units(len(sources), folder, plan.todo, batch_rows)
                sources.append(plan.source)
            total = sum(len(unit.wanted) for unit in units)
            hidden = None if progress else True
            with tqdm(total=total, desc="factors", unit="row", disable=hidden, smoothing=0.05) as bar:

                def tell(what: str, rows: int) -> None:
                    report.computed += rows if what == COMPUTED else 0
                    report.found += rows if what == FOUND else 0
                    bar.update(rows)

                if jobs == 1 or len(units) < 2:
                    fill_units(sources, iter(units), batch_rows, tell)
                else:
                    fill_in_processes(sources, units, batch_rows, min(jobs, len(units)), tell)
            self._merge(plans)
        report.seconds = time.monotonic() - begin
        return report

    def verify(self, tasks: Sequence[Task], panel: BarPanel, *, sample: int = 200, seed: int = 0) -> VerifyReport:
        """Recompute a random sample of stored rows of each source, and compare bit for bit."""
        total = VerifyReport()
        for source, rows in tasks:
            wanted = wanted_rows(source, panel, rows)
            place = source_folder(self.folder, plan_source(self.folder, source, wanted).fingerprint)
            total.add(verify_source(place, source, wanted, sample, seed))
        return total

    def serving(self, source: FactorSource, panel: BarPanel, rows: Rows) -> str:
        """Return the fingerprint of the stored source that answers for these rows: that of a build of them.

        The source's own where the store has none.
        """
        return serving(self.folder, source, lambda: wanted_rows(source, panel, rows))

    def read(
        self,
        columns: Sequence[str] | None = None,
        start: Any = None,
        end: Any = None,
        instruments: Sequence[str] | None = None,
        *,
        sources: str | Sequence[str | SourceSpan] | None = None,
    ) -> pd.DataFrame:
        """Read stored rows.

        Parameters
        ----------
        columns : names; None: all factors. ``"weights"`` (categorical) and ``"key"`` (uint64, hash of the data that a
            row's values depend on) may be asked for as well.
        start, end : first and last time, both included; a date includes all of its bars.
        instruments : codes; None: all.
        sources : fingerprints (their beginnings suffice) or ``SourceSpan``; None: the only source of the store.

        Returns
        -------
        DataFrame, float32, indexed (datetime, instrument), sorted. Rows that were never built are absent; rows
        without a window are NaN.

        Raises
        ------
        ValueError
            No or several sources without a choice, an unknown source or column, a row in two of the sources.
        """
        first = None if start is None else pd.Timestamp(start)
        last = None if end is None else _day_end(pd.Timestamp(end))
        frames = []
        for span in self._spans(sources):
            known = saved_source(self.folder, span.fingerprint)
            names = list(known["columns"]) if columns is None else list(columns)
            absent = [name for name in names if name not in (*known["columns"], WEIGHTS, KEY)]
            if absent:
                raise ValueError(f"source {span.fingerprint[:12]} has no column {absent}; it has {known['columns']}")
            bounds = _later(first, span.start), _earlier(last, None if span.end is None else _day_end(span.end))
            frames.append(
                read_rows(source_folder(self.folder, span.fingerprint), names, *bounds, instruments=instruments)
            )
        return _joined([frame for frame in frames if len(frame)] or frames[:1])

    def ls(self) -> list[StoredSource]:
        """Return the sources of the store, by fingerprint."""
        return [stored_source(self.folder, fingerprint) for fingerprint in fingerprints(self.folder)]

    def rm(self, fingerprint: str) -> StoredSource:
        """Delete a source (the beginning of its fingerprint suffices); return what it was.

        Raises
        ------
        ValueError
            Unknown or ambiguous source, or one that a build is writing.
        """
        found = stored_source(self.folder, resolve(self.folder, fingerprint))
        place = source_folder(self.folder, found.fingerprint)
        with try_lock(use_lock(place)) as held:
            if not held:
                raise ValueError(f"source {found.fingerprint[:12]} is being built by another process; end that first")
            away = place.with_name(f".removed-{uuid.uuid4().hex[:8]}")
            place.rename(away)
            for left in place.parent.glob(".removed-*"):  # also of a removal that was killed
                shutil.rmtree(left, ignore_errors=left != away)
        return found

    def _spans(self, sources: str | Sequence[str | SourceSpan] | None) -> list[SourceSpan]:
        if sources is None:
            known = fingerprints(self.folder)
            if len(known) != 1:
                listed = ", ".join(name[:12] for name in known)
                raise ValueError(
                    f"{self.folder} has {len(known)} sources ({listed}); name those to read: sources=[...]"
                    if known
                    else f"{self.folder} has no factors yet; build some with `kronos-qlib factors build`"
                )
            sources = known
        given = [sources] if isinstance(sources, str) else sources
        spans = [SourceSpan(span) if isinstance(span, str) else span for span in given]
        if not spans:
            raise ValueError("found an empty list of sources; name at least one")
        return [SourceSpan(resolve(self.folder, span.fingerprint), span.start, span.end) for span in spans]

    @contextmanager
    def _in_use(self, plans: Sequence[SourcePlan]) -> Iterator[None]:
        with ExitStack() as stack:
            for plan in plans:
                if not stack.enter_context(
                    try_lock(use_lock(source_folder(self.folder, plan.fingerprint)), shared=True)
                ):
                    raise ValueError(f"source {plan.fingerprint[:12]} is being removed; run the build again")
            yield

    def _merge(self, plans: Sequence[SourcePlan]) -> None:
        for plan in plans:
            place = source_folder(self.folder, plan.fingerprint)
            for year in part_years(place):
                # held: another build merges this year, and the parts that it does not see wait for the next build
                with try_lock(merge_lock(place, year)) as held:
                    if held:
                        merge_parts(place, year, plan.columns)


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return rows of several sources as one sorted frame indexed (datetime, instrument)."""
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    place, times = pd.factorize(pd.DatetimeIndex(frame.pop("datetime")), sort=True)
    instrument = frame.pop("instrument").astype("category")
    instrument = instrument.cat.reorder_categories(sorted(instrument.cat.categories))
    # levels and codes, not a million texts
    levels = [times, pd.Index(instrument.cat.categories.astype(str))]
    codes = [place.tolist(), instrument.cat.codes.tolist()]
    frame.index = pd.MultiIndex(levels, codes, names=["datetime", "instrument"])
    if len(frames) == 1:
        return frame
    twice = frame.index.duplicated()
    if twice.any():
        time_, name = frame.index[int(np.argmax(twice))]
        raise ValueError(
            f"{int(twice.sum())} rows are in more than one of the sources, first {name} at {time_}: "
            "give each its time with SourceSpan"
        )
    return frame.sort_index()


def _later(one: pd.Timestamp | None, other: pd.Timestamp | None) -> pd.Timestamp | None:
    return max((time for time in (one, other) if time is not None), default=None)


def _earlier(one: pd.Timestamp | None, other: pd.Timestamp | None) -> pd.Timestamp | None:
    return min((time for time in (one, other) if time is not None), default=None)


def _day_end(moment: pd.Timestamp) -> pd.Timestamp:
    # a date without a time names the whole day, as in Qlib
    return moment + pd.Timedelta(days=1) - pd.Timedelta(1, "ns") if moment == moment.normalize() else moment
