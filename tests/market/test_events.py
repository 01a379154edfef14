"""Event bits on small tables, and that no bit of a bar depends on later bars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.market.events import Event, event_bits
from kronos_qlib.market.reading import read_bars

COLUMNS = ["datetime", "open", "high", "low", "close", "factor"]


def bars(rows: list[tuple[object, ...]], instrument: str = "SH600000") -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.assign(datetime=pd.to_datetime(frame["datetime"]), instrument=instrument)


TABLE = [
    # date, open, high, low, close, factor -> events
    (("2024-01-02", 10.0, 10.2, 9.8, 10.0, 1.0), Event(0)),
    (("2024-01-03", 10.1, 11.0, 10.1, 11.0, 1.0), Event.LIMIT_UP),
    (("2024-01-04", 11.5, 12.0, 11.2, 11.9, 1.0), Event.GAP),
    (("2024-01-05", 11.8, 11.9, 10.71, 10.71, 1.0), Event.LIMIT_DOWN),
    (("2024-01-09", 10.7, 10.9, 10.6, 10.7, 1.0), Event.RESUMED),
    (("2024-01-10", 5.4, 5.5, 5.3, 5.35, 2.0), Event(0)),  # split: 10.7 becomes 5.35
    (("2024-01-11", 5.89, 5.89, 5.89, 5.89, 2.0), Event.LIMIT_UP | Event.GAP),
    (("2024-01-12", 9.0, 9.1, 8.8, 9.0, 2.0), Event.GAP),  # far beyond the limit: not at it
]
CALENDAR = pd.bdate_range("2024-01-02", "2024-01-12")


def test_events_of_a_table() -> None:
    bits = event_bits(bars([row for row, _ in TABLE]), calendar=CALENDAR)
    assert [Event(int(bit)) for bit in bits] == [event for _, event in TABLE]
    assert bits.dtype == np.int64


def test_the_bits_stand_in_the_order_of_the_frame() -> None:
    frame = bars([row for row, _ in TABLE])
    order = [3, 0, 6, 1, 7, 5, 2, 4]
    np.testing.assert_array_equal(
        event_bits(frame.iloc[order], calendar=CALENDAR), event_bits(frame, calendar=CALENDAR)[order]
    )


def test_without_a_calendar_sessions_are_the_dates_that_occur() -> None:
    stopped = bars([row for row, _ in TABLE if row[0] != "2024-01-04"])
    other = bars([row for row, _ in TABLE], "SZ000001")
    alone = event_bits(stopped)
    together = event_bits(pd.concat([stopped, other], ignore_index=True))[: len(stopped)]
    assert not (alone & Event.RESUMED).any()
    assert np.flatnonzero(together & Event.RESUMED).tolist() == [2]


def test_us_and_crypto_have_no_limits() -> None:
    for region in ("us", "crypto"):
        bits = event_bits(bars([row for row, _ in TABLE]), region=region)
        assert not (bits & (Event.LIMIT_UP | Event.LIMIT_DOWN)).any()


def test_repaired_bars_are_marked() -> None:
    frame = bars([row for row, _ in TABLE]).assign(repaired=[False, True] + [False] * 6)
    assert np.flatnonzero(event_bits(frame) & Event.REPAIRED).tolist() == [1]


def test_intraday_resumption_is_the_first_bar_of_the_day_only() -> None:
    stamps = ["2024-01-02 11:30", "2024-01-02 15:00", "2024-01-04 11:30", "2024-01-04 15:00"]
    frame = bars([(stamp, 10.0, 10.0, 10.0, 10.0, 1.0) for stamp in stamps])
    bits = event_bits(frame, calendar=pd.DatetimeIndex(["2024-01-02", "2024-01-03", "2024-01-04"]))
    assert np.flatnonzero(bits & Event.RESUMED).tolist() == [2]


def test_a_missing_price_sets_no_bit_and_raises_no_warning() -> None:
    rows = [list(row) for row, _ in TABLE]
    for row in rows:
        row[1:5] = [np.nan] * 4
    assert not (event_bits(bars([tuple(row) for row in rows])) & ~Event.RESUMED).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="open"), "lack the columns"),
        (lambda frame: frame.drop(columns="instrument"), "instrument"),
        (lambda frame: frame.assign(instrument=None), "no instrument"),
        (lambda frame: frame.assign(datetime=frame["datetime"].dt.tz_localize("UTC")), "time zone"),
        (lambda frame: frame.assign(datetime=pd.NaT), "no datetime"),
    ],
)
def test_frames_that_are_no_bars(change: Callable[[pd.DataFrame], pd.DataFrame], message: str) -> None:
    frame = change(bars([row for row, _ in TABLE]))
    with pytest.raises(ValueError, match=message):
        event_bits(frame)


def test_unknown_region() -> None:
    with pytest.raises(ValueError, match="unknown region 'mars'"):
        event_bits(bars([TABLE[0][0]]), region="mars")


@settings(max_examples=60, deadline=None)
@given(
    closes=st.lists(st.integers(500, 1500), min_size=4, max_size=12),
    cut=st.integers(1, 11),
    seed=st.integers(0, 1000),
)
def test_no_bit_depends_on_later_bars(closes: list[int], cut: int, seed: int) -> None:
    cut = min(cut, len(closes) - 1)
    generator = np.random.default_rng(seed)
    dates = pd.bdate_range("2024-01-02", periods=2 * len(closes))
    frames = []
    for instrument in ("SH600000", "SZ300001"):
        chosen = np.sort(generator.choice(len(dates), len(closes), replace=False))
        price = np.array(closes) / 100
        factor = np.cumprod(generator.choice([1.0, 1.5], len(closes)))
        rows = zip(dates[chosen], price, price + 0.1, price - 0.1, price, factor, strict=True)
        frames.append(bars(list(rows), instrument))
    frame = pd.concat(frames, ignore_index=True)
    past = (frame["datetime"] <= dates[cut]).to_numpy()
    changed = frame.copy()
    changed.loc[~past, ["open", "high", "low", "close", "factor"]] *= 1.7
    expected = event_bits(frame)[past]
    np.testing.assert_array_equal(event_bits(frame[past]), expected)
    np.testing.assert_array_equal(event_bits(changed)[past], expected)


def test_limits_of_real_bars(shared_file: Callable[[str], Path]) -> None:
    frame = read_bars(shared_file("market/ashare_daily.parquet"))
    bits = event_bits(frame)
    at_up = (bits & Event.LIMIT_UP) > 0
    # A close at the day's highest allowed price is the day's high, but for float noise.
    assert (frame["close"].to_numpy()[at_up] >= frame["high"].to_numpy()[at_up] - 0.0101).all()
    assert 20_000 < at_up.sum() < 30_000
    assert int(((bits & Event.RESUMED) > 0).sum()) == 12_911
