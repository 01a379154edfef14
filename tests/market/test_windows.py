"""The window policy, against a naive cutting of each window by hand, and without look-ahead."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.windows import WindowPolicy, iter_windows, segment_starts, window_lengths

DAYS = pd.bdate_range("2020-01-01", periods=200)
POLICY = WindowPolicy(lookback=5, min_bars=2, max_gap=3, max_jump=0.3)


def frame_of(closes: dict[str, dict[int, float]]) -> pd.DataFrame:
    """Build bars from {instrument: {session: close}}; the other fields are distinct functions of both."""
    rows = [
        (name, DAYS[session], close * 0.99, close * 1.02, close * 0.98, close, 100.0 + session, 7.0 * session)
        for name, sessions in closes.items()
        for session, close in sessions.items()
    ]
    columns = ["instrument", "datetime", "open", "high", "low", "close", "volume", "amount"]
    return pd.DataFrame(rows, columns=columns)


def panel_of(closes: dict[str, dict[int, float]]) -> BarPanel:
    return BarPanel.from_frame(frame_of(closes), calendar=DAYS)


def naive_window(frame: pd.DataFrame, name: str, time: pd.Timestamp, policy: WindowPolicy) -> pd.DataFrame | None:
    """Walk back from the bar at ``time``, one bar after the other, as the policy reads in words."""
    history = frame[(frame["instrument"] == name) & (frame["datetime"] <= time)].sort_values("datetime")
    taken = [history.iloc[-1]]
    for position in range(len(history) - 2, -1, -1):
        bar, after = history.iloc[position], taken[-1]
        missed = DAYS.get_loc(after["datetime"]) - DAYS.get_loc(bar["datetime"]) - 1
        last, now = float(np.float32(bar["close"])), float(np.float32(after["close"]))
        jumped = policy.max_jump is not None and abs(now - last) > policy.max_jump * last
        if len(taken) == policy.lookback or (policy.max_gap is not None and missed > policy.max_gap) or jumped:
            break
        taken.append(bar)
    return pd.DataFrame(taken[::-1]) if len(taken) >= policy.min_bars else None


markets = st.dictionaries(
    st.sampled_from(["A", "B", "C"]),
    st.dictionaries(st.integers(0, 30), st.floats(1.0, 3.0).map(lambda x: round(x, 2)), min_size=1, max_size=25),
    min_size=1,
)
policies = st.builds(
    WindowPolicy,
    lookback=st.integers(3, 8),
    min_bars=st.integers(1, 3),
    max_gap=st.none() | st.integers(0, 4),
    max_jump=st.none() | st.sampled_from([0.1, 0.3, 0.8]),
)


@settings(max_examples=60, deadline=None)
@given(closes=markets, policy=policies, batch_size=st.integers(1, 7))
def test_windows_equal_naive_slicing(closes, policy: WindowPolicy, batch_size: int) -> None:
    frame, panel = frame_of(closes), panel_of(closes)
    rows = np.random.default_rng(0).permutation(len(panel))
    seen = set()
    for batch in iter_windows(panel, rows, policy, batch_size):
        assert len(batch.rows) <= batch_size
        np.testing.assert_array_equal(rows[batch.positions], batch.rows)
        for number, row in enumerate(batch.rows):
            window = naive_window(frame, batch.instruments[number], pd.Timestamp(batch.timestamps[number]), policy)
            assert window is not None
            fields = window[["open", "high", "low", "close", "volume", "amount"]]
            np.testing.assert_array_equal(batch.values[number], fields.to_numpy(dtype=np.float32))
            np.testing.assert_array_equal(batch.stamps[number], time_stamps(pd.DatetimeIndex(window["datetime"])))
            seen.add(int(row))
    for row in set(range(len(panel))) - seen:
        name, time = panel.instrument_names(np.array([row]))[0], pd.Timestamp(panel.timestamps[row])
        assert naive_window(frame, name, time, policy) is None


@settings(max_examples=40, deadline=None)
@given(closes=markets, policy=policies, session=st.integers(0, 30), factor=st.floats(0.1, 10.0))
def test_later_bars_never_change_a_window(closes, policy: WindowPolicy, session: int, factor: float) -> None:
    frame = frame_of(closes)
    late = frame["datetime"] > DAYS[session]
    altered = frame.copy()
    altered.loc[late, ["open", "high", "low", "close", "volume"]] *= factor
    expected = windows_until(frame, session, policy)
    assert windows_until(altered, session, policy) == expected
    if not late.all():
        assert windows_until(frame[~late], session, policy) == expected


def windows_until(frame: pd.DataFrame, session: int, policy: WindowPolicy) -> dict[tuple, tuple[bytes, bytes]]:
    panel = BarPanel.from_frame(frame, calendar=DAYS)
    rows = np.flatnonzero(panel.timestamps <= DAYS[session].to_numpy())
    found = {}
    for batch in iter_windows(panel, rows, policy, 4):
        for number, name in enumerate(batch.instruments):
            key = (name, str(batch.timestamps[number]))
            found[key] = (batch.values[number].tobytes(), batch.stamps[number].tobytes())
    return found


def test_a_suspension_longer_than_max_gap_starts_anew() -> None:
    panel = panel_of({"A": {0: 10, 1: 10, 5: 10, 6: 10, 11: 10}})  # 3 missed sessions, then 4
    assert segment_starts(panel, POLICY).tolist() == [0, 0, 0, 0, 4]
    assert window_lengths(panel, np.arange(5), POLICY).tolist() == [0, 2, 3, 4, 0]


@pytest.mark.parametrize(("after", "cut"), [(13.0, False), (13.01, True), (7.0, False), (6.99, True), (83.8, True)])
def test_a_jump_beyond_the_threshold_starts_anew(after: float, cut: bool) -> None:
    panel = panel_of({"A": {0: 10, 1: 10, 2: after, 3: after}})
    assert segment_starts(panel, POLICY).tolist() == ([0, 0, 2, 2] if cut else [0, 0, 0, 0])
    free = WindowPolicy(lookback=5, min_bars=2, max_gap=3, max_jump=None)
    assert segment_starts(panel, free).tolist() == [0, 0, 0, 0]


def test_a_worthless_close_is_no_base_for_a_ratio() -> None:
    panel = panel_of({"A": {0: 10, 1: 0.0, 2: 10, 3: 10}})
    assert segment_starts(panel, POLICY).tolist() == [0, 1, 2, 2]


def test_instruments_never_share_a_window_and_unknown_rows_have_none() -> None:
    panel = panel_of({"A": {0: 10, 1: 10, 2: 10}, "B": {0: 10, 1: 10}})
    rows = np.array([2, -1, 4, 0])
    assert window_lengths(panel, rows, POLICY).tolist() == [3, 0, 2, 0]
    batches = list(iter_windows(panel, rows, POLICY, 8))
    assert [batch.values.shape for batch in batches] == [(1, 3, 6), (1, 2, 6)]
    assert [batch.positions.tolist() for batch in batches] == [[0], [2]]
    assert list(iter_windows(panel, np.array([-1]), POLICY, 8)) == []


def test_the_lookback_is_the_longest_window() -> None:
    panel = panel_of({"A": dict.fromkeys(range(9), 10.0)})
    assert window_lengths(panel, np.arange(9), POLICY).tolist() == [0, 2, 3, 4, 5, 5, 5, 5, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lookback": 10, "min_bars": 11}, "min_bars <= lookback"),
        ({"lookback": 0, "min_bars": 0}, "1 <= min_bars"),
        ({"max_gap": -1}, "max_gap=-1"),
        ({"max_jump": 0.0}, "max_jump=0.0"),
        ({"max_jump": float("nan")}, "max_jump=nan"),
        ({"version": "0"}, "version '0'"),
    ],
)
def test_impossible_policies_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowPolicy(**fields)


def test_bad_rows_and_batch_sizes_are_refused() -> None:
    panel = panel_of({"A": {0: 10, 1: 10}})
    with pytest.raises(ValueError, match="rows from 0 to 2; expected -1 to 1"):
        window_lengths(panel, np.array([0, 2]), POLICY)
    with pytest.raises(ValueError, match="one dimension"):
        window_lengths(panel, np.zeros((1, 1), dtype=int), POLICY)
    with pytest.raises(ValueError, match="batch_size=0"):
        list(iter_windows(panel, np.array([1]), POLICY, 0))


def test_a_policy_says_what_it_is() -> None:
    assert WindowPolicy(**WindowPolicy().to_dict()) == WindowPolicy()


def test_no_look_ahead_on_real_bars(shared_file) -> None:
    """Alter and remove every bar after a day of 2015: all windows up to it stay bit-identical."""
    path = shared_file("market/ashare_daily.parquet")
    codes = ["SH600000", "SH600481", "SZ000725", "SZ000738", "SZ000002", "SH600660"]
    frame = pd.read_parquet(path, filters=[("instrument", "in", codes)])
    calendar = pd.DatetimeIndex(pd.read_parquet(path, columns=["datetime"])["datetime"].unique())
    day = pd.Timestamp("2015-07-09")
    late = frame["datetime"] > day
    assert late.sum() > 5000
    altered = frame.copy()
    altered.loc[late, ["open", "high", "low", "close", "volume", "amount"]] *= np.float32(3.7)
    policy = WindowPolicy()
    expected = real_windows(frame, calendar, day, policy)
    assert len(expected) > 9000
    assert real_windows(altered, calendar, day, policy) == expected
    assert real_windows(frame[~late], calendar[calendar <= day], day, policy) == expected


def real_windows(frame: pd.DataFrame, calendar: pd.DatetimeIndex, day: pd.Timestamp, policy: WindowPolicy) -> dict:
    panel = BarPanel.from_frame(frame, calendar=calendar)
    found = {}
    for batch in iter_windows(panel, np.flatnonzero(panel.timestamps <= day.to_numpy()), policy, 256):
        for number, name in enumerate(batch.instruments):
            key = (name, int(batch.timestamps[number].astype(np.int64)))
            found[key] = hash((batch.values[number].tobytes(), batch.stamps[number].tobytes()))
    return found


def test_gaps_count_trading_days_at_every_frequency() -> None:
    """A halt from the first slot of one day to the last of the fifth: three days pass without a bar, then four."""
    slots = get_calendar("XSHG", "15min").between(pd.Timestamp("2020-01-06"), pd.Timestamp("2020-01-17 15:00"))
    assert len(slots) == 160
    names = ("open", "high", "low", "close", "volume", "amount")

    def lengths(taken: list[int], policy: WindowPolicy) -> list[int]:
        frame = pd.DataFrame({"instrument": "A", "datetime": slots[taken], **dict.fromkeys(names, 10.0)})
        panel = BarPanel.from_frame(frame, calendar=slots)
        return window_lengths(panel, np.arange(len(panel)), policy).tolist()

    policy = WindowPolicy(lookback=5, min_bars=1, max_gap=3)
    assert lengths([0, 1, 16 * 4 + 15, 16 * 5], policy) == [1, 2, 3, 4]
    assert lengths([0, 1, 16 * 5, 16 * 5 + 15], policy) == [1, 2, 1, 2]
    assert lengths([0, 15, 31, 46], WindowPolicy(lookback=5, min_bars=1, max_gap=0)) == [1, 2, 3, 4]
