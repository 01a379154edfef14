"""How a process of a pool begins: its share of the cores, and an end that comes with its parent's."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import connection

import torch


def start_worker(threads: int) -> None:
    """Take ``threads`` cores, and end when the parent is gone."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, a worker whose parent was killed would finish its tasks and then wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
