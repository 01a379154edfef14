"""Threads on a CPU: chunks run side by side, each with one thread, so no kernel's result depends on their number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_lock = threading.RLock()
_lowered_from: list[int] = []


@contextmanager
def one_thread_kernels(device: torch.device) -> Iterator[int]:
    """Run the block with one-thread kernels on a CPU; yields how many chunks may run side by side.

    The number is the process's own and is put back after the last of several overlapping calls.
    """
    if device.type != "cpu":
        yield 1
        return
    # a new thread would see the lowered number
    seen = torch.get_num_threads()
    threads = next(iter(_lowered_from), seen)
    with _lock:
        _lowered_from.append(threads)
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            _lowered_from.pop()
            if not _lowered_from:
                torch.set_num_threads(threads)


def map_side_by_side(run: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """``[run(item) for item in items]`` on ``workers`` threads; results in order."""
    if workers == 1 or len(items) == 1:
        return [run(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, items))
