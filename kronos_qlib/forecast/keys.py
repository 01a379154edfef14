"""Stable keys of windows, from which their random numbers are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.market.layout import plain_times


def window_keys(instruments: Sequence[str], timestamps: object) -> NDArray[np.uint64]:
    """Return one key per window, the same on every machine, process and run (never Python's ``hash``).

    The key is the first 8 bytes, little endian, of BLAKE2b of ``"instrument|2020-01-02T00:00:00.000000000"``.

    Parameters
    ----------
    instruments : sequence of str, length B
        Instrument of each window; an unnamed one is the empty string.
    timestamps : datetime-like, shape (B,)
        Stamp of each window's last bar. A zoned stamp counts with its own wall clock.

    Returns
    -------
    uint64 (B,)

    Raises
    ------
    ValueError
        Different lengths, or a missing time.
    """
    times = plain_times(timestamps)
    if len(times) != len(instruments):
        raise ValueError(f"found {len(instruments)} instruments and {len(times)} times; expected one of each a window")
    texts = np.datetime_as_string(times, unit="ns")
    digests = (
        hashlib.blake2b(f"{instrument}|{text}".encode(), digest_size=8).digest()
        for instrument, text in zip(instruments, texts, strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
