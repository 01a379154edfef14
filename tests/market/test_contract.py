"""The contract on small tables with known counts, and on the real files with the oddities that are known there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.contract import check_bars, read_bars


def bars(closes: list[float], dates: list[str] | pd.DatetimeIndex, instrument: str = "SH600000") -> pd.DataFrame:
    """Bars that trade at one price and are faultless otherwise."""
    close = np.array(closes, dtype=float)
    prices = dict.fromkeys(("open", "high", "low", "close"), close)
    frame = pd.DataFrame({"instrument": instrument, "datetime": pd.DatetimeIndex(dates), **prices})
    return frame.assign(volume=100.0, amount=100.0 * close, factor=1.0)


WEEK = pd.bdate_range("2024-01-01", periods=5)


@pytest.mark.parametrize(
    ("close", "beyond"),
    [(11.00, 0), (11.01, 0), (11.02, 1), (9.00, 0), (8.99, 0), (8.98, 1)],
)
def test_one_tick_beyond_the_limit_is_forgiven(close: float, beyond: int) -> None:
    report = check_bars(bars([10.0, close], list(WEEK[:2].astype(str))))
    assert report["close_beyond_limit"].count == beyond
    assert report["range_beyond_limit"].count == beyond


def test_a_high_beyond_the_limit_counts_apart_from_the_close() -> None:
    frame = bars([10.0, 10.5], WEEK[:2])
    frame.loc[1, "high"] = 11.5
    report = check_bars(frame)
    assert (report["close_beyond_limit"].count, report["range_beyond_limit"].count) == (0, 1)
    assert "1 with a close inside" in report["range_beyond_limit"].message


def test_a_move_on_resumption_is_told_apart() -> None:
    frame = bars([10.0, 30.0, 60.0], WEEK[[0, 3, 4]])
    report = check_bars(frame, calendar=WEEK)
    assert report["close_beyond_limit"].count == 2
    assert [example["datetime"] for example in report["close_beyond_limit"].examples] == ["2024-01-05", "2024-01-04"]
    assert report["close_beyond_limit_on_resumption"].count == 1
    assert "up to +200% after 3 sessions" in report["close_beyond_limit_on_resumption"].message


def test_a_split_that_the_factor_explains_is_no_oddity() -> None:
    split = bars([10.0, 5.0], WEEK[:2]).assign(factor=[1.0, 2.0])
    assert not check_bars(split).findings
    assert check_bars(split.drop(columns="factor"))["adjusted_moves"].count == 1


def test_a_tick_of_a_penny_stock_is_no_oddity() -> None:
    report = check_bars(bars([0.17, 0.19], WEEK[:2]))  # a limit of 0.19 by rounding, although 11.8 % away
    assert report["adjusted_moves"].count == report["close_beyond_limit"].count == 0


@pytest.mark.parametrize(("region", "count"), [("us", 1), ("crypto", 1)])
def test_regions_without_limits_report_only_moves_of_more_than_half(region: str, count: int) -> None:
    report = check_bars(bars([10.0, 14.0, 4.0], WEEK[:3], "AAPL"), region=region)
    assert report["adjusted_moves"].count == count
    with pytest.raises(KeyError, match="no check 'close_beyond_limit'"):
        report["close_beyond_limit"]


def test_suspensions_are_counted_against_the_calendar() -> None:
    frame = pd.concat([bars([10.0, 10.0], WEEK[[0, 4]]), bars([9.0, 9.0, 9.0], WEEK[[0, 2, 4]], "SZ000001")])
    report = check_bars(frame, calendar=WEEK)
    assert report["suspensions"].count == 3
    assert report["suspensions"].examples[0]["absent"] == 3
    assert "5 sessions in all; the longest has 3 (SH600000)" in report["suspensions"].message
    assert [day["datetime"] for day in report["empty_sessions"].examples] == ["2024-01-02", "2024-01-04"]


def test_bars_off_the_calendar_are_errors() -> None:
    report = check_bars(bars([10.0, 10.0], ["2024-01-05", "2024-01-06"]), calendar=WEEK)
    assert [error.name for error in report.errors] == ["off_calendar"]
    assert report["off_calendar"].examples[0]["datetime"] == "2024-01-06"


def slots(minutes: int, days: int = 2) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(
        np.concatenate(
            [
                pd.date_range(day + pd.Timedelta("9h45min"), periods=8, freq=f"{minutes}min").to_numpy()
                for day in WEEK[:days]
            ]
        )
    )


@pytest.mark.parametrize(
    ("minutes", "freq", "errors"),
    [(15, "15min", 0), (15, "5min", 16), (15, "day", 16), (5, "5min", 0), (5, "15min", 16)],
)
def test_frequency_of_intraday_bars(minutes: int, freq: str, errors: int) -> None:
    report = check_bars(bars([10.0] * 16, slots(minutes)), freq=freq)
    assert report["frequency"].count == errors


def test_daily_bars_called_intraday() -> None:
    assert check_bars(bars([10.0] * 5, WEEK), freq="15min")["frequency"].count == 5


def test_bars_missing_within_a_day() -> None:
    whole = bars([10.0] * 16, slots(15), "SZ000001")
    holed = bars([9.0] * 16, slots(15)).drop(index=[3, 4, 9])
    report = check_bars(pd.concat([whole, holed]), freq="15min")
    assert report["missing_bars"].count == 3
    assert [example["missing"] for example in report["missing_bars"].examples] == [2, 1]


def test_a_market_that_never_closes_has_no_holes() -> None:
    stamps = pd.date_range("2024-01-01", periods=10, freq="5min").delete([4, 5])
    report = check_bars(bars([10.0] * 8, stamps, "BTCUSDT"), freq="5min", region="crypto")
    assert report["missing_bars"].count == 2
    assert report["missing_bars"].examples[0]["datetime"] == "2024-01-01 00:30:00"


@pytest.mark.parametrize(("same", "runs"), [(4, 0), (5, 1), (7, 1)])
def test_stale_runs(same: int, runs: int) -> None:
    closes = [9.9, *[10.0] * same, 10.1]
    frame = bars(closes, pd.bdate_range("2024-01-01", periods=len(closes)))
    report = check_bars(frame)
    assert report["stale_bars"].count == runs
    assert check_bars(frame.assign(volume=0.0, amount=0.0))["stale_bars"].count == 0
    if runs:
        assert report["stale_bars"].examples[0]["length"] == same


def test_the_average_price_lies_in_the_range_up_to_a_tick() -> None:
    frame = bars([10.0] * 3, WEEK[:3]).assign(amount=[1000.0, 1001.0, 1003.0])
    report = check_bars(frame)
    assert report["average_price"].count == 1
    assert report["average_price"].examples[0]["average"] == 10.03
    assert check_bars(frame.assign(instrument="SH000300"))["average_price"].count == 0


def test_volume_in_lots_is_recognised() -> None:
    report = check_bars(bars([10.0] * 3, WEEK[:3]).assign(volume=1.0))
    assert "usually 100 times the close" in report["average_price"].message
    assert report.has_errors


def test_the_frame_is_not_changed_and_its_order_does_not_matter() -> None:
    frame = pd.concat([bars([10.0, 12.0, 10.0], WEEK[:3]), bars([5.0, 5.0], WEEK[[0, 2]], "SZ000001")])
    before = frame.copy()
    shuffled = check_bars(frame.iloc[[4, 1, 0, 3, 2]])
    sorted_ = check_bars(frame)
    pd.testing.assert_frame_equal(frame, before)
    kept = [check for check in shuffled.checks if check.name != "order"]
    assert kept == [check for check in sorted_.checks if check.name != "order"]
    assert shuffled["order"].count > 0


def test_the_report_as_json_and_as_a_table(tmp_path: Path) -> None:
    report = check_bars(bars([10.0, 12.0, np.nan], WEEK[:3]).assign(volume=[1.0, np.inf, 1.0]))
    report.to_json(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == report.to_dict()
    assert saved["has_errors"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (saved["rows"], saved["instruments"]) == (3, 1)
    assert (saved["start"], saved["end"]) == ("2024-01-01", "2024-01-03")
    table = str(report)
    assert table.index("error") < table.index("warning")
    assert "SH600000 2024-01-02" in table
    assert "not usable" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"freq": "1h"}, "unknown freq '1h'"), ({"freq": "0min"}, "unknown freq"), ({"region": "uk"}, "unknown region")],
)
def test_unknown_settings(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_bars(bars([10.0], WEEK[:1]), **arguments)  # type: ignore[arg-type]


def test_the_known_oddities_of_the_daily_file_are_found(shared_file: Callable[[str], Path]) -> None:
    report = check_bars(read_bars(shared_file("market/ashare_daily.parquet")))
    assert not report.has_errors
    assert report["close_beyond_limit"].count == 37
    assert report["close_beyond_limit_on_resumption"].count == 34
    assert "up to +738% after 483 sessions" in report["close_beyond_limit_on_resumption"].message
    assert report["range_beyond_limit"].count == 51
    found = {(example["instrument"], example["datetime"]) for example in report["adjusted_moves"].examples}
    assert found == {
        ("SH600481", "2008-01-21"),
        ("SH600660", "2009-04-21"),
        ("SZ000725", "2009-06-10"),
        ("SZ000738", "2010-10-15"),
    }
    clean = ("duplicates", "order", "ohlc", "nonfinite_prices", "nonpositive_prices", "average_price", "zero_volume")
    assert {name: report[name].count for name in clean} == dict.fromkeys(clean, 0)


def test_the_other_real_files(shared_file: Callable[[str], Path]) -> None:
    stocks = check_bars(read_bars(shared_file("market/us_daily.parquet")), region="us")
    assert (stocks["empty_bars"].count, stocks["zero_volume"].count) == (3, 111)
    coin = check_bars(read_bars(shared_file("market/btcusdt_5min.parquet")), freq="5min", region="crypto")
    assert [check.severity for check in coin.findings] == ["info"]
    intraday = check_bars(read_bars(shared_file("market/ashare_15min.parquet")), freq="15min")
    assert (intraday["empty_bars"].count, intraday["missing_bars"].count) == (1_182, 30)
    assert not any(report.has_errors for report in (stocks, coin, intraday))
