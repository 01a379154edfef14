"""What a long fit or predict says where no terminal shows its progress bar: lines in Qlib's log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qlib.log import get_module_logger

from kronos_qlib.training.progress import SECONDS_BETWEEN_LINES

TRAINING = "kronos_qlib.training"
logger = get_module_logger("kronos_qlib.model")


class _ToQlib(logging.Handler):
    """Hands a record to Qlib's log, at the level that ``qlib.init`` was given."""

    def emit(self, record: logging.LogRecord) -> None:
        target = get_module_logger(TRAINING).logger
        if target.isEnabledFor(record.levelno):
            target.handle(record)


@contextmanager
def training_lines() -> Iterator[None]:
    """Let the training loop's lines reach Qlib's log inside the block, unless the program shows them already."""
    lines = logging.getLogger(TRAINING)
    if lines.hasHandlers() and lines.isEnabledFor(logging.INFO):
        yield
        return
    level, propagate, handler = lines.level, lines.propagate, _ToQlib()
    lines.addHandler(handler)
    lines.setLevel(logging.INFO)
    lines.propagate = False
    try:
        yield
    finally:
        lines.removeHandler(handler)
        lines.setLevel(level)
        lines.propagate = propagate


class ForecastLines:
    """A line a minute on how many of the windows are forecast; silent on a terminal, which has a progress bar.

    Parameters
    ----------
    windows : int
        All of them.
    """

    def __init__(self, windows: int) -> None:
        self.windows, self.done = windows, 0
        self.silent = sys.stderr.isatty()
        self.started = self._last_line = time.monotonic()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        now = time.monotonic()
        if self.silent or now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = (now - self.started) / self.done * (self.windows - self.done)
        logger.info(f"{self.done:,} of {self.windows:,} windows forecast, {left / 60:.0f} min left")
