"""What makes a value of a bar impossible: one place for the contract and for the repairs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kronos_qlib.market.fields import PRICE_FIELDS

# float32 rounding moves a price by up to 6e-8 of itself; a violation must be larger than the noise.
RELATIVE_NOISE = 1e-6

Values = Mapping[str, np.ndarray]


def bad_prices(prices: np.ndarray) -> np.ndarray:
    """True where a price is NaN, infinite, zero or negative, bool of the same shape."""
    with np.errstate(invalid="ignore"):
        return ~(np.isfinite(prices) & (prices > 0))


def bad_quantities(quantities: np.ndarray) -> np.ndarray:
    """True where a volume or an amount is NaN, infinite or negative, bool of the same shape."""
    with np.errstate(invalid="ignore"):
        return ~(np.isfinite(quantities) & (quantities >= 0))


def bad_ranges(values: Values) -> np.ndarray:
    """True where high is below, or low above, another price, bool (R,). Missing prices never count."""
    high, low = values["high"], values["low"]
    top = np.fmax(np.fmax(values["open"], values["close"]), low)
    bottom = np.fmin(np.fmin(values["open"], values["close"]), high)
    with np.errstate(invalid="ignore"):
        return (high < top - RELATIVE_NOISE * np.abs(top)) | (low > bottom + RELATIVE_NOISE * np.abs(bottom))


def empty_bars(values: Values) -> np.ndarray:
    """True where all four prices are NaN or 0 and nothing was traded (volume absent, NaN or 0), bool (R,).

    Some vendors write a suspended day like this.
    """
    empty = np.logical_and.reduce([np.isnan(values[name]) | (values[name] == 0) for name in PRICE_FIELDS])
    for name in ("volume", "amount"):
        if name in values:
            empty &= np.isnan(values[name]) | (values[name] == 0)
    return empty
