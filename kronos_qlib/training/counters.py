"""Random numbers and permutations as functions of counters: no generator, no state to save or to share."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from kronos_qlib.kronos.uniforms import mix64

WordArray = npt.NDArray[np.uint64]

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS: Final = 8


def hash_words(*words: npt.ArrayLike) -> WordArray:
    """Return a 64-bit hash of words that are at least 0; arrays broadcast."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = mix64((state ^ mix64(np.asarray(word).astype(np.uint64) + _GOLDEN)) + _GOLDEN)
    return state


def unit(*words: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return uniforms in [0, 1) that are a function of the words."""
    return (hash_words(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permuted(positions: npt.NDArray[np.int64], size: int, *key: int) -> npt.NDArray[np.int64]:
    """Return where a permutation of 0 … size - 1 sends some positions; each key has its own permutation.

    A Feistel network over the next power of four, walked until the image lies below ``size`` (Black and Rogaway
    2002): a bijection for any round function, without the memory of a shuffled list.

    Parameters
    ----------
    positions : int64 (n,)
        0 … size - 1.
    """
    if size < 1 or (len(positions) and not 0 <= positions.min() <= positions.max() < size):
        raise ValueError(f"found positions outside 0 … {size - 1}")
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [hash_words(*key, round_) for round_ in range(_ROUNDS)]
    result = _feistel(positions.astype(np.uint64), bits, keys)
    while len(outside := np.flatnonzero(result >= size)):
        result[outside] = _feistel(result[outside], bits, keys)
    return result.astype(np.int64)


def _feistel(words: WordArray, bits: int, keys: list[WordArray]) -> WordArray:
    half = np.uint64(bits)
    mask = np.uint64((1 << bits) - 1)
    left, right = words >> half, words & mask
    with np.errstate(over="ignore"):
        for key in keys:
            left, right = right, left ^ (mix64(right + key) & mask)
    return (left << half) | right
