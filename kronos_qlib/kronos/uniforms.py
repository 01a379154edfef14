"""Counter-based uniforms: a pure function of (seed, key, n_paths, scheme, path, step, which token).

No generator has a state, so a window draws the same numbers in any batch, order, shard or process (trap 13).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .config import SamplingConfig

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# domain separators: values, strata permutations and Sobol shifts never share a stream
_VALUE, _PERMUTATION, _SHIFT = np.uint64(1), np.uint64(2), np.uint64(3)


def mix64(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of splitmix64, uint64 to uint64: a bijection whose outputs pass statistical tests on counter inputs."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _absorb(state: NDArray[np.uint64], word: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Fold one more word into the hash state (broadcasting)."""
    return mix64((state ^ mix64(np.asarray(word) + _GOLDEN)) + _GOLDEN)


def _hash(seed: int, keys: NDArray[np.uint64], domain: np.uint64, *shape: int) -> NDArray[np.uint64]:
    """Hash of (seed, key, domain, counters): shape (len(keys), *shape)."""
    with np.errstate(over="ignore"):
        state = _absorb(_absorb(np.full(1, seed, dtype=np.uint64), domain), keys)
        for size in shape:
            state = _absorb(state[..., None], np.arange(size, dtype=np.uint64))
    return state


def _to_unit(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Top 53 bits as a float64 in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=32)
def _sobol_points(n_paths: int, dimensions: int) -> NDArray[np.uint64]:
    """First points of the unscrambled Sobol sequence as 53-bit integers, (n_paths, dimensions)."""
    from scipy.stats import qmc  # heavy import, only for this scheme

    size = 1 << (n_paths - 1).bit_length()
    points = qmc.Sobol(d=dimensions, scramble=False, bits=53).random(size)[:n_paths]
    return (points * 2.0**53).astype(np.uint64)


def uniforms(sampling: SamplingConfig, keys: NDArray[np.uint64], horizon: int) -> NDArray[np.float64]:
    """All uniforms that a batch of windows will use.

    Parameters
    ----------
    sampling : SamplingConfig
        ``seed``, ``n_paths`` and ``scheme`` are read.
    keys : uint64 array (B,)
        Key of each window.
    horizon : int
        Steps to generate.

    Returns
    -------
    float64 array (B, n_paths, horizon, 2)
        In [0, 1); the last axis is (s1, s2). Every single entry is uniform in every scheme; schemes differ in how
        the entries of one (window, step, token) are spread over paths.
    """
    n_paths = sampling.n_paths
    keys = np.asarray(keys, dtype=np.uint64)
    if sampling.scheme == "sobol":
        shift = _hash(sampling.seed, keys, _SHIFT, 2 * horizon) >> np.uint64(11)
        points = _sobol_points(n_paths, 2 * horizon)[None] ^ shift[:, None, :]
        # paths are permuted as a whole, so that no path index is special
        order = np.argsort(_hash(sampling.seed, keys, _PERMUTATION, n_paths), axis=1, kind="stable")
        points = np.take_along_axis(points, order[:, :, None], axis=1)
        return (points.astype(np.float64) * 2.0**-53).reshape(len(keys), n_paths, horizon, 2)
    values = _to_unit(_hash(sampling.seed, keys, _VALUE, n_paths, horizon, 2))
    if sampling.scheme == "antithetic":
        mirrored = n_paths // 2
        values[:, n_paths - mirrored :] = np.nextafter(1.0, 0.0) - values[:, :mirrored]
        return values
    if sampling.scheme == "stratified":
        draws = _hash(sampling.seed, keys, _PERMUTATION, n_paths, horizon, 2)
        strata = np.argsort(draws, axis=1, kind="stable")
        # (stratum + value) / n can round up to 1
        return np.minimum((strata + values) / n_paths, np.nextafter(1.0, 0.0))
    return values


def window_bytes_keys(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Default keys: a hash of each window's bytes, uint64 (B,)."""
    rows = np.ascontiguousarray(x, dtype=np.float32)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
