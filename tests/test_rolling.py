"""A rolling run from end to end on the tiny market: each day once, resumable, the same with any number of jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient
from qlib.data import D
from qlib.model.base import Model
from qlib.workflow import R
from rolling_tasks import SEGMENTS, kronos_task, linear_task, workflow
from tiny_market import start_qlib, write_tiny_store

from kronos_qlib import rolling as rolling_module
from kronos_qlib.cli_rolling import parse_segments
from kronos_qlib.evaluation.ic import daily_ic
from kronos_qlib.forecast.pool_worker import start_worker
from kronos_qlib.model import KronosModel
from kronos_qlib.rolling import KronosRolling
from kronos_qlib.rolling_config import RollingOptions, load_workflow, with_segments
from kronos_qlib.rolling_publish import common_artifacts, merge_rolls, usable_records
from kronos_qlib.rolling_worker import PREDICTION, run_roll

STEP = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("rolling") / "store")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file are tracked: a new sqlite store takes MLflow seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def done(store: Path, runs: Path) -> tuple[KronosRolling, Any]:
    """A finished run of a linear model and its recorder."""
    place = runs
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run = KronosRolling(workflow(linear_task(), store, place), step=STEP, state=place / "state")
        return run, run.run()


def test_sessions() -> pd.DatetimeIndex:
    return pd.DatetimeIndex(D.calendar(*SEGMENTS["test"]))


test_sessions.__test__ = False  # type: ignore[attr-defined]


def test_each_test_day_is_scored_once(done: tuple[KronosRolling, Any]) -> None:
    run, recorder = done
    score = recorder.load_object("pred.pkl")
    assert list(score.columns) == ["score"]
    assert score.index.is_unique
    assert list(score.index.unique("datetime")) == list(test_sessions())
    assert score.index.names == ["datetime", "instrument"]
    assert score.index.equals(recorder.load_object("label.pkl").index)
    assert len(run.rolls) == 3
    assert run.plan()["done"].all()
    pd.testing.assert_frame_equal(pd.read_parquet(run.state / PREDICTION), score)


def test_the_records_are_made_from_the_joined_prediction(done: tuple[KronosRolling, Any]) -> None:
    _, recorder = done
    score, label = recorder.load_object("pred.pkl")["score"], recorder.load_object("label.pkl").iloc[:, 0]
    metrics = recorder.list_metrics()
    assert metrics["IC"] == pytest.approx(daily_ic(score, label).mean(), abs=1e-9)
    assert "1day.excess_return_with_cost.information_ratio" in metrics
    report = recorder.load_object("portfolio_analysis/report_normal_1day.pkl")
    assert list(report.index[[0, -1]]) == list(test_sessions()[[0, -1]])


def test_each_roll_keeps_its_recorder(done: tuple[KronosRolling, Any]) -> None:
    run, recorder = done
    saved = R.get_exp(experiment_name="rolled_rolls", create=False).list_recorders(rtype="list")
    by_name = {one.name: one for one in saved}
    assert set(by_name) == {roll.roll_id for roll in run.rolls}
    named = json.loads(Path(recorder.download_artifact("rolls.json")).read_text(encoding="utf-8"))["rolls"]
    for row, roll in zip(named, run.rolls, strict=True):
        one = by_name[roll.roll_id]
        assert row["recorder"] == one.id
        pd.testing.assert_frame_equal(one.load_object("pred.pkl"), pd.read_parquet(run.folder(roll) / PREDICTION))
        assert one.load_object("params.pkl").coef_.shape == (2,)
        assert "IC" in one.list_metrics()


def test_no_handler_and_no_dataset_is_pickled(done: tuple[KronosRolling, Any]) -> None:
    run, _ = done
    pickles = sorted(path.name for path in run.state.rglob("*") if path.suffix == ".pkl" or "dataset" in path.name)
    assert pickles == ["params.pkl"] * 3
    assert all(path.stat().st_size < 2_000 for path in run.state.rglob("*.pkl"))


def test_a_roll_equals_the_same_task_run_alone(done: tuple[KronosRolling, Any], tmp_path: Path) -> None:
    """The second roll depends on nothing that the first one left behind."""
    run, _ = done
    roll = run.rolls[1]
    run_roll(roll, tmp_path / roll.roll_id)
    found = pd.read_parquet(tmp_path / roll.roll_id / PREDICTION)
    pd.testing.assert_frame_equal(found, pd.read_parquet(run.folder(roll) / PREDICTION), check_exact=True)


def test_two_jobs_equal_one(
    done: tuple[KronosRolling, Any], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = done
    pools, pool = [], rolling_module.ProcessPoolExecutor
    monkeypatch.setattr(rolling_module, "ProcessPoolExecutor", lambda *a, **k: pools.append(k) or pool(*a, **k))
    again = KronosRolling(
        workflow(linear_task(), store, tmp_path, "two"), step=STEP, jobs=2, state=tmp_path / "state"
    )  # fmt: skip
    again._init_qlib()
    finished = list(again._finish(list(again.rolls)))
    assert {roll.roll_id for roll in finished} == {roll.roll_id for roll in run.rolls}
    pd.testing.assert_frame_equal(again.predictions(), run.predictions(), check_exact=True)
    assert not (tmp_path / "mlruns.db").exists()  # workers opened no tracking store
    assert pools[0]["initializer"] is start_worker  # it ends them with a killed parent, see the store's crash tests


def test_an_interrupted_run_goes_on_at_the_roll_it_was_in(
    done: tuple[KronosRolling, Any], store: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    started: list[int] = []
    die_in: list[int] = [1]

    def counted(roll: Any, folder: Path, *rest: Any) -> str:
        started.append(roll.number)
        if roll.number in die_in:
            folder.mkdir(parents=True)
            (folder / PREDICTION).write_bytes(b"half a fi")  # as if the process had been killed while writing
            raise KeyboardInterrupt
        return run_roll(roll, folder, *rest)

    monkeypatch.setattr(rolling_module, "run_roll", counted)
    config = workflow(linear_task(), store, runs, "interrupted")
    with pytest.raises(KeyboardInterrupt):
        KronosRolling(config, step=STEP, state=tmp_path / "state").run()
    assert started == [0, 1]
    die_in.clear()
    again = KronosRolling(config, step=STEP, state=tmp_path / "state")
    assert list(again.plan()["done"]) == [True, False, False]
    again.run()
    assert started == [0, 1, 1, 2]
    pd.testing.assert_frame_equal(again.predictions(), done[0].predictions(), check_exact=True)
    saved = R.get_exp(experiment_name="interrupted_rolls", create=False).list_recorders(rtype="list")
    assert len(saved) == 3  # the first roll's recorder was kept, not made again
    again.run()
    assert started == [0, 1, 1, 2]


def test_a_deleted_experiments_name_can_be_used_again(
    store: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    task = linear_task({**SEGMENTS, "test": ["2020-08-03", "2020-08-14"]})
    task["record"] = task["record"][:2]
    config = workflow(task, store, runs, "reborn")
    first = KronosRolling(config, state=tmp_path / "state").run()
    R.delete_exp(experiment_name="reborn")
    R.delete_exp(experiment_name="reborn_rolls")
    second = KronosRolling(config, state=tmp_path / "state").run()
    assert second.id != first.id
    for name in ("reborn", "reborn_rolls"):
        assert len(R.get_exp(experiment_name=name, create=False).list_recorders(rtype="list")) == 1
    # the deleted one is still deleted, and still there for who wants it back
    assert MlflowClient(f"sqlite:///{runs / 'mlruns.db'}").get_run(first.id).info.lifecycle_stage == "deleted"


def test_kronos_rolls_to_the_bit_as_it_scores_at_once(store: Path, tmp_path: Path) -> None:
    span = ("2020-10-12", "2020-10-16")
    task = kronos_task("bundled:synthetic", span)
    run = KronosRolling(workflow(task, store, tmp_path, "kronos"), step=2, state=tmp_path / "state")
    assert [(f"{r.test[0]:%d}", f"{r.test[1]:%d}") for r in run.rolls] == [("12", "13"), ("14", "15"), ("16", "16")]
    for _ in run._finish(list(run.rolls)):
        pass
    from qlib.utils import init_instance_by_config

    whole = init_instance_by_config(task["model"]).predict(init_instance_by_config(task["dataset"]))
    pd.testing.assert_series_equal(run.predictions()["score"], whole, check_exact=True, check_index_type=False)
    log = json.loads((run.folder(run.rolls[0]) / "log.json").read_text(encoding="utf-8"))
    assert log["params"]["kronos.mode"] == "zero-shot"
    folders = [run.folder(roll) for roll in run.rolls]
    assert "kronos_card.json" in [place.name for place in common_artifacts(folders)]
    (folders[1] / "artifacts" / "kronos_card.json").write_text("{}")
    assert "kronos_card.json" not in [place.name for place in common_artifacts(folders)]


class CountingModel(Model):
    """Scores everything with how it was made: times fitted, then fine-tuned."""

    def __init__(self) -> None:
        self.history = ""

    def fit(self, dataset: Any) -> None:
        """Note a fit."""
        R.log_metrics(loss=0.5)
        self.history += "f"

    def finetune(self, dataset: Any) -> None:
        """Note a fine-tuning."""
        self.history += "t"

    def predict(self, dataset: Any, segment: str = "test") -> pd.Series:
        """One score a row, and some of other days, as a model with a warm-up would give."""
        index = dataset.handler.fetch().index
        return pd.Series(np.arange(len(index), dtype=float), index=index)


@pytest.mark.parametrize(
    ("finetune", "histories"),
    [(None, ["f", "f", "f"]), ("base", ["t", "t", "t"]), ("previous", ["f", "ft", "ftt"])],
)
def test_what_each_roll_starts_from(finetune: str | None, histories: list[str], store: Path, tmp_path: Path) -> None:
    task = linear_task()
    task["model"] = {"class": CountingModel, "kwargs": {}}
    run = KronosRolling(workflow(task, store, tmp_path), step=STEP, finetune=finetune, state=tmp_path / "state")
    for _ in run._finish(list(run.rolls)):
        pass
    models = [pd.read_pickle(run.folder(roll) / "params.pkl") for roll in run.rolls]
    assert [model.history for model in models] == histories
    # predictions beyond the roll's test segment were cut off
    assert list(run.predictions().index.unique("datetime")) == list(test_sessions())


def test_a_model_without_finetune_is_told(store: Path, tmp_path: Path) -> None:
    run = KronosRolling(workflow(linear_task(), store, tmp_path), finetune="base", state=tmp_path / "state")
    with pytest.raises(ValueError, match="LinearModel has no finetune"):
        run.run()


@pytest.mark.slow
def test_a_worker_failure_stops_the_run_and_says_why(store: Path, tmp_path: Path) -> None:
    task = linear_task()
    task["model"]["kwargs"] = {"estimator": "nonesuch"}
    run = KronosRolling(workflow(task, store, tmp_path), jobs=2, step=40, state=tmp_path / "state")
    with pytest.raises(AssertionError, match="nonesuch"):
        run.run()


def test_overlapping_files_are_refused(done: tuple[KronosRolling, Any]) -> None:
    run, _ = done
    same = [run.folder(run.rolls[0])] * 2
    with pytest.raises(ValueError, match="is in the rolls"):
        merge_rolls([run.rolls[0]] * 2, same, PREDICTION)
    with pytest.raises(ValueError, match="is outside the test segment"):
        merge_rolls([run.rolls[1]], same[:1], PREDICTION)


def test_a_running_experiment_is_told(store: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    start_qlib(store, runs=runs)
    config = workflow(linear_task(), store, runs)
    del config["qlib_init"]
    run = KronosRolling(config, state=tmp_path / "state")
    with R.start(experiment_name="mine"), pytest.raises(ValueError, match=r"an experiment is running"):
        run.run()


def test_records_that_need_the_model_are_left_out() -> None:
    records = linear_task()["record"]
    asking = {"class": "SigAnaRecord", "module_path": "qlib.workflow.record_temp", "kwargs": {"model": "<MODEL>"}}
    assert usable_records([*records, asking]) == records[1:]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"stpe": 5}, "did you mean 'step'"),
        ({"step": 0}, "step must be a whole number >= 1"),
        ({"rolling_type": "growing"}, "expanding"),
        ({"finetune": "previous", "jobs": 2}, "set jobs: 1"),
        (5, "expected a mapping"),
    ],
)
def test_bad_options_are_told(block: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RollingOptions.from_block(block)


def test_the_packaged_workflow_rolls_lightgbm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kronos_qlib import resources

    monkeypatch.setenv("KRONOS_STORE", "/a/store")
    config = load_workflow(resources.workflow_path("rolling_lightgbm_alpha158_csi300"))
    assert config["qlib_init"]["provider_uri"] == "/a/store"
    plain = load_workflow(resources.workflow_path("lightgbm_alpha158_csi300"))
    assert config["task"] == plain["task"]
    assert RollingOptions.from_block(config["rolling"], jobs=2) == RollingOptions(step=63, jobs=2)
    with pytest.raises(ValueError, match="no workflow file"):
        load_workflow(tmp_path / "absent.yaml")
    with pytest.raises(ValueError, match="no task"):
        load_workflow({"qlib_init": {}})


def test_other_segments_move_the_backtest_and_leave_the_workflow_alone() -> None:
    backtest = {"start_time": "2017-01-01", "end_time": "2020-08-01", "account": 5}
    config = {"task": {**linear_task(), "record": [
        {"class": "PortAnaRecord", "kwargs": {"config": {"backtest": dict(backtest)}}},
        {"class": "KronosReportRecord"},
    ]}}  # fmt: skip
    changed = with_segments(config, {"train": ("2019-01-01", "2019-12-31"), "test": ("2020-01-01", "2020-06-30")})
    assert changed["task"]["dataset"]["kwargs"]["segments"] == {
        "train": ["2019-01-01", "2019-12-31"], "test": ["2020-01-01", "2020-06-30"],
    }  # fmt: skip
    moved = changed["task"]["record"][0]["kwargs"]["config"]["backtest"]
    assert moved == {"start_time": "2020-01-01", "end_time": "2020-06-30", "account": 5}
    assert config["task"]["record"][0]["kwargs"]["config"]["backtest"] == backtest
    with pytest.raises(ValueError, match="one named 'test'"):
        with_segments(config, {"train": ("2019-01-01", "2019-12-31")})


@pytest.mark.parametrize("text", ["test", "test=2020-01-01", "=2020-01-01:2020-02-01", "test=:2020-02-01"])
def test_bad_segment_texts_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="NAME=FIRST:LAST"):
        parse_segments([text])
    with pytest.raises(ValueError, match="twice"):
        parse_segments(["test=2020-01-01:2020-02-01"] * 2)


def test_kronos_zero_shot_pickles_small(store: Path) -> None:
    start_qlib(store)
    import pickle

    assert len(pickle.dumps(KronosModel(model="bundled:synthetic"))) < 5_000


def test_the_command_prints_the_dates(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kronos_qlib.cli import main

    config = {**workflow(linear_task(), store, tmp_path), "rolling": {"step": 5}}
    (tmp_path / "rolled.yaml").write_text(yaml.safe_dump(config))
    arguments = [str(tmp_path / "rolled.yaml"), "--plan", "--step", str(STEP), "--out", str(tmp_path / "state")]
    with pytest.raises(SystemExit) as ended:
        main(["rolling", *arguments])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-3:] == ["test_start", "test_end", "done"]
    assert [line.split()[-3:] for line in lines[1:4]] == [
        ["2020-08-03", "2020-08-28", "False"],
        ["2020-08-31", "2020-09-25", "False"],
        ["2020-09-28", "2020-10-15", "False"],
    ]
    assert not (tmp_path / "state").exists()
    arguments += ["--segment", "train=2020-01-01:2020-05-29", "--segment", "test=2020-07-01:2020-07-24"]
    with pytest.raises(SystemExit) as ended:
        main(["rolling", *arguments])
    assert ended.value.code == 0
    (row,) = capsys.readouterr().out.splitlines()[1:]
    assert row.split()[1:] == ["2020-01-02", "2020-05-29", "2020-07-01", "2020-07-24", "False"]
    with pytest.raises(SystemExit) as ended:
        main(["rolling", str(tmp_path / "rolled.yaml"), "--rolling-type", "growing"])
    assert ended.value.code == 2
    assert "expanding" in capsys.readouterr().err
