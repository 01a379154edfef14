"""The fills that repairs are made of, on sorted columns. All but interpolation use a bar's own stamp and the past."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_qlib.market.board import is_index
from kronos_qlib.market.columns import BarColumns
from kronos_qlib.market.rules import bad_prices, bad_quantities

CHUNK = 100_000


def fill_last(values: np.ndarray, code: np.ndarray) -> np.ndarray:
    """Replace NaN by the last value of the same instrument before it, NaN where there is none, float64 (R,)."""
    rows = np.arange(len(values))
    last = np.maximum.accumulate(np.where(np.isnan(values), -1, rows)) if len(values) else rows
    usable = (last >= 0) & (code[np.maximum(last, 0)] == code)
    return np.where(usable, values[np.maximum(last, 0)], np.nan)


def forward_filled_prices(columns: BarColumns, factor: np.ndarray) -> dict[str, np.ndarray]:
    """Open and close with bad ones replaced by the last price known before them, raw price, float64 (R,) each.

    Order of knowledge: previous close (in today's price scale), open, close.
    """
    open_, close = (
        np.where(bad_prices(columns.values[name]), np.nan, columns.values[name]) for name in ("open", "close")
    )
    known = np.where(np.isnan(close), open_, close)
    settled = fill_last(known * factor, columns.code)
    before = np.where(columns.first, np.nan, np.roll(settled, 1)) / factor
    open_ = np.where(np.isnan(open_), before, open_)
    return {"open": open_, "close": np.where(np.isnan(close), open_, close)}


def interpolated_prices(columns: BarColumns, factor: np.ndarray) -> dict[str, np.ndarray]:
    """Open and close with bad ones put on the line between their good neighbours, raw price, float64 (R,) each.

    Positions are bars, prices adjusted. At an instrument's end the last good price is kept; before its first good
    one the result is NaN. The later neighbour is the future: not for inference.
    """
    filled = {}
    for name in ("open", "close"):
        adjusted = np.where(bad_prices(columns.values[name]), np.nan, columns.values[name] * factor)
        lines = pd.Series(adjusted).groupby(columns.code, sort=False).transform(_between)
        filled[name] = fill_last(lines.to_numpy(), columns.code) / factor
    return filled


def _between(values: pd.Series) -> pd.Series:
    return values.interpolate(method="linear", limit_area="inside") if values.isna().any() else values


def past_medians(columns: BarColumns, name: str, rows: np.ndarray, bars: int) -> np.ndarray:
    """Median of the instrument's last ``bars`` good values of ``name`` before each row, float64 (len(rows),).

    NaN where there is none. Volumes are compared in today's share count (volume / factor is constant over splits).
    """
    values = columns.values[name]
    scale = _volume_scale(columns) if name == "volume" else np.ones(len(columns))
    good = np.flatnonzero(~bad_quantities(values))
    if not len(good):
        return np.full(len(rows), np.nan)
    medians = np.empty(len(rows))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        place = np.searchsorted(good, part)[:, None] - np.arange(1, bars + 1)[None, :]
        source = good[np.maximum(place, 0)]
        usable = (place >= 0) & (columns.code[source] == columns.code[part][:, None])
        comparable = np.where(usable, values[source] * scale[source], np.nan)
        medians[start : start + CHUNK] = _row_medians(comparable) / scale[part]
    return medians


def _volume_scale(columns: BarColumns) -> np.ndarray:
    factor = columns.factor
    return np.where(bad_prices(factor), 1.0, 1.0 / np.where(bad_prices(factor), 1.0, factor))


def _row_medians(table: np.ndarray) -> np.ndarray:
    medians = np.full(len(table), np.nan)
    filled = ~np.isnan(table).all(axis=1)
    medians[filled] = np.nanmedian(table[filled], axis=1)
    return medians


def cross_section_medians(columns: BarColumns, name: str, rows: np.ndarray) -> np.ndarray:
    """Median of the good values of ``name`` of all instruments at each row's stamp, float64 (len(rows),).

    Indices are left out, and NaN stands where no other instrument has a value.
    """
    values = columns.values[name]
    wanted = np.isin(columns.stamps, np.unique(columns.stamps[rows]))
    usable = wanted & ~bad_quantities(values) & ~is_index(columns.names)[columns.code]
    medians = pd.Series(values[usable]).groupby(columns.stamps[usable]).median()
    return medians.reindex(columns.stamps[rows]).to_numpy(dtype=float)
