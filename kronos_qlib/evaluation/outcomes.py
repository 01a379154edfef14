"""What happened after a bar: returns between later sessions, to judge forecasts by. Nothing here may feed a signal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel

# (bought, sold): sessions after the score's date of the two closes.
LABELS: Mapping[str, tuple[int, int]] = {
    "one_day": (1, 2),
    "five_day": (0, 5),
    "ten_day": (0, 10),
    "ten_day_traded": (1, 11),
}
_CLOSE = BAR_FIELDS.index("close")


def session_closes(panel: BarPanel, index: pd.MultiIndex, offset: int) -> NDArray[np.float64]:
    """Close of each entry's instrument ``offset`` sessions of the calendar after (before, if negative) its date.

    Parameters
    ----------
    panel : adjusted bars. index : (datetime, instrument), in any order of levels; dates are sessions.
    offset : sessions; a suspended session counts as one, as in Qlib's ``Ref($close, -offset)``.

    Returns
    -------
    float64 (n,), NaN where the instrument did not trade on that session, or the calendar or the panel ends before it.

    Raises
    ------
    ValueError : a date that is no session of the panel's calendar.
    """
    session = panel.calendar.get_indexer(pd.DatetimeIndex(index.get_level_values("datetime")).as_unit("ns"))
    if (session < 0).any():
        found = index.get_level_values("datetime")[session < 0][0]
        raise ValueError(f"{found} is no session of the panel's calendar; expected sessions only")
    inside = (session + offset >= 0) & (session + offset < len(panel.calendar))
    times = panel.calendar.to_numpy()[np.where(inside, session + offset, 0)]
    row = panel.locate([str(code) for code in index.get_level_values("instrument")], times)
    known = inside & (row >= 0)
    return np.where(known, panel.values[np.maximum(row, 0), _CLOSE].astype(np.float64), np.nan)


def label_returns(
    panel: BarPanel, index: pd.MultiIndex, labels: Mapping[str, tuple[int, int]] = LABELS
) -> pd.DataFrame:
    """Return from one later close to another, by label.

    Parameters
    ----------
    labels : name to (bought, sold), sessions after the date: ``(1, 2)`` is Qlib's
        ``Ref($close, -2) / Ref($close, -1) - 1``; ``(0, 10)`` starts at the score's own close, which nobody can trade.

    Returns
    -------
    float64 DataFrame on ``index``, NaN where one of the two closes was not traded or is not positive.
    """
    closes = {
        k: session_closes(panel, index, k) for k in sorted({offset for pair in labels.values() for offset in pair})
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            name: np.where(closes[buy] > 0, closes[sell] / closes[buy] - 1.0, np.nan)
            for name, (buy, sell) in labels.items()
        }
    return pd.DataFrame(columns, index=index)


def realised_returns(panel: BarPanel, rows: ArrayLike, horizon: int) -> NDArray[np.float64]:
    """Cumulative return from each bar's close to the closes of the next ``horizon`` sessions of the calendar.

    Parameters
    ----------
    rows : (n,) panel rows, all >= 0.

    Returns
    -------
    float64 (n, horizon): what the closes of a forecast from that bar are forecasts of. NaN on a session without trade.
    """
    rows = np.asarray(rows, dtype=np.int64)
    index = pd.MultiIndex.from_arrays(
        [pd.DatetimeIndex(panel.timestamps[rows]), panel.instrument_names(rows)], names=["datetime", "instrument"]
    )
    pairs = {str(step): (0, step) for step in range(1, horizon + 1)}
    return label_returns(panel, index, pairs).to_numpy()
