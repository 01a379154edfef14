"""Daily price limits of the A-share boards: the fraction for a code on a date, and the prices it allows.

ST stocks trade within 5 %, but no file here flags them, so they get the fraction of their board. The days
without any limit (a listing's first day, the first five sessions of STAR and of ChiNext since registration)
cannot be told from bars alone either: whoever meets a move beyond the limit reports it and never clips it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_qlib.market.columns import BarColumns, previous_day_row

TICK = 0.01
CHINEXT_REFORM = np.datetime64("2020-08-24")
INDEX_PREFIXES = ("SH000", "SZ399", "BJ899")
# Products of float64 are off by a few 1e-16 of themselves.
FLOAT_SLACK = 1e-12


def is_index(instruments: object) -> np.ndarray:
    """Tell indices (SH000xxx, SZ399xxx, BJ899xxx) from stocks, bool (I,), for a sequence of codes."""
    codes = [str(code).upper() for code in _as_sequence(instruments)]
    return np.array([code.startswith(INDEX_PREFIXES) for code in codes], dtype=bool)


def board_fraction(instrument: str) -> float:
    """Limit of a code's board as a fraction, NaN for an index or an unknown code. ChiNext: the rule of today.

    10 % on the main boards, 20 % on STAR (SH688, SH689) and ChiNext (SZ30), 30 % in Beijing (BJ).
    """
    code = instrument.upper()
    if len(code) != 8 or not code[2:].isdigit() or code.startswith(INDEX_PREFIXES):
        return float("nan")
    if code.startswith(("SH688", "SH689", "SZ30")):
        return 0.2
    return {"SH": 0.1, "SZ": 0.1, "BJ": 0.3}.get(code[:2], float("nan"))


def limit_fractions(instruments: object, dates: object) -> np.ndarray:
    """Limit as a fraction of the reference price for each pair of code and date, float64 (R,).

    ChiNext (SZ30xxxx) has 10 % before 2020-08-24 and 20 % from then on.

    Parameters
    ----------
    instruments : str or sequence of str (R,)
        Qlib codes such as ``SH600000``.
    dates : datetime-like or sequence (R,)
        Session of each bar. A single code or date is broadcast.

    Returns
    -------
    ndarray (R,)
        NaN for indices and for codes of no known board: no limit is claimed there.
    """
    code, names = pd.factorize(np.asarray(_as_sequence(instruments), dtype=object))
    days = np.atleast_1d(np.asarray(dates, dtype="datetime64[ns]"))
    code, days = np.broadcast_arrays(code, days)
    return _fractions(np.asarray(names, dtype=object), code, days)


def column_fractions(columns: BarColumns) -> np.ndarray:
    """``limit_fractions`` of every bar of sorted columns, float64 (R,)."""
    return _fractions(columns.names, columns.code, columns.days)


def reference_prices(columns: BarColumns) -> np.ndarray:
    """Reference price of each bar's day: ``close[t-1] * factor[t-1] / factor[t]``, raw price, float64 (R,).

    ``t-1`` is the instrument's last bar of an earlier day, so intraday bars of a day share one reference.
    NaN on an instrument's first day and after an impossible close. Uses earlier
    days and the day's factor, which is known before the open.
    """
    row = previous_day_row(columns)
    close, factor = columns.values["close"], columns.factor
    with np.errstate(divide="ignore", invalid="ignore"):
        reference = np.where(row >= 0, close[row] * factor[row] / factor, np.nan)
        return np.where((reference > 0) & np.isfinite(reference), reference, np.nan)


def round_to_tick(prices: np.ndarray, tick: float = TICK) -> np.ndarray:
    """Round to the tick, halves up as the exchanges do; a half hidden by float64 noise counts as a half."""
    if not tick > 0:
        raise ValueError(f"tick={tick}; price limits need a tick above 0")
    return np.floor(np.asarray(prices, dtype=float) / tick * (1 + FLOAT_SLACK) + 0.5) * tick


def limit_prices(
    reference: np.ndarray, fraction: np.ndarray | float, tick: float = TICK
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest price of the day, each ``round(reference * (1 ± fraction), 2)``.

    The reference is brought to its tick before, as the exchange publishes it: that removes the noise of float32
    prices, which would decide at random where a limit falls on half a tick.

    Parameters
    ----------
    reference : float (R,)
        Reference prices, in raw price.
    fraction : float or float (R,)
        Limit as a fraction; NaN gives NaN.

    Returns
    -------
    (limit_down, limit_up) : float64 (R,) each
    """
    reference = round_to_tick(reference, tick)
    return round_to_tick(reference * (1 - fraction), tick), round_to_tick(reference * (1 + fraction), tick)


def _fractions(names: np.ndarray, code: np.ndarray, days: np.ndarray) -> np.ndarray:
    fraction = np.array([board_fraction(str(name)) for name in names], dtype=float)
    chinext = np.array([str(name).upper().startswith("SZ30") for name in names], dtype=bool)
    return np.where(chinext[code] & (days < CHINEXT_REFORM), 0.1, fraction[code])


def _as_sequence(instruments: object) -> list[object]:
    return [instruments] if isinstance(instruments, str) else list(instruments)  # type: ignore[call-overload]
