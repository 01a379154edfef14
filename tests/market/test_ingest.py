"""From vendor files to a store, and what stops the way."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.ingest import REPORT_FILE, IngestError, ingest
from kronos_qlib.market.store import store_metadata

SESSIONS = get_calendar("XSHG").between(pd.Timestamp("2019-06-03"), pd.Timestamp("2019-08-30"))


def bars() -> pd.DataFrame:
    """Two stocks that move within their limits; SZ000001 pauses for five sessions."""
    rows = []
    for number, code in enumerate(["SH600001", "SZ000001"]):
        for session, day in enumerate(SESSIONS):
            if code == "SZ000001" and 10 <= session < 15:
                continue
            close = round(10 + number + 0.3 * np.sin(session), 2)
            rows.append((code, day, close - 0.05, close + 0.1, close - 0.1, close, 1000.0, 1000 * close, 1.0))
    names = ["instrument", "datetime", "open", "high", "low", "close", "volume", "amount", "factor"]
    return pd.DataFrame(rows, columns=names)


@pytest.fixture
def members(tmp_path: Path) -> Path:
    path = tmp_path / "members.txt"
    path.write_text("SH600001\t2019-01-01\t2020-12-31\nSH600002\t2019-01-01\t2020-12-31\n")
    return path


def read_field(store: Path, code: str, field: str) -> np.ndarray:
    return np.fromfile(store / "features" / code / f"{field}.day.bin", dtype="<f4")[1:]


def save(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_parquet(path)
    return path


def test_clean_bars_become_a_store_with_its_report(tmp_path: Path, members: Path) -> None:
    path = save(bars(), tmp_path / "bars.parquet")
    result = ingest(path, tmp_path / "store", members={"few": members}, report=tmp_path / "reports" / "r.json")
    assert result.repair.total == 0
    assert result.contract_after is None
    assert result.events["RESUMED"] == 1
    assert read_field(tmp_path / "store", "sz000001", "event")[15] == 1
    assert np.isnan(read_field(tmp_path / "store", "sz000001", "close")[10:15]).all()
    saved = json.loads((tmp_path / "store" / REPORT_FILE).read_text())
    assert saved == json.loads((tmp_path / "reports" / "r.json").read_text())
    assert saved["contract"]["rows"] == len(bars())
    assert result.to_dict()["contract"] == saved["contract"]
    assert result.to_dict()["store"] == store_metadata(tmp_path / "store")
    assert saved["files"][0]["name"] == "bars.parquet"
    for told in ("few: 1 codes", "1 codes without bars", "RESUMED 1", "123 bars of 2 instruments"):
        assert told in str(result)


def test_several_files_in_several_formats_make_one_store(tmp_path: Path) -> None:
    frame = bars()
    first = save(frame[frame["instrument"] == "SH600001"].reset_index(drop=True), tmp_path / "one.parquet")
    second = tmp_path / "two.csv"
    frame[frame["instrument"] == "SZ000001"].to_csv(second, index=False)
    parts = ingest([first, second], tmp_path / "parts")
    whole = ingest(save(frame, tmp_path / "whole.parquet"), tmp_path / "whole")
    assert parts.store["fingerprint"] == whole.store["fingerprint"]


def test_repairs_are_counted_marked_and_checked_again(tmp_path: Path) -> None:
    frame = bars()
    frame.loc[3, "volume"] = np.nan
    frame.loc[20, "close"] = -1.0
    path = save(frame, tmp_path / "bars.parquet")
    result = ingest(path, tmp_path / "store", repair="forward_fill")
    assert result.contract.has_errors
    assert result.contract_after is not None
    assert not result.contract_after.has_errors
    assert result.events["REPAIRED"] == 2
    events = read_field(tmp_path / "store", "sh600001", "event").astype(int)
    assert np.flatnonzero(events & 16).tolist() == [3, 20]
    assert result.store["notes"]["repairs"] == result.repair.counts
    assert result.store["notes"]["repair"]["name"] == "forward_fill"
    assert "after repair:" in str(result)
    dropped = ingest(path, tmp_path / "dropped")
    assert dropped.store["rows"] == len(frame) - 1


def test_an_error_that_no_repair_mends_stops_the_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = bars()
    frame.loc[5, "amount"] *= 1e6  # no trade can have that average price
    frame.loc[5, "close"] = -1.0
    path = save(frame, tmp_path / "bars.parquet")
    # A policy that mends nothing: what the contract found must then stop the ingest.
    monkeypatch.setattr("kronos_qlib.market.ingest.repair_bars", unrepaired)
    with pytest.raises(IngestError, match=r"repair policy 'default' does not mend it.*nothing was written"):
        ingest(path, tmp_path / "store", report=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["contract"]["has_errors"]
    assert sorted(os.listdir(tmp_path)) == ["bars.parquet", "report.json"]


def unrepaired(frame: pd.DataFrame, policy: object, *, for_inference: bool) -> tuple[pd.DataFrame, object]:
    from kronos_qlib.market.repair import RepairReport, repair_policy

    return frame, RepairReport(repair_policy(policy).to_dict(), len(frame), len(frame))  # type: ignore[arg-type]


def test_duplicates_stop_the_default_policy_and_leave_the_old_store(tmp_path: Path) -> None:
    ingest(save(bars(), tmp_path / "bars.parquet"), tmp_path / "store")
    before = store_metadata(tmp_path / "store")
    twice = pd.concat([bars(), bars().iloc[[7]]], ignore_index=True)
    path = save(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="1 bars occur more than once"):
        ingest(path, tmp_path / "store")
    assert store_metadata(tmp_path / "store") == before
    again = ingest(path, tmp_path / "store", repair="forward_fill")
    assert again.store["fingerprint"] == before["fingerprint"]


def test_interpolation_reads_the_future_and_must_be_asked_for(tmp_path: Path) -> None:
    frame = bars()
    frame.loc[20, "close"] = np.nan
    path = save(frame, tmp_path / "bars.parquet")
    with pytest.raises(ValueError, match="later bars"):
        ingest(path, tmp_path / "store", repair="interpolate")
    result = ingest(path, tmp_path / "store", repair="interpolate", allow_future=True)
    assert result.store["notes"]["repair"]["uses_future"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": "nowhere.parquet"}, "nowhere.parquet"),
        ({"members": {"few": "nowhere.txt"}}, r"nowhere\.txt cannot be read"),
        ({"calendar": "XSHX"}, "found calendar 'XSHX'"),
        ({"freq": "fortnight"}, "freq='fortnight'"),
        ({"region": "mars"}, "mars"),
        ({"repair": "defualt"}, "Did you mean 'default'"),
        ({"freq": "15min"}, "freq|day|15min"),
    ],
)
def test_bad_requests_leave_nothing_behind(tmp_path: Path, options: dict, message: str) -> None:
    path = save(bars(), tmp_path / "bars.parquet")
    options = {"files": path, "out": tmp_path / "store", **options}
    with pytest.raises(ValueError, match=message):
        ingest(**options)
    assert os.listdir(tmp_path) == ["bars.parquet"]


def test_a_report_that_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    path = save(bars(), tmp_path / "bars.parquet")
    with pytest.raises(ValueError, match="cannot be written"):
        ingest(path, tmp_path / "store", report=path / "below" / "report.json")
    assert os.listdir(tmp_path) == ["bars.parquet"]


def test_later_bars_never_change_what_is_stored_before(shared_file, tmp_path: Path) -> None:
    """Real bars with all after a day of 2014 removed or altered: fields up to it stay bit-identical."""
    codes = ["SH600000", "SZ000725", "SZ000738", "SH600481"]
    frame = pd.read_parquet(shared_file("market/ashare_daily.parquet"), filters=[("instrument", "in", codes)])
    frame["instrument"] = frame["instrument"].astype(str)
    late = frame["datetime"] > pd.Timestamp("2014-06-30")
    altered = frame.copy()
    altered.loc[late, ["open", "high", "low", "close", "amount"]] *= 1.5
    stores = {"whole": frame, "removed": frame[~late].reset_index(drop=True), "altered": altered}
    for name, version in stores.items():
        ingest(save(version, tmp_path / f"{name}.parquet"), tmp_path / name)
    for code in codes:
        for file in sorted((tmp_path / "whole" / "features" / code.lower()).iterdir()):
            whole, removed, other = (
                np.fromfile(tmp_path / name / "features" / code.lower() / file.name, dtype="<f4") for name in stores
            )
            np.testing.assert_array_equal(whole[: len(removed)].view(np.uint32), removed.view(np.uint32))
            np.testing.assert_array_equal(other[: len(removed)].view(np.uint32), removed.view(np.uint32))


@pytest.mark.parametrize(
    ("file", "options", "rows", "dropped"),
    [
        (
            "market/us_daily.parquet",
            {"calendar": "XNYS", "region": "us"},
            108_592,
            3,
        ),  # three wholly empty rows on 2016-06-29
        ("market/btcusdt_5min.parquet", {"calendar": "24/7", "region": "crypto", "freq": "5min"}, 66_584, 0),
    ],
)
def test_other_markets_are_ingested(
    shared_file, tmp_path: Path, file: str, options: dict, rows: int, dropped: int
) -> None:
    result = ingest(shared_file(file), tmp_path / "store", **options)
    assert sum(result.repair.counts.values()) == dropped
    assert result.store["rows"] == result.store["amounts_estimated"] == rows - dropped
    assert result.store["calendar"] == options["calendar"]


@pytest.mark.slow
def test_the_whole_market_is_ingested_within_a_minute(shared_file, tmp_path: Path) -> None:
    begin, used = time.perf_counter(), time.process_time()
    members = shared_file("market/csi300_members.txt")
    result = ingest(shared_file("market/ashare_daily.parquet"), tmp_path / "store", members={"csi300": members})
    assert time.process_time() - used < 30
    assert time.perf_counter() - begin < 60
    assert result.store["rows"] == 2_116_561
    assert result.contract["close_beyond_limit"].count == 37
    assert result.contract["range_beyond_limit"].count == 51
