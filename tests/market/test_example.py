"""The market of an example: the user's where a variable names it, else a made-up one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kronos_qlib.market.example import BARS_VARIABLE, STORE_VARIABLE, example_bars, example_store
from kronos_qlib.market.members import read_members
from kronos_qlib.market.reading import read_bars
from kronos_qlib.market.store import store_calendar
from kronos_qlib.market.synthetic import SyntheticConfig, make_market

SMALL = SyntheticConfig(n_instruments=4, n_members=3, n_sectors=2, start="2019-01-01", end="2019-03-31")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (BARS_VARIABLE, STORE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_without_a_variable_the_market_is_made_up(tmp_path: Path) -> None:
    market = make_market(SMALL)
    bars, kind = example_bars(SMALL)
    assert kind == "synthetic"
    pd.testing.assert_frame_equal(bars, market.bars)
    store, kind = example_store(tmp_path / "store", SMALL)
    assert (store, kind) == (tmp_path / "store", "synthetic")
    assert list(store_calendar(store, future=False)) == list(market.sessions)
    assert set(read_members(store / "instruments" / "csi300.txt")["instrument"]) == set(market.members["instrument"])


def test_a_variable_names_the_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bars.parquet"
    make_market(SMALL).bars.to_parquet(file, index=False)
    monkeypatch.setenv(BARS_VARIABLE, str(file))
    bars, kind = example_bars()
    assert kind == "real"
    pd.testing.assert_frame_equal(bars, read_bars(file))


def test_a_variable_names_the_users_store_which_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, _ = example_store(tmp_path / "given", SMALL)
    before = {path: path.stat().st_mtime_ns for path in given.rglob("*")}
    monkeypatch.setenv(STORE_VARIABLE, str(given))
    assert example_store(tmp_path / "other", SMALL) == (given, "real")
    assert {path: path.stat().st_mtime_ns for path in given.rglob("*")} == before
    assert not (tmp_path / "other").exists()


def test_a_variable_that_names_no_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=r"KRONOS_STORE names .* no Qlib store.*kronos-qlib ingest"):
        example_store(tmp_path / "store", SMALL)
