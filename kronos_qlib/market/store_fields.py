"""The fields of a Qlib store, in Qlib's adjusted convention, computed from bars as a vendor gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.fields import PRICE_FIELDS
from kronos_qlib.market.layout import BarLayout, lay_out

STORE_FIELDS = (*PRICE_FIELDS, "volume", "amount", "vwap", "factor", "change", "event")


@dataclass(frozen=True)
class StoreBars:
    """Traded bars in store units, sorted by instrument and time.

    Attributes
    ----------
    layout : BarLayout
    values : float32 (R, 10)
        ``STORE_FIELDS``.
    amounts_estimated : int
        Bars whose amount was missing and is volume x mean(open, high, low, close).
    """

    layout: BarLayout
    values: npt.NDArray[np.float32]
    amounts_estimated: int


def store_bars(frame: pd.DataFrame) -> StoreBars:
    """Turn a bars frame in the vendor format into store fields.

    Parameters
    ----------
    frame : DataFrame
        ``instrument``, ``datetime``, raw ``open``, ``high``, ``low``, ``close``; optional ``volume`` (shares),
        ``amount`` (currency), ``factor`` (adjusted price = price x factor; 1 if absent), ``event`` (int bits;
        0 if absent). Rows with a NaN close are suspended sessions and are left out, as absent rows are.

    Notes
    -----
    ``$close`` = price x factor (so for all prices), ``$volume`` = volume / factor, ``$amount`` as given,
    ``$vwap`` = amount / volume x factor (NaN without volume), ``$change`` = adjusted close / previous traded
    adjusted close - 1 (NaN on the first bar). A missing amount is volume x mean(open, high, low, close).
    Computed in float64, stored in float32. A bar's fields use that bar and, for ``$change``, the one before.

    Raises
    ------
    ValueError
        A column is missing or not numeric, a bar has a close but not its other prices, a value is infinite, a
        factor is missing or not positive, or a bar occurs twice.
    """
    prices = {field: _numbers(frame, field) for field in PRICE_FIELDS}
    traded = ~np.isnan(prices["close"])
    if not traded.any():
        raise ValueError("the bars frame holds no traded bar (a row with a close): nothing to store")
    if not traded.all():
        frame = frame.loc[traded]
    layout = lay_out(frame)
    columns = {field: _arranged(frame, layout, field, None) for field in PRICE_FIELDS}
    for field, absent in (("volume", np.nan), ("amount", np.nan), ("factor", 1.0), ("event", 0.0)):
        columns[field] = _arranged(frame, layout, field, absent)
    _refuse_bad_bars(columns, layout)
    estimated = _estimate_amounts(columns)
    values = np.empty((len(frame), len(STORE_FIELDS)), dtype=np.float32)
    for position, field in enumerate(STORE_FIELDS):
        values[:, position] = _field(field, columns, layout)
    return StoreBars(layout, values, estimated)


def _numbers(frame: pd.DataFrame, field: str) -> npt.NDArray[np.float64]:
    if field not in frame.columns:
        raise ValueError(f"the bars frame has no column {field!r}: found {list(map(str, frame.columns))[:12]}")
    try:
        return frame[field].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {field!r} holds values that are no numbers: {error}") from error


def _arranged(frame: pd.DataFrame, layout: BarLayout, field: str, absent: float | None) -> npt.NDArray[np.float64]:
    if absent is not None and field not in frame.columns:
        return np.full(len(frame), absent)
    return np.asarray(layout.arrange(_numbers(frame, field)), dtype=np.float64)


def _refuse_bad_bars(columns: dict[str, npt.NDArray[np.float64]], layout: BarLayout) -> None:
    bad = ~(columns["factor"] > 0)
    for field in PRICE_FIELDS:
        bad |= ~np.isfinite(columns[field])
    for field in ("volume", "amount", "factor"):
        bad |= np.isinf(columns[field])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        found = {field: float(column[row]) for field, column in columns.items()}
        raise ValueError(
            f"{int(bad.sum())} bars have a price missing, an infinite value or a factor <= 0, first "
            f"{layout.instrument_of(row)} at {pd.Timestamp(layout.timestamps[row])}: {found}; repair or drop them"
        )


def _estimate_amounts(columns: dict[str, npt.NDArray[np.float64]]) -> int:
    missing = np.isnan(columns["amount"]) & ~np.isnan(columns["volume"])
    typical = np.mean([columns[field] for field in PRICE_FIELDS], axis=0)
    columns["amount"] = np.where(missing, columns["volume"] * typical, columns["amount"])
    return int(missing.sum())


def _field(field: str, columns: dict[str, npt.NDArray[np.float64]], layout: BarLayout) -> npt.NDArray[np.float64]:
    factor = columns["factor"]
    if field in PRICE_FIELDS:
        return columns[field] * factor
    if field == "volume":
        return columns["volume"] / factor
    if field == "vwap":
        volume = np.where(columns["volume"] > 0, columns["volume"], np.nan)
        return columns["amount"] / volume * factor
    if field == "change":
        return _change(columns["close"] * factor, layout)
    return columns[field]


def _change(close: npt.NDArray[np.float64], layout: BarLayout) -> npt.NDArray[np.float64]:
    change = np.full(len(close), np.nan)
    base = np.where(close[:-1] > 0, close[:-1], np.nan)
    change[1:] = close[1:] / base - 1.0
    change[layout.offsets[:-1]] = np.nan
    return change
