"""The table of recipe variants: which settings one has, what runs again, and one whole table of tiny networks."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_market import UNIVERSE, write_tiny_store
from tiny_training import tiny_recipe, write_recipe

from kronos_qlib.kronos import KronosTokenizer, TokenizerConfig, load_card, save_tokenizer
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.recipe import PretrainRecipe

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
STEPS = {"tokenizer_training__steps": 8, "predictor_training__steps": 8}


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("recipes")


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("recipe_variants")


def test_one_setting_at_a_time_around_the_base_and_named_ones(variants: Any) -> None:
    found = variants.read_variants(
        ["model.d_model=24,32", "train.start=2010-02-01"],
        ["wide: model.d_model=32, model.ff_dim=48", "mixed: mixture={a: .5, b: .5}"],
    )
    assert [(v.name, dict(v.changes)) for v in found[:3]] == [
        ("base", {}), ("model.d_model=24", {"model.d_model": 24}), ("model.d_model=32", {"model.d_model": 32}),
    ]  # fmt: skip
    assert found[3].name == "train.start=2010-02-01"
    assert dict(found[4].changes) == {"model.d_model": 32, "model.ff_dim": 48}
    assert dict(found[5].changes) == {"mixture": {"a": 0.5, "b": 0.5}}


@pytest.mark.parametrize("text", ["model.d_model=32", "wide: model.d_model", "a/b: x=1", "wide: x=1, x=2", "wide:"])
def test_a_variant_without_a_name_or_a_value_is_refused(variants: Any, text: str) -> None:
    with pytest.raises(ValueError, match="expected a name and settings"):
        variants.read_variant(text)


def test_two_variants_of_one_name_are_refused(variants: Any) -> None:
    with pytest.raises(ValueError, match="wide are given twice"):
        variants.read_variants([], ["wide: model.d_model=32", "wide: model.d_model=64"])


def test_bits_change_both_networks(variants: Any) -> None:
    for part in ("tokenizer", "model"):
        recipe = variants.changed(tiny_recipe(), {f"{part}.s1_bits": 6})
        assert recipe.tokenizer is not None
        assert (recipe.tokenizer.s1_bits, recipe.model.s1_bits, recipe.model.s2_bits) == (6, 6, 3)


def test_only_what_changes_its_tokenizer_trains_one(variants: Any) -> None:
    shared = variants.changed(tiny_recipe(), {"model.d_model": 24}, "somewhere")
    assert (shared.tokenizer, shared.tokenizer_training, shared.tokenizer_from) == (None, None, "somewhere")
    for changes in ({"model.s1_bits": 6}, {"tokenizer_training.rate": 1e-2}):
        assert variants.changed(tiny_recipe(), changes, "somewhere").tokenizer_from is None
    given = variants.changed(tiny_recipe(tokenizer=None, tokenizer_training=None, tokenizer_from="x"), {})
    assert given.tokenizer_from == "x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.d_modle": 24}, "did you mean 'd_model'"),
        ({"modle.d_model": 24}, "did you mean 'model'"),
        ({"valid.end": "2011-12-31"}, "judged on the same dates"),
        ({"lookback.bars": 3}, "no settings 'lookback'"),
        ({"model.n_heads": 3}, "must give an even whole head width"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(variants: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variants.changed(tiny_recipe(), changes)


def test_fewer_steps_have_a_shorter_warm_up(variants: Any) -> None:
    short = variants.shorten(tiny_recipe(), 8, None)
    assert (short.predictor_training.steps, short.predictor_training.warmup) == (8, 2)
    assert short.tokenizer_training == tiny_recipe().tokenizer_training


def test_a_key_is_that_of_the_weights(variants: Any, tmp_path: Path) -> None:
    key = variants.run_key(tiny_recipe(), "bars")
    assert variants.run_key(tiny_recipe(predictor_training__workers=2), "bars") == key
    others = [variants.run_key(tiny_recipe(model__d_model=24), "bars"), variants.run_key(tiny_recipe(), "other bars")]
    assert len({key, *others}) == 3
    own = tiny_recipe().tokenizer
    assert own is not None
    for name in ("here", "there"):
        save_tokenizer(KronosTokenizer(TokenizerConfig(**own.to_dict())).eval(), tmp_path / name / "tokenizer")
    (tmp_path / "again").symlink_to(tmp_path / "here")
    keys = [
        variants.run_key(variants.changed(tiny_recipe(), {}, str(tmp_path / name)), "bars")
        for name in ("here", "again", "there")
    ]
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]


def test_test_is_not_read(variants: Any, tmp_path: Path) -> None:
    late = tiny_recipe(valid__end="2017-01-01")
    with pytest.raises(ValueError, match="test begins on 2017-01-01"):
        variants.plan_trials(late, variants.read_variants([], []), "bars", tmp_path, None)
    (tmp_path / "card.json").write_text(json.dumps({"train_start": "2005-01-01", "cutoff": "2010-10-01"}))
    with pytest.raises(ValueError, match="base: tokenizer_from has learned bars up to 2010-10-01"):
        variants.plan_trials(tiny_recipe(), variants.read_variants([], []), "bars", tmp_path, str(tmp_path))


def test_a_row_takes_the_place_of_its_own_alone(recipes: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    # a hash of digits stays a text
    first = {"variant": "a", "recipe": "0012", "examined": "1e5", "mse": 0.123456789, "steps": 8, "crps_skill_5": None}
    for row in (first, {**first, "recipe": "0013", "more": 2.0}, {**first, "mse": 0.5}):
        recipes.add_row(path, row)
    other, again = recipes.read_rows(path)
    assert (other["recipe"], other["mse"], other["more"], other["steps"]) == ("0013", 0.123457, 2.0, 8)
    assert (again["recipe"], again["examined"], again["mse"]) == ("0012", "1e5", 0.5)
    assert again["crps_skill_5"] is None
    assert recipes.read_rows(tmp_path / "none.csv") == []


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, PretrainRecipe]:
    folder = tmp_path_factory.mktemp("recipes")
    spans = {
        "train": {"start": "2019-09-02", "end": "2020-06-30"},
        "valid": {"start": "2020-07-01", "end": "2020-08-31"},
    }
    recipe = tiny_recipe(**STEPS, lookback=20, **spans)
    store = write_tiny_store(folder / "store")
    Corpus.from_store(folder / "corpus", store, policy=recipe.policy())
    return folder, store, recipe


def table(recipes: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str]) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["recipes.py", *arguments])
    recipes.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_table_is_made_once_and_goes_on_with_what_is_new(
    recipes: Any, variants: Any, market: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    folder, store, recipe = market
    monkeypatch.setattr(variants, "TEST_BEGINS", "2020-09-01")
    trained = []
    monkeypatch.setattr(
        recipes, "pretrain", lambda *a, _own=recipes.pretrain, **k: trained.append(a[2]) or _own(*a, **k)
    )
    arguments = [
        str(write_recipe(recipe, tmp_path / "recipe.yaml")), "--corpus", str(folder / "corpus"), "--store", str(store),
        "--out", str(tmp_path / "out"), "--universe", UNIVERSE, "--n-paths", "2", "--token-windows", "12",
        "--device", "cpu", "--every", "8", "--steps", "4",
    ]  # fmt: skip
    (base,) = table(recipes, monkeypatch, capsys, arguments)["rows"]
    assert base["loss_after"] == pytest.approx(base["s1_after"] + base["s2_after"], rel=1e-5)
    assert base["bits_per_bar_after"] == pytest.approx(base["loss_after"] / 0.693147, rel=1e-4)
    assert base["cpu_seconds_a_step"] > 0
    assert base["steps"] == 4
    assert base["one_day.expected_return.rank_ic"] is not None
    shared = [
        *arguments, "--tokenizer-from", str(trained[0]), "--set", "model.d_model=24",
        "--variant", "bits: tokenizer.s1_bits=4, tokenizer.s2_bits=5",
        "--variant", "broken: predictor_training.rate=1e30",
    ]  # fmt: skip
    found = table(recipes, monkeypatch, capsys, shared)
    assert [row["variant"] for row in found["rows"]] == ["base", "model.d_model=24", "bits"]
    same, wide, bits = found["rows"]
    # the base on the base's own tokenizer: another recipe, the same weights
    assert same["recipe"] != base["recipe"]
    assert (same["s1_after"], same["mse"]) == (base["s1_after"], base["mse"])
    assert wide["tokenizer"] == base["tokenizer"] != bits["tokenizer"]
    assert (wide["bits"], bits["bits"]) == ("3 + 3", "4 + 5")
    assert "no number" in found["no_row"]["broken"]
    assert len(trained) == 5
    assert table(recipes, monkeypatch, capsys, arguments)["rows"] == [base]
    assert len(trained) == 5
    # no label reads a bar beyond valid: eleven sessions of August are left
    examined = json.loads((trained[0] / "examination.json").read_text())["settings"]
    assert (examined["start"], examined["end"]) == ("2020-07-01", "2020-08-14")
    assert load_card(str(trained[0]))["valid_end"] == "2020-08-31"
    # another examination of the same weights is another row
    keys = []
    for every in (8, 9):
        args = argparse.Namespace(store=store, universe=UNIVERSE, every=every, n_paths=2, token_windows=12)
        keys.append(recipes.plan_examination(args, recipe)[1])
    assert base["examined"] == keys[0] != keys[1]
