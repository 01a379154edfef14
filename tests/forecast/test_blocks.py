"""Blocks of absolute time: where they begin, and that neither a run's start nor the future moves them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from small_panel import bars, instrument_bars, make_panel

from kronos_qlib.forecast.blocks import EPOCH, absolute_index, plan_blocks
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, window_lengths

POLICY = WindowPolicy(lookback=12, min_bars=10, max_gap=5)
XSHG = get_calendar("XSHG")


def days(*texts: str) -> np.ndarray:
    return np.array(texts, dtype="datetime64[ns]")


def test_daily_bars_count_weekdays_from_a_monday() -> None:
    assert pd.Timestamp(EPOCH).day_name() == "Monday"
    # Monday, Friday, the Monday after it, and a holiday in between counts
    found = absolute_index(days("1970-01-05", "1970-01-09", "1970-01-12", "2020-01-23", "2020-02-03"), XSHG)
    assert found[:3].tolist() == [0, 4, 5]
    assert found[4] - found[3] == 7
    assert absolute_index(days("1970-01-02"), XSHG).tolist() == [-1]


def test_other_bars_count_steps() -> None:
    always = get_calendar("24/7")
    assert absolute_index(days("1970-01-05", "1970-01-10", "1970-01-11"), always).tolist() == [0, 5, 6]
    quarter = get_calendar("XSHG", freq="15min")
    times = days("1970-01-05T00:15", "1970-01-05T00:30", "1970-01-06T00:00", "1970-01-06T00:15")
    assert absolute_index(times, quarter).tolist() == [0, 1, 95, 96]


def plan_of(panel: BarPanel, size: int = 5) -> dict[str, pd.Series]:
    """Date of the anchor of each bar, by instrument."""
    plan = plan_blocks(panel, POLICY, size, XSHG)
    anchor = np.where(plan.anchors >= 0, panel.timestamps[plan.anchors], np.datetime64("NaT"))
    frame = pd.DataFrame({"code": panel.instrument_names(np.arange(len(panel))), "anchor": anchor})
    frame.index = pd.DatetimeIndex(panel.timestamps)
    return {code: part["anchor"] for code, part in frame.groupby("code")}


def test_a_block_of_five_is_a_week() -> None:
    anchors = plan_of(make_panel({"SH600000": bars(40)}))["SH600000"]
    assert anchors.iloc[:9].isna().all()
    assert anchors.iloc[9] == anchors.index[9]  # the first bar with a window, mid-week
    for date, anchor in anchors.iloc[15:].items():
        week = anchors.index[(anchors.index >= date - pd.Timedelta(days=date.weekday())) & (anchors.index <= date)]
        assert anchor == week[0]


def test_exact_mode_is_every_row_for_itself() -> None:
    panel = make_panel()
    plan = plan_blocks(panel, POLICY, 1, XSHG)
    lengths = window_lengths(panel, np.arange(len(panel)), POLICY)
    np.testing.assert_array_equal(plan.anchors, np.where(lengths > 0, np.arange(len(panel)), -1))
    np.testing.assert_array_equal(plan.lengths, lengths)


def test_where_the_data_begins_and_ends_moves_no_block() -> None:
    frames = instrument_bars()
    whole = plan_of(make_panel(frames), 10)
    late = plan_of(make_panel({code: frame.iloc[-33:] for code, frame in frames.items()}), 10)
    early = plan_of(make_panel({code: frame.iloc[:-7] for code, frame in frames.items()}), 10)
    compared = 0
    for code, anchors in whole.items():
        # the first block of the shorter history begins where its first window does
        same = late[code].dropna().iloc[10:]
        pd.testing.assert_series_equal(same, anchors.loc[same.index])
        if code in early:
            pd.testing.assert_series_equal(early[code], anchors.loc[early[code].index])
        compared += len(same)
    assert compared > 30


def test_a_gap_ends_a_block_and_a_missing_day_does_not() -> None:
    frame = bars(60)
    anchors = plan_of(make_panel({"SH600000": frame.drop(frame.index[30]), "SH600001": frame}), 10)["SH600000"]
    after = anchors.loc[frame.index[31] :]
    assert after.notna().all()
    gone = frame.drop(frame.index[30:37])
    anchors = plan_of(make_panel({"SH600000": gone, "SH600001": frame}), 10)["SH600000"]
    assert anchors.loc[frame.index[37] :].iloc[:9].isna().all()
    assert anchors.loc[frame.index[37] :].iloc[9] == frame.index[46]


def test_a_segment_that_ends_inside_a_block_begins_another_even_without_a_least_length() -> None:
    frame = bars(20)
    frame.iloc[12:, :4] *= 2  # an unexplained jump
    panel = make_panel({"SH600000": frame})
    plan = plan_blocks(panel, WindowPolicy(lookback=12, min_bars=1), 100, XSHG)
    assert 12 in plan.anchors
    assert plan.anchors[12:].min() >= 12


def test_sequences_end_with_the_block_and_are_padded_with_its_last_bar() -> None:
    panel = make_panel({"SH600000": bars(40), "SH600001": bars(40, seed=1)})
    plan = plan_blocks(panel, POLICY, 5, XSHG)
    last = int(plan.anchors[39])
    inside = 39 - last
    (rows,) = plan.sequence(np.array([last]), 12)
    assert rows.tolist() == [*range(last - 11, 40), *[39] * (4 - inside)]
    (rows,) = plan.sequence(np.array([int(plan.anchors[-1])]), 12)
    assert rows.max() == 79


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_size_that_is_none(size: object) -> None:
    with pytest.raises(ValueError, match="expected a whole number of bars"):
        plan_blocks(make_panel({"SH600000": bars(40)}), POLICY, size, XSHG)
