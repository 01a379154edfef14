"""The dates of every roll, in tables that can be checked with a calendar in hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_factors import FakeSource, fake_panel
from rolling_tasks import linear_task
from tiny_market import start_qlib

from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.handler import KronosAlpha
from kronos_qlib.market.store import write_store
from kronos_qlib.rolling_horizon import expression_horizon, label_horizon
from kronos_qlib.rolling_plan import Roll, make_rolls, plan_table

# Thirty sessions, Monday to Friday, 11 May to 19 June 2020: the store is made with exactly these.
CALENDAR = pd.bdate_range("2020-05-11", "2020-06-19")
SEGMENTS = {
    "train": ["2020-05-11", "2020-05-22"],  # sessions 0 to 9
    "valid": ["2020-05-25", "2020-05-29"],  # sessions 10 to 14
    "test": ["2020-06-01", "2020-06-19"],  # sessions 15 to 29
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two stocks that trade on thirty weekdays."""
    place = tmp_path_factory.mktemp("plan") / "store"
    frames = []
    for code in ("SH600001", "SH600002"):
        close = np.linspace(10.0, 11.0, len(CALENDAR))
        frame = pd.DataFrame({"instrument": code, "datetime": CALENDAR, "close": close})
        frame = frame.assign(open=close, high=close + 0.1, low=close - 0.1, volume=1e5, factor=1.0)
        frames.append(frame.assign(amount=frame["volume"] * close))
    spans = pd.DataFrame(
        {"instrument": ["SH600001", "SH600002"], "start": CALENDAR[0], "end": CALENDAR[-1]},
    )
    write_store(pd.concat(frames, ignore_index=True), place, members={"csi300": spans})
    return place


@pytest.fixture(autouse=True)
def _qlib(store: Path) -> None:
    start_qlib(store)


def rolls(segments: dict[str, Any] | None = None, **options: Any) -> tuple[Roll, ...]:
    settings: dict[str, Any] = {"step": 5, "rolling_type": "expanding", "horizon": 2, **options}
    return make_rolls(linear_task(segments or SEGMENTS), **settings)


def table(made: tuple[Roll, ...]) -> list[str]:
    """One line a roll: train, valid, test, each as month-day to month-day."""
    return [
        " | ".join(f"{first:%m-%d} {last:%m-%d}" for first, last in roll.segments.values()) for roll in made
    ]  # fmt: skip


def test_expanding() -> None:
    """Training keeps its start. Labels reach two sessions ahead, so the last two sessions of each part are dropped:
    training to Wed 20 May, as its label reads Fri 22 May, and validation starts on Mon 25 May."""
    assert table(rolls()) == [
        # train       | valid       | test
        "05-11 05-20 | 05-25 05-27 | 06-01 06-05",
        "05-11 05-27 | 06-01 06-03 | 06-08 06-12",
        "05-11 06-03 | 06-08 06-10 | 06-15 06-19",
    ]


def test_sliding() -> None:
    """Training keeps its length of eight sessions."""
    assert table(rolls(rolling_type="sliding")) == [
        "05-11 05-20 | 05-25 05-27 | 06-01 06-05",
        "05-18 05-27 | 06-01 06-03 | 06-08 06-12",
        "05-25 06-03 | 06-08 06-10 | 06-15 06-19",
    ]


def test_the_last_roll_stops_at_the_test_segments_end() -> None:
    """Seven sessions a roll: the third one holds a single day."""
    assert table(rolls(step=7)) == [
        "05-11 05-20 | 05-25 05-27 | 06-01 06-09",
        "05-11 05-29 | 06-03 06-05 | 06-10 06-18",
        "05-11 06-09 | 06-12 06-16 | 06-19 06-19",
    ]


def test_a_test_segment_beyond_the_store_stops_at_its_last_session() -> None:
    made = rolls({**SEGMENTS, "test": ["2020-06-01", "2021-12-31"]}, step=10)
    assert table(made)[-1].endswith("06-15 06-19")
    assert len(made) == 2


def test_one_roll_when_the_step_is_longer_than_the_test_segment() -> None:
    assert table(rolls(step=1000)) == ["05-11 05-20 | 05-25 05-27 | 06-01 06-19"]


def test_weekend_ends_move_inwards() -> None:
    given = {"train": ["2020-05-09", "2020-05-24"], "valid": ["2020-05-23", "2020-05-31"], "test": ["2020-05-30", None]}
    assert table(rolls(given)) == table(rolls())


def test_a_test_segment_alone_rolls() -> None:
    assert table(rolls({"test": ["2020-06-08", "2020-06-19"]})) == ["06-08 06-12", "06-15 06-19"]


@pytest.mark.parametrize("horizon", [0, 1, 2, 3])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("rolling_type", ["expanding", "sliding"])
def test_each_day_once_and_no_label_overlap(horizon: int, step: int, rolling_type: str) -> None:
    position = {day: at for at, day in enumerate(CALENDAR)}
    made = rolls(step=step, horizon=horizon, rolling_type=rolling_type)
    days = [day for roll in made for day in CALENDAR[CALENDAR.slice_indexer(*roll.test)]]
    assert days == list(CALENDAR[15:])
    for roll in made:
        train, valid, test = roll.segments.values()
        assert position[train[1]] + horizon < position[valid[0]]
        assert position[valid[1]] + horizon < position[test[0]]


def test_the_handler_follows_its_roll() -> None:
    """It loads nothing after the roll's test segment, and fits processors on the roll's training segment."""
    second = rolls()[1].task["dataset"]["kwargs"]["handler"]["kwargs"]
    assert f"{second['end_time']:%m-%d}" == "06-12"
    assert (f"{second['fit_start_time']:%m-%d}", f"{second['fit_end_time']:%m-%d}") == ("05-11", "05-27")


def test_fit_times_of_a_processor_follow_as_well() -> None:
    task = linear_task(SEGMENTS)
    settings = {"fit_start_time": "2020-05-11", "fit_end_time": "2020-05-22", "fields_group": "feature"}
    task["dataset"]["kwargs"]["handler"]["kwargs"]["infer_processors"] = [{"class": "ZScoreNorm", "kwargs": settings}]
    made = make_rolls(task, step=5, rolling_type="sliding", horizon=2)
    handler = made[2].task["dataset"]["kwargs"]["handler"]["kwargs"]
    assert f"{handler['infer_processors'][0]['kwargs']['fit_end_time']:%m-%d}" == "06-03"


def test_ids_are_stable_and_tell_work_apart() -> None:
    assert [roll.roll_id for roll in rolls()] == [roll.roll_id for roll in rolls()]
    task = linear_task(SEGMENTS)
    before = copy.deepcopy(task)
    made = make_rolls(task, step=5, rolling_type="expanding", horizon=2)
    assert task == before
    task["model"]["kwargs"] = {"estimator": "ridge", "alpha": 1.0}
    other = make_rolls(task, step=5, rolling_type="expanding", horizon=2)
    assert not {roll.roll_id for roll in made} & {roll.roll_id for roll in other}
    # of two step lengths, only rolls of equal dates are equal
    longer = rolls(step=10)
    assert {roll.roll_id for roll in longer} & {roll.roll_id for roll in made} == {made[2].roll_id}
    # what a chain of fine-tuning made differs from a fresh start
    assert not {roll.roll_id for roll in rolls(finetune="previous")} & {roll.roll_id for roll in made}


def test_an_id_changes_with_the_weights(tmp_path: Path) -> None:
    task = linear_task(SEGMENTS)
    task["model"]["kwargs"] = {"model": str(tmp_path)}
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = make_rolls(task, step=30, rolling_type="expanding", horizon=2)[0].roll_id
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert make_rolls(task, step=30, rolling_type="expanding", horizon=2)[0].roll_id != first


def test_an_id_changes_with_the_factors(tmp_path: Path) -> None:
    task = linear_task(SEGMENTS)
    task["dataset"]["kwargs"]["handler"]["kwargs"]["factors"] = str(tmp_path)
    found = [make_rolls(task, step=30, rolling_type="expanding", horizon=2)[0].roll_id]
    source, store = FakeSource(fake_panel()), ForecastStore(tmp_path)
    for rows in (np.arange(100), np.arange(360), np.arange(50)):
        store.build([(source, rows)], source.panel, progress=False)
        found.append(make_rolls(task, step=30, rolling_type="expanding", horizon=2)[0].roll_id)
    assert found[2] == found[3]
    assert len(set(found)) == 3


def test_the_table_of_dates() -> None:
    shown = plan_table(rolls())
    assert list(shown.columns) == [
        "roll", "train_start", "train_end", "valid_start", "valid_end", "test_start", "test_end",
    ]  # fmt: skip
    assert shown.loc[0, "roll"].startswith("20200601-")
    assert shown.loc[2, "test_end"] == "2020-06-19"


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({"train": ["2020-05-11", "2020-05-22"]}, "one named 'test'"),
        ({"test": ["2021-03-02", "2021-03-13"]}, "holds no session"),
        ({"train": ["2020-05-11", "2020-06-02"], "test": ["2020-06-01", "2020-06-19"]}, "must not overlap"),
        ({"test": ["2020-05-11", "2020-05-22"], "valid": ["2020-05-25", "2020-06-19"]}, "must be the last one"),
        ({"train": ["2020-05-28", "2020-05-29"], "test": ["2020-06-01", "2020-06-19"]}, "no session left"),
    ],
)
def test_bad_segments_are_told(segments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rolls(segments)


def test_a_pickled_or_intraday_handler_is_refused() -> None:
    task = linear_task(SEGMENTS)
    task["dataset"]["kwargs"]["handler"] = "file:///tmp/handler.pkl"
    with pytest.raises(ValueError, match="must be a configuration"):
        make_rolls(task, step=5, rolling_type="expanding", horizon=2)
    task = linear_task(SEGMENTS)
    task["dataset"]["kwargs"]["handler"]["kwargs"]["freq"] = "15min"
    with pytest.raises(ValueError, match="15min"):
        make_rolls(task, step=5, rolling_type="expanding", horizon=2)


@pytest.mark.parametrize(
    ("label", "horizon"),
    [
        ("Ref($close, -2)/Ref($close, -1) - 1", 2),
        ("Ref($close, -1)/$close - 1", 1),
        ("Ref($close, -11)/Ref($close, -1) - 1", 11),
        ("Ref(Ref($close, -4)/$close, -1) - 1", 5),
        ("Mean(Ref($close, -5), 5)/$close - 1", 5),
        ("$close/Ref($close, 5) - 1", 0),
    ],
)
def test_the_horizon_is_read_from_the_label(label: str, horizon: int) -> None:
    assert expression_horizon(label) == horizon
    handler = {"class": "KlineHandler", "module_path": "kronos_qlib.handler", "kwargs": {"label": [[label], ["L"]]}}
    assert label_horizon(handler) == horizon


def test_default_labels_are_found() -> None:
    ours = {"class": "KlineHandler", "module_path": "kronos_qlib.handler"}
    assert label_horizon(ours) == 2
    assert label_horizon({"class": "Alpha158", "module_path": "qlib.contrib.data.handler"}) == 2
    assert label_horizon({"class": "KronosAlpha", "module_path": "kronos_qlib.handler"}) == 2


def test_kronos_alpha_is_purged_by_its_label() -> None:
    far = (["Ref($close, -21)/Ref($close, -1) - 1"], ["LABEL0"])
    assert KronosAlpha(factors="f", init_data=False).factor_loader.horizon is None
    assert KronosAlpha(factors="f", init_data=False, label=far).factor_loader.horizon == 21
    assert KronosAlpha(factors="f", init_data=False, label=far, horizon=30).factor_loader.horizon == 30
    with pytest.raises(ValueError, match="the label reads 21 bars ahead"):
        KronosAlpha(factors="f", init_data=False, label=far, horizon=10)


def test_labels_of_loaders_are_found() -> None:
    loader = {"class": "QlibDataLoader", "kwargs": {"config": {"label": ["Ref($close, -3)/$close - 1"]}}}
    plain = {"class": "DataHandlerLP", "module_path": "qlib.data.dataset.handler", "kwargs": {"data_loader": loader}}
    assert label_horizon(plain) == 3
    with pytest.raises(ValueError, match="no label is known"):
        label_horizon({"class": "DataHandlerLP", "module_path": "qlib.data.dataset.handler"})
