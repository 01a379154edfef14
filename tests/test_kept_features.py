"""Expressions that are computed once are those that Qlib computes, to the bit, and never stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from qlib.contrib.data.handler import Alpha158
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import NestedDataLoader, QlibDataLoader
from tiny_market import UNIVERSE, bars, start_qlib, write_tiny_store

from kronos_qlib.handler import KlineHandler, store_path
from kronos_qlib.kept_features import KeptLoader, build_dataset, keep, store_state
from kronos_qlib.market.store import METADATA_FILE

START, ENDS = "2020-03-02", ("2020-06-30", "2020-04-18", "2020-10-15")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("kept") / "store")


def dataset_config(end: str, **settings: Any) -> dict[str, Any]:
    span = {"instruments": UNIVERSE, "start_time": START, "end_time": end, "fit_start_time": START, "fit_end_time": end}
    return {
        "class": "DatasetH", "module_path": "qlib.data.dataset",
        "kwargs": {
            "handler": {"class": "Alpha158", "module_path": "qlib.contrib.data.handler", "kwargs": span | settings},
            "segments": {"test": (START, end)},
        },
    }  # fmt: skip


def test_one_table_serves_every_end_to_the_bit(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_qlib(store)
    plain = {end: build_dataset(dataset_config(end), None).handler for end in ENDS}
    other = build_dataset(dataset_config(ENDS[0], label=["Ref($close, -6)/$close - 1"]), None).handler
    computed, load = [], QlibDataLoader.load_group_df
    monkeypatch.setattr(QlibDataLoader, "load_group_df", lambda *given: computed.append(given) or load(*given))
    for end in ENDS:
        made = build_dataset(dataset_config(end), tmp_path).handler
        assert isinstance(made, Alpha158)
        for key in (DataHandlerLP.DK_R, DataHandlerLP.DK_L):
            wanted = plain[end].fetch(data_key=key)
            pd.testing.assert_frame_equal(made.fetch(data_key=key), wanted, check_exact=True)
            assert made.fetch(data_key=key).index.get_level_values("datetime").max() <= pd.Timestamp(end)
    assert len(computed) == 2  # the features and the label
    relabelled = build_dataset(dataset_config(ENDS[0], label=["Ref($close, -6)/$close - 1"]), tmp_path).handler
    pd.testing.assert_frame_equal(relabelled.fetch(), other.fetch(), check_exact=True)
    assert len(computed) == 3  # the other label


def test_other_starts_universes_and_fields_are_other_tables(store: Path, tmp_path: Path) -> None:
    start_qlib(store)
    loader = QlibDataLoader({"feature": (["$close/Ref($close, 3)"], ["back"])})
    kept = KeptLoader(loader, tmp_path)
    for arguments in ((UNIVERSE, START), (UNIVERSE, "2020-04-01"), ("all", START)):
        pd.testing.assert_frame_equal(
            kept.load(*arguments, "2020-06-30"), loader.load(*arguments, "2020-06-30"), check_exact=True
        )
    KeptLoader(QlibDataLoader({"feature": (["$close/Ref($close, 2)"], ["back"])}), tmp_path).load(UNIVERSE, START)
    assert len(list(tmp_path.glob("*.parquet"))) == 4


def test_a_store_that_changed_is_read_again(tmp_path: Path) -> None:
    dearer = bars().assign(**{name: 2 * bars()[name] for name in ("open", "high", "low", "close")})
    first, second = write_tiny_store(tmp_path / "a"), write_tiny_store(tmp_path / "b", dearer)
    assert store_state(first) != store_state(second)
    loader = QlibDataLoader({"feature": (["$close"], ["close"])})
    for place in (first, second):
        start_qlib(place)
        kept = KeptLoader(loader, tmp_path / "kept").load(UNIVERSE, START, ENDS[0])
        pd.testing.assert_frame_equal(kept, loader.load(UNIVERSE, START, ENDS[0]), check_exact=True)


def test_what_may_depend_on_the_range_is_not_kept(store: Path, tmp_path: Path) -> None:
    start_qlib(store)
    fields = {"feature": (["$close"], ["close"])}
    filtered = QlibDataLoader(fields, filter_pipe=[{"filter_type": "NameDFilter"}])
    assert keep(filtered, tmp_path) is filtered
    nested = NestedDataLoader([QlibDataLoader(fields), filtered])
    assert [type(part) for part in keep(nested, tmp_path).data_loader_l] == [KeptLoader, QlibDataLoader]
    config = dataset_config(ENDS[0])
    config["kwargs"]["handler"] |= {"class": "KlineHandler", "module_path": "kronos_qlib.handler"}
    assert isinstance(build_dataset(config, tmp_path / "none").handler, KlineHandler)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_store_without_a_fingerprint_keeps_nothing(tmp_path: Path) -> None:
    start_qlib(write_tiny_store(tmp_path / "store"))
    (store_path() / METADATA_FILE).unlink()
    build_dataset(dataset_config(ENDS[0]), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
