"""Principal components with fixed order and sign, so that a column means the same in every run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_CHUNK = 65536


@dataclass(frozen=True, eq=False)
class Components:
    """Directions of most variance, the first with the most.

    Attributes
    ----------
    mean : float64 (D,)
    directions : float64 (D, K), orthonormal; in each the entry of largest size is positive.
    explained : float64 (K,), share of the variance of the rows they were fitted on.
    rows : how many those were.
    """

    mean: Array
    directions: Array
    explained: Array
    rows: int

    def apply(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the K components of (n, D) values, float32; a row with a NaN gives NaN."""
        table = np.empty((len(values), self.directions.shape[1]), dtype=np.float32)
        for start in range(0, len(values), _CHUNK):  # bounded float64 copies
            part = np.asarray(values[start : start + _CHUNK], dtype=np.float64)
            table[start : start + _CHUNK] = (part - self.mean) @ self.directions
        return table


def fit_components(values: NDArray[np.floating], number: int) -> Components:
    """Fit the first ``number`` principal components of (n, D) values; rows with a NaN are left out.

    Raises
    ------
    ValueError : more components than columns, fewer whole rows than columns + 1.
    """
    width = values.shape[1]
    if not 1 <= number <= width:
        raise ValueError(f"found n_components={number}; expected 1 to {width}, the number of embedding columns")
    whole = values[np.isfinite(values).all(axis=1)]
    if len(whole) <= width:
        raise ValueError(
            f"found {len(whole)} rows without NaN to fit components of {width} columns; expected more rows"
        )
    mean = whole.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((width, width))
    for start in range(0, len(whole), _CHUNK):
        part = whole[start : start + _CHUNK] - mean
        covariance += part.T @ part
    variance, vectors = np.linalg.eigh(covariance / (len(whole) - 1))
    order = np.argsort(-variance, kind="stable")[:number]
    directions = vectors[:, order]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, np.arange(number)] < 0, -1.0, 1.0)
    total = float(variance.sum())
    explained = variance[order] / total if total > 0 else np.zeros(number)
    return Components(mean, directions, explained, len(whole))
