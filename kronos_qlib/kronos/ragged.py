"""Generation for windows of different length in one call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .config import SamplingConfig
from .generate import generate
from .tokenizer import KronosTokenizer
from .transformer import STAMP_SIZES, Kronos


def generate_ragged(
    model: Kronos,
    tokenizer: KronosTokenizer,
    windows: Sequence[object],
    x_stamps: Sequence[object],
    y_stamps: object,
    sampling: SamplingConfig,
    max_context: int = 512,
    *,
    keys: object = None,
    dtype: str | None = None,
) -> Tensor:
    """Draw possible futures of windows of any length.

    Windows of one length are generated together, the longest first; nothing is padded, since a padded bar would enter
    the tokenizer's attention. A length costs at least one chunk (see ``plan.windows_per_chunk``), so this pays where
    windows share lengths.

    Parameters
    ----------
    windows : sequence of B arrays or tensors (L_i, 6)
        Normalised bars, each by its own length. L_i may exceed ``max_context``, as in :func:`generate`.
    x_stamps : sequence of B integer arrays (L_i, 5)
        Minute, hour, weekday, day, month of the context.
    y_stamps : integer array (B, H, 5)
        Stamps of the bars to come, the same number for every window.
    model, tokenizer, sampling, max_context, keys, dtype
        As for :func:`generate`.

    Returns
    -------
    tensor (B, n_paths, H, 6), in the order of ``windows``
        Each window's paths are those of :func:`generate` on it alone, bit for bit.

    Raises
    ------
    ValueError
        No window, numbers or shapes that do not go together (the first such window is named), and whatever
        :func:`generate` refuses.
    """
    bars = [_tensor(window) for window in windows]
    stamps = [_tensor(stamp) for stamp in x_stamps]
    future = _tensor(y_stamps)
    _check(bars, stamps, future, tokenizer.config.d_in)
    window_keys = None if keys is None else np.asarray(keys)
    if window_keys is not None and window_keys.shape != (len(bars),):
        raise ValueError(f"keys have shape {window_keys.shape}, expected ({len(bars)},), one per window")
    lengths = np.array([len(window) for window in bars])
    parts, places = [], []
    for length in np.unique(lengths)[::-1]:
        chosen = np.flatnonzero(lengths == length)
        parts.append(
            generate(
                model,
                tokenizer,
                torch.stack([bars[i] for i in chosen]),
                torch.stack([stamps[i] for i in chosen]),
                future[chosen],
                sampling,
                max_context,
                keys=None if window_keys is None else window_keys[chosen],
                dtype=dtype,
            )
        )
        places.append(chosen)
    back = torch.from_numpy(np.argsort(np.concatenate(places)))
    return torch.cat(parts)[back.to(parts[0].device)]


def _tensor(value: object) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))


def _check(bars: list[Tensor], stamps: list[Tensor], future: Tensor, columns: int) -> None:
    """Refuse what does not go together before any window is generated."""
    if not bars:
        raise ValueError("nothing to generate: no window was given")
    if len(stamps) != len(bars) or future.ndim != 3 or len(future) != len(bars):
        raise ValueError(
            f"found {len(bars)} windows, {len(stamps)} x_stamps and y_stamps of shape {tuple(future.shape)}; "
            f"expected one each, y_stamps ({len(bars)}, H, {len(STAMP_SIZES)})"
        )
    for position, (window, stamp) in enumerate(zip(bars, stamps, strict=True)):
        if window.ndim != 2 or len(window) == 0 or window.shape[1] != columns:
            raise ValueError(
                f"window {position} has shape {tuple(window.shape)}, expected (bars, {columns}) with at least one bar"
            )
        if tuple(stamp.shape) != (len(window), len(STAMP_SIZES)):
            raise ValueError(
                f"x_stamps of window {position} have shape {tuple(stamp.shape)}, "
                f"expected ({len(window)}, {len(STAMP_SIZES)}) to go with its bars"
            )
        if window.dtype != bars[0].dtype or window.device != bars[0].device:
            raise ValueError(
                f"window {position} is {window.dtype} on {window.device}, window 0 {bars[0].dtype} on "
                f"{bars[0].device}; bring them to one dtype and device"
            )
