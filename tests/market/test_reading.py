"""Vendor files that can be read: formats, names of columns, stamps, precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.reading import read_bars

HEAD = "instrument,datetime,open,high,low,close,volume\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def vendor_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "instrument": pd.Categorical(["SZ000001", "SH600000"], categories=["SZ000001", "SH600000"]),
            "datetime": pd.to_datetime(["2024-01-02", "2024-01-02"]),
            "open": np.array([9, 10], dtype=np.float32),
            "high": np.array([9.5, 10.5], dtype=np.float32),
            "low": np.array([8.5, 9.5], dtype=np.float32),
            "close": np.array([9.1, 10.1], dtype=np.float32),
            "volume": np.array([100, 200], dtype=np.int64),
            "amount": np.array([910.0, 2020.0]),
            "factor": np.array([1.0, 2.0]),
            "note": ["x", "y"],
        }
    )


def test_parquet_keeps_precision_order_and_only_our_columns(tmp_path: Path) -> None:
    vendor_frame().to_parquet(tmp_path / "bars.parquet")
    frame = read_bars([tmp_path / "bars.parquet"])
    assert list(frame.columns) == [
        *("instrument", "datetime", "open", "high", "low", "close", "volume", "amount", "factor")
    ]
    assert frame["instrument"].tolist() == ["SZ000001", "SH600000"]
    assert frame["instrument"].cat.categories.tolist() == ["SH600000", "SZ000001"]
    assert frame["datetime"].dtype == "datetime64[ns]"
    assert frame["close"].dtype == np.float32
    assert frame["volume"].dtype == np.float64


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_and_parquet_give_the_same_bars(tmp_path: Path, suffix: str) -> None:
    source = vendor_frame().astype(dict.fromkeys(("open", "high", "low", "close"), float))
    source.to_parquet(tmp_path / "bars.parquet")
    source.to_csv(tmp_path / f"bars{suffix}", index=False)
    pd.testing.assert_frame_equal(read_bars(tmp_path / f"bars{suffix}"), read_bars(tmp_path / "bars.parquet"))


@pytest.mark.parametrize("stamp", ["20240102", "2024-01-02", " 2024-01-02 ", "2024-01-02 00:00:00"])
def test_common_names_and_stamps_are_understood(tmp_path: Path, stamp: str) -> None:
    text = f"Symbol,Date,Open,High,Low,Close,Vol,Amt\n000001,{stamp},1,2,1,1.5,100,150\n"
    row = read_bars(write(tmp_path / "a.csv", text)).iloc[0].to_dict()
    expected = {"instrument": "000001", "datetime": pd.Timestamp("2024-01-02"), "open": 1, "high": 2, "low": 1}
    assert row == expected | {"close": 1.5, "volume": 100, "amount": 150}


def test_an_explicit_mapping_wins_over_common_names(tmp_path: Path) -> None:
    text = "code,date,open,high,low,close,px_last,volume\nAAPL,2024-01-02,1,2,1,1.5,1.6,100\n"
    frame = read_bars(write(tmp_path / "a.csv", text), columns={"px_last": "close"})
    assert frame["close"].tolist() == [1.6]


def test_a_file_of_one_instrument_is_told_its_code(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEAD.removeprefix("instrument,") + "2024-01-02,1,2,1,1.5,100\n")
    assert read_bars(path, instrument="SH600000")["instrument"].tolist() == ["SH600000"]


def test_missing_numbers_stay_missing(tmp_path: Path) -> None:
    frame = read_bars(write(tmp_path / "a.csv", HEAD + "AAPL,2024-01-02,1,2,1,,inf\nAAPL,,1,2,1,1,1\n"))
    assert np.isnan(frame["close"][0])
    assert np.isinf(frame["volume"][0])
    assert frame["datetime"].isna().tolist() == [False, True]


def test_adjusted_close_becomes_a_factor(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEAD.replace("close", "close,Adj Close") + "AAPL,2024-01-02,1,2,1,2,1,100\n")
    frame = read_bars(path)
    assert frame["factor"].tolist() == [0.5]
    assert "adj_close" not in frame


def test_stamps_with_zones_become_the_wall_clock_that_was_asked_for(tmp_path: Path) -> None:
    rows = "SH600000,2024-01-02T09:45:00+08:00,1,2,1,1,1\nSH600000,2024-01-02T02:00:00Z,1,2,1,1,1\n"
    frame = read_bars(write(tmp_path / "a.csv", HEAD + rows), timezone="Asia/Shanghai")
    assert frame["datetime"].tolist() == [pd.Timestamp("2024-01-02 09:45"), pd.Timestamp("2024-01-02 10:00")]


def test_several_files_follow_each_other_as_they_were_named(tmp_path: Path) -> None:
    one = write(tmp_path / "1.csv", HEAD + "SZ000001,2024-01-02,1,2,1,1,1\n")
    two = write(tmp_path / "2.csv", HEAD + "SH600000,2024-01-02,3,4,3,3,1\nSZ000001,2024-01-02,5,6,5,5,1\n")
    frame = read_bars([two, one])
    assert frame["instrument"].astype(str).tolist() == ["SH600000", "SZ000001", "SZ000001"]
    assert frame["open"].tolist() == [3, 5, 1]
    assert frame.index.tolist() == [0, 1, 2]
    assert list(frame.columns) == list(read_bars(one).columns)


@pytest.mark.parametrize(
    ("name", "rows", "instruments"),
    [
        ("ashare_daily", 2_116_561, 776),
        ("us_daily", 108_592, 88),
        ("btcusdt_5min", 66_584, 1),
        ("ashare_15min", 768_000, 160),
    ],
)
def test_real_files(shared_file: Callable[[str], Path], name: str, rows: int, instruments: int) -> None:
    frame = read_bars(shared_file(f"market/{name}.parquet"))
    assert len(frame) == rows
    assert len(frame["instrument"].cat.categories) == instruments
    assert ("factor" in frame) == (name in ("ashare_daily", "us_daily"))
