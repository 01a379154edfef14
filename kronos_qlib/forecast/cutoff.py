"""Which forecasts fall into the years that the weights have seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def card_date(card: Mapping[str, Any], key: str) -> pd.Timestamp | None:
    """Return a date of a checkpoint's card (``cutoff``, ``valid_end`` …), None where it has none.

    Raises
    ------
    ValueError : what the card says is no date.
    """
    value = card.get(key)
    if value is None:
        return None
    try:
        date = pd.Timestamp(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's card says {key}={value!r}; expected a date such as 2014-12-31") from error
    if pd.isna(date):
        raise ValueError(f"the checkpoint's card says {key}={value!r}; expected a date such as 2014-12-31")
    return date


def before_cutoff(dates: pd.Index | NDArray[np.datetime64], cutoff: pd.Timestamp) -> NDArray[np.bool_]:
    """Say for each date whether it lies on or before the day of the cutoff, bool (n,); intraday stamps included."""
    return np.asarray(pd.DatetimeIndex(dates) < cutoff.normalize() + pd.Timedelta(days=1))
