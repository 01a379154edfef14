"""Future sessions, slots of a day, markets that never close, and a store's own days."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.calendars import (
    ContinuousCalendar,
    SessionCalendar,
    calendar_from_index,
    future_stamps,
    future_times,
    get_calendar,
    parse_freq,
)
from kronos_qlib.market.stamps import time_stamps


def texts(index: pd.DatetimeIndex, form: str = "%Y-%m-%d") -> list[str]:
    return list(index.strftime(form))


def test_shanghai_skips_the_new_years_holiday() -> None:
    calendar = get_calendar("XSHG")
    found = calendar.future(pd.Timestamp("2020-01-22"), 3)  # the holiday of 2020 was prolonged to 2 February
    assert texts(found) == ["2020-01-23", "2020-02-03", "2020-02-04"]
    assert texts(calendar.future(pd.Timestamp("2020-01-23 15:00"), 1)) == ["2020-02-03"]
    assert texts(calendar.between(pd.Timestamp("2020-01-23"), pd.Timestamp("2020-02-03"))) == [
        "2020-01-23",
        "2020-02-03",
    ]
    assert calendar.future(pd.Timestamp("1999-12-30"), 1)[0] == pd.Timestamp("2000-01-04")


@pytest.mark.parametrize(
    ("name", "file", "freq"),
    [
        ("XSHG", "market/ashare_daily.parquet", "day"),
        ("XSHG", "market/ashare_pretrain.parquet", "day"),
        ("XNYS", "market/us_daily.parquet", "day"),
        ("XSHG", "market/ashare_15min.parquet", "15min"),
        ("24/7", "market/btcusdt_5min.parquet", "5min"),
    ],
)
def test_calendars_agree_with_real_bars(shared_file, name: str, file: str, freq: str) -> None:
    stamps = pd.DatetimeIndex(
        pd.read_parquet(shared_file(file), columns=["datetime"])["datetime"].unique()
    ).sort_values()
    expected = get_calendar(name, freq).between(stamps[0], stamps[-1])
    assert list(expected.difference(stamps)) == []
    assert list(stamps.difference(expected)) == []
    after = get_calendar(name, freq).future(stamps[99], 50)
    assert list(after) == list(stamps[100:150])


def test_chinese_slots_are_stamped_at_their_end() -> None:
    found = get_calendar("XSHG", "15min").future(pd.Timestamp("2024-09-30 09:30"), 17)
    assert texts(found, "%d %H:%M") == [
        *["30 09:45", "30 10:00", "30 10:15", "30 10:30", "30 10:45", "30 11:00", "30 11:15", "30 11:30"],
        *["30 13:15", "30 13:30", "30 13:45", "30 14:00", "30 14:15", "30 14:30", "30 14:45", "30 15:00"],
        "08 09:45",  # after the national holiday
    ]
    assert len(get_calendar("XSHG", "5min").between(pd.Timestamp("2024-09-30"), pd.Timestamp("2024-10-01"))) == 48


def test_an_early_close_and_an_uneven_slot_end_with_the_session() -> None:
    early = get_calendar("XNYS", "60min").between(pd.Timestamp("2024-11-29"), pd.Timestamp("2024-11-30"))
    assert texts(early, "%H:%M") == ["10:30", "11:30", "12:30", "13:00"]
    full = get_calendar("XNYS", "60min").between(pd.Timestamp("2024-12-02"), pd.Timestamp("2024-12-03"))
    assert texts(full, "%H:%M")[-2:] == ["15:30", "16:00"]


def test_a_market_that_never_closes_has_a_grid() -> None:
    calendar = get_calendar("24/7", "5min")
    assert isinstance(calendar, ContinuousCalendar)
    found = calendar.future(pd.Timestamp("2024-12-31 23:52"), 3)
    assert texts(found, "%Y-%m-%d %H:%M") == ["2024-12-31 23:55", "2025-01-01 00:00", "2025-01-01 00:05"]
    assert calendar.future(pd.Timestamp("2024-12-31 23:55"), 1)[0] == pd.Timestamp("2025-01-01")
    between = calendar.between(pd.Timestamp("2025-01-01 00:01"), pd.Timestamp("2025-01-01 00:10"))
    assert texts(between, "%H:%M") == ["00:05", "00:10"]
    days = get_calendar("24/7", "day").future(pd.Timestamp("2024-02-28"), 2)
    assert texts(days) == ["2024-02-29", "2024-03-01"]
    assert len(calendar.future(pd.Timestamp("2024-01-01"), 0)) == 0


def test_past_the_last_session_come_weekdays_and_one_warning() -> None:
    calendar = calendar_from_index(pd.DatetimeIndex(["2024-05-01", "2024-05-02"]))
    with pytest.warns(UserWarning, match="ends at 2024-05-02"):
        found = calendar.future(pd.Timestamp("2024-05-01"), 4)
    assert texts(found) == ["2024-05-02", "2024-05-03", "2024-05-06", "2024-05-07"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(calendar.future(pd.Timestamp("2030-01-04"), 2)) == ["2030-01-07", "2030-01-08"]
        assert len(calendar.future(pd.Timestamp("2024-05-01"), 3000)) == 3000
        between = calendar.between(pd.Timestamp("2024-05-02"), pd.Timestamp("2024-05-06"))
    assert texts(between) == ["2024-05-02", "2024-05-03", "2024-05-06"]


def test_known_sessions_give_no_warning() -> None:
    calendar = calendar_from_index(pd.DatetimeIndex(["2024-05-01", "2024-05-02"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calendar.future(pd.Timestamp("2024-05-01"), 1)
        calendar.between(pd.Timestamp("2024-05-01"), pd.Timestamp("2024-05-02"))


def test_an_unfinished_day_is_finished_with_the_slots_of_a_full_one() -> None:
    known = pd.DatetimeIndex(
        ["2024-05-02 10:30", "2024-05-02 11:30", "2024-05-02 14:00", "2024-05-02 15:00", "2024-05-03 10:30"]
    )
    calendar = calendar_from_index(known, freq="60min")
    with pytest.warns(UserWarning, match="weekdays"):
        found = calendar.future(pd.Timestamp("2024-05-03 10:30"), 5)
    assert texts(found, "%d %H:%M") == ["03 11:30", "03 14:00", "03 15:00", "06 10:30", "06 11:30"]


def test_future_stamps_follow_each_time_and_repeat_for_equal_ones() -> None:
    calendar = get_calendar("XSHG")
    times = np.array(["2020-01-22", "2019-12-31", "2020-01-22"], dtype="datetime64[ns]")
    ahead, stamps = future_times(calendar, times, 3), future_stamps(calendar, times, 3)
    assert ahead.shape == (3, 3)
    assert stamps.shape == (3, 3, 5)
    for number, time in enumerate(times):
        expected = calendar.future(pd.Timestamp(time), 3)
        np.testing.assert_array_equal(ahead[number], expected.to_numpy())
        np.testing.assert_array_equal(stamps[number], time_stamps(expected))
    assert future_times(calendar, times[:0], 3).shape == (0, 3)
    assert future_stamps(calendar, times[:0], 3).shape == (0, 3, 5)


def test_the_caller_may_write_into_what_it_gets() -> None:
    calendar = get_calendar("24/7", "day")
    times = np.array(["2020-01-01"], dtype="datetime64[ns]")
    future_stamps(calendar, times, 2)[:] = -1
    future_times(calendar, times, 2)[:] = np.datetime64("1999-01-01")
    assert future_stamps(calendar, times, 2)[0, 0].tolist() == [0, 0, 3, 2, 1]
    assert future_times(calendar, times, 2)[0, 1] == np.datetime64("2020-01-03")


def test_the_same_calendar_is_built_once() -> None:
    assert get_calendar("XSHG") is get_calendar("XSHG")
    assert get_calendar("XSHG").freq == "day"


@pytest.mark.parametrize(("given", "expected"), [("day", "day"), ("1d", "day"), ("15min", "15min"), ("5T", "5min")])
def test_frequencies_have_qlibs_spelling(given: str, expected: str) -> None:
    assert parse_freq(given)[0] == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_calendar("XSGH"), "found calendar 'XSGH'.*'XSHG'"),
        (lambda: get_calendar("XSHG", "week"), "freq='week'; expected 'day' or minutes"),
        (lambda: get_calendar("24/7", "7min"), "divide a day"),
        (lambda: get_calendar("24/7").future(pd.Timestamp("2020-01-01"), -1), "n=-1"),
        (lambda: get_calendar("XSHG").future(pd.Timestamp("2020-01-01"), -1), "n=-1"),
        (lambda: get_calendar("XSHG").future(pd.Timestamp("1980-01-01"), 1), "knows stamps from 1990"),
        (lambda: SessionCalendar("none", "day", pd.DatetimeIndex([])), "'none' has no sessions"),
    ],
)
def test_bad_requests_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
