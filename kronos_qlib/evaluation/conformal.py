"""Conformal recalibration: intervals widened or narrowed by what was missed before, one amount a horizon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
METHODS = ("scale", "shift")


@dataclass(frozen=True, eq=False)
class IntervalCalibration:
    """Amounts learned by :func:`calibrate_intervals`.

    Attributes
    ----------
    level : share that the intervals are to hold. method : ``scale`` or ``shift``.
    amounts : float64 (S,), by horizon: factor on the distance from the centre, or what is added to both ends.
    counts : int64 (S,), windows that each was learned from.
    """

    level: float
    method: str
    amounts: Floats
    counts: NDArray[np.int64]

    def apply(self, lower: ArrayLike, centre: ArrayLike, upper: ArrayLike) -> tuple[Floats, Floats]:
        """Recalibrate intervals, (W, S) each; NaN stays NaN.

        Where a negative ``shift`` would turn an interval round, both ends meet in its middle.
        """
        low, middle, high = _three(lower, centre, upper)
        if low.shape[1] != len(self.amounts):
            raise ValueError(f"found {low.shape[1]} steps; this calibration was learned for {len(self.amounts)}")
        if self.method == "scale":
            return middle - self.amounts * (middle - low), middle + self.amounts * (high - middle)
        room = np.maximum(self.amounts, -(high - low) / 2.0)
        return low - room, high + room

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "level": self.level, "method": self.method, "amounts": self.amounts.tolist(),
            "counts": self.counts.tolist(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> IntervalCalibration:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            float(content["level"]), str(content["method"]), np.asarray(content["amounts"], dtype=np.float64),
            np.asarray(content["counts"], dtype=np.int64),
        )  # fmt: skip


def calibrate_intervals(
    lower: ArrayLike,
    centre: ArrayLike,
    upper: ArrayLike,
    truth: ArrayLike,
    *,
    level: float = 0.9,
    method: str = "scale",
) -> IntervalCalibration:
    """Learn, horizon by horizon, the smallest amount by which ``level`` of the intervals would have held the truth.

    Parameters
    ----------
    lower, centre, upper, truth : (W, S) in one unit, ``lower <= centre <= upper``. Windows with a value that is not
        finite are left out of their step. All truths must be known before the intervals that are to be recalibrated
        are made: leave out windows whose horizon reaches into that time.
    level : share to hold.
    method : ``scale`` multiplies each end's distance from the centre, so that wide intervals move more than narrow
        ones; ``shift`` moves both ends by one amount (conformalised quantile regression).

    Returns
    -------
    IntervalCalibration. Its amount is the k-th smallest of the amounts that the windows needed,
    ``k = ceil((n + 1) level)``: with windows that could be exchanged for one another, a new interval holds its truth
    with a probability of at least ``level``. Windows of markets overlap and drift, so that coverage must be measured.

    Raises
    ------
    ValueError : shapes that differ, ends in the wrong order, an unknown method, ``level`` outside (0, 1), a step with
        too few windows (``k`` above ``n``).

    Notes
    -----
    Romano, Patterson and Candès (2019); the scaled form: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman (2018), with
    half the interval's own width as the scale. An interval of no width that misses needs an infinite factor.
    """
    if method not in METHODS:
        raise ValueError(f"found method={method!r}; expected one of {list(METHODS)}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"found level={level}; expected a share between 0 and 1, such as 0.9")
    low, middle, high = _three(lower, centre, upper)
    y = np.asarray(truth, dtype=np.float64)
    if y.shape != low.shape:
        raise ValueError(f"found truth of shape {y.shape}; expected {low.shape}, as the intervals")
    needed = _needed(low, middle, high, y, method)
    known = np.isfinite(low) & np.isfinite(middle) & np.isfinite(high) & np.isfinite(y)
    counts = known.sum(axis=0).astype(np.int64)
    amounts = np.empty(low.shape[1])
    for step in range(low.shape[1]):
        n = int(counts[step])
        # rounding first: 10 x 0.9 is 9, not the 9.000000000000002 that would be counted as 10
        k = int(np.ceil(round((n + 1) * level, 9)))
        if k > n:
            raise ValueError(f"step {step + 1} has {n} windows with a truth; a level of {level} needs more")
        amounts[step] = np.partition(needed[known[:, step], step], k - 1)[k - 1]
    return IntervalCalibration(level, method, amounts, counts)


def _needed(low: Floats, middle: Floats, high: Floats, y: Floats, method: str) -> Floats:
    if method == "shift":
        return np.maximum(low - y, y - high)
    with np.errstate(divide="ignore", invalid="ignore"):
        beneath, above = (middle - y) / (middle - low), (y - middle) / (high - middle)
    # 0 / 0: the truth is the centre of an interval of no width, which holds it as it is
    return np.maximum(np.nan_to_num(beneath, nan=0.0, posinf=np.inf), np.nan_to_num(above, nan=0.0, posinf=np.inf))


def _three(lower: ArrayLike, centre: ArrayLike, upper: ArrayLike) -> tuple[Floats, Floats, Floats]:
    low, middle, high = (np.asarray(values, dtype=np.float64) for values in (lower, centre, upper))
    if not low.shape == middle.shape == high.shape or low.ndim != 2:
        raise ValueError(
            f"found shapes {low.shape}, {middle.shape}, {high.shape}; expected the same (window, step) three times"
        )
    if ((low > middle) | (middle > high)).any():
        raise ValueError("an interval's centre lies outside it; expected lower <= centre <= upper")
    return low, middle, high
