"""Bad inputs, one a row: each is an error that says what was found, or a finding of the contract by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.contract import check_bars
from kronos_qlib.market.reading import BarFileError, read_bars
from kronos_qlib.market.repair import repair_bars

HEAD = "instrument,datetime,open,high,low,close,volume\n"
ROW = "SH600000,2024-01-02,1,2,1,1.5,100\n"


def good_frame() -> pd.DataFrame:
    dates = pd.bdate_range("2024-01-02", periods=6)
    close = np.array([10.0, 10.1, 10.2, 10.1, 10.3, 10.2])
    columns = {"open": close, "high": close + 0.1, "low": close - 0.1, "close": close}
    frame = pd.DataFrame({"instrument": "SH600000", "datetime": dates, **columns})
    return frame.assign(volume=1000.0, amount=1000.0 * close, factor=1.0)


def text(content: str, name: str = "bars.csv") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def truncated(folder: Path) -> Path:
    good_frame().to_parquet(folder / "whole.parquet")
    whole = (folder / "whole.parquet").read_bytes()
    (folder / "bars.parquet").write_bytes(whole[: len(whole) // 2])
    return folder / "bars.parquet"


def damaged_inside(folder: Path) -> Path:
    good_frame().to_parquet(folder / "bars.parquet")
    content = bytearray((folder / "bars.parquet").read_bytes())
    content[4:200] = bytes(196)
    (folder / "bars.parquet").write_bytes(content)
    return folder / "bars.parquet"


def frame_file(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        change(good_frame()).to_parquet(folder / "bars.parquet")
        return folder / "bars.parquet"

    return make


def gbk(folder: Path) -> Path:
    (folder / "bars.csv").write_bytes((HEAD + ROW.replace("SH600000", "浦发银行")).encode("gbk"))
    return folder / "bars.csv"


def folder_itself(folder: Path) -> Path:
    return folder


MIXED = HEAD + "A,2024-01-02T09:45:00+08:00,1,2,1,1,1\n"

UNREADABLE = {
    "missing file": (lambda folder: folder / "bars.csv", "no such file"),
    "folder": (folder_itself, "is a folder"),
    "unknown extension": (text(HEAD + ROW, "bars.xlsx"), "unknown extension '.xlsx'"),
    "empty csv": (text(""), r"empty \(0 bytes\)"),
    "empty parquet": (text("", "bars.parquet"), r"empty \(0 bytes\)"),
    "header only": (text(HEAD), "no row"),
    "truncated parquet": (truncated, "not a whole parquet file"),
    "parquet damaged inside": (damaged_inside, "not a whole parquet file"),
    "text named parquet": (text(HEAD + ROW, "bars.parquet"), "not a whole parquet file"),
    "gbk text": (gbk, "not UTF-8"),
    "missing column": (text(HEAD.replace("close", "clsoe") + ROW), r"\['close'\] are missing.*'clsoe'"),
    "no volume": (text("instrument,datetime,open,high,low,close\nA,2024-01-02,1,2,1,1\n"), r"\['volume'\] are"),
    "no instrument": (text(HEAD.removeprefix("instrument,") + "2024-01-02,1,2,1,1,1\n"), "instrument='SH600000'"),
    "empty instrument": (text(HEAD + ROW + ",2024-01-03,1,2,1,1,1\n"), "1 rows have no instrument.*row 2"),
    "two columns for one": (text("code,symbol," + HEAD.removeprefix("instrument,") + "A,B" + ROW[8:]), "could be"),
    "string in prices": (text(HEAD + ROW + "A,2024-01-03,1,2,1,n.a.?,1\n"), "'close'.*'n.a.\\?' in data row 2"),
    "thousands separators": (text(HEAD + 'A,2024-01-03,"1,000",2,1,1,1\n'), "thousands separators"),
    "numbers as text": (frame_file(lambda frame: frame.astype({"close": str})), "numbers stored as text"),
    "booleans": (frame_file(lambda frame: frame.assign(volume=True)), "true/false"),
    "unreadable stamp": (text(HEAD + ROW + "A,soon,1,2,1,1,1\n"), "1 of 2 stamps.*'soon' in data row 2"),
    "epoch numbers": (frame_file(lambda frame: frame.assign(datetime=1704153600)), "holds numbers"),
    "numeric codes": (frame_file(lambda frame: frame.assign(instrument=1)), "leading zeros"),
    "mixed offsets": (text(MIXED + "A,2024-01-02T09:45:00Z,1,2,1,1,1\n"), "mixed time zones"),
    "zone on some": (text(MIXED + "A,2024-01-02T10:00:00,1,2,1,1,1\n"), "mixed time zones"),
    "a zone nobody asked for": (text(MIXED), "time zone UTC"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files(case: str, tmp_path: Path) -> None:
    make, message = UNREADABLE[case]
    path = make(tmp_path)
    with pytest.raises(BarFileError, match=message) as caught:
        read_bars(path)
    assert str(path) in str(caught.value)


def test_no_file() -> None:
    with pytest.raises(BarFileError, match="no file was given"):
        read_bars([])


def test_zones_that_differ_between_files(tmp_path: Path) -> None:
    naive, zoned = tmp_path / "naive.csv", tmp_path / "zoned.csv"
    naive.write_text(HEAD + ROW)
    zoned.write_text(MIXED)
    for timezone in (None, "Asia/Shanghai"):
        with pytest.raises(BarFileError, match=r"mixed time zones across files: .*naive\.csv.*zoned\.csv"):
            read_bars([naive, zoned], timezone=timezone)


def test_an_unknown_zone(tmp_path: Path) -> None:
    with pytest.raises(BarFileError, match="unknown time zone 'Mars'"):
        read_bars(text(MIXED)(tmp_path), timezone="Mars")


def test_files_with_different_columns(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text(HEAD + ROW)
    two.write_text(HEAD.replace("\n", ",amount\n") + ROW.replace("\n", ",150\n"))
    with pytest.raises(BarFileError, match="different columns"):
        read_bars([one, two])


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"px": "close"}, r"names \['px'\], which the file lacks"), ({"close": "last"}, r"leads to \['last'\]")],
)
def test_a_column_mapping_with_a_mistake(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(BarFileError, match=message):
        read_bars(text(HEAD + ROW)(tmp_path), columns=columns)


def put(name: str, value: object, row: int = 2) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, name] = value
        return frame

    return change


# case: change of six good bars -> (check that must find it, severity)
ODD_FRAMES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str]] = {
    "no row": (lambda frame: frame.iloc[:0], "bars", "error"),
    "missing column": (lambda frame: frame.drop(columns="high"), "columns", "error"),
    "column twice": (lambda frame: pd.concat([frame, frame[["close"]]], axis=1), "columns", "error"),
    "strings in prices": (lambda frame: frame.astype({"open": str}), "dtypes", "error"),
    "dates as text": (lambda frame: frame.astype({"datetime": str}), "dtypes", "error"),
    "time zone": (lambda frame: frame.assign(datetime=frame["datetime"].dt.tz_localize("UTC")), "time_zone", "error"),
    "no stamp": (put("datetime", pd.NaT), "missing_keys", "error"),
    "NaN price": (put("close", np.nan), "nonfinite_prices", "error"),
    "infinite price": (put("high", np.inf), "nonfinite_prices", "error"),
    "zero price": (put("low", 0.0), "nonpositive_prices", "error"),
    "negative price": (put("open", -1.0), "nonpositive_prices", "error"),
    "high below low": (put("high", 9.0), "ohlc", "error"),
    "close above high": (put("close", 11.0), "ohlc", "error"),
    "negative volume": (put("volume", -5.0), "impossible_volume", "error"),
    "infinite amount": (put("amount", np.inf), "impossible_volume", "error"),
    "missing volume": (put("volume", np.nan), "missing_volume", "warning"),
    "zero volume": (put("volume", 0.0), "zero_volume", "warning"),
    "zero factor": (put("factor", 0.0), "factor", "error"),
    "duplicates": (lambda frame: pd.concat([frame, frame.tail(1)]), "duplicates", "error"),
    "unsorted": (lambda frame: frame.iloc[::-1], "order", "warning"),
    "wrong frequency": (
        lambda frame: frame.assign(datetime=frame["datetime"] + pd.Timedelta("9h")),
        "frequency",
        "error",
    ),
    "units of lots": (lambda frame: frame.assign(volume=frame["volume"] / 100), "average_price", "error"),
    "empty bar": (
        lambda frame: frame.assign(**{name: frame[name].where(frame.index != 2) for name in frame.columns[2:8]}),
        "empty_bars",
        "warning",
    ),
    "one bar": (lambda frame: frame.head(1), "single_bars", "info"),
    "unknown code": (lambda frame: frame.assign(instrument="600000.SH"), "unknown_boards", "warning"),
}


@pytest.mark.parametrize("case", ODD_FRAMES)
def test_the_contract_finds_what_is_wrong(case: str) -> None:
    change, name, severity = ODD_FRAMES[case]
    assert not check_bars(good_frame()).findings
    report = check_bars(change(good_frame()))
    assert report[name].count > 0
    assert report[name].severity == severity
    assert report.has_errors == (severity == "error")
    assert name in str(report)


NOT_REPAIRABLE = ("no row", "missing column", "column twice", "strings in prices", "dates as text", "time zone")
NOT_VALUES = ("wrong frequency", "units of lots")


@pytest.mark.parametrize("policy", ["forward_fill", "interpolate"])
@pytest.mark.parametrize("case", [case for case in ODD_FRAMES if case not in NOT_REPAIRABLE + NOT_VALUES])
def test_what_the_contract_finds_is_mended_and_counted(case: str, policy: str) -> None:
    change, _, severity = ODD_FRAMES[case]
    repaired, report = repair_bars(change(good_frame()), policy)
    assert not check_bars(repaired).has_errors
    if severity == "error":
        assert report.total > 0


@pytest.mark.parametrize("case", NOT_REPAIRABLE[1:])
def test_a_frame_of_the_wrong_form_is_refused_by_repairs(case: str) -> None:
    change, name, _ = ODD_FRAMES[case]
    with pytest.raises(ValueError, match=f"cannot be repaired. {name}"):
        repair_bars(change(good_frame()))
