"""KronosAlpha is used like Alpha158, and the LightGBM workflows run by plain qrun on the same rows."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.cli.run import render_template
from qlib.contrib.data.handler import Alpha158
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config
from qlib.utils.data import update_config
from qlib.workflow import R
from ruamel.yaml import YAML
from tiny_market import UNIVERSE, start_qlib, write_tiny_store

from kronos_qlib import resources
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.factors import FactorSettings, FactorTable
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.handler import KlineHandler, KronosAlpha

SPAN = {"start_time": "2020-06-01", "end_time": "2020-10-30"}
FIT = {"fit_start_time": "2020-06-01", "fit_end_time": "2020-08-14"}
SEGMENTS = {
    "train": ("2020-06-01", "2020-08-14"),
    "valid": ("2020-08-17", "2020-09-11"),
    "test": ("2020-09-14", "2020-10-30"),
}
NAMES = ("expected_return", "surprise")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qlib store, and its factors by the bundled checkpoint, whose cutoff lies before all of them."""
    folder = tmp_path_factory.mktemp("alpha")
    write_tiny_store(folder / "store")
    start_qlib(folder / "store")
    handler = KlineHandler(UNIVERSE, SPAN["start_time"], SPAN["end_time"], init_data=False)
    dataset = KlineDataset(handler, segments={"all": tuple(SPAN.values())})
    settings = FactorSettings(factors=NAMES, embedding=("last",), n_paths=2, horizon=2, fit_end=FIT["fit_end_time"])
    forecaster = KronosForecaster.from_pretrained("bundled:synthetic", device="cpu")
    FactorTable(dataset, "all", [forecaster], settings).build(ForecastStore(folder / "factors"), progress=False)
    return folder


@pytest.fixture
def qlib(places: Path) -> None:
    start_qlib(places / "store")


def alpha(places: Path, **settings: Any) -> Any:
    return KronosAlpha(**{"instruments": UNIVERSE, "factors": places / "factors", **SPAN, **FIT, **settings})


@pytest.mark.usefixtures("qlib")
def test_labels_and_their_rows_are_those_of_alpha158(places: Path) -> None:
    theirs = Alpha158(instruments=UNIVERSE, **SPAN, **FIT)
    ours, both = alpha(places), alpha(places, alpha158=True)
    learn = theirs.fetch(data_key="learn", col_set="label")
    for handler in (ours, both):
        pd.testing.assert_frame_equal(handler.fetch(data_key="learn", col_set="label"), learn, check_index_type=False)
        assert theirs.fetch(col_set="label").index.isin(handler.fetch(col_set="label").index).all()
        extra = handler.fetch(col_set="label").drop(index=theirs.fetch(col_set="label").index)
        assert extra.isna().all(axis=None)  # never judged, never learned from
    fields = theirs.fetch(col_set="feature")
    pd.testing.assert_frame_equal(
        both.fetch(col_set="feature").loc[fields.index, fields.columns], fields, check_index_type=False
    )
    assert set(both.fetch(col_set="feature").columns) == {*fields.columns, *NAMES}
    pd.testing.assert_frame_equal(both.fetch(col_set="feature")[[*NAMES]], ours.fetch(col_set="feature")[[*NAMES]])
    alone = alpha(places, alpha158=True, columns=[], factors="")
    assert alone.factor_loader is None
    assert alone.fetch(col_set="feature").index.equals(ours.fetch(col_set="feature").index)
    assert list(alone.fetch(col_set="feature").columns) == sorted(fields.columns)


@pytest.mark.usefixtures("qlib")
def test_processors_are_qlibs_and_the_embedding_has_ours(places: Path) -> None:
    raw = alpha(places).fetch(col_set="feature")
    handler = alpha(
        places,
        columns=["*"],
        infer_processors=[
            {"class": "EmbeddingPCA", "module_path": "kronos_qlib.processor", "kwargs": {"n_components": 3}},
            {"class": "CSRankNorm", "kwargs": {"fields_group": "feature"}},
        ],
    )
    found = handler.fetch(col_set="feature")
    assert set(found.columns) == {*NAMES, "emb_pca_00", "emb_pca_01", "emb_pca_02"}
    rank = (raw["surprise"].groupby("datetime").rank(pct=True) - 0.5) * 3.46
    np.testing.assert_allclose(found["surprise"].to_numpy(), rank.to_numpy(), rtol=1e-5)
    assert handler.infer_processors[0].fit_end_time == FIT["fit_end_time"]


@pytest.mark.usefixtures("qlib")
def test_the_pickle_is_small_and_gives_the_same_rows(places: Path) -> None:
    pca = {"class": "EmbeddingPCA", "module_path": "kronos_qlib.processor", "kwargs": {"n_components": 3}}
    dataset = DatasetH(alpha(places, columns=["*"], infer_processors=[pca]), SEGMENTS)
    expected = dataset.prepare("test", col_set=["feature", "label"], data_key="infer")
    dataset.config(dump_all=False, recursive=True)
    dumped = pickle.dumps(dataset)
    assert len(dumped) < 20_000
    again = pickle.loads(dumped)
    again.config(segments=SEGMENTS)
    again.setup_data(handler_kwargs={"init_type": "load_state"})
    found = again.prepare("test", col_set=["feature", "label"], data_key="infer")
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.usefixtures("qlib")
def test_user_errors_are_value_errors(places: Path) -> None:
    config = {"class": "KronosAlpha", "module_path": "kronos_qlib.handler", "kwargs": {"factor": "here"}}
    with pytest.raises(ValueError, match="did you mean 'factors'"):
        init_instance_by_config(config)
    with pytest.raises(ValueError, match="KRONOS_FACTORS"):
        alpha(places, factors="")
    with pytest.raises(ValueError, match="leave no feature"):
        alpha(places, columns=[])
    with pytest.raises(ValueError, match=r"whole dates missing.*factors build"):
        alpha(places, end_time="2020-12-31")


def workflow(name: str, places: Path) -> dict[str, Any]:
    """One of the workflows with its dates moved to the small market; nothing else that matters here is changed."""
    yaml = YAML(typ="safe", pure=True)
    config = yaml.load(render_template(str(resources.workflow_path(name))))
    base = yaml.load(resources.workflow_path(config.pop("BASE_CONFIG_PATH")).read_text(encoding="utf-8"))
    config = update_config(base, config)
    task = config["task"]
    task["dataset"]["kwargs"]["segments"] = {key: list(days) for key, days in SEGMENTS.items()}
    task["dataset"]["kwargs"]["handler"]["kwargs"].update(**SPAN, **FIT)
    task["model"]["kwargs"].update(lambda_l1=0.0, lambda_l2=1.0, min_data_in_leaf=5, num_threads=1, num_boost_round=5)
    (portfolio,) = [one["kwargs"]["config"] for one in task["record"] if one["class"] == "PortAnaRecord"]
    portfolio["strategy"]["kwargs"].update(topk=3, n_drop=1)
    portfolio["backtest"].update(start_time=SEGMENTS["test"][0], end_time="2020-10-28")
    return config


LIGHTGBM = ["lightgbm_kronos_csi300", "lightgbm_alpha158_kronos_csi300", "lightgbm_alpha158_csi300"]


@pytest.fixture(scope="module")
def runs(places: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """Run the three LightGBM workflows by qrun; scores and labels of each."""
    place = tmp_path_factory.mktemp("runs")
    environment = {"KRONOS_STORE": str(places / "store"), "KRONOS_FACTORS": str(places / "factors")}
    found = {}
    for name in LIGHTGBM:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            config = workflow(name, places)
        path = place / f"{name}.yaml"
        with path.open("w", encoding="utf-8") as stream:
            YAML(typ="safe", pure=True).dump(config, stream)
        done = subprocess.run(
            [sys.executable, "-m", "qlib.cli.run", str(path)], cwd=place, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    start_qlib(places / "store", runs=place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name in LIGHTGBM:
            (saved,) = R.get_exp(experiment_name=name, create=False).list_recorders(rtype="list")
            label = saved.load_object("label.pkl")["LABEL0"]
            found[name] = pd.concat([saved.load_object("pred.pkl")["score"], label], axis=1)
            metrics = saved.list_metrics()
            assert "1day.excess_return_with_cost.information_ratio" in metrics
            assert metrics["all.rank_ic.mean"] == pytest.approx(metrics["Rank IC"])
            page = Path(saved.download_artifact("report/report.html")).read_text(encoding="utf-8")
            assert "No backtest was made" not in page
            assert Path(saved.download_artifact("dataset")).stat().st_size < 20_000
    return found


@pytest.mark.slow
def test_the_workflows_run_and_are_judged_on_the_same_rows(runs: dict[str, pd.DataFrame]) -> None:
    judged = {name: frame.dropna() for name, frame in runs.items()}
    first = judged[LIGHTGBM[0]]
    assert len(first) > 150
    for name, frame in judged.items():
        assert frame.index.equals(first.index), name
        pd.testing.assert_series_equal(frame["LABEL0"], first["LABEL0"])
        assert frame["score"].nunique() > 10, name
    assert not judged[LIGHTGBM[0]]["score"].equals(judged[LIGHTGBM[1]]["score"])


def test_they_differ_in_the_handler_alone(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRONOS_FACTORS", "/some/factors")
    kronos, both, alone = (workflow(name, places)["task"] for name in LIGHTGBM)
    for task in (kronos, both, alone):
        handler = task["dataset"]["kwargs"].pop("handler")
        own = {key: handler["kwargs"].pop(key, None) for key in ("factors", "alpha158", "may_miss")}
        assert own["factors"] == (None if task is alone else "/some/factors")
        assert own["alpha158"] == (True if task is both else None)
        assert own["may_miss"] == (None if task is alone else "dates")
        assert set(handler["kwargs"]) == {"instruments", "start_time", "end_time", "fit_start_time", "fit_end_time"}
    assert kronos == both == alone
