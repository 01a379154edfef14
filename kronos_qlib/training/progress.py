"""How far a run is: a bar with tokens a second and time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Counts steps and tokens of one run.

    Parameters
    ----------
    name : str
        What is trained.
    steps, done : int
        Steps in all, and those done before this process began.
    silent : bool
        For processes other than the first.
    """

    def __init__(self, name: str, steps: int, done: int, silent: bool) -> None:
        self.name, self.steps, self.done, self.silent = name, steps, done, silent
        self.first = done
        self.tokens = 0
        self.started = self._last_line = time.monotonic()
        terminal = sys.stderr.isatty() and not silent
        self._bar = tqdm(total=steps, initial=done, desc=name, unit="step") if terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def tokens_per_second(self) -> float:
        """Bars a second since this process began; a bar is one token of two halves."""
        return self.tokens / max(1e-9, time.monotonic() - self.started)

    def step(self, tokens: int) -> None:
        """One more step is done."""
        self.done += 1
        self.tokens += tokens
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.tokens_per_second:,.0f} tokens/s", refresh=False)
            self._bar.update()
        elif not self.silent and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info("%s", self._line())

    def validated(self, train: dict[str, float], valid: dict[str, float], chosen_by: str, best: bool) -> None:
        """Say what a validation found."""
        if self.silent:
            return
        figures = f"train {train.get(chosen_by, float('nan')):.4f}, valid {valid[chosen_by]:.4f} {chosen_by}"
        line = f"{self._line()}: {figures}{' (best)' if best else ''}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            logger.info("%s", line)

    def _line(self) -> str:
        seconds = (time.monotonic() - self.started) / max(1, self.done - self.first) * (self.steps - self.done)
        left = f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
        return f"{self.name} step {self.done} of {self.steps}, {self.tokens_per_second:,.0f} tokens/s, {left}"
