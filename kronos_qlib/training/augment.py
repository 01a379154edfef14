"""Changes to training windows that a market allows. Each is a function of (seed, step, place in the batch)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.training.counters import hash_words, unit
from kronos_qlib.training.settings import Settings

# domain separators: no two decisions share a stream
_MASK, _SHORT, _LENGTH, _SHIFT, _WEEKS = range(11, 16)
_WEEK = np.timedelta64(7, "D").astype("timedelta64[ns]")


class Augmentation(Settings):
    """What is changed, and how often. Everything is off by default except the masking of volume.

    Attributes
    ----------
    mask_volume : float
        Share of windows whose volume and amount are all 0 before normalisation, as in the paper: a market without
        volume. Forecasts of markets without volume meet the same zeros.
    short_context : float
        Share of batches with a shorter context, its length drawn evenly from ``min_bars`` to lookback: one length a
        batch. The bars to predict stay; the oldest context bars are dropped, and the statistics are those of the
        shorter context.
    min_bars : int
        Shortest context.
    shift_time : float
        Share of windows whose stamps are moved by whole weeks, so that the day of the week and the hour stay true
        while day and month change.
    max_shift : int
        Longest move in weeks, to either side; never 0 weeks.
    """

    mask_volume: float = Field(0.05, ge=0, le=1)
    short_context: float = Field(0.0, ge=0, le=1)
    min_bars: int = Field(30, ge=2)
    shift_time: float = Field(0.0, ge=0, le=1)
    max_shift: int = Field(26, ge=1)

    @classmethod
    def off(cls) -> Augmentation:
        """No change at all: for validation."""
        return cls(mask_volume=0.0)

    def context(self, seed: int, step: int, lookback: int) -> int:
        """Return the context length of a batch."""
        if self.short_context == 0 or float(unit(seed, _SHORT, step)[0]) >= self.short_context:
            return lookback
        span = lookback - self.min_bars + 1
        return self.min_bars + int(float(unit(seed, _LENGTH, step)[0]) * span)

    def masked(self, seed: int, step: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which windows lose their volume, bool (B,)."""
        return unit(seed, _MASK, step, places) < self.mask_volume

    def shifts(self, seed: int, step: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return by how many weeks each window's stamps move, int64 (B,); 0: not at all."""
        moved = unit(seed, _SHIFT, step, places) < self.shift_time
        draw = (hash_words(seed, _WEEKS, step, places) % np.uint64(2 * self.max_shift)).astype(np.int64)
        weeks = draw - self.max_shift
        return np.where(moved, weeks + (weeks >= 0), 0)


def shifted_stamps(timestamps: npt.NDArray[np.datetime64], weeks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the stamps (B, T, 5) of bar times (B, T) moved by whole weeks (B,)."""
    moved = timestamps + weeks[:, None] * _WEEK
    return time_stamps(moved.ravel()).reshape(*moved.shape, -1)
