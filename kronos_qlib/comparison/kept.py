"""Arrays of many windows, kept in a folder and computed chunk by chunk, so that a killed run goes on where it was.

Nothing in a chunk may depend on the other chunks: then neither their order nor the number of processes changes a value.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from kronos_qlib.comparison.task import fingerprint
from kronos_qlib.forecast.pool_worker import start_worker
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.swap import whole_file

NOTE = "note.json"
Positions = NDArray[np.int64]


class WindowWork(Protocol):
    """What is computed; it must be picklable to run in other processes."""

    @property
    def name(self) -> str:
        """What its folder's name begins with."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""

    @property
    def dtype(self) -> DTypeLike:
        """Of the whole array."""

    @property
    def note(self) -> Mapping[str, Any]:
        """Plain JSON: everything that the values depend on; with anything else they are computed anew."""

    def chunks(self, panel: BarPanel) -> Sequence[Positions]:
        """Positions along the first axis, each in one chunk."""

    def compute(self, panel: BarPanel, positions: Positions) -> NDArray[Any]:
        """The values at some positions, in their order."""


def kept_array(
    folder: Path, work: WindowWork, panel: BarPanel, *, jobs: int = 1, progress: bool = True
) -> NDArray[Any]:
    """Read what is kept of an array, compute and keep what is missing.

    Parameters
    ----------
    folder : each array has a folder in it, named after its note. jobs : processes that compute chunks.
    progress : a progress bar, which stays off when the output is no terminal.

    Returns
    -------
    Array of the work's shape and dtype.

    Raises
    ------
    ValueError : ``jobs`` below 1, files in the array's folder that are not its own.
    """
    if jobs < 1:
        raise ValueError(f"found jobs={jobs}; expected at least 1")
    place = folder / f"{work.name}-{fingerprint(work.note)}"
    _open(place, work.note)
    chunks = [(place / f"{number:05d}.npy", part) for number, part in enumerate(work.chunks(panel))]
    missing = [(path, part) for path, part in chunks if not path.is_file()]
    with tqdm(total=work.shape[0], desc=work.name, unit="window", disable=None if progress else True) as bar:
        bar.update(work.shape[0] - sum(len(part) for _, part in missing))
        _fill(work, panel, missing, min(jobs, len(missing)), bar.update)
    result = np.empty(work.shape, dtype=work.dtype)
    for path, part in chunks:
        result[part] = _read(path, (len(part), *work.shape[1:]), result.dtype)
    return result


def _open(place: Path, note: Mapping[str, Any]) -> None:
    """Make the folder with its note, which comes first: chunks without it would be of unknown origin."""
    path, content = place / NOTE, json.dumps(note, indent=1, sort_keys=True, default=str)
    place.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with whole_file(path) as partial:
            partial.write_text(content, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != content:
        raise ValueError(f"{path} describes another array than the one its folder is named after; remove {place}")


def _fill(
    work: WindowWork, panel: BarPanel, missing: Sequence[tuple[Path, Positions]], jobs: int,
    done: Callable[[int], Any],
) -> None:  # fmt: skip
    if jobs <= 1:
        for path, part in missing:
            done(_compute(work, panel, path, part))
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(work, panel, threads)
    ) as pool:
        tasks = [pool.submit(_work, path, part) for path, part in missing]
        try:
            for task in as_completed(tasks):
                done(task.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _compute(work: WindowWork, panel: BarPanel, path: Path, part: Positions) -> int:
    values = np.asarray(work.compute(panel, part), dtype=work.dtype)
    # a file moved before its bytes are on the disk could be empty after a power cut
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return len(part)


def _read(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    try:
        values: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it, and the next run computes it again") from error
    if values.shape != shape or values.dtype != dtype:
        raise ValueError(
            f"{path} holds {values.dtype} {values.shape}; expected {np.dtype(dtype)} {shape}: remove it, and the next "
            "run computes it again"
        )
    return values


_shared: dict[str, Any] = {}


def _start_worker(work: WindowWork, panel: BarPanel, threads: int) -> None:
    start_worker(threads)
    _shared.update(work=work, panel=panel)


def _work(path: Path, part: Positions) -> int:
    return _compute(_shared["work"], _shared["panel"], path, part)
