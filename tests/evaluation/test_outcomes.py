"""Labels and realised returns against Qlib's rule written out on a frame, and the gaps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.evaluation.outcomes import label_returns, realised_returns, session_closes
from kronos_qlib.market.panel import BarPanel

SESSIONS = pd.bdate_range("2020-01-06", periods=15)


def make_panel() -> tuple[BarPanel, pd.DataFrame]:
    """Two instruments; B does not trade on sessions 4 and 5."""
    rng = np.random.default_rng(0)
    close = pd.DataFrame(np.exp(rng.normal(0, 0.05, (15, 2)).cumsum(axis=0)), SESSIONS, ["A", "B"]).astype(np.float32)
    close.loc[SESSIONS[4:6], "B"] = np.nan
    bars = (
        close.rename_axis("datetime").reset_index().melt("datetime", var_name="instrument", value_name="close").dropna()
    )
    for field in ("open", "high", "low"):
        bars[field] = bars["close"]
    return BarPanel.from_frame(bars.assign(volume=1.0, amount=1.0), calendar=SESSIONS), close.astype(np.float64)


def every_entry() -> pd.MultiIndex:
    return pd.MultiIndex.from_product([SESSIONS, ["B", "A"]], names=["datetime", "instrument"])


def test_labels_are_qlibs_shifts_of_the_calendar() -> None:
    panel, close = make_panel()
    found = label_returns(panel, every_entry(), {"one_day": (1, 2), "five": (0, 5)})
    for name, (buy, sell) in {"one_day": (1, 2), "five": (0, 5)}.items():
        expected = close.shift(-sell) / close.shift(-buy) - 1.0
        pd.testing.assert_frame_equal(
            found[name].unstack("instrument").reindex(columns=["A", "B"]), expected, check_names=False, check_freq=False
        )


def test_a_negative_offset_looks_back() -> None:
    panel, close = make_panel()
    index = pd.MultiIndex.from_tuples([(SESSIONS[3], "A"), (SESSIONS[1], "A")], names=["datetime", "instrument"])
    found = session_closes(panel, index, -2)
    assert found[0] == close.loc[SESSIONS[1], "A"]
    assert np.isnan(found[1])


def test_realised_returns_are_nan_where_nothing_traded() -> None:
    panel, close = make_panel()
    rows = panel.locate(["B", "A"], SESSIONS[[2, 2]])
    found = realised_returns(panel, rows, 4)
    np.testing.assert_allclose(found[1], (close["A"].iloc[3:7] / close["A"].iloc[2] - 1).to_numpy())
    assert np.isnan(found[0, 1:3]).all()
    np.testing.assert_allclose(found[0, [0, 3]], (close["B"].iloc[[3, 6]] / close["B"].iloc[2] - 1).to_numpy())


def test_a_date_outside_the_calendar_is_refused() -> None:
    panel, _ = make_panel()
    index = pd.MultiIndex.from_tuples([(pd.Timestamp("2020-01-11"), "A")], names=["datetime", "instrument"])
    with pytest.raises(ValueError, match="no session"):
        session_closes(panel, index, 1)
