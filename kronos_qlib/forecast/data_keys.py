"""Hashes of the data that a row's values depend on: exactly the bars and stamps of its window, nothing after it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.market.panel import BarPanel

# Row of a panel that has no window.
NO_WINDOW = np.uint64(0)


class BarHasher:
    """Hashes runs of consecutive bars of a panel.

    A bar counts with its six float32 values and its stamp in nanoseconds, little endian: 32 bytes. The hash of a run is
    the first 8 bytes, little endian, of BLAKE2b of a prefix and the run's bytes; the same on every machine.

    Parameters
    ----------
    panel : bars; 32 bytes a row are copied.
    """

    def __init__(self, panel: BarPanel) -> None:
        packed = np.empty(len(panel), dtype=np.dtype([("values", "<f4", 6), ("time", "<i8")]))
        packed["values"] = panel.values
        packed["time"] = panel.timestamps.astype("datetime64[ns]").astype(np.int64)
        self._width = packed.dtype.itemsize
        self._bytes = packed.tobytes()  # no memoryview: sources go to other processes

    def keys(self, first: NDArray[np.int64], last: NDArray[np.int64], prefixes: Sequence[bytes]) -> NDArray[np.uint64]:
        """Hash the bars of rows ``first`` to ``last`` (both included) after a prefix each, uint64 (n,).

        ``NO_WINDOW`` where ``last`` is before ``first``.
        """
        width, data, blake = self._width, memoryview(self._bytes), hashlib.blake2b
        digests = bytearray()
        for start, end, prefix in zip((first * width).tolist(), ((last + 1) * width).tolist(), prefixes, strict=True):
            if end <= start:
                digests += bytes(8)
                continue
            state = blake(prefix, digest_size=8)
            state.update(data[start:end])
            digests += state.digest()
        return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)
