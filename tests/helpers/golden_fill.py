"""Deterministic parameters for the golden figures: the same values on every machine, from a name and a shape.

`parameter(name, shape)` is exact (integer hashing, no libm), so a test can rebuild the weights that
the figures in this folder were computed with instead of storing them.
"""

import zlib

import numpy as np


def uniform(name: str, size: int) -> np.ndarray:
    """`size` numbers in [-1, 1), float64: splitmix64 of crc32(name) * 2**32 + i."""
    with np.errstate(over="ignore"):
        z = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) + np.arange(1, size + 1, dtype=np.uint64)
        z = z * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 value of the floating-point state-dict entry `name` (leave `*.inv_freq` and integer buffers alone)."""
    u = uniform(name, int(np.prod(shape))).reshape(shape)
    if name.endswith("norm.weight") or ".norm1." in name or ".norm2." in name:
        w = 1.0 + 0.1 * u
    elif name.endswith(".bias"):
        w = 0.05 * u
    elif "emb_s1" in name or "emb_s2" in name or "time_emb" in name:
        w = u * shape[1] ** -0.5
    else:
        w = u * (3.0 / shape[-1]) ** 0.5
    return w.astype(np.float32)
