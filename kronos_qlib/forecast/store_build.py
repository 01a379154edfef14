"""Compute what a build's plan asks for, in this process or several, beside other builds of the same store."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.forecast.store_files import (
    bucket_locks,
    make_table,
    part_path,
    remove_leftovers,
    write_table,
)
from kronos_qlib.forecast.store_lock import try_locks
from kronos_qlib.forecast.store_plan import PRESENT, Unit, row_states, split_batches
from kronos_qlib.forecast.store_source import FactorSource, WantedRows, weights_of

Tell = Callable[[str, int], None]
COMPUTED, FOUND = "computed", "found"
_PAUSE, _PATIENCE = 0.2, 1.0


def fill_units(sources: Sequence[FactorSource], units: Iterator[Unit], batch_rows: int, tell: Tell) -> None:
    """Compute units one by one; those that another process works on come last.

    Parameters
    ----------
    tell : called with COMPUTED or FOUND (another process had computed them) and a number of rows.
    """
    busy: deque[Unit] = deque()
    for unit in units:
        if not _fill_if_free(sources, unit, batch_rows, tell):
            busy.append(unit)
    while busy:
        unit = busy.popleft()
        if not _fill_if_free(sources, unit, batch_rows, tell):
            busy.append(unit)
            time.sleep(_PAUSE)


def _fill_if_free(sources: Sequence[FactorSource], unit: Unit, batch_rows: int, tell: Tell) -> bool:
    with try_locks(bucket_locks(unit.folder, unit.year, unit.buckets)) as held:
        if held:
            _fill(sources[unit.source], unit, batch_rows, tell)
        return held


def _fill(source: FactorSource, unit: Unit, batch_rows: int, tell: Tell) -> None:
    for bucket in unit.buckets:
        remove_leftovers(unit.folder / "parts" / str(unit.year), f"*-{bucket:02d}.parquet")
    # the plan was made before we held the locks: another process may have been here since
    todo = unit.wanted.take(row_states(unit.folder, unit.wanted) != PRESENT)
    if len(todo) < len(unit.wanted):
        tell(FOUND, len(unit.wanted) - len(todo))
    for batch in split_batches(todo, batch_rows):
        values = compute_checked(source, batch)
        table = make_table(batch, values, source.columns, weights_of(source))
        write_table(table, part_path(unit.folder, unit.year, unit.buckets[0]))
        tell(COMPUTED, len(batch))


def compute_checked(source: FactorSource, batch: WantedRows) -> npt.NDArray[np.float32]:
    """Return a source's values, float32 (n, F); ValueError when they have another shape or type."""
    values = np.asarray(source.compute(batch.rows))
    if values.shape != (len(batch), len(source.columns)) or values.dtype != np.float32:
        raise ValueError(
            f"a factor source gave {values.dtype} {values.shape}; expected float32 {(len(batch), len(source.columns))}"
        )
    return values


def fill_in_processes(
    sources: Sequence[FactorSource], units: Sequence[Unit], batch_rows: int, jobs: int, tell: Tell
) -> None:
    """As ``fill_units``, by ``jobs`` processes.

    Raises
    ------
    ValueError
        The sources cannot be sent to another process.
    RuntimeError
        A process failed or was killed; what was computed is in the store.
    """
    context = multiprocessing.get_context("spawn")
    work, news = context.Queue(), context.Queue()
    for item in (*units, *[None] * jobs):
        work.put(item)
    workers = [
        context.Process(target=_work, args=(list(sources), work, news, batch_rows), daemon=True) for _ in range(jobs)
    ]
    try:
        with _threads_for(jobs):
            for worker in workers:
                worker.start()
        _follow(workers, news, tell)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"the sources cannot be sent to other processes ({error}); build with jobs=1") from error
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
        work.cancel_join_thread()


def _work(sources: list[FactorSource], work: Any, news: Any, batch_rows: int) -> None:
    try:
        fill_units(sources, _units_to_do(work, news), batch_rows, lambda what, rows: news.put((what, rows)))
    except BaseException:
        news.put(("failed", traceback.format_exc()))
        raise
    news.put(("done", 0))


def _units_to_do(work: Any, news: Any) -> Iterator[Unit]:
    """Yield units until none is left, or the process that wants them is gone: killed, it could not say so."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        try:
            unit = work.get(timeout=_PATIENCE)
        except queue.Empty:
            continue
        if unit is None:
            return
        yield unit
    news.cancel_join_thread()  # nobody reads it any more


def _follow(workers: Sequence[Any], news: Any, tell: Tell) -> None:
    running = len(workers)
    while running:
        try:
            what, content = news.get(timeout=_PATIENCE)
        except queue.Empty:
            dead = [worker.exitcode for worker in workers if worker.exitcode not in (None, 0)]
            if dead:
                raise RuntimeError(f"a worker ended with exit code {dead[0]}; run the build again to resume") from None
            continue
        if what == "failed":
            raise RuntimeError(f"a worker failed:\n{content}")
        if what == "done":
            running -= 1
        else:
            tell(what, content)


@contextmanager
def _threads_for(jobs: int) -> Iterator[None]:
    """Share the cores among the processes started in the block; the values do not depend on it."""
    share = str(max(1, (os.cpu_count() or 1) // jobs))
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = share if before is None else str(min(int(before), int(share)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def describe_seconds(seconds: float) -> str:
    """Return a duration for people."""
    return str(pd.Timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.1f} s"
