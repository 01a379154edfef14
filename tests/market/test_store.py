"""The Qlib store: its files, its numbers, and what pyqlib reads from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.market import store as store_module
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.members import read_members
from kronos_qlib.market.store import METADATA_FILE, store_calendar, store_metadata, write_store
from kronos_qlib.market.store_fields import STORE_FIELDS, store_bars
from kronos_qlib.market.store_files import feature_folder, is_index

# Sessions of Shanghai in January 2020, before the holiday: 2, 3, 6, 7, 8, 9, 10, 13, ...
SESSIONS = get_calendar("XSHG").between(pd.Timestamp("2020-01-02"), pd.Timestamp("2020-01-23"))


def bar(instrument: str, day: str, close: float, factor: float = 1.0, **others: float) -> dict:
    prices = {"open": close - 0.5, "high": close + 1, "low": close - 1, "close": close}
    base = {"volume": 1000.0, "amount": 1000.0 * close, "factor": factor, "event": 0}
    return {"instrument": instrument, "datetime": pd.Timestamp(day), **prices, **base, **others}


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two stocks, one of them split two for one and suspended on 6 and 7 January, and an index."""
    rows = [
        bar("SH600001", "2020-01-02", 10.0),
        bar("SH600001", "2020-01-03", 11.0),
        bar("SH600001", "2020-01-08", 6.05, factor=2.0, event=1),
        bar("SZ000001", "2020-01-03", 20.0, amount=np.nan),
        bar("SZ000001", "2020-01-06", 21.0, volume=0.0, amount=0.0),
        bar("SH000300", "2020-01-02", 4000.0),
    ]
    return pd.DataFrame(rows)


def read_bin(store: Path, code: str, field: str, freq: str = "day") -> tuple[int, list[float]]:
    values = np.fromfile(store / "features" / code / f"{field}.{freq}.bin", dtype="<f4")
    return int(values[0]), values[1:].tolist()


def test_features_follow_qlibs_adjusted_convention(frame: pd.DataFrame, tmp_path: Path) -> None:
    write_store(frame.sample(frac=1, random_state=3), tmp_path / "store")
    nan = np.nan
    expected = {
        "open": [9.5, 10.5, nan, nan, 11.1],
        "high": [11, 12, nan, nan, 14.1],
        "low": [9, 10, nan, nan, 10.1],
        "close": [10, 11, nan, nan, 12.1],
        "volume": [1000, 1000, nan, nan, 500],
        "amount": [10000, 11000, nan, nan, 6050],
        "vwap": [10, 11, nan, nan, 12.1],
        "factor": [1, 1, nan, nan, 2],
        "change": [nan, 0.1, nan, nan, 0.1],
        "event": [0, 0, nan, nan, 1],
    }
    assert set(expected) == set(STORE_FIELDS)
    for field, values in expected.items():
        start, found = read_bin(tmp_path / "store", "sh600001", field)
        assert start == 0
        np.testing.assert_allclose(found, values, rtol=1e-6, err_msg=field)
    start, amounts = read_bin(tmp_path / "store", "sz000001", "amount")
    assert start == 1
    assert amounts == [1000 * (19.5 + 21 + 19 + 20) / 4, 0]  # the missing one is volume x mean of the prices
    assert np.isnan(read_bin(tmp_path / "store", "sz000001", "vwap")[1][1])  # no volume, no average price


def test_calendars_reach_a_year_further(frame: pd.DataFrame, tmp_path: Path) -> None:
    metadata = write_store(frame, tmp_path / "store")
    past, ahead = store_calendar(tmp_path / "store", future=False), store_calendar(tmp_path / "store")
    assert list(past.strftime("%d")) == ["02", "03", "06", "07", "08"]
    assert list(ahead[:5]) == list(past)
    assert ahead[-1] >= pd.Timestamp("2021-01-08")
    assert list(ahead) == list(get_calendar("XSHG").between(past[0], ahead[-1]))
    assert metadata["future_until"] == str(ahead[-1])


def test_instruments_keep_spans_and_leave_indices_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    spans = pd.DataFrame(
        {
            "instrument": ["SH600001", "SH600001", "SZ000002", "SZ000001"],
            "start": ["2005-04-08", "2019-01-01", "2005-04-08", "2019-12-16"],
            "end": ["2006-01-01", "2026-05-08", "2026-05-08", "2020-01-03"],
        }
    )
    metadata = write_store(frame, tmp_path / "store", members={"CSI300": spans})
    text = (tmp_path / "store" / "instruments" / "csi300.txt").read_text()
    assert text.splitlines() == [
        "SH600001\t2005-04-08\t2006-01-01",
        "SH600001\t2019-01-01\t2026-05-08",
        "SZ000001\t2019-12-16\t2020-01-03",
    ]
    assert (tmp_path / "store" / "instruments" / "all.txt").read_text().splitlines() == [
        "SH600001\t2020-01-02\t2020-01-08",
        "SZ000001\t2020-01-03\t2020-01-06",
    ]
    assert metadata["universes"]["CSI300"] == {
        "codes": 2,
        "spans": 3,
        "codes_without_bars": 1,
        "spans_without_bars": 1,
        "examples_without_bars": ["SZ000002"],
    }


def test_metadata_describe_the_store(frame: pd.DataFrame, tmp_path: Path) -> None:
    metadata = write_store(frame, tmp_path / "store", notes={"repairs": {}}, extra={"report.json": "{}"})
    assert store_metadata(tmp_path / "store") == metadata
    wanted = {"calendar": "XSHG", "freq": "day", "region": "cn", "rows": 6, "instruments": 3, "indices": 1}
    assert {key: metadata[key] for key in wanted} == wanted
    assert (metadata["sessions"], metadata["amounts_estimated"], metadata["notes"]) == (5, 1, {"repairs": {}})
    assert (tmp_path / "store" / "report.json").read_text() == "{}"


def test_the_fingerprint_changes_with_any_bar_and_only_then(frame: pd.DataFrame, tmp_path: Path) -> None:
    first = write_store(frame, tmp_path / "a")["fingerprint"]
    assert write_store(frame.sample(frac=1, random_state=1), tmp_path / "b")["fingerprint"] == first
    changed = frame.copy()
    changed.loc[2, "high"] += 0.01
    assert write_store(changed, tmp_path / "c")["fingerprint"] != first


def test_an_interrupted_write_leaves_the_old_store(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    write_store(frame, store)
    before = {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}
    real = store_module.write_features

    def half(folder: Path, *rest: object) -> None:
        real(folder, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "write_features", half)
    changed = frame.assign(close=frame["close"] + 0.25)
    for target in (store, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            write_store(changed, target)
    assert {path: path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()} == before
    assert os.listdir(tmp_path) == ["store"]
    monkeypatch.undo()
    write_store(changed, store)
    assert read_bin(store, "sh600001", "close")[1][0] == 10.25


def test_intraday_stores_have_their_own_files(tmp_path: Path) -> None:
    stamps = get_calendar("XSHG", "15min").between(pd.Timestamp("2020-01-02"), pd.Timestamp("2020-01-04"))
    rows = [bar("SH600001", str(stamp), 10.0 + n / 10) for n, stamp in enumerate(stamps) if n != 20]
    spans = pd.DataFrame({"instrument": ["SH600001"], "start": ["2020-01-02"], "end": ["2020-01-03"]})
    write_store(pd.DataFrame(rows), tmp_path / "store", freq="15min", members={"few": spans})
    start, closes = read_bin(tmp_path / "store", "sh600001", "close", "15min")
    assert (start, len(closes)) == (0, 32)
    assert np.flatnonzero(np.isnan(closes)).tolist() == [20]
    assert store_calendar(tmp_path / "store", "15min", future=False)[16] == pd.Timestamp("2020-01-03 09:45")
    text = (tmp_path / "store" / "instruments" / "few.txt").read_text()
    assert text == "SH600001\t2020-01-02 00:00:00\t2020-01-03 23:59:59\n"


def test_stamps_outside_the_calendar_become_sessions(frame: pd.DataFrame, tmp_path: Path) -> None:
    saturday = pd.DataFrame([bar("SZ000001", "2020-01-04", 20.5)])
    write_store(pd.concat([frame, saturday]), tmp_path / "store")
    assert pd.Timestamp("2020-01-04") in store_calendar(tmp_path / "store", future=False)
    with pytest.warns(UserWarning, match="the bars' own stamps"):
        metadata = write_store(frame, tmp_path / "own", calendar=None)
    assert metadata["calendar"] is None
    assert len(store_calendar(tmp_path / "own", future=False)) == 4  # nobody traded on the 7th


bars_of_markets = st.dictionaries(
    st.sampled_from(["SH600001", "SZ000002", "SZ300003"]),
    st.dictionaries(st.integers(0, len(SESSIONS) - 1), st.tuples(st.floats(1, 100), st.floats(0.5, 8)), min_size=1),
    min_size=1,
)


@settings(max_examples=25, deadline=None)
@given(market=bars_of_markets)
def test_what_is_written_is_read_back(market: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [
        bar(code, str(SESSIONS[session]), close, factor)
        for code, days in market.items()
        for session, (close, factor) in days.items()
    ]
    store = tmp_path_factory.mktemp("round") / "store"
    write_store(pd.DataFrame(rows), store)
    sessions = store_calendar(store, future=False)
    found = {}
    for code in market:
        start, closes = read_bin(store, code.lower(), "close")
        found |= {(code, sessions[start + n]): close for n, close in enumerate(closes) if not np.isnan(close)}
    expected = {(row["instrument"], row["datetime"]): float(np.float32(row["close"] * row["factor"])) for row in rows}
    assert found == expected


def test_names_of_codes_and_devices() -> None:
    assert is_index("SH000300")
    assert is_index("sz399006")
    assert not is_index("SZ000001")
    assert not is_index("SH000300", region="us")
    assert feature_folder("SH600000") == "sh600000"
    assert feature_folder("PRN") == "_qlib_prn"  # a US ticker, and a device of Windows


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda f: f.drop(columns="low"), {}, "no column 'low'"),
        (lambda f: f.assign(close=np.nan), {}, "no traded bar"),
        (lambda f: f.iloc[:0], {}, "no traded bar"),
        (lambda f: f.assign(open=[np.nan, *f["open"][1:]]), {}, "1 bars have a price missing.*SH600001 at 2020-01-02"),
        (lambda f: f.assign(factor=[0.0, *f["factor"][1:]]), {}, "factor <= 0"),
        (lambda f: f.assign(factor=[np.nan, *f["factor"][1:]]), {}, "factor <= 0"),
        (lambda f: f.assign(volume=[np.inf, *f["volume"][1:]]), {}, "infinite value"),
        (lambda f: f.assign(close=["x"] * len(f)), {}, "'close' holds values that are no numbers"),
        (lambda f: pd.concat([f, f.iloc[[0]]]), {}, "1 bars occur twice"),
        (lambda f: f.assign(instrument=["../evil", *f["instrument"][1:]]), {}, "cannot name a folder, first '../evil'"),
        (lambda f: f.assign(instrument=["sz000001", *f["instrument"][1:]]), {}, "differ only by case"),
        (lambda f: f, {"freq": "month"}, "freq='month'"),
        (lambda f: f, {"calendar": "XSHX"}, "found calendar 'XSHX'"),
        (lambda f: f, {"calendar": get_calendar("24/7", "5min")}, "has freq '5min': expected 'day'"),
        (lambda f: f, {"members": {"a/b": None}}, "universe name 'a/b'"),
        (lambda f: f, {"members": {"all": None}}, "universe name 'all'"),
        (
            lambda f: f,
            {"members": {"x": pd.DataFrame({"instrument": ["600001.SH"], "start": ["2020"], "end": ["2021"]})}},
            "no code of universe 'x' has bars.*600001.SH",
        ),
    ],
)
def test_bad_input_leaves_nothing_behind(
    frame: pd.DataFrame, change, options: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        write_store(change(frame), tmp_path / "store", **options)
    assert os.listdir(tmp_path) == []


def test_a_foreign_folder_and_an_impossible_place_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not written by kronos_qlib"):
        write_store(frame, tmp_path)
    with pytest.raises(ValueError, match="cannot be written"):
        write_store(frame, tmp_path / "notes.txt" / "store")
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_metadata_that_are_missing_damaged_or_newer_are_named(frame: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no kronos_store\.json"):
        store_metadata(tmp_path)
    with pytest.raises(ValueError, match="no calendar"):
        store_calendar(tmp_path)
    (tmp_path / METADATA_FILE).write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        store_metadata(tmp_path)
    (tmp_path / METADATA_FILE).write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="version 99: expected 1"):
        store_metadata(tmp_path)


READ_WITH_QLIB = """
import sys
import qlib
from qlib.data import D
store, out, freq = sys.argv[1:]
qlib.init(provider_uri=store, region="cn", logging_level=40)
fields = ["$" + name for name in "{fields}".split()]
D.features(D.instruments("few"), fields, freq=freq).reset_index().to_parquet(out)
print(len(D.calendar(freq=freq)), len(D.calendar(freq=freq, future=True)))
print(*D.list_instruments(D.instruments("all"), freq=freq, as_list=True))
"""


def read_with_qlib(store: Path, freq: str, tmp_path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read the universe ``few`` in a fresh process: qlib keeps one provider for a process."""
    script = READ_WITH_QLIB.replace("{fields}", " ".join(STORE_FIELDS))
    command = [sys.executable, "-c", script, str(store), str(tmp_path / "read.parquet"), freq]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(tmp_path / "read.parquet").set_index(["instrument", "datetime"])
    return frame, done.stdout.strip().splitlines()


@pytest.mark.parametrize(
    ("file", "codes", "freq"),
    [
        ("market/ashare_daily.parquet", ["SH600000", "SZ000725", "SH600705", "SH000300"], "day"),
        ("market/ashare_15min.parquet", ["SH600000", "SH600009"], "15min"),
    ],
)
def test_qlib_reads_the_vendors_values(shared_file, tmp_path: Path, file: str, codes: list[str], freq: str) -> None:
    frame = pd.read_parquet(shared_file(file), filters=[("instrument", "in", codes)])
    frame["instrument"] = frame["instrument"].astype(str)
    spans = pd.DataFrame({"instrument": codes, "start": frame["datetime"].min().normalize(), "end": "2026-05-08"})
    metadata = write_store(frame, tmp_path / "store", members={"few": spans}, freq=freq)
    found, printed = read_with_qlib(tmp_path / "store", freq, tmp_path)
    assert int(printed[0].split()[0]) == metadata["sessions"]
    assert int(printed[0].split()[1]) == len(store_calendar(tmp_path / "store", freq))
    assert printed[1].split() == [code for code in sorted(codes) if not is_index(code)]
    traded = found[found["$close"].notna()]
    assert len(traded) == len(frame) == metadata["rows"]
    vendor = frame.set_index(["instrument", "datetime"]).reindex(traded.index).astype(np.float64)
    factor = vendor.get("factor", 1.0)
    for field in ("open", "high", "low", "close"):
        np.testing.assert_allclose(traded[f"${field}"], vendor[field] * factor, rtol=2e-7)
    np.testing.assert_allclose(traded["$volume"], vendor["volume"] / factor, rtol=2e-7)
    np.testing.assert_array_equal(traded["$amount"], vendor["amount"])
    stocks = ~traded.index.get_level_values("instrument").isin(["SH000300"])
    average = traded["$vwap"][stocks & (traded["$volume"] > 0)]
    assert (average >= traded["$low"].loc[average.index] * 0.995).mean() > 0.99
    assert (average <= traded["$high"].loc[average.index] * 1.005).mean() > 0.99
    expected = traded["$close"].groupby(level="instrument").pct_change()
    np.testing.assert_allclose(traded["$change"], expected, atol=2e-6)


def test_store_bars_of_real_rows_need_no_order(shared_file) -> None:
    path = shared_file("market/ashare_daily.parquet")
    frame = pd.read_parquet(path, filters=[("instrument", "in", ["SH600000", "SZ000725"])])
    one, other = store_bars(frame), store_bars(frame.sample(frac=1, random_state=0))
    np.testing.assert_array_equal(one.values, other.values)
    assert one.layout.instruments == ("SH600000", "SZ000725")


@pytest.mark.slow
def test_the_whole_market_is_written_in_time(shared_file, tmp_path: Path) -> None:
    frame = pd.read_parquet(shared_file("market/ashare_daily.parquet"))
    spans = read_members(shared_file("market/csi300_members.txt"))
    metadata = write_store(frame, tmp_path / "store", members={"csi300": spans})
    assert (metadata["rows"], metadata["instruments"], metadata["sessions"]) == (2_116_561, 776, 3406)
    facts = metadata["universes"]["csi300"]
    assert (facts["codes"], facts["codes_without_bars"]) == (771, 168)
