"""The boundary where one instrument's DataFrame becomes arrays: everything a user can get wrong is said here."""

from __future__ import annotations

import difflib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.market.fields import BAR_FIELDS, PRICE_FIELDS
from kronos_qlib.market.layout import plain_times


def read_frame(
    frame: pd.DataFrame, *, lookback: int, min_bars: int
) -> tuple[NDArray[np.float32], NDArray[np.datetime64]]:
    """Check the bars of one instrument and return its last ``lookback`` ones.

    Parameters
    ----------
    frame : DataFrame
        Columns open, high, low, close; volume and amount if there (see :func:`complete_bars`); others are
        ignored. Index: DatetimeIndex, strictly ascending. A zoned index counts with its own wall clock.
    lookback : most bars to use; earlier ones need not be complete.
    min_bars : fewest bars.

    Returns
    -------
    values, times : float32 (L, 6) in the units that came in; datetime64[ns] (L,)

    Raises
    ------
    ValueError
        Not a frame, a missing column, values that are no numbers, NaN or infinity, prices <= 0, high < low,
        negative volume, an index without times, with NaT, out of order or with duplicates, too few bars.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"found a {type(frame).__name__}; expected a pandas DataFrame with the bars of one instrument")
    times = _times(frame.index)
    if len(frame) < min_bars:
        raise ValueError(f"found {len(frame)} bars; expected at least {min_bars} (min_bars): give a longer history")
    complete = complete_bars(frame.iloc[-lookback:])
    _check_values(complete, times[-lookback:])
    # rows contiguous, as a panel's: the order of memory decides how a float32 mean is summed
    return np.ascontiguousarray(complete.to_numpy(dtype=np.float32)), times[-lookback:]


def complete_bars(frame: pd.DataFrame, where: str = "the frame") -> pd.DataFrame:
    """Return ``BAR_FIELDS`` as float64 columns, missing ones by the original's rule.

    No volume column: volume and amount are 0 (an amount that is there is ignored, as in the original). No
    amount column: volume × mean of the four prices. A NaN inside a column is never filled.

    Raises
    ------
    ValueError : a price column is missing (the nearest found one is named), or a column holds no numbers.
    """
    missing = [name for name in PRICE_FIELDS if name not in frame.columns]
    if missing:
        found = [str(column) for column in frame.columns]
        near = difflib.get_close_matches(missing[0], found, n=1, cutoff=0.5)
        hint = f" Is {near[0]!r} meant to be {missing[0]!r}?" if near else ""
        raise ValueError(f"{where} has no column {', '.join(missing)}; found {', '.join(found) or 'none'}.{hint}")
    bars = pd.DataFrame({name: _numbers(frame, name, where) for name in PRICE_FIELDS}, index=frame.index)
    if "volume" not in frame.columns:
        bars["volume"], bars["amount"] = 0.0, 0.0
    else:
        bars["volume"] = _numbers(frame, "volume", where)
        typical = bars[list(PRICE_FIELDS)].mean(axis=1)
        bars["amount"] = _numbers(frame, "amount", where) if "amount" in frame.columns else bars["volume"] * typical
    return bars


def _numbers(frame: pd.DataFrame, name: str, where: str) -> pd.Series:
    column = frame[name]
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"{where} has {column.shape[1]} columns named {name!r}; keep one")
    if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        example = column.iloc[0] if len(column) else None
        raise ValueError(
            f"column {name!r} of {where} has dtype {column.dtype}, first value {example!r}; expected numbers: "
            "convert it with pandas.to_numeric"
        )
    return column.astype(np.float64)


def _times(index: pd.Index) -> NDArray[np.datetime64]:
    if not isinstance(index, pd.DatetimeIndex):
        raise ValueError(
            f"the bars' index is a {type(index).__name__} of {index.dtype}; expected a DatetimeIndex of one zone: "
            "df.index = pandas.DatetimeIndex(df['datetime'])"
        )
    times = plain_times(index)
    wrong = np.flatnonzero(times[1:] <= times[:-1])
    if len(wrong):
        before, after = pd.Timestamp(times[wrong[0]]), pd.Timestamp(times[wrong[0] + 1])
        kind = "occurs twice" if before == after else f"is followed by {after}"
        raise ValueError(
            f"the bars' times must be strictly ascending, {before} {kind} ({len(wrong)} such places): "
            "sort with df.sort_index() and keep one bar a time"
        )
    return times


def _check_values(bars: pd.DataFrame, times: NDArray[np.datetime64]) -> None:
    values = bars.to_numpy()
    prices = values[:, : len(PRICE_FIELDS)]
    faults = {
        "NaN or infinite values": ~np.isfinite(values).all(axis=1),
        "prices that are zero or negative": (prices <= 0).any(axis=1),
        "a high below the low": values[:, 1] < values[:, 2],
        "negative volume or amount": (values[:, len(PRICE_FIELDS) :] < 0).any(axis=1),
    }
    for fault, rows in faults.items():
        if rows.any():
            first = int(np.flatnonzero(rows)[0])
            bar = dict(zip(BAR_FIELDS, values[first].tolist(), strict=True))
            raise ValueError(
                f"{int(rows.sum())} of the {len(values)} bars have {fault}, first {pd.Timestamp(times[first])}: {bar}; "
                "drop or repair them first (kronos_qlib.market.repair)"
            )
