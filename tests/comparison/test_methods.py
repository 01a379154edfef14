"""The registry: what an entry may say, placeholders, and that the packaged one is Qlib's published set."""

from __future__ import annotations

from pathlib import Path

import pytest
from table_rows import write_registry as registry

from kronos_qlib.comparison.methods import KINDS, Method, choose, fill, read_methods

ENTRY = """
.shared: &task {model: {class: M, kwargs: {seed: <SEED>, n: <THREADS>, weights: <CHECKPOINT>}}, dataset: {class: D}}
one: {title: One, family: kronos, task: *task, seeds: [1, 2]}
two: {title: Two, family: control, kind: lagged, of: one}
"""


def test_an_entry_is_a_row(tmp_path: Path) -> None:
    methods = read_methods([registry(tmp_path, ENTRY)])
    assert list(methods) == ["one", "two"]
    assert methods["one"].seeded
    assert methods["one"].seeds == (1, 2)
    assert methods["one"].placeholders() == ["CHECKPOINT"]
    assert not methods["two"].seeded


def test_what_is_made_of_other_scores_changes_with_them(tmp_path: Path) -> None:
    before = read_methods([registry(tmp_path, ENTRY)])
    after = read_methods([registry(tmp_path, ENTRY.replace("class: M", "class: N"))])
    assert before["two"].configuration() != after["two"].configuration()


def test_later_registries_add_and_override(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    later = registry(tmp_path / "a", "two: {title: Other, family: reference, kind: column, column: size}")
    methods = read_methods([registry(tmp_path, ENTRY), later])
    assert methods["two"].title == "Other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: {title: One, familly: kronos}", "did you mean 'family'"),
        ("one: {title: One, family: kronoss, kind: column}", "did you mean 'kronos'"),
        ("one: {title: One, family: kronos}", "model and dataset"),
        ("one: {title: One, family: control, kind: lagged}", "needs `of`"),
        ("one: {title: One, family: control, kind: lagged, of: none}", "unknown key 'none'"),
        ("one: {title: One, family: control, kind: lagged, of: one}", "made of another's scores itself"),
        ("one: {title: One, family: kronos, kind: scores}", "which need it"),
        ("one: {title: One, family: kronos, kind: column, path: file}", "belongs to kinds"),
        ("one: {title: One, family: kronos, kind: scores, path: file, seen: never}", "unknown key 'never'"),
        ("one: {title: One, family: kronos, kind: blend}", "`parts`, at least two methods"),
        ("one: {title: One, family: kronos, kind: column, column: a, parts: [b, c]}", "belong to kind blend"),
        ("one: {title: One, family: kronos, kind: blend, parts: [a, b]}", "unknown key 'a'"),
        (
            "a: {title: A, family: kronos, kind: column, column: c}\n"
            "b: {title: B, family: kronos, kind: lagged, of: a}\n"
            "c: {title: C, family: kronos, kind: blend, parts: [a, b]}",
            "blends 'b'; expected parts of kinds",
        ),
        (
            "a: {title: A, family: kronos, kind: scores, path: f}\n"
            "b: {title: B, family: kronos, kind: column, column: c}\n"
            "c: {title: C, family: kronos, kind: blend, parts: [a, b]}",
            "scores made elsewhere with others",
        ),
        ("one: 3", "expected a mapping"),
        ("- one", "expected a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_methods([registry(tmp_path, text)])


def test_placeholders_are_filled_anywhere_and_missed_ones_named() -> None:
    task = {"a": [{"b": "<SEED>"}, "<CHECKPOINT>"], "c": "<MODEL>", "d": "x < y"}
    assert fill(task, {"SEED": 3, "CHECKPOINT": "here"}) == {
        "a": [{"b": 3}, "here"],
        "c": "<MODEL>",
        "d": "x < y",
    }
    with pytest.raises(ValueError, match="--set CHECKPOINT=VALUE"):
        fill(task, {"SEED": 3})


def test_choosing_puts_a_source_before_its_user() -> None:
    methods = {
        "late": Method("late", "late", "control", "lagged", of="first"),
        "first": Method("first", "first", "reference", "column", column="size"),
    }
    assert [method.name for method in choose(methods, [])] == ["first", "late"]
    with pytest.raises(ValueError, match="did you mean 'first'"):
        choose(methods, ["frst"])


def test_the_packaged_registry_has_every_method_that_the_table_promises() -> None:
    methods = read_methods()
    titles = " ".join(method.title for method in methods.values() if method.family == "baseline")
    for learner in ("Linear", "LightGBM", "XGBoost", "CatBoost", "DoubleEnsemble", "MLP", "LSTM", "ALSTM"):
        assert f"{learner}, Alpha158" in titles
    assert "LightGBM, Alpha360" in titles
    assert {"reversal_5", "reversal_20", "mean_reversion", "low_volatility", "low_turnover"} <= set(methods)
    assert {m.kind for m in methods.values()} == set(KINDS)
    for learner in ("Linear", "LightGBM", "DoubleEnsemble"):
        for features in ("Kronos factors", "Alpha158 + Kronos"):
            (found,) = [method for method in methods.values() if method.title == f"{learner}, {features}"]
            assert found.placeholders() == ["FACTORS"]
            handler = found.task["dataset"]["kwargs"]["handler"]
            assert bool(handler["kwargs"].get("alpha158")) == ("Alpha158" in features)
    # a learner that stops on valid says so: all that Qlib stops early
    assert not methods["linear_alpha158"].stops_on_valid
    assert methods["lightgbm_alpha158"].stops_on_valid


def test_lightgbm_is_the_workflows_own() -> None:
    """The row of the table and the packaged workflow are one configuration, threads and seed apart."""
    import yaml

    from kronos_qlib.resources import workflow_path

    workflow = yaml.safe_load(workflow_path("lightgbm_alpha158_csi300").read_text(encoding="utf-8"))["task"]["model"]
    mine = read_methods()["lightgbm_alpha158"].task["model"]
    own = {key: value for key, value in mine["kwargs"].items() if key not in ("num_threads", "seed")}
    assert own == workflow["kwargs"]
    assert mine["class"] == workflow["class"]


def test_the_rolled_learner_reads_the_columns_of_the_one_trained_once() -> None:
    """What the table compares differs in when it was trained, not in what it reads."""
    import yaml

    from kronos_qlib.resources import workflow_path

    text = workflow_path("rolling_linear_alpha158_kronos_day5_csi300").read_text(encoding="utf-8")
    rolled = yaml.safe_load(text)["task"]["dataset"]["kwargs"]["handler"]["kwargs"]
    once = read_methods()["linear_alpha158_kronos_day5"].task["dataset"]["kwargs"]["handler"]["kwargs"]
    for name in ("columns", "align", "alpha158", "may_miss", "label", "infer_processors"):
        assert rolled[name] == once[name]
