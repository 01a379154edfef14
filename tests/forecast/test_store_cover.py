"""What a stored source has among other columns is read from it, and only what nobody has computed is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_factors import COLUMNS, FakeSource, fake_bars, fake_panel, logged

from kronos_qlib.forecast import store as store_module
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.forecast.store_catalog import SavedSource, register
from kronos_qlib.forecast.store_columns import find_groups
from kronos_qlib.forecast.store_cover import candidates, covers
from kronos_qlib.forecast.store_source import source_fingerprint
from kronos_qlib.market.panel import BarPanel

MEAN, LAST = COLUMNS


class Defined(FakeSource):
    """Some of the fake columns, each with a version of its definition."""

    def __init__(
        self,
        panel: BarPanel,
        names: Sequence[str] = COLUMNS,
        log: Path | None = None,
        versions: Mapping[str, int] | None = None,
        **settings: Any,
    ) -> None:
        self.versions, self.settings = dict(versions or {}), settings
        factors = {name: {"version": self.versions.get(name, 1)} for name in names}
        super().__init__(panel, log, factors=factors, **settings)
        self.columns = tuple(names)

    def compute(self, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(super().compute(rows)[:, [COLUMNS.index(name) for name in self.columns]])

    def widened(self, columns: Sequence[str], description: Mapping[str, Any]) -> Defined:
        if unknown := set(columns) - set(COLUMNS):
            raise ValueError(f"unknown {unknown}")
        return Defined(self.panel, columns, self.log, self.versions, **self.settings)


def build(store: ForecastStore, source: FakeSource, rows: np.ndarray | None = None, **options: Any):
    rows = np.arange(len(source.panel)) if rows is None else rows
    return store.build([(source, rows)], source.panel, progress=False, **options)


def test_columns_of_a_wider_source_are_not_computed_again(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    whole = build(store, Defined(panel))
    for names in ([LAST], [MEAN], [LAST, MEAN]):
        report = build(store, Defined(panel, names, tmp_path / "log"))
        assert report.computed == 0
        assert report.fingerprints == whole.fingerprints
        assert f"360 in the store ({len(names)} of its 2 columns wanted)" in str(report)
    assert not logged(tmp_path / "log")
    assert len(store.ls()) == 1
    alone = ForecastStore(tmp_path / "alone")
    build(alone, Defined(panel, [LAST]))
    pd.testing.assert_frame_equal(alone.read(), store.read([LAST]), check_exact=True)


def test_rows_that_the_wider_source_lacks_are_added_to_it_with_all_its_columns(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    build(store, Defined(panel), np.arange(200))
    report = build(store, Defined(panel, [LAST], tmp_path / "log"), batch_rows=20)
    assert report.computed == len(logged(tmp_path / "log")) == 160
    assert "160 rows are not there yet" in str(report)
    assert "they get all 2 columns of this source" in str(report)
    once = ForecastStore(tmp_path / "once")
    build(once, Defined(panel))
    pd.testing.assert_frame_equal(store.read(), once.read(), check_exact=True)
    assert build(store, Defined(panel)).computed == 0


def test_changed_bars_are_computed_again_in_the_wider_source(tmp_path: Path) -> None:
    bars, store = fake_bars(), ForecastStore(tmp_path / "factors")
    build(store, Defined(fake_panel(bars)))
    bars.loc[bars.index[-1], "close"] *= 1.005
    panel = fake_panel(bars)
    report = build(store, Defined(panel, [LAST]))
    assert "1 rows rest on changed data" in str(report)
    assert report.computed == 1
    assert build(store, Defined(panel)).computed == 0


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"versions": {LAST: 2}}, f"factors.{LAST}.version: 1 -> 2"),
        ({"weights": "w1"}, "weights: w0 -> w1"),
        ({"sampling": {"n_paths": 20}}, "sampling.n_paths: 10 -> 20"),
        ({"block": 10}, "block: absent -> 10"),
        ({"embedding": [{"kind": "last", "version": 1}]}, 'embedding: absent -> [{"kind": "last", "version": 1}]'),
    ],
)
def test_other_definitions_and_settings_are_never_served(tmp_path: Path, other: dict[str, Any], line: str) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    build(store, Defined(panel))
    report = build(store, Defined(panel, [LAST], **other))
    assert report.computed == 360
    assert len(store.ls()) == 2
    # only what matters is named: not that the stored source has another column
    assert report.plans[0].reasons[0].startswith("new source; it differs from the nearest one")
    assert report.plans[0].reasons[1:-1] == [f"  {line}"]


def test_a_source_whose_other_columns_are_out_of_date_is_read_but_not_added_to(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    old = build(store, Defined(panel), np.arange(200)).fingerprints
    now = Defined(panel, [LAST], versions={MEAN: 2})
    assert build(store, now, np.arange(150)).fingerprints == old
    assert store.serving(now, panel, np.arange(150)) == old[0]
    more = build(store, now)
    assert more.fingerprints != old
    assert more.computed == 360
    assert "cannot be added to" in str(more)
    assert store.read(sources=old).shape == (200, 2)


def test_parts_of_a_source_that_is_only_read_are_merged_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    with monkeypatch.context() as killed:
        killed.setattr(store_module, "merge_parts", lambda *_: None)
        build(store, Defined(panel))
    before = store.read()
    build(store, Defined(panel, [LAST], versions={MEAN: 2}))
    assert not list(tmp_path.glob("factors/sources/*/parts/*/*.parquet"))
    pd.testing.assert_frame_equal(store.read(), before, check_exact=True)


def test_of_several_the_one_with_the_least_to_compute_answers(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    own = build(store, Defined(panel, [LAST]), np.arange(50)).fingerprints[0]
    wide = build(store, Defined(panel), np.arange(200)).fingerprints[0]
    turned = build(store, Defined(panel, [LAST, MEAN], versions={}), np.arange(300)).fingerprints[0]
    assert turned == wide  # the order of the columns makes no other source
    asked = Defined(panel, [LAST])
    assert len({own, wide}) == 2
    assert store.serving(asked, panel, np.arange(50)) == own  # even: the one with exactly these columns
    assert store.serving(asked, panel, np.arange(100)) == wide
    assert build(store, asked).fingerprints == [wide]
    assert len(store.read(sources=own)) == 50


def test_where_they_are_even_the_order_is_fixed(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    both = [Defined(panel, [MEAN, LAST]), Defined(panel, [LAST, MEAN])]
    for source in both:
        register(store.folder, source_fingerprint(source), source)
    wide = sorted(map(source_fingerprint, both))
    asked = Defined(panel, [LAST])
    assert [found.fingerprint for found in candidates(store.folder, asked)] == wide
    assert store.serving(asked, panel, np.arange(9)) == wide[0]
    register(store.folder, source_fingerprint(asked), asked)
    assert [found.fingerprint for found in candidates(store.folder, asked)] == [source_fingerprint(asked), *wide]


def test_verify_compares_the_columns_asked_for(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    build(store, Defined(panel))
    path = next(tmp_path.glob("factors/sources/*/months/2020-01.parquet"))
    table = pq.read_table(path)
    values = table[LAST].to_numpy().copy()
    values[70] = np.nextafter(values[70], np.float32(99), dtype=np.float32)
    pq.write_table(table.set_column(table.column_names.index(LAST), LAST, pa.array(values)), path)
    for names, wrong in (([LAST], 1), ([MEAN], 0)):
        report = store.verify([(Defined(panel, names), np.arange(360))], panel, sample=1000)
        assert (report.checked, report.wrong_rows) == (360, wrong)


def test_embeddings_are_covered_by_those_that_begin_with_the_same_kinds() -> None:
    """Columns are numbered through all kinds: ``emb_000`` is of the first."""

    def kinds(*names: str) -> list[dict[str, Any]]:
        return [{"kind": name, "version": 1} for name in names]

    columns = tuple(f"emb_{i:03d}" for i in range(4))
    stored = SavedSource(
        "f", "w", ("surprise", *columns), {"factors": {"surprise": 1}, "embedding": kinds("last", "mean")}
    )
    assert covers(stored, columns[:2], {"factors": {}, "embedding": kinds("last")})
    assert covers(stored, ["surprise"], {"factors": {"surprise": 1}, "embedding": []})
    assert not covers(stored, columns[:2], {"factors": {}, "embedding": kinds("mean")})
    assert not covers(stored, columns[:2], {"factors": {}, "embedding": [{"kind": "last", "version": 2}]})
    assert not covers(stored, ["surprise"], {"factors": {"surprise": 2}, "embedding": []})
    assert not covers(stored, ["entropy"], {"factors": {"entropy": 1}, "embedding": []})


def test_a_broken_neighbour_stops_no_build_that_does_not_need_it(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    build(store, Defined(panel, [LAST]))
    other = build(store, Defined(panel, weights="w1")).fingerprints[0]
    (tmp_path / "factors" / "sources" / other / "source.json").write_text("{")
    assert build(store, Defined(panel, [LAST])).computed == 0


def test_readers_group_columns_by_the_sources_that_have_them(tmp_path: Path) -> None:
    panel, store = fake_panel(), ForecastStore(tmp_path / "factors")
    early, late = np.arange(100), np.arange(100, 360)
    tasks = [(Defined(panel, weights="a"), early), (Defined(panel, weights="b"), late)]
    store.build(tasks, panel, progress=False)
    build(store, Defined(panel, [LAST], weights="c"), early)
    groups = {group.columns: {source.weights for source in group.sources} for group in find_groups(store.folder)}
    assert groups == {(MEAN,): {"a", "b"}, (LAST,): {"a", "b", "c"}}
    build(store, Defined(panel, [LAST], weights="d", versions={LAST: 2}), early)
    with pytest.raises(ValueError, match=rf"column '{LAST}' is in sources .* \(factors.{LAST}.version: .*sources: "):
        find_groups(store.folder)
    assert [group.columns for group in find_groups(store.folder, [MEAN])] == [(MEAN,)]
