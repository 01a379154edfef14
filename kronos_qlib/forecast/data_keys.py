"""Hashes of the data that a row's values depend on: exactly the bars and stamps of its window, nothing after it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.kronos.uniforms import mix64
from kronos_qlib.market.panel import BarPanel

# Row of a panel that has no window.
NO_WINDOW = np.uint64(0)
# Odd, so that its powers are units modulo 2**64 and a run's hash follows from two prefix sums.
_BASE = np.uint64(0xD1342543DE82EF95)
_INVERSE = np.uint64(pow(0xD1342543DE82EF95, -1, 1 << 64))


class BarHasher:
    """Hashes runs of consecutive bars of a panel.

    A bar counts with its six float32 values and its stamp in nanoseconds. Hashes of bars are the coefficients of a
    polynomial modulo 2**64 in a fixed odd base, whose value at any run is a difference of prefix sums: a million
    windows of any length take seconds. Meant against accidents, not against an adversary. The same on every machine.

    Parameters
    ----------
    panel : 16 bytes a row are kept.
    """

    def __init__(self, panel: BarPanel) -> None:
        words = np.empty((len(panel), 4), dtype="<u8")
        words[:, :3] = np.ascontiguousarray(panel.values, dtype="<f4").view("<u8")
        words[:, 3] = panel.timestamps.astype("datetime64[ns]").astype("<i8").view("<u8")
        with np.errstate(over="ignore"):
            bars = np.zeros(len(panel), dtype=np.uint64)
            for column in range(4):
                bars = mix64(mix64(bars + _BASE) ^ words[:, column])
            # sum of bar j times base ** -j, so that a run moved along the panel keeps its hash
            self._sums = np.concatenate([[np.uint64(0)], np.cumsum(bars * _powers(_INVERSE, len(panel)))])
        self._powers = _powers(_BASE, len(panel))

    def keys(self, first: NDArray[np.int64], last: NDArray[np.int64], prefixes: Sequence[bytes]) -> NDArray[np.uint64]:
        """Hash the bars of rows ``first`` to ``last`` (both included) after a prefix each, uint64 (n,).

        ``NO_WINDOW`` where ``last`` is before ``first``.
        """
        if len(prefixes) != len(first):
            raise ValueError(f"found {len(prefixes)} prefixes for {len(first)} runs; expected one each")
        found = np.full(len(first), NO_WINDOW, dtype=np.uint64)
        some = np.flatnonzero(last >= first)
        begin, end = first[some], last[some]
        before = np.fromiter((_prefix_hash(prefixes[row]) for row in some.tolist()), dtype=np.uint64, count=len(some))
        with np.errstate(over="ignore"):
            run = (self._sums[end + 1] - self._sums[begin]) * self._powers[end]
            mixed = mix64(mix64(run ^ mix64(before + _BASE)) + (end - begin + 1).astype(np.uint64))
        # 0 means that there is no window; no window may have it by chance
        found[some] = np.where(mixed == NO_WINDOW, np.uint64(1), mixed)
        return found


def _powers(base: np.uint64, count: int) -> NDArray[np.uint64]:
    """``base ** 0`` to ``base ** (count - 1)``, modulo 2**64."""
    factors = np.full(max(count, 1), base, dtype=np.uint64)
    factors[0] = 1
    with np.errstate(over="ignore"):
        return np.cumprod(factors)[:count]


def _prefix_hash(prefix: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(prefix, digest_size=8).digest(), "little")
