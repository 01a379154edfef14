"""The z-score that stands before the tokenizer and its inverse.

Statistics come from the context alone (trap 5): population standard deviation plus 1e-5, per window and column.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-5
CLIP = 5.0


def normalise(
    values: NDArray[np.floating], clip: float = CLIP, *, context: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Z-score each window and column.

    Parameters
    ----------
    values : array (..., L, 6)
        Cast to float32 first, as the original does.
    clip : float
        Normalised values are clipped to ±clip.
    context : int, optional
        The statistics come from the first ``context`` bars, those after them are only scaled. None: all bars.

    Returns
    -------
    x, center, scale : float32 arrays (..., L, 6), (..., 1, 6), (..., 1, 6)
        ``scale`` is the standard deviation + 1e-5, so ``x = (values - center) / scale``.
    """
    values = np.asarray(values, dtype=np.float32)
    seen = values[..., :context, :]
    center = seen.mean(axis=-2, keepdims=True)
    scale = seen.std(axis=-2, keepdims=True) + np.float32(EPSILON)
    return np.clip((values - center) / scale, -clip, clip), center, scale


def denormalise(
    x: NDArray[np.floating], center: NDArray[np.floating], scale: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Back to the units of the bars: ``x * scale + center`` (broadcast by the caller's shapes)."""
    return np.asarray(x * scale + center)
