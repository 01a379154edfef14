"""Locks between processes that the system lets go of when their owner dies, however it dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int, shared: bool) -> None:
        # Windows has no shared kind here; readers of the store take no lock, so nothing waits that need not
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(descriptor: int, shared: bool) -> None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


@contextmanager
def try_lock(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold the lock ``path`` during the block, or yield False at once if another holder has it.

    The file stays: what locks is the system's mark on it, which ends with the process, so no lock goes stale.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _take(descriptor, shared)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def wait_for_lock(path: Path, pause: float = 0.05) -> Iterator[None]:
    """Hold the lock ``path`` during the block, waiting for as long as another holder has it."""
    while True:
        with try_lock(path) as held:
            if held:
                yield
                return
        time.sleep(pause)


@contextmanager
def try_locks(paths: Sequence[Path]) -> Iterator[bool]:
    """Hold all of several locks, or none (False)."""
    with ExitStack() as stack:
        held = all(stack.enter_context(try_lock(path)) for path in sorted(paths))
        if not held:
            stack.close()
        yield held
