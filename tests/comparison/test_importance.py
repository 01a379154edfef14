"""Gain of kept LightGBM fits: names in the fit's order, groups from the registries, shares, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from table_rows import ROW, write_registry
from tiny_market import UNIVERSE, write_tiny_store

from kronos_qlib.alpha.factors import FACTORS
from kronos_qlib.alpha.factors_table import TABLE_FACTORS
from kronos_qlib.cli import main
from kronos_qlib.comparison import importance as module
from kronos_qlib.comparison.importance import gain_table, group_of, importance, registered_groups
from kronos_qlib.comparison.methods import Method, read_methods
from kronos_qlib.comparison.rows import add_row, read_rows, write_rows
from kronos_qlib.comparison.run import RunConfig
from kronos_qlib.comparison.state import State
from kronos_qlib.comparison.task import Protocol, Task
from kronos_qlib.comparison.worker import compute_scores
from kronos_qlib.examine import open_store
from kronos_qlib.forecast.token_factors import TOKEN_FACTORS

# `surprise` is the label itself, so that nearly all gain is known to be its; the order is neither sorted nor grouped
REGISTRY = """
trees: &trees
    title: Trees
    family: kronos
    seeds: [0, 1]
    task: &task
        model: {class: LGBModel, module_path: qlib.contrib.model.gbdt, kwargs: {num_boost_round: 5, seed: <SEED>,
            num_threads: 1, colsample_bytree: 0.6}}
        dataset: {class: DatasetH, module_path: qlib.data.dataset, kwargs: {handler: {
            class: KlineHandler, module_path: kronos_qlib.handler, kwargs: {
                feature: [["$volume", "Ref($close, -2)/Ref($close, -1) - 1", "Std($close, 5)/$close",
                    "Ref($close, 5)/$close", "$amount"], [mystery, surprise, skew, KMID, emb_000]],
                learn_processors: [{class: DropnaLabel}]}}}}
not_run: {<<: *trees, title: Never run}
least_squares:
    title: Least squares
    family: baseline
    task: {<<: *task, model: {class: LinearModel, module_path: qlib.contrib.model.linear}}
reversal: {title: Reversal, family: reference, kind: column, column: reversal_5}
"""
NAMES = ["mystery", "surprise", "skew", "KMID", "emb_000"]


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Method]:
    return read_methods([write_registry(tmp_path_factory.mktemp("registry"), REGISTRY)])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, methods: dict[str, Method]) -> RunConfig:
    """Both seeds fitted, and their rows on valid."""
    folder = tmp_path_factory.mktemp("importance")
    protocol = Protocol(
        UNIVERSE, ("2019-12-02", "2020-06-30"), ("2020-07-01", "2020-09-30"), ("2020-10-09", "2020-12-15")
    )
    store = write_tiny_store(folder / "store")
    made = RunConfig(store, folder / "results" / "alpha.csv", folder / "state", protocol)
    for seed in methods["trees"].seeds:
        score(made, methods, seed)
        task = task_of(made, methods, seed)
        named = {"method": "trees", "seed": seed, "key": task.key, "configuration": task.configuration}
        add_row(made.results, replace(ROW, data=task.store_fingerprint, **named))
    return made


def task_of(config: RunConfig, methods: dict[str, Method], seed: int) -> Task:
    known = open_store(config.store)
    return Task(methods["trees"], seed, "valid", config.protocol, config.store, known["fingerprint"])


def score(config: RunConfig, methods: dict[str, Method], seed: int) -> pd.Series:
    """What a run does without judging: fit or take the kept fit, and score."""
    task, scratch = task_of(config, methods, seed), config.state / "scratch"
    return compute_scores(task, {}, State(config.state).fit(task.fit_key), scratch)


def read(config: RunConfig, methods: dict[str, Method], *named: str, segment: str = "valid") -> list[str]:
    return importance(config.results.parent, config.state, segment, methods, named, config.protocol)


def fit_folders(config: RunConfig) -> list[Path]:
    return sorted((config.state / "fits").iterdir())


def test_gain_is_the_planted_column_s_under_its_own_name(config: RunConfig, methods: dict[str, Method]) -> None:
    lines = read(config, methods, "trees")
    table = pd.read_csv(config.results.with_name("importance.csv"))
    assert list(table.columns) == ["method", "seed", "feature", "group", "gain_share", "splits"]
    assert len(table) == 2 * len(NAMES)
    assert table.groupby("seed")["gain_share"].sum().to_numpy() == pytest.approx(1.0, abs=1e-5)
    planted = table[table["feature"] == "surprise"]
    assert (planted["gain_share"] > 0.8).all()
    assert planted["gain_share"].nunique() == 2  # the seeds are two fits
    assert dict(zip(table["feature"], table["group"], strict=True)) == {
        "mystery": "other", "surprise": "Kronos token factors", "skew": "Kronos path factors", "KMID": "Alpha158",
        "emb_000": "Kronos embedding components",
    }  # fmt: skip
    text = "\n".join(lines)
    mean = planted["gain_share"].mean()
    assert re.search(rf"Kronos token factors +1 +20\.0% +{mean:.1%}   ", text)
    assert re.search(rf"surprise +{planted['splits'].mean():.0f} +{mean:.1%} +Kronos token factors", text)


def test_the_file_is_sorted_and_the_same_every_time(config: RunConfig, methods: dict[str, Method]) -> None:
    read(config, methods, "trees")
    path = config.results.with_name("importance.csv")
    first = path.read_bytes()
    table = pd.read_csv(path)
    assert table["seed"].is_monotonic_increasing
    for _, part in table.groupby("seed"):
        assert part["gain_share"].is_monotonic_decreasing
    read(config, methods)  # of all methods this one has gain and rows
    assert path.read_bytes() == first


def test_the_names_are_those_of_the_frame_that_was_fitted_on(config: RunConfig) -> None:
    for folder in fit_folders(config):
        assert json.loads((folder / "columns.json").read_text(encoding="utf-8")) == NAMES


def test_an_old_fit_gets_its_names_by_being_scored_again_not_fitted(
    config: RunConfig, methods: dict[str, Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlib.contrib.model.gbdt import LGBModel

    before = score(config, methods, 0)
    for folder in fit_folders(config):
        (folder / "columns.json").unlink()
    with pytest.raises(ValueError, match=r"not noted.*--methods trees --seeds 0 --segment valid --results ANOTHER"):
        read(config, methods, "trees")
    monkeypatch.setattr(LGBModel, "fit", lambda *_: pytest.fail("it was fitted again"))
    pd.testing.assert_series_equal(score(config, methods, 0), before)
    assert read(config, methods, "trees")  # one seed's names are the other's
    score(config, methods, 1)
    assert len([folder for folder in fit_folders(config) if (folder / "columns.json").is_file()]) == 2


@pytest.mark.parametrize("name", ["least_squares", "reversal"])
def test_a_method_without_gain_is_refused(config: RunConfig, methods: dict[str, Method], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: no gain, which LightGBM's fits have: trees, not_run"):
        read(config, methods, "trees", name)


def test_what_is_not_there_is_named(config: RunConfig, methods: dict[str, Method], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run on valid of not_run"):
        read(config, methods, "trees", "not_run")
    with pytest.raises(ValueError, match="no finished run on test of LightGBM"):
        read(config, methods, segment="test")
    with pytest.raises(ValueError, match=r"has no fit of trees \(seed 0\)"):
        read(replace(config, state=tmp_path), methods, "trees")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="another configuration or protocol"):
        importance(config.results.parent, config.state, "valid", methods, ["trees"])


def test_seeds_of_different_factors_are_not_averaged(
    config: RunConfig, methods: dict[str, Method], tmp_path: Path
) -> None:
    first, second = read_rows(config.results)
    write_rows(tmp_path / "alpha.csv", [first, replace(second, checkpoint="other")])
    with pytest.raises(ValueError, match="different stores or factors"):
        read(replace(config, results=tmp_path / "alpha.csv"), methods, "trees")


def test_names_that_cannot_be_the_fit_s_are_refused(config: RunConfig, methods: dict[str, Method]) -> None:
    noted = fit_folders(config)[0] / "columns.json"
    before = noted.read_text(encoding="utf-8")
    noted.write_text(json.dumps(NAMES[::-1]), encoding="utf-8")
    try:
        with pytest.raises(ValueError, match="the columns noted beside the fits of its seeds differ"):
            read(config, methods, "trees")
    finally:
        noted.write_text(before, encoding="utf-8")


def walk(node: dict[str, Any], gain: list[float], splits: list[int]) -> None:
    if "split_feature" in node:
        gain[node["split_feature"]] += node["split_gain"]
        splits[node["split_feature"]] += 1
        walk(node["left_child"], gain, splits)
        walk(node["right_child"], gain, splits)


def test_shares_are_those_of_the_trees_one_by_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x[:, 2] + 0.5 * x[:, 0] + 0.1 * rng.normal(size=400)
    booster = lightgbm.train({"verbosity": -1, "num_threads": 1}, lightgbm.Dataset(x, y), num_boost_round=4)
    gain, splits = [0.0] * 3, [0] * 3
    for tree in booster.dump_model()["tree_info"]:
        walk(tree["tree_structure"], gain, splits)
    table = gain_table(booster, ["skew", "KMID", "surprise"])
    assert table["gain_share"].to_numpy() == pytest.approx(np.array(gain) / sum(gain), rel=1e-5)
    assert table["splits"].tolist() == splits
    assert table["group"].tolist() == ["Kronos path factors", "Alpha158", "Kronos token factors"]
    with pytest.raises(ValueError, match="the names of 2 columns for a fit on 3"):
        gain_table(booster, ["skew", "KMID"])
    flat = lightgbm.train({"verbosity": -1}, lightgbm.Dataset(x, np.zeros(400)), num_boost_round=1)
    with pytest.raises(ValueError, match="never split"):
        gain_table(flat, ["skew", "KMID", "surprise"])


def test_groups_are_the_registries() -> None:
    known = registered_groups()
    count = pd.Series(known).value_counts()
    assert count["Alpha158"] == 158
    assert (count["Kronos path factors"], count["Kronos token factors"]) == (len(FACTORS), len(TOKEN_FACTORS))
    assert len(known) == 158 + len(FACTORS) + len(TOKEN_FACTORS) + len(TABLE_FACTORS)  # no name is in two
    assert group_of("expected_return_change", known) == "Kronos table factors"
    assert group_of("emb_pca_07", known) == group_of("emb_127", known) == "Kronos embedding components"
    assert group_of("CLOSE59", known) == "other"  # of Alpha360
    assert set(module.GROUPS) > set(known.values())


def test_which_packaged_methods_have_gain() -> None:
    assert [name for name, method in read_methods().items() if method.has_gain] == [
        "lightgbm_alpha158", "lightgbm_alpha360", "lightgbm_kronos", "lightgbm_alpha158_kronos",
    ]  # fmt: skip


def test_the_command_has_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_row(tmp_path / "alpha.csv", replace(ROW, method="lightgbm_kronos"))
    for name, message in (("linear_kronos", "no gain"), ("lightgbm_kronos", "another configuration")):
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", "importance", "--methods", name, "--results", str(tmp_path), "--state", str(tmp_path)])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
