"""Series indexed (datetime, instrument): what every function of this folder checks and how it lays them out."""

from __future__ import annotations

import numpy as np
import pandas as pd


def check_series(name: str, series: pd.Series) -> None:
    """Refuse anything but a Series with one value for each entry of an index that has a ``datetime`` level.

    Raises
    ------
    ValueError : names what was found instead.
    """
    if not isinstance(series, pd.Series):
        raise ValueError(f"{name} must be a pandas Series indexed (datetime, instrument), got {type(series).__name__}.")
    if series.index.nlevels < 2 or "datetime" not in series.index.names:
        raise ValueError(
            f"{name} must be indexed by (datetime, instrument), its levels are {list(series.index.names)}; "
            "name them with series.index.set_names."
        )
    if not series.index.is_unique:
        example = series.index[series.index.duplicated()][0]
        raise ValueError(f"{name} has more than one value for {example}; keep one per date and instrument.")


def to_wide(name: str, series: pd.Series) -> pd.DataFrame:
    """Lay a Series out as dates (ascending) by instruments (ascending).

    Returns
    -------
    float64 DataFrame; NaN where there is no entry and where the value is not finite.

    Raises
    ------
    ValueError : as :func:`check_series`, and without a level named ``instrument`` beside ``datetime``.
    """
    check_series(name, series)
    if set(series.index.names) != {"datetime", "instrument"}:
        raise ValueError(f"{name} must have the index levels datetime and instrument, found {list(series.index.names)}")
    values = series.astype(np.float64)
    wide = values.where(np.isfinite(values)).unstack("instrument")
    return wide.sort_index(axis=0).sort_index(axis=1)
