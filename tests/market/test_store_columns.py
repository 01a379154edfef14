"""Columns written into a store: all or none, on its own sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_market import write_tiny_store

from kronos_qlib.market.store import store_metadata
from kronos_qlib.market.store_columns import write_columns

DAYS = pd.to_datetime(["2020-03-02", "2020-03-03", "2020-03-05"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("columns") / "store")


def frame(code: str = "SH600001", column: str = "ER5") -> pd.DataFrame:
    index = pd.MultiIndex.from_product([DAYS, [code]], names=["datetime", "instrument"])
    return pd.DataFrame({column: [1.0, 2.0, 4.0]}, index=index)


def test_a_column_is_a_file_of_qlibs_kind(store: Path) -> None:
    assert write_columns(store, frame(), about={"sources": ["abc"]}) == ["kronos_er5"]
    content, close = (np.fromfile(store / "features" / "sh600001" / f"{name}.day.bin", dtype="<f4")
                      for name in ("kronos_er5", "close"))  # fmt: skip
    # as long as the bars: Qlib's Corr does not align its operands
    assert (content[0], len(content)) == (close[0], len(close))
    sessions = (store / "calendars" / "day.txt").read_text().split()
    expected = pd.Series(np.nan, sessions[int(close[0]) :][: len(close) - 1])
    expected[[f"{day:%Y-%m-%d}" for day in DAYS]] = [1.0, 2.0, 4.0]
    np.testing.assert_array_equal(content[1:], expected)
    note = store_metadata(store)["columns"]["kronos_er5"]
    assert note["sources"] == ["abc"]
    write_columns(store, frame().iloc[::-1], about={"sources": ["abc"]})
    assert store_metadata(store)["columns"]["kronos_er5"] == note
    write_columns(store, frame() * 2, about={"sources": ["abc"]})
    assert store_metadata(store)["columns"]["kronos_er5"] != note
    write_columns(store, frame("SH600002"))
    left = np.fromfile(store / "features" / "sh600001" / "kronos_er5.day.bin", dtype="<f4")
    assert np.isnan(left[1:]).all()  # replaced, not merged


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (frame(column="a b"), "expected distinct letters"),
        (frame("SH999999"), "1 instruments have no bars"),
        (frame().rename(index={DAYS[0]: pd.Timestamp("2020-03-01")}), "2020-03-01.* is no session"),
        (pd.concat([frame(), frame()]), "occur twice"),
        (frame().reset_index(drop=True), "expected .datetime, instrument."),
    ],
)
def test_bad_columns_leave_the_store_as_it_was(store: Path, bad: pd.DataFrame, message: str) -> None:
    before = store_metadata(store)
    with pytest.raises(ValueError, match=message):
        write_columns(store, bad)
    assert store_metadata(store) == before


def test_the_stores_own_fields_are_not_overwritten(store: Path) -> None:
    with pytest.raises(ValueError, match="not a bar's own"):
        write_columns(store, frame(column="close"), prefix="")
