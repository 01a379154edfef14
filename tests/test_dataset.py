"""KlineDataset: which bar each member row is scored from."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_market
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config
from qlib.workflow.record_temp import SignalRecord
from tiny_market import LISTED, LONG_HALT, SHORT_HALT, UNIVERSE, VERY_LONG_HALT, start_qlib, write_tiny_store

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler

START, END = "2020-07-01", "2020-12-31"
SEGMENTS = {"valid": ("2020-07-01", "2020-09-30"), "test": ("2020-10-01", END)}
HANDLER = {
    "class": "KlineHandler",
    "module_path": "kronos_qlib.handler",
    "kwargs": {"instruments": UNIVERSE, "start_time": START, "end_time": END},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("dataset") / "store")


@pytest.fixture
def dataset(store: Path) -> KlineDataset:
    start_qlib(store)
    return KlineDataset(HANDLER, SEGMENTS, min_bars=20)


@cache
def traded_closes() -> tuple[list[pd.Timestamp], dict[str, list[tuple[int, float]]]]:
    """All sessions, and of each code the (number of the session, adjusted close) of its bars."""
    frame = tiny_market.bars()
    days = sorted(frame["datetime"].unique())
    number = frame["datetime"].map({day: position for position, day in enumerate(days)})
    frame = frame.assign(bar=list(zip(number, frame["close"] * frame["factor"], strict=True)))
    return days, {code: list(mine["bar"]) for code, mine in frame.groupby("instrument")}


def brute_force(day: pd.Timestamp, code: str, carry: int = 20, min_bars: int = 20) -> tuple[pd.Timestamp | None, int]:
    """The bar that a row is scored from and its age, walked bar by bar from the vendor's file."""
    days, closes = traded_closes()
    today = days.index(day)
    traded = [bar for bar in closes[code] if bar[0] <= today]
    if not traded:
        return None, -1
    last = traded[-1][0]
    bars = 1
    for (earlier, before), (later, after) in zip(traded[-2::-1], traded[:0:-1], strict=True):
        if later - earlier - 1 > 60 or abs(after / before - 1) > 0.3:
            break
        bars += 1
    return (days[last], today - last) if today - last <= carry and bars >= min_bars else (None, -1)


def test_rows_point_at_the_last_traded_bar(dataset: KlineDataset) -> None:
    rows = pd.concat([dataset.rows("valid"), dataset.rows("test")])
    assert rows.index.equals(dataset.handler.data.index)
    panel = dataset.panel
    chosen = rows.iloc[:: max(1, len(rows) // 100)]
    chosen = pd.concat([chosen, *(rows.xs(halt[0], level=1, drop_level=False) for halt in (SHORT_HALT, LONG_HALT))])
    for (day, code), row, age in chosen.itertuples():
        bar, expected_age = brute_force(day, code)
        assert age == expected_age, (day, code)
        if bar is None:
            assert row == -1
        else:
            assert panel.timestamps[row] == np.datetime64(bar)
            assert panel.instrument_names(np.array([row])) == [code]


def test_a_short_halt_keeps_one_bar_and_ages(dataset: KlineDataset) -> None:
    halt = dataset.rows("valid").xs(SHORT_HALT[0], level=1).loc[SHORT_HALT[1] : SHORT_HALT[2]]
    assert list(halt["age"]) == [1, 2, 3, 4, 5]
    assert halt["row"].nunique() == 1


def test_a_long_halt_ends_after_twenty_sessions(dataset: KlineDataset) -> None:
    halt = dataset.rows("valid").xs(LONG_HALT[0], level=1).loc[LONG_HALT[1] : LONG_HALT[2]]
    assert list(halt["age"]) == [*range(1, 21), *[-1] * 10]
    assert (halt["row"].iloc[20:] == -1).all()


def test_after_more_than_sixty_sessions_a_new_window_begins(dataset: KlineDataset) -> None:
    back = dataset.rows("valid").xs(VERY_LONG_HALT[0], level=1).loc["2020-08-03":]
    assert (back["row"].iloc[:19] == -1).all()
    assert (back["row"].iloc[19:] >= 0).all()


def test_a_new_listing_waits_for_min_bars(store: Path) -> None:
    start_qlib(store)
    rows = KlineDataset(HANDLER, SEGMENTS, min_bars=3).rows("test").xs(LISTED[0], level=1)
    assert (rows.loc[: LISTED[1], "row"] == -1).all()
    assert list(rows.loc[LISTED[1] :, "row"] >= 0) == [False, False, True] + [True] * (len(rows.loc[LISTED[1] :]) - 3)


def test_a_late_member_has_its_history_at_once(dataset: KlineDataset) -> None:
    """kronos.md, trap 11: loading members only would leave a new member without a score for months."""
    first = dataset.rows("valid").xs("SH600002", level=1).iloc[0]
    assert first.name == pd.Timestamp("2020-07-15")
    assert first["row"] >= 0


def test_a_re_entrant_has_no_hole(dataset: KlineDataset) -> None:
    row = dataset.rows("test").loc[("2020-11-02", "SH600003"), "row"]
    panel = dataset.panel
    window = slice(row - 59, row + 1)
    sessions = panel.calendar[panel.session[window]]
    assert list(pd.DatetimeIndex(panel.timestamps[window])) == list(sessions)
    assert (np.diff(panel.session[window]) <= 2).all()
    assert sessions[0] < pd.Timestamp("2020-08-10")


def test_carry_zero_scores_traded_sessions_only(store: Path) -> None:
    start_qlib(store)
    rows = KlineDataset(HANDLER, SEGMENTS, carry=0).rows("valid")
    assert set(rows["age"]) == {0, -1}


def test_a_slice_of_dates_is_a_segment_too(dataset: KlineDataset) -> None:
    assert dataset.rows(slice("2020-10-01", END)).equals(dataset.rows("test"))


def test_the_last_day_of_the_store_has_rows(dataset: KlineDataset) -> None:
    """kronos.md, trap 12: no future bars are needed."""
    last = dataset.rows("test").loc[END]
    assert (last["row"] >= 0).sum() >= 5


def test_prepare_and_labels_are_qlibs_own(dataset: KlineDataset) -> None:
    label = SignalRecord.generate_label(dataset)
    assert type(dataset) is KlineDataset
    assert label.index.equals(dataset.rows("test").index)
    assert dataset.prepare("test", col_set="label").equals(label)


def test_built_from_yaml_style_configuration(store: Path) -> None:
    start_qlib(store)
    config = {
        "class": "KlineDataset",
        "module_path": "kronos_qlib.dataset",
        "kwargs": {"handler": HANDLER, "segments": SEGMENTS},
    }
    made = init_instance_by_config(config, accept_types=DatasetH)
    assert made.rows("test").shape[1] == 2


def test_pickle_keeps_settings_and_no_bars(dataset: KlineDataset) -> None:
    expected = dataset.rows("test")
    dataset.config(dump_all=False, recursive=True)  # as qrun does before it saves the dataset
    blob = pickle.dumps(dataset)
    assert len(blob) < 10_000
    back = pickle.loads(blob)
    assert back.rows("test").equals(expected)
    back.config(handler_kwargs={"start_time": "2020-12-01", "end_time": END}, segments={"test": ("2020-12-01", END)})
    back.setup_data(handler_kwargs={"init_type": "load_state"})
    assert back.prepare("test", col_set="label").index[0][0] == pd.Timestamp("2020-12-01")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"look_back": 90}, "did you mean 'lookback'"),
        ({"minbars": 3}, "did you mean 'min_bars'"),
        ({"lookback": "90"}, "lookback must be a whole number"),
        ({"min_bars": 0}, "min_bars must be a whole number >= 1"),
        ({"max_gap": -1}, "max_gap"),
        ({"carry": -1}, "carry must be"),
        ({"carry": 1.5}, "carry must be"),
        ({"segments": None}, "segments must be a mapping"),
        ({"segments": {"test": "2020-07-01"}}, "must be .first day, last day."),
        ({"segments": {"test": ["2020-07-01", "soon"]}}, "no date"),
        ({"segments": {"test": ["2020-09-01", "2020-08-01"]}}, "before it starts"),
        ({"handler": None}, "no handler"),
        ({"handler": {"class": "Processor", "module_path": "qlib.data.dataset.processor"}}, "needs a KlineHandler"),
    ],
)
def test_user_errors_are_value_errors(store: Path, settings: dict[str, Any], message: str) -> None:
    start_qlib(store)
    with pytest.raises(ValueError, match=message):
        KlineDataset(**{"handler": HANDLER, "segments": SEGMENTS, **settings})


def test_min_bars_above_lookback_is_refused(store: Path) -> None:
    start_qlib(store)
    dataset = KlineDataset(HANDLER, SEGMENTS, lookback=10, min_bars=5)
    assert dataset.window_policy(512).lookback == 10
    with pytest.raises(ValueError, match="min_bars <= lookback"):
        KlineDataset(HANDLER, SEGMENTS, lookback=10, min_bars=11)


def test_unknown_or_empty_segments_are_named(dataset: KlineDataset) -> None:
    with pytest.raises(ValueError, match="did you mean 'test'"):
        dataset.rows("tests")
    with pytest.raises(ValueError, match="holds no member row"):
        dataset.rows(slice("2021-02-01", "2021-03-01"))


def test_a_handler_without_members_only_rows_is_refused(store: Path) -> None:
    start_qlib(store)
    with pytest.raises(ValueError, match="needs a KlineHandler"):
        KlineDataset({"class": "qlib.data.dataset.processor.DropnaLabel"}, SEGMENTS)


def test_handler_instance_is_shared(store: Path) -> None:
    start_qlib(store)
    handler = KlineHandler(UNIVERSE, START, END)
    assert KlineDataset(handler, SEGMENTS).handler is handler
