"""A store that has grown day by day is the store of the whole file; a changed past is refused and shown."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_market import bars, members
from typer.testing import CliRunner

from kronos_qlib.cli import app
from kronos_qlib.market.append import append
from kronos_qlib.market.history import HistoryChangedError
from kronos_qlib.market.ingest import ingest
from kronos_qlib.market.store import store_calendar, store_metadata

CUT = pd.Timestamp("2020-08-05")  # within the halts of SH600001 and SZ000001; SZ000004 lists later


def save(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_parquet(path)
    return path


def until(day: pd.Timestamp) -> pd.DataFrame:
    frame = bars()
    return frame[frame["datetime"] <= day].reset_index(drop=True)


def spans_until(day: pd.Timestamp) -> pd.DataFrame:
    spans = members()
    spans = spans[spans["start"] <= day]
    return spans.assign(end=spans["end"].where(spans["end"] <= day, day))


def features(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted((store / "features").rglob("*.bin"))}


@pytest.fixture(scope="module", autouse=True)
def unsynced() -> Iterator[None]:
    """Do not wait for the disk: what is there after a power cut is no matter of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kronos_qlib.market.swap.sync_tree", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores: ``young``, which ends on CUT, and ``whole``."""
    folder = tmp_path_factory.mktemp("stores")
    ingest(save(until(CUT), folder / "young.parquet"), folder / "young", {"csi300": spans_until(CUT)})
    ingest(save(bars(), folder / "whole.parquet"), folder / "whole", {"csi300": members()})
    return folder


@pytest.fixture
def young(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "young", tmp_path / "store"))


def assert_same_store(found: Path, wanted: Path) -> None:
    assert features(found) == features(wanted)
    for folder in ("calendars", "instruments"):
        for path in (wanted / folder).iterdir():
            assert (found / folder / path.name).read_text() == path.read_text()
    left, right = store_metadata(found), store_metadata(wanted)
    assert {k: v for k, v in left.items() if k != "notes"} == {k: v for k, v in right.items() if k != "notes"}


@pytest.mark.parametrize("history", ["whole", "end"])
def test_appending_gives_the_store_of_the_whole_file(tmp_path: Path, young: Path, written: Path, history: str) -> None:
    before = features(young)
    reach = bars()["datetime"] > (pd.Timestamp("2020-01-01") if history == "end" else pd.Timestamp(0))
    result = append(save(bars()[reach].reset_index(drop=True), tmp_path / "new.parquet"), young, {"csi300": members()})
    assert_same_store(young, written / "whole")
    for name, content in before.items():
        assert features(young)[name][: len(content)] == content
    assert result.added == len(bars()) - len(until(CUT)) > 0
    assert result.new_instruments == 1
    assert store_metadata(young)["notes"]["appended"][0]["bars"] == result.added
    assert "old days are unchanged" in str(result)
    assert sorted(os.listdir(tmp_path)) == ["new.parquet", "store"]


def test_day_by_day_is_the_same_as_at_once(tmp_path: Path, young: Path) -> None:
    days = store_calendar(young)
    days = days[days > CUT][:2]
    for day in days:
        append(save(until(day), tmp_path / "new.parquet"), young, {"csi300": spans_until(day)})
    ingest(save(until(days[-1]), tmp_path / "bars.parquet"), tmp_path / "wanted", {"csi300": spans_until(days[-1])})
    assert_same_store(young, tmp_path / "wanted")


def test_nothing_new_leaves_the_store_alone(tmp_path: Path, young: Path) -> None:
    written = (young / "kronos_store.json").stat().st_mtime_ns
    result = append(save(until(CUT), tmp_path / "new.parquet"), young, {"csi300": spans_until(CUT)})
    assert result.added == 0
    assert "nothing to append" in str(result)
    assert (young / "kronos_store.json").stat().st_mtime_ns == written


def test_fields_added_later_are_kept(tmp_path: Path, young: Path) -> None:
    extra = young / "features" / "sh600002" / "kronos_er5.day.bin"
    extra.write_bytes(np.array([3, 0.5], dtype="<f4").tobytes())
    result = append(save(bars(), tmp_path / "new.parquet"), young)
    assert extra.read_bytes() == np.array([3, 0.5], dtype="<f4").tobytes()
    assert result.kept_universes == ["csi300"]
    assert "give --members" in str(result)


def changed(case: str) -> pd.DataFrame:
    frame = bars().copy()
    if case == "price":
        row = frame.index[(frame["instrument"] == "SH600002") & (frame["datetime"] == "2020-03-02")]
        frame.loc[row, "volume"] *= 1.25
    elif case == "factor":
        frame.loc[frame["instrument"] == "SH600005", "factor"] *= 0.97
    elif case == "missing":
        frame = frame[~((frame["instrument"] == "SH600005") & (frame["datetime"] == "2020-03-02"))]
    elif case == "added":
        row = frame[(frame["instrument"] == "SH600001") & (frame["datetime"] == "2020-07-31")]
        frame = pd.concat([frame, row.assign(datetime=pd.Timestamp("2020-08-03"))])
    elif case == "short":
        frame = frame[frame["datetime"] > "2020-07-20"]
    elif case == "new days alone":
        frame = frame[frame["datetime"] > CUT]
    return frame.sort_values(["instrument", "datetime"]).reset_index(drop=True)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("price", r"1 of .* bars: 1 of them differ: SH600002 2020-03-02 volume \d+.* -> \d"),
        ("factor", r"The factors of 1 instruments are the stored ones times a constant \(SH600005 x 0\.97\)"),
        ("missing", r"1 are missing in the files: SH600005 2020-03-02"),
        ("added", r"1 are in the files only: SH600001 2020-08-03"),
        ("short", r"only \d+ of its \d+ stored ones: they must reach back by 30 bars"),
        ("new days alone", r"only 0 of its \d+ stored ones: they must reach back by 30 bars"),
    ],
)
def test_a_changed_past_is_refused_and_shown(tmp_path: Path, young: Path, case: str, message: str) -> None:
    before = features(young)
    with pytest.raises(ValueError, match=message) as caught:
        append(save(changed(case), tmp_path / "new.parquet"), young, {"csi300": members()})
    assert isinstance(caught.value, HistoryChangedError) == (case not in ("short", "new days alone"))
    assert features(young) == before
    assert store_metadata(young)["last"].startswith("2020-08-05")


def test_changed_membership_of_old_days_is_refused(tmp_path: Path, young: Path) -> None:
    spans = members()
    spans.loc[spans["instrument"] == "SH600002", "start"] = pd.Timestamp("2020-07-20")
    with pytest.raises(HistoryChangedError, match=r"membership of 1 codes in 'csi300'.*SH600002 out from 2020-07-15"):
        append(save(bars(), tmp_path / "new.parquet"), young, {"csi300": spans})


def test_settings_are_the_stores(tmp_path: Path, young: Path) -> None:
    path = save(bars(), tmp_path / "new.parquet")
    for options in ({"calendar": "XNYS"}, {"region": "us"}, {"freq": "15min"}, {"repair": "forward_fill"}):
        with pytest.raises(ValueError, match="leave it out, or ingest anew"):
            append(path, young, **options)
    with pytest.raises(ValueError, match=r"holds no kronos_store\.json"):
        append(path, tmp_path / "nowhere")


def test_an_interrupted_append_leaves_the_old_store(
    tmp_path: Path, young: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = features(young)
    rename, left = Path.replace, [20]

    def fail_later(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return rename(path, target)

    path = save(bars(), tmp_path / "new.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail_later)
        with pytest.raises(KeyboardInterrupt):
            append(path, young, {"csi300": members()})
    assert features(young) == before
    assert store_metadata(young)["last"].startswith("2020-08-05")
    append(path, young, {"csi300": members()})
    assert store_metadata(young)["last"].startswith("2020-12-31")


def test_the_command_appends(tmp_path: Path, young: Path) -> None:
    path = save(bars(), tmp_path / "new.parquet")
    result = CliRunner().invoke(app, ["ingest", str(path), "--out", str(young), "--append"])
    assert result.exit_code == 0, result.output
    assert "bars appended" in result.output
    refused = CliRunner().invoke(app, ["ingest", str(path), "--out", str(young), "--append", "--region", "us"])
    assert "leave it out" in str(refused.exception)
