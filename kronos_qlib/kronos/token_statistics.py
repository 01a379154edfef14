"""Which tokens bars become and how many values are clipped: counted in training, compared when forecasting."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from .normalise import CLIP

COLUMNS = ("open", "high", "low", "close", "volume", "amount")


class TokenStatistics(BaseModel):
    """Token histograms and clip shares of the context bars of some windows, as a checkpoint's card holds them.

    Attributes
    ----------
    windows, bars : int
        What was counted. Only context bars: they alone are scaled by themselves, in training and in a forecast.
    lookback : int
        Longest window counted.
    s1, s2 : list of int
        How often each id occurs; both sum to ``bars``.
    clipped_values : dict
        By column: share of values that lie at or beyond the clip of the z-score. In a window scaled by itself it
        cannot exceed 1 / 25 (Chebyshev).
    clipped_windows : dict
        By column: share of windows with at least one such value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    windows: int = Field(ge=1)
    bars: int = Field(ge=1)
    lookback: int = Field(ge=1)
    s1: list[int]
    s2: list[int]
    clipped_values: dict[str, float]
    clipped_windows: dict[str, float]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, counts in (("s1", self.s1), ("s2", self.s2)):
            if len(counts) < 2 or len(counts) & (len(counts) - 1):
                raise ValueError(f"the histogram of {name} has {len(counts)} ids; expected a power of two")
            if min(counts) < 0 or sum(counts) != self.bars:
                raise ValueError(f"the histogram of {name} sums to {sum(counts)}; expected counts of {self.bars} bars")
        if not self.windows <= self.bars <= self.windows * self.lookback:
            raise ValueError(f"{self.windows} windows of at most {self.lookback} bars cannot hold {self.bars} bars")
        for name, shares in (("clipped_values", self.clipped_values), ("clipped_windows", self.clipped_windows)):
            if tuple(shares) != COLUMNS and set(shares) != set(COLUMNS):
                raise ValueError(f"{name} has the columns {', '.join(shares)}; expected {', '.join(COLUMNS)}")
            if not all(0 <= share <= 1 for share in shares.values()):
                raise ValueError(f"{name} holds a share outside 0 to 1: {shares}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return self.model_dump()


class TokenCounter:
    """Count tokens and clipped values batch by batch; memory does not grow.

    Parameters
    ----------
    s1_bits, s2_bits : int
        Widths of the two halves of a token.
    """

    def __init__(self, s1_bits: int, s2_bits: int) -> None:
        self.s1 = np.zeros(2**s1_bits, dtype=np.int64)
        self.s2 = np.zeros(2**s2_bits, dtype=np.int64)
        self.clipped_values = np.zeros(len(COLUMNS), dtype=np.int64)
        self.clipped_windows = np.zeros(len(COLUMNS), dtype=np.int64)
        self.windows = self.lookback = 0

    def add(self, x: Tensor | NDArray[np.floating], s1: Tensor, s2: Tensor) -> None:
        """Count the tokens ``s1``, ``s2`` (B, T) of the normalised and clipped context bars ``x`` (B, T, 6)."""
        if tuple(x.shape) != (*s1.shape, len(COLUMNS)) or s1.shape != s2.shape:
            raise ValueError(f"found bars {tuple(x.shape)} with tokens {tuple(s1.shape)} and {tuple(s2.shape)}")
        for counts, ids in ((self.s1, s1), (self.s2, s2)):
            counts += np.bincount(ids.reshape(-1).cpu().numpy(), minlength=len(counts))
        values = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        clipped = np.abs(values) >= CLIP
        self.clipped_values += clipped.sum(axis=(0, 1))
        self.clipped_windows += clipped.any(axis=1).sum(axis=0)
        self.windows += len(values)
        self.lookback = max(self.lookback, values.shape[1])

    def result(self) -> TokenStatistics:
        """Return what was counted; ValueError when that is nothing."""
        bars = int(self.s1.sum())
        if bars == 0:
            raise ValueError("no bar was counted: there is no window to take token statistics from")
        return TokenStatistics(
            windows=self.windows,
            bars=bars,
            lookback=self.lookback,
            s1=self.s1.tolist(),
            s2=self.s2.tolist(),
            clipped_values=_by_column(self.clipped_values / bars),
            clipped_windows=_by_column(self.clipped_windows / self.windows),
        )


def perplexity(counts: NDArray[np.int64]) -> float:
    """``exp`` of the entropy of a histogram: how many ids, evenly used, would be as uncertain."""
    shares = counts[counts > 0] / counts.sum()
    return math.exp(-float((shares * np.log(shares)).sum()))


def _by_column(shares: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(COLUMNS, shares.tolist(), strict=True))
