"""What is built is what is read: nothing stale, nothing twice, nothing lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_factors import COLUMNS, LENGTH, FakeSource, fake_bars, fake_panel, logged

from kronos_qlib.forecast.store import ForecastStore, SourceSpan
from kronos_qlib.forecast.store_catalog import content_fingerprint


def all_rows(panel) -> np.ndarray:
    return np.arange(len(panel))


def build(store: ForecastStore, source: FakeSource, rows: np.ndarray | None = None, **options):
    rows = all_rows(source.panel) if rows is None else rows
    return store.build([(source, rows)], source.panel, progress=False, **options)


def expected(source: FakeSource, rows: np.ndarray | None = None) -> pd.DataFrame:
    rows = all_rows(source.panel) if rows is None else rows
    panel = source.panel
    index = pd.MultiIndex.from_arrays(
        [panel.timestamps[rows], panel.instrument_names(rows)], names=["datetime", "instrument"]
    )
    return pd.DataFrame(FakeSource(panel).compute(rows), index=index, columns=list(COLUMNS)).sort_index()


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, wanted, check_exact=True, check_index_type=False, check_column_type=False)


def test_a_built_table_is_read_bit_for_bit(tmp_path: Path) -> None:
    source = FakeSource(fake_panel())
    store = ForecastStore(tmp_path / "factors")
    report = build(store, source, batch_rows=50)
    assert report.computed == len(source.panel) == 360
    found = store.read()
    same(found, expected(source))
    assert (found.dtypes == np.float32).all()
    assert found["mean_close"].isna().sum() == 6 * (LENGTH - 1)  # short windows are kept as NaN, and not tried again
    months = sorted(path.stem for path in tmp_path.glob("factors/sources/*/months/*.parquet"))
    assert months == ["2019-11", "2019-12", "2020-01", "2020-02"]
    assert not list(tmp_path.glob("factors/sources/*/parts/*/*.parquet"))


def test_a_second_build_computes_nothing(tmp_path: Path) -> None:
    source = FakeSource(fake_panel(), tmp_path / "log")
    store = ForecastStore(tmp_path / "factors")
    build(store, source)
    before = logged(tmp_path / "log")
    assert build(store, source).computed == 0
    assert logged(tmp_path / "log") == before


def test_a_new_day_computes_its_rows_only(tmp_path: Path) -> None:
    bars = fake_bars()
    last = bars["datetime"].max()
    store = ForecastStore(tmp_path / "factors")
    build(store, FakeSource(fake_panel(bars[bars["datetime"] < last])))
    grown = FakeSource(fake_panel(bars), tmp_path / "log")
    report = build(store, grown)
    assert sorted(logged(tmp_path / "log")) == [f"SH60000{number} {last:%Y-%m-%d}" for number in range(6)]
    assert "6 rows are not there yet: 6 instruments" in str(report)
    same(store.read(), expected(grown))
    once = ForecastStore(tmp_path / "at once")
    assert content_fingerprint(once.folder) == content_fingerprint(tmp_path / "nothing")
    build(once, FakeSource(fake_panel(bars[bars["datetime"] < last])))
    assert content_fingerprint(once.folder) != content_fingerprint(store.folder)
    build(once, grown, batch_rows=7)
    assert content_fingerprint(once.folder) == content_fingerprint(store.folder)


def test_a_changed_bar_recomputes_the_windows_that_hold_it(tmp_path: Path) -> None:
    bars = fake_bars()
    store = ForecastStore(tmp_path / "factors")
    build(store, FakeSource(fake_panel(bars)))
    days = bars.loc[bars["instrument"] == "SH600002", "datetime"].tolist()
    bars.loc[(bars["instrument"] == "SH600002") & (bars["datetime"] == days[20]), "close"] *= 1.005
    changed = FakeSource(fake_panel(bars), tmp_path / "log")
    report = build(store, changed)
    assert logged(tmp_path / "log") == [f"SH600002 {day:%Y-%m-%d}" for day in days[20 : 20 + LENGTH]]
    assert f"{LENGTH} rows rest on changed data: 1 instruments (SH600002)" in str(report)
    assert f"{days[20]:%Y-%m-%d} to {days[24]:%Y-%m-%d}" in str(report)
    same(store.read(), expected(changed))
    assert build(store, changed).computed == 0


def test_another_description_is_another_source_and_says_where_it_differs(tmp_path: Path) -> None:
    panel = fake_panel()
    store = ForecastStore(tmp_path / "factors")
    first = build(store, FakeSource(panel))
    build(store, FakeSource(panel, weights="w9", sampling={"n_paths": 99}))
    report = build(store, FakeSource(panel, sampling={"n_paths": 20}))
    assert f"the nearest one, {first.fingerprints[0][:12]}" in str(report)
    assert "sampling.n_paths: 10 -> 20" in str(report)
    assert "weights: " not in str(report)
    assert report.computed == len(panel)
    assert len(store.ls()) == 3
    with pytest.raises(ValueError, match="3 sources"):
        store.read()
    assert len(store.read(sources=report.fingerprints)) == len(panel)


def test_reading_a_part_of_a_table(tmp_path: Path) -> None:
    source = FakeSource(fake_panel())
    store = ForecastStore(tmp_path / "factors")
    build(store, source)
    found = store.read(["last_return"], "2019-12-30", "2020-01-03", ["SH600001", "SH600004"])
    whole = expected(source)
    inside = whole.loc[pd.Timestamp("2019-12-30") : pd.Timestamp("2020-01-03"), ["last_return"]]
    same(found, inside[inside.index.get_level_values(1).isin(["SH600001", "SH600004"])])
    assert len(found) == 10
    assert store.read(start="2031-01-01").empty
    with pytest.raises(ValueError, match="no column"):
        store.read(["mean_open"])


def test_rows_of_several_weights_make_one_table(tmp_path: Path) -> None:
    panel = fake_panel()
    early = np.flatnonzero(panel.timestamps < np.datetime64("2020-01-01"))
    late = np.flatnonzero(panel.timestamps >= np.datetime64("2020-01-01"))
    first, second = FakeSource(panel, weights="w1"), FakeSource(panel, weights="w2")
    store = ForecastStore(tmp_path / "factors")
    report = store.build([(first, early), (second, late)], panel, progress=False)
    table = store.read([*COLUMNS, "weights"], sources=report.fingerprints)
    assert len(table) == len(panel)
    in_2020 = table.index.get_level_values("datetime") >= pd.Timestamp("2020-01-01")
    assert set(table["weights"][~in_2020]) == {"w1"}
    assert set(table["weights"][in_2020]) == {"w2"}
    build(store, first)
    with pytest.raises(ValueError, match="more than one of the sources"):
        store.read(sources=report.fingerprints)
    spans = [SourceSpan(report.fingerprints[0], end=pd.Timestamp("2019-12-31")), report.fingerprints[1]]
    pd.testing.assert_frame_equal(store.read([*COLUMNS, "weights"], sources=spans), table)
    with pytest.raises(ValueError, match="asked of more than one source"):
        store.build([(first, early), (second, early)], panel, progress=False)


def test_processes_give_the_table_of_one(tmp_path: Path) -> None:
    source = FakeSource(fake_panel(), tmp_path / "log")
    one, two = ForecastStore(tmp_path / "one"), ForecastStore(tmp_path / "two")
    build(one, FakeSource(source.panel))
    assert build(two, source, jobs=2, batch_rows=20).computed == len(source.panel)
    assert len(logged(tmp_path / "log")) == len(source.panel)
    same(two.read(), one.read())
    left, right = (sorted(tmp_path.glob(f"{name}/sources/*/months/*")) for name in ("one", "two"))
    assert [path.read_bytes() for path in left] == [path.read_bytes() for path in right]


class Failing(FakeSource):
    def compute(self, rows: np.ndarray) -> np.ndarray:
        raise ArithmeticError("no such luck")


def test_a_failing_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        build(ForecastStore(tmp_path / "factors"), Failing(fake_panel()), jobs=2, batch_rows=20)


def test_verify_finds_a_changed_bit(tmp_path: Path) -> None:
    source = FakeSource(fake_panel())
    tasks = [(source, all_rows(source.panel))]
    store = ForecastStore(tmp_path / "factors")
    build(store, source)
    assert store.verify(tasks, source.panel, sample=100).checked == 100
    assert store.verify(tasks, source.panel, sample=1000).ok
    path = next(tmp_path.glob("factors/sources/*/months/2020-01.parquet"))
    table = pq.read_table(path)
    values = table["mean_close"].to_numpy().copy()
    values[70] = np.nextafter(values[70], np.float32(99), dtype=np.float32)
    place = table.column_names.index("mean_close")
    pq.write_table(table.set_column(place, "mean_close", pa.array(values)), path)
    report = store.verify(tasks, source.panel, sample=1000)
    assert not report.ok
    assert report.wrong_rows == 1
    assert report.wrong[0]["column"] == "mean_close"
    assert report.wrong[0]["instrument"] == table["instrument"][70].as_py()
    assert "1 differ from the store" in str(report)


def test_verify_tells_stale_from_wrong(tmp_path: Path) -> None:
    bars = fake_bars()
    store = ForecastStore(tmp_path / "factors")
    build(store, FakeSource(fake_panel(bars[bars["instrument"] != "SH600000"])))
    bars.loc[bars.index[-1], "close"] *= 1.005
    source = FakeSource(fake_panel(bars))
    report = store.verify([(source, all_rows(source.panel))], source.panel, sample=1000)
    assert report.ok
    assert (report.missing, report.changed, report.checked) == (60, 1, 299)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    source = FakeSource(fake_panel())
    store = ForecastStore(tmp_path / "factors")
    build(store, source)
    path = next(tmp_path.glob("factors/sources/*/months/2020-01.parquet"))
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(5)
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0x01  # pages carry checksums
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"2020-01\.parquet is damaged.*delete this file and build again"):
        store.read()
    path.unlink()
    lost = source.panel.timestamps.astype("datetime64[M]") == np.datetime64("2020-01")
    assert build(store, source).computed == lost.sum()
    same(store.read(), expected(source))


def test_ls_and_rm(tmp_path: Path) -> None:
    panel = fake_panel()
    store = ForecastStore(tmp_path / "factors")
    assert store.ls() == []
    with pytest.raises(ValueError, match="no factors yet"):
        store.read()
    kept = build(store, FakeSource(panel)).fingerprints[0]
    gone = build(store, FakeSource(panel, weights="w1"), np.arange(40)).fingerprints[0]
    listed = {source.fingerprint: source for source in store.ls()}
    assert listed[gone].rows == 40
    assert listed[gone].weights == "w1"
    assert listed[kept].columns == COLUMNS
    assert "360 rows 2019-11-25 to 2020-02-14" in str(listed[kept])
    assert store.rm(gone[:8]).fingerprint == gone
    assert [source.fingerprint for source in store.ls()] == [kept]
    with pytest.raises(ValueError, match="no source"):
        store.rm(gone)
    with pytest.raises(ValueError, match="1 sources ''"):
        store.rm("")
