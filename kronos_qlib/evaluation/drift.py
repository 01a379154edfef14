"""Has a market moved away from what the weights were trained on? The population stability index of two histograms."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MODERATE = 0.10
LARGE = 0.25


@dataclass(frozen=True)
class DriftResult:
    """How far two histograms lie apart.

    Attributes
    ----------
    psi : population stability index, 0 or more.
    noise : its mean when nothing has changed and draws are independent, ``(bins - 1) (1 / n_expected + 1 / n_actual)``.
    level : ``none``, ``moderate`` or ``large``, see :func:`drift_level`, of ``psi - noise``.
    n_bins : bins that hold anything on either side. n_expected, n_actual : draws.
    """

    psi: float
    noise: float
    level: str
    n_bins: int
    n_expected: float
    n_actual: float

    def to_dict(self) -> dict[str, float | int | str]:
        """Return the figures as plain values, for JSON."""
        return asdict(self)


def population_stability(expected: ArrayLike, actual: ArrayLike, *, pseudo_count: float = 0.5) -> DriftResult:
    """Compare two histograms over the same bins: ``sum (a - e) ln(a / e)`` over the shares a and e.

    Parameters
    ----------
    expected, actual : (bins,) counts, finite, 0 or more, with at least one draw each: what was seen in training (a
        checkpoint's card), and what is seen now.
    pseudo_count : added to every bin that holds anything on either side, so that an empty one has a logarithm; 0 makes
        the index infinite there.

    Returns
    -------
    DriftResult. The usual thresholds are meant for ten to twenty bins; with the hundreds of bins of a codebook and few
        draws the index is large although nothing moved, so the level is that of what exceeds the noise. Draws from
        overlapping windows are dependent and their noise is larger than stated.

    Raises
    ------
    ValueError : differing shapes, counts that are negative or not finite, no draws, ``pseudo_count`` below 0.

    Notes
    -----
    The index is the sum of both Kullback–Leibler divergences, KL(a|e) + KL(e|a), in nats. Its mean under no change
    follows from a chi-square approximation (Yurdakul, 2018).
    """
    before, after = (_counts(name, values) for name, values in (("expected", expected), ("actual", actual)))
    if before.shape != after.shape:
        raise ValueError(f"expected has {len(before)} bins, actual {len(after)}; both must have the same bins")
    if not pseudo_count >= 0:
        raise ValueError(f"found pseudo_count={pseudo_count}; expected 0 or more")
    used = (before > 0) | (after > 0)
    n_bins, n_expected, n_actual = int(used.sum()), float(before.sum()), float(after.sum())
    e, a = ((counts[used] + pseudo_count) for counts in (before, after))
    e, a = e / e.sum(), a / a.sum()
    with np.errstate(divide="ignore"):
        psi = float(((a - e) * (np.log(a) - np.log(e))).sum())
    noise = (n_bins - 1) * (1.0 / n_expected + 1.0 / n_actual)
    return DriftResult(psi, noise, drift_level(psi - noise), n_bins, n_expected, n_actual)


def drift_level(psi: float) -> str:
    """Return ``none`` below 0.10, ``moderate`` below 0.25, ``large`` from there on (the usual thresholds).

    Raises
    ------
    ValueError : NaN.
    """
    if np.isnan(psi):
        raise ValueError("found a stability index of NaN; expected a number")
    if psi < MODERATE:
        return "none"
    return "moderate" if psi < LARGE else "large"


def _counts(name: str, values: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(values, dtype=np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any() or not counts.sum() > 0:
        raise ValueError(f"{name} must be one row of counts, finite, 0 or more, not all 0; found shape {counts.shape}")
    return counts
