"""A store read without Qlib holds the bars that were written, as Qlib itself would read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_corpus import daily_frame, intraday_frame

from kronos_qlib.market.adjust import adjust_bars
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.store import store_calendar, write_store
from kronos_qlib.market.store_panel import read_store_panel, store_fingerprint


def vendor_frame() -> pd.DataFrame:
    """Three stocks and an index with a factor and a suspension."""
    frame = daily_frame(codes=("SH000300", "SH600000", "SH600001", "SZ000001"))
    frame["factor"] = np.where(frame.index % 60 < 30, 1.0, 1.25)
    return frame.drop(index=range(70, 75)).reset_index(drop=True)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    members = pd.DataFrame(
        {
            "instrument": ["SZ000001", "SZ000001", "SH600000"],
            "start": pd.to_datetime(["2019-01-02", "2019-03-01", "2019-02-01"]),
            "end": pd.to_datetime(["2019-01-31", "2019-12-31", "2019-02-10"]),
        }
    )
    write_store(vendor_frame(), tmp_path / "store", members={"few": members}, calendar="XSHG")
    return tmp_path / "store"


def assert_same(found: BarPanel, expected: BarPanel) -> None:
    assert found.instruments == expected.instruments
    for name in ("offsets", "timestamps", "values", "session"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def expected_panel(store: Path, *codes: str) -> BarPanel:
    frame = vendor_frame()
    chosen = adjust_bars(frame[frame["instrument"].isin(codes)])
    return BarPanel.from_frame(chosen, calendar=store_calendar(store, future=False))


def test_all_stocks_without_the_index(store: Path) -> None:
    assert_same(read_store_panel(store), expected_panel(store, "SH600000", "SH600001", "SZ000001"))


def test_a_universe_means_the_full_history_of_its_members(store: Path) -> None:
    """Trap 11: bars outside the days of membership belong to a window as well."""
    assert_same(read_store_panel(store, "few"), expected_panel(store, "SH600000", "SZ000001"))


READ_WITH_QLIB = """
import sys
import qlib
from qlib.data import D
qlib.init(provider_uri=sys.argv[1], region="cn", kernels=1, logging_level=40)
fields = ["$open", "$high", "$low", "$close", "$volume", "$amount"]
frame = D.features(["SH600000", "SH600001", "SZ000001"], fields)
frame.dropna(subset=["$close"]).reset_index().to_parquet(sys.argv[2])
"""


@pytest.mark.slow
def test_qlib_reads_the_same_bars(store: Path, tmp_path: Path) -> None:
    """In a fresh process: qlib keeps one provider for a process."""
    command = [sys.executable, "-c", READ_WITH_QLIB, str(store), str(tmp_path / "read.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(tmp_path / "read.parquet")
    assert_same(read_store_panel(store), BarPanel.from_frame(frame, calendar=store_calendar(store, future=False)))


def test_codes_by_name(store: Path) -> None:
    assert_same(read_store_panel(store, ["SH000300"]), expected_panel(store, "SH000300"))


def test_intraday_bars(tmp_path: Path) -> None:
    write_store(intraday_frame(), tmp_path / "store", calendar="XSHG", freq="15min")
    panel = read_store_panel(tmp_path / "store", freq="15min")
    calendar = store_calendar(tmp_path / "store", "15min", future=False)
    assert_same(panel, BarPanel.from_frame(intraday_frame(), calendar=calendar))


def test_a_store_without_amount_follows_the_rule(store: Path) -> None:
    """Stores of other makers often have neither amount nor event."""
    whole = read_store_panel(store)
    for file in [*store.glob("features/*/amount.day.bin"), *store.glob("features/*/event.day.bin")]:
        file.unlink()
    found = read_store_panel(store)
    np.testing.assert_array_equal(found.values[:, :5], whole.values[:, :5])
    typical = whole.values[:, :4].mean(axis=1, dtype=np.float64) * whole.values[:, 4]
    np.testing.assert_allclose(found.values[:, 5], typical, rtol=1e-6)


def test_fields_that_start_later_are_missing_before(store: Path) -> None:
    file = store / "features" / "sz000001" / "volume.day.bin"
    data = np.fromfile(file, dtype="<f4")
    np.concatenate([[data[0] + 3], data[4:]]).astype("<f4").tofile(file)
    panel = read_store_panel(store, ["SZ000001"])
    assert panel.values[:3, 4].tolist() == [0, 0, 0]
    assert (panel.values[3:, 4] > 0).all()


def test_fingerprints(store: Path) -> None:
    ours = store_fingerprint(store)
    (store / "kronos_store.json").unlink()
    foreign = store_fingerprint(store)
    assert foreign != ours
    assert store_fingerprint(store) == foreign
    file = store / "features" / "sz000001" / "close.day.bin"
    file.write_bytes(file.read_bytes()[:-4])
    assert store_fingerprint(store) != foreign


def test_user_errors(store: Path) -> None:
    with pytest.raises(ValueError, match=r"no universe 'csi300': found \['all', 'few'\]"):
        read_store_panel(store, "csi300")
    with pytest.raises(ValueError, match=r"no bars of \['SH999999'\]"):
        read_store_panel(store, ["SH600000", "SH999999"])
    with pytest.raises(ValueError, match="empty list"):
        read_store_panel(store, [])
    with pytest.raises(ValueError, match="no calendar"):
        read_store_panel(store, freq="5min")
    with pytest.raises(ValueError, match="no calendar"):
        read_store_panel(store / "absent")
    with pytest.raises(ValueError, match="no Qlib store"):
        store_fingerprint(store / "absent")
    file = store / "features" / "sz000001" / "close.day.bin"
    np.array([5.0, *np.ones(1_000)], dtype="<f4").tofile(file)
    with pytest.raises(ValueError, match="does not fit a calendar"):
        read_store_panel(store)
    file.unlink()
    with pytest.raises(ValueError, match=r"no day bars of the fields \['close'\]"):
        read_store_panel(store)
