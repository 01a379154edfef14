"""Turn the hidden states of one network into the coordinates of another.

Two networks that were trained apart say similar things in different bases: component 7 of one has nothing to do with
component 7 of the other. A similarity (shift, rotation or reflection, one scale) fitted on bars that both have read
brings them together as far as they agree, and :attr:`Alignment.explained` says how far that is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Alignment:
    """A similarity from source to target coordinates.

    Attributes
    ----------
    rotation : float64 (D, D), orthogonal. scale : float. source_mean, target_mean : float64 (D,)
    rows : pairs it was fitted on. explained : share of the target's variance that it reproduces there, 0 to 1.
    """

    rotation: Array
    scale: float
    source_mean: Array
    target_mean: Array
    rows: int
    explained: float

    def apply(self, values: NDArray[np.floating]) -> Array:
        """Return (n, D) source values in the target's coordinates; NaN rows stay NaN."""
        return self.scale * (np.asarray(values, dtype=np.float64) - self.source_mean) @ self.rotation + self.target_mean


def procrustes(source: NDArray[np.floating], target: NDArray[np.floating]) -> Alignment:
    """Fit the similarity that brings ``source`` closest to ``target`` in squared distance (Schönemann 1966).

    Parameters
    ----------
    source, target : (n, D) values of the same bars; pairs with a NaN are left out.

    Raises
    ------
    ValueError : shapes that differ, fewer pairs than 2 × D, values that do not vary.
    """
    x, y = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(f"found values of shapes {x.shape} and {y.shape}; expected the same (n, D)")
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    x, y = x[whole], y[whole]
    if len(x) < 2 * x.shape[1]:
        raise ValueError(f"found {len(x)} rows that both networks have read; {x.shape[1]} columns need twice as many")
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    x_size, y_size = float((x**2).sum()), float((y**2).sum())
    if not x_size or not y_size:
        raise ValueError("found embeddings that are the same in every row; nothing to align")
    left, strength, right = np.linalg.svd(x.T @ y)
    total = float(strength.sum())
    return Alignment(left @ right, total / x_size, x_mean, y_mean, len(x), total**2 / (x_size * y_size))
