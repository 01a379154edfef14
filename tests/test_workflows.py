"""The workflow files: each one loads, all CSI300 ones share one frame, and qrun runs the quickstart from end to end."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.cli.run import render_template
from qlib.utils import get_callable_kwargs, init_instance_by_config
from qlib.utils.data import update_config
from qlib.workflow import R
from ruamel.yaml import YAML
from tiny_market import start_qlib, write_tiny_checkpoint, write_tiny_store

from kronos_qlib import resources
from kronos_qlib.dataset import DATASET_KEYS
from kronos_qlib.handler import HANDLER_KEYS
from kronos_qlib.kronos import load_card
from kronos_qlib.kronos_alpha import ALPHA_KEYS
from kronos_qlib.market.members import read_members
from kronos_qlib.market.store import write_store
from kronos_qlib.model import MODEL_KEYS
from kronos_qlib.training.finetune_recipe import FinetuneRecipe
from kronos_qlib.training.recipe import read_settings

KNOWN_KEYS = {
    "KronosModel": MODEL_KEYS,
    "KlineDataset": DATASET_KEYS,
    "KlineHandler": HANDLER_KEYS,
    "KronosAlpha": ALPHA_KEYS,
}
OTHERS = ["kronos_zero_shot_us_daily", "kronos_zero_shot_ashare_15min", "kronos_zero_shot_btc_5min"]
CSI300 = [
    "csi300_base",
    "kronos_alpha_head_csi300",
    "kronos_finetune_csi300",
    "kronos_zero_shot_csi300",
    "kronos_zero_shot_csi300_3m",
    "lightgbm_alpha158_csi300",
    "lightgbm_alpha158_kronos_csi300",
    "lightgbm_kronos_csi300",
    "rolling_lightgbm_alpha158_csi300",
    "rolling_lightgbm_alpha158_kronos_csi300",
    "rolling_linear_alpha158_csi300",
    "rolling_linear_alpha158_day5_csi300",
    "rolling_linear_alpha158_kronos_csi300",
    "rolling_linear_alpha158_kronos_day5_csi300",
    "rolling_lightgbm_kronos_csi300",
]


def load_workflow(name: str) -> dict[str, Any]:
    """Read a workflow as qrun does: render, then merge into its base, which qrun does not render."""
    yaml = YAML(typ="safe", pure=True)
    config = yaml.load(render_template(str(resources.workflow_path(name))))
    if "BASE_CONFIG_PATH" in config:
        base = yaml.load(resources.workflow_path(config["BASE_CONFIG_PATH"]).read_text(encoding="utf-8"))
        config = update_config(base, config)
    return config


def port_analysis(config: dict[str, Any]) -> dict[str, Any]:
    (found,) = [record for record in config["task"]["record"] if record["class"] == "PortAnaRecord"]
    return found["kwargs"]["config"]


def test_the_workflows_of_the_issue_are_there() -> None:
    assert set(resources.workflow_names()) == {*CSI300, *OTHERS, "quickstart"}


@pytest.mark.parametrize("name", [*CSI300, *OTHERS, "quickstart"])
def test_each_part_exists_and_knows_its_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_STORE", "/a/store")
    config = load_workflow(name)
    task = config["task"]
    handler = task["dataset"]["kwargs"]["handler"]
    for part in (task["model"], task["dataset"], handler, *task["record"]):
        made, kwargs = get_callable_kwargs(part)
        known = KNOWN_KEYS.get(part["class"])
        if known is None and not any(p.kind is p.VAR_KEYWORD for p in signature(made).parameters.values()):
            known = tuple(signature(made).parameters)
        assert known is None or set(kwargs) <= set(known), part["class"]
    assert config["qlib_init"]["provider_uri"] == "/a/store"
    assert config["experiment_name"] == name
    assert "{{" not in str(config)


@pytest.mark.parametrize("name", [*CSI300, "quickstart"])
def test_tracking_needs_no_server_and_no_plain_folder(name: str) -> None:
    assert load_workflow(name)["qlib_init"]["exp_manager"]["kwargs"]["uri"].startswith("sqlite:///")


@pytest.mark.parametrize("name", CSI300)
def test_csi300_workflows_share_the_frame_of_the_evaluation(name: str) -> None:
    config = load_workflow(name)
    dataset = config["task"]["dataset"]["kwargs"]
    handler = dataset["handler"]["kwargs"]
    assert handler["instruments"] == "csi300"
    # the handlers default to Qlib's own label
    assert handler.get("label") == (["Ref($close, -6)/Ref($close, -1) - 1"] if "_day5_" in name else None)
    days = {key: [str(day) for day in span] for key, span in dataset["segments"].items()}
    assert days["train"] == ["2008-01-01", "2014-12-31"]
    assert days["valid"] == ["2015-01-01", "2016-12-31"]
    short = name.endswith("3m")
    assert days["test"] == (["2020-05-01", "2020-07-31"] if short else ["2017-01-01", "2020-08-01"])
    found = port_analysis(config)
    assert found["strategy"]["class"] == "TopkDropoutStrategy"
    assert found["strategy"]["kwargs"] == {"signal": "<PRED>", "topk": 50, "n_drop": 5}
    backtest = found["backtest"]
    assert [str(backtest["start_time"]), str(backtest["end_time"])] == days["test"]
    assert backtest["account"] == 100_000_000
    assert backtest["benchmark"] == "SH000300"
    assert backtest["exchange_kwargs"] == {
        "limit_threshold": 0.095, "deal_price": "close", "open_cost": 0.0005, "close_cost": 0.0015, "min_cost": 5,
    }  # fmt: skip


def test_lightgbm_has_the_published_hyperparameters_and_alpha158s_processors() -> None:
    task = load_workflow("lightgbm_alpha158_csi300")["task"]
    assert task["model"]["kwargs"] == {
        "loss": "mse", "colsample_bytree": 0.8879, "learning_rate": 0.2, "subsample": 0.8789, "lambda_l1": 205.6999,
        "lambda_l2": 580.9768, "max_depth": 8, "num_leaves": 210,
    }  # fmt: skip
    handler = task["dataset"]["kwargs"]["handler"]
    assert (handler["class"], task["dataset"]["class"]) == ("Alpha158", "DatasetH")
    assert set(handler["kwargs"]) == {"instruments", "start_time", "end_time", "fit_start_time", "fit_end_time"}


def test_the_default_csi300_checkpoint_ends_before_test() -> None:
    """Published checkpoints have seen the test years; the one that is taken unasked has not."""
    config = load_workflow("kronos_zero_shot_csi300")["task"]
    chosen = config["model"]["kwargs"]["model"]
    first, _ = config["dataset"]["kwargs"]["segments"]["test"]
    card = load_card(chosen)
    assert chosen == "bundled:ashare_wide"
    assert max(card["cutoff"], card["valid_end"]) < str(first)


def test_the_fine_tuning_workflow_runs_on_a_small_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own blocks, on another store and for fewer steps: train, keep, score."""
    config = load_workflow("kronos_finetune_csi300")
    assert config["task"]["model"]["kwargs"]["model"] == "bundled:ashare"
    monkeypatch.setenv("KRONOS_CHECKPOINT", "bundled:synthetic")
    monkeypatch.setenv("KRONOS_TUNED", str(tmp_path / "tuned"))
    task = load_workflow("kronos_finetune_csi300")["task"]
    small = {"steps": 2, "batch_size": 4, "warmup": 0, "valid_every": 1, "valid_windows": 8}
    task["model"]["kwargs"]["training"]["predictor"] |= small
    task["model"]["kwargs"] |= {"sampling": {"n_paths": 1}, "horizon": 2, "device": "cpu"}
    kwargs = task["dataset"]["kwargs"]
    kwargs["handler"]["kwargs"] |= {"start_time": "2020-06-01", "end_time": "2020-12-31"}
    kwargs["segments"] = {
        "train": ("2020-06-01", "2020-07-31"), "valid": ("2020-08-03", "2020-09-30"),
        "test": ("2020-12-01", "2020-12-02"),
    }  # fmt: skip
    start_qlib(write_tiny_store(tmp_path / "store"))
    model, dataset = init_instance_by_config(task["model"]), init_instance_by_config(task["dataset"])
    model.fit(dataset)
    assert model.predict(dataset).notna().any()
    card = load_card(tmp_path / "tuned")
    assert (card["name"], card["parent"]["name"], card["cutoff"]) == ("csi300", "synthetic", "2020-07-31")
    assert (card["lookback"], card["recipe"]["horizon"]) == (90, 30)


RECIPES = sorted((resources.workflow_folder() / "recipes").glob("finetune_*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_fine_tuning_recipes_are_whole(path: Path) -> None:
    recipe = FinetuneRecipe.for_card({"lookback": 90, "max_context": 512}, **read_settings(path, "fine-tuning"))
    assert recipe.name == path.stem.removeprefix("finetune_")
    assert recipe.predictor_tuning.training(100_000).dtype == "bfloat16"


def test_the_readme_names_every_workflow() -> None:
    text = (resources.workflow_folder() / "README.md").read_text(encoding="utf-8")
    assert all(f"{name}.yaml" in text for name in resources.workflow_names())


def test_unknown_names_are_value_errors_that_help() -> None:
    assert resources.workflow_path("quickstart.yaml") == resources.workflow_path("quickstart")
    with pytest.raises(ValueError, match="Did you mean 'quickstart'"):
        resources.workflow_path("quikstart")
    with pytest.raises(ValueError, match="Unknown bundled checkpoint 'nonesuch'"):
        resources.checkpoint_path("bundled:nonesuch")


def test_an_installed_wheel_finds_its_own_workflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "site" / "kronos_qlib")
    with pytest.raises(FileNotFoundError, match="reinstall"):
        resources.workflow_folder()
    inside = tmp_path / "site" / "kronos_qlib" / "workflows"
    inside.mkdir(parents=True)
    (inside / "csi300_base.yaml").write_text("experiment_name: x\n")
    assert resources.workflow_path("csi300_base") == inside / "csi300_base.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the quickstart's YAML by qrun on the tiny market with the tiny network; its working folder."""
    place = tmp_path_factory.mktemp("run")
    write_tiny_store(place / "store")
    write_tiny_checkpoint(place / "tiny", lookback=40, max_context=64, cutoff="2020-06-30")
    environment = {
        **os.environ, "KRONOS_STORE": str(place / "store"), "KRONOS_CHECKPOINT": str(place / "tiny"),
        "KRONOS_DEVICE": "cpu", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "qlib.cli.run", str(resources.workflow_path("quickstart"))]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def recorder(place: Path) -> Any:
    start_qlib(place / "store", runs=place)
    (found,) = R.get_exp(experiment_name="quickstart", create=False).list_recorders(rtype="list")
    return found


def test_qrun_scores_analyses_and_backtests(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    saved = recorder(run)
    score, label = saved.load_object("pred.pkl"), saved.load_object("label.pkl")
    assert list(score.columns) == ["score"]
    assert score.index.equals(label.index)
    assert score["score"].notna().mean() > 0.8
    daily = saved.load_object("sig_analysis/ic.pkl")
    assert saved.list_metrics()["IC"] == pytest.approx(daily.mean())
    both = pd.concat([score["score"], label["LABEL0"]], axis=1).dropna()
    day = both.loc["2020-10-15"]
    assert daily["2020-10-15"] == pytest.approx(day["score"].corr(day["LABEL0"]))
    report = saved.load_object("portfolio_analysis/report_normal_1day.pkl")
    assert len(report) > 100
    assert np.isfinite(report["return"]).all()
    assert (report["turnover"] > 0).any()


def test_qrun_records_the_checkpoint_and_pickles_no_weights(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    saved = recorder(run)
    parameters = saved.list_params()
    assert parameters["kronos.cutoff"] == "2020-06-30"
    assert parameters["kronos.window.lookback"] == "60"
    assert parameters["kronos.sampling.n_paths"] == "10"
    card = json.loads(Path(saved.download_artifact("kronos_card.json")).read_text(encoding="utf-8"))
    assert card["fingerprint"] == parameters["kronos.fingerprint"]
    assert card["card"]["lookback"] == 40
    assert {"kronos_card.json", "score_age.parquet", "params.pkl", "dataset"} <= set(saved.list_artifacts())
    for name in ("params.pkl", "dataset"):
        assert Path(saved.download_artifact(name)).stat().st_size < 10_000


def test_qrun_keeps_the_age_of_each_score(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    saved = recorder(run)
    ages = pd.read_parquet(saved.download_artifact("score_age.parquet"))["age"]
    score = saved.load_object("pred.pkl")["score"]
    assert list(ages.index) == list(score.index)
    assert ((ages == -1) == score.isna()).all()
    assert ages.max() == 20


def test_what_qrun_pickled_scores_again_to_the_bit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    saved = recorder(run)
    model, dataset = saved.load_object("params.pkl"), saved.load_object("dataset")
    part = model.predict(dataset, slice("2020-12-01", "2020-12-04"))
    expected = saved.load_object("pred.pkl")["score"].loc["2020-12-01":"2020-12-04"]
    pd.testing.assert_series_equal(part, expected, check_exact=True, check_index_type=False)
    assert pickle.loads(pickle.dumps(model)).fingerprint == saved.list_params()["kronos.fingerprint"]


@pytest.fixture(scope="module")
def real_store(shared_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = {"csi300": read_members(shared_file("market/csi300_members.txt"))}
    place = tmp_path_factory.mktemp("real") / "store"
    write_store(pd.read_parquet(shared_file("market/ashare_daily.parquet")), place, members=members)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ic", "rank_ic"),
    [
        ("csi300_base", (0.0, 0.01), (0.02, 0.03)),
        ("lightgbm_alpha158_csi300", (0.043, 0.051), (0.045, 0.053)),  # evaluation.md: .0468 and .0490
        ("kronos_zero_shot_csi300_3m", (-0.05, 0.05), (-0.05, 0.05)),  # sixty days: that it runs, no more
    ],
)
def test_csi300_by_qrun_on_real_data(
    name: str,
    ic: tuple[float, float],
    rank_ic: tuple[float, float],
    real_store: Path,
    shared_file: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    nano = str(shared_file("checkpoints/nano"))
    environment = {**os.environ, "KRONOS_STORE": str(real_store), "KRONOS_CHECKPOINT": nano}
    command = [sys.executable, "-m", "qlib.cli.run", str(resources.workflow_path(name))]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    start_qlib(real_store, runs=tmp_path)
    (saved,) = R.get_exp(experiment_name=name, create=False).list_recorders(rtype="list")
    metrics = saved.list_metrics()
    assert ic[0] < metrics["IC"] < ic[1]
    assert rank_ic[0] < metrics["Rank IC"] < rank_ic[1]
    assert "1day.excess_return_with_cost.information_ratio" in metrics
