"""Calendar features of a bar: minute, hour, weekday, day, month."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

STAMP_FIELDS = ("minute", "hour", "weekday", "day", "month")
_ATTRIBUTES = ("minute", "hour", "day_of_week", "day", "month")


def time_stamps(index: pd.DatetimeIndex | npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    """Return the five calendar features that the network reads beside each bar.

    Parameters
    ----------
    index : DatetimeIndex or datetime64 array, shape (n,)
        Bar stamps. A zoned index is read on its own wall clock, never converted.

    Returns
    -------
    int64 array, shape (n, 5)
        Minute 0-59, hour 0-23, weekday 0 (Monday) to 6, day 1-31, month 1-12.

    Raises
    ------
    ValueError
        A stamp is missing (NaT).
    """
    stamps = pd.DatetimeIndex(index)
    if stamps.hasnans:
        missing = int(np.isnat(stamps.to_numpy()).sum())
        raise ValueError(f"{missing} of {len(stamps)} bar stamps are missing (NaT): drop these bars first")
    return np.stack([getattr(stamps, name).to_numpy() for name in _ATTRIBUTES], axis=1).astype(np.int64)
