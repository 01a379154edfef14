"""From a recipe to a folder: the settings, the card, the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_training import tiny_corpus, tiny_frame, tiny_panel, tiny_recipe, write_recipe

from kronos_qlib.cli import main
from kronos_qlib.cli_train import command_line
from kronos_qlib.kronos import fingerprint, load_model, load_tokenizer
from kronos_qlib.kronos.fast_training import Dropout, project
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.card_files import read_card
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.corpus_sources import BarFiles
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.pretrain import pretrain, run_identity
from kronos_qlib.training.recipe import PredictorTraining, differences, load_recipe
from kronos_qlib.training.run_folder import claim_folder, sources

SHORT = {"tokenizer_training__steps": 6, "predictor_training__steps": 6}


def test_a_folder_holds_both_networks_their_card_and_their_curves(tmp_path: Path) -> None:
    recipe = tiny_recipe(**SHORT, weights_dtype="bfloat16", predictor_training__dropout=0.3)
    seen: list[tuple[str, float]] = []
    pretrain(
        recipe,
        tiny_corpus(tmp_path / "corpus"),
        tmp_path / "out",
        command="the command",
        on_metrics=lambda name, entry: seen.append((name, entry["step"])),
    )
    card = read_card(tmp_path / "out")
    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    assert not isinstance(card, dict)
    assert (card.fingerprint.model, card.fingerprint.tokenizer) == (fingerprint(model), fingerprint(tokenizer))
    assert (str(card.train_start), str(card.cutoff)) == ("2010-01-01", "2010-08-31")
    assert (str(card.valid_start), str(card.valid_end)) == ("2010-09-01", "2010-12-31")
    assert (card.lookback, card.command, card.bars_seen) == (12, "the command", 6 * 8 * 15)
    assert card.tokens.bars == sum(card.tokens.s1)
    assert model.config.ffn_dropout_p == model.config.resid_dropout_p == 0.3
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert {"valid_s1_context", "valid_s2_forecast", "train_s1_forecast"} <= curves["predictor"]["entries"][0].keys()
    assert card.valid_figures["predictor"]["valid_forecast"] == curves["predictor"]["best_value"]
    assert seen == [("tokenizer", 6), ("predictor", 6)]


def test_a_given_tokenizer_is_taken_as_it_is(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    pretrain(tiny_recipe(**SHORT), corpus, tmp_path / "first")
    given = {"tokenizer": None, "tokenizer_training": None, "tokenizer_from": str(tmp_path / "first")}
    early = {"train__end": "2010-05-31", "valid": {"start": "2010-06-01", "end": "2010-07-31"}}
    card = pretrain(tiny_recipe(predictor_training__steps=6, **given, **early), corpus, tmp_path / "second")
    assert fingerprint(load_tokenizer(tmp_path / "second")) == fingerprint(load_tokenizer(tmp_path / "first"))
    assert list(json.loads((tmp_path / "second" / "curves.json").read_text())) == ["predictor"]
    # the tokenizer learned bars up to August, and its tokens carry them into every forecast
    assert (card["train_start"], card["cutoff"]) == ("2010-01-01", "2010-08-31")
    with pytest.raises(ValueError, match=r"isolated to 2010-01-01 … 2010-05-31, but tokenizer_from .* to 2010-08-31"):
        pretrain(tiny_recipe(**given, **early, isolated=True), corpus, tmp_path / "third")
    (tmp_path / "first" / "card.json").unlink()
    with pytest.raises(ValueError, match="bars that no card dates"):
        pretrain(tiny_recipe(**given, **early, isolated=True), corpus, tmp_path / "third")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictor_training__stepz": 5}, "PredictorTraining: unknown key 'stepz' .did you mean 'steps'"),
        ({"modle": {}}, "PretrainRecipe: unknown key 'modle' .did you mean 'model'"),
        ({"predictor_training__warmup": 24}, "warmup=24 leaves no step of steps=24"),
        ({"valid__start": "2010-05-01"}, "valid must begin after train"),
        ({"model__s1_bits": 4}, "the model has 4 . 3 bits, its tokenizer 3 . 3"),
        ({"tokenizer": None}, "tokenizer and tokenizer_training, or tokenizer_from"),
        ({"train__end": "2009-01-01"}, "is empty; swap its ends"),
        ({"name": "../x"}, "must not look like a path"),
    ],
)
def test_mistakes_in_a_recipe_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_recipe(**changes)


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = tiny_recipe(augmentation={"mask_volume": 0.2}, filters={"max_idle": None})
    assert load_recipe(write_recipe(recipe, tmp_path / "recipe.yaml")) == recipe
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match=r"list\.yaml holds a list"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is not readable YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_differences_name_nested_settings() -> None:
    assert differences({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4, "d": 3}}) == ["a: 1 -> None", "b.c: 2 -> 4"]
    # who cuts the batches, and how often a state is saved, changes nothing
    plain, other = PredictorTraining(steps=5), PredictorTraining(steps=5, workers=3, save_every=2)
    assert plain.identity() == other.identity()


def test_trap_14_a_valid_span_without_windows_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(valid={"start": "2015-01-01", "end": "2015-12-31"})
    with pytest.raises(ValueError, match="the valid span holds nothing"):
        pretrain(recipe, tiny_corpus(tmp_path / "corpus"), tmp_path / "out")


def test_a_corpus_of_another_rule_is_refused(tmp_path: Path) -> None:
    corpus = Corpus.from_panels(tmp_path / "corpus", {"walks": tiny_panel()}, WindowPolicy(max_jump=None))
    with pytest.raises(ValueError, match="source 'walks' was cut with"):
        pretrain(tiny_recipe(**SHORT), corpus, tmp_path / "out")


def test_a_folder_with_another_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds a checkpoint but no run.json"):
        pretrain(tiny_recipe(**SHORT), tiny_corpus(tmp_path / "corpus"), tmp_path / "out")


def test_the_command_trains_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_frame().to_parquet(tmp_path / "bars.parquet")
    recipe = write_recipe(tiny_recipe(**SHORT), tmp_path / "recipe.yaml")
    arguments = ["pretrain", str(recipe), "--bars", str(tmp_path / "bars.parquet"), "--out", str(tmp_path / "out")]
    threads = torch.get_num_threads()
    for _ in range(2):  # the second time goes on, and finds nothing left to do
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--threads", "1"])
        assert ended.value.code in (0, None)
    torch.set_num_threads(threads)
    assert "predictor: step 6" in capsys.readouterr().out
    assert (tmp_path / "out" / "card.json").is_file()
    content = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**content, "horizn": 3}))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "did you mean 'horizon'" in capsys.readouterr().err


def test_every_source_on_a_card_has_the_fingerprint_of_its_own_bars(tmp_path: Path) -> None:
    policy = tiny_recipe().policy()
    files = {"bars": tmp_path / "bars.parquet", "valid": tmp_path / "valid.parquet"}
    tiny_frame().to_parquet(files["bars"])
    tiny_frame().query("instrument == 'A'").to_parquet(files["valid"])
    named = {name: BarFiles(path, calendar=None) for name, path in files.items()}
    both = sources(Corpus.build(tmp_path / "both", named, policy))
    assert [source["name"] for source in both] == ["bars", "valid"]
    assert both[0]["fingerprint"] != both[1]["fingerprint"]
    # neither what lies beside a source nor the segment rule is part of its content
    alone = Corpus.build(tmp_path / "alone", {"valid": named["valid"]}, WindowPolicy(max_jump=None))
    assert sources(alone)[0]["fingerprint"] == both[1]["fingerprint"]
    tiny_frame().query("instrument == 'B'").to_parquet(files["valid"])
    changed = sources(Corpus.build(tmp_path / "both", named, policy))
    assert changed[0]["fingerprint"] == both[0]["fingerprint"]
    assert changed[1]["fingerprint"] != both[1]["fingerprint"]


def test_another_run_is_refused_before_its_bars_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The corpus lies in the same folder: the run that is there would find another one in its place."""
    tiny_frame().to_parquet(tmp_path / "bars.parquet")
    tiny_frame().query("instrument != 'C'").to_parquet(tmp_path / "fewer.parquet")
    out, recipe = tmp_path / "out", tiny_recipe(**SHORT)
    corpus = Corpus.from_bars(out / "corpus", tmp_path / "bars.parquet", policy=recipe.policy())
    claim_folder(out, run_identity(recipe, corpus.fingerprint), Processes())  # a run that has just begun
    monkeypatch.setattr(BarFiles, "panel", lambda source: pytest.fail("bars were read"))
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    longer = write_recipe(tiny_recipe(**SHORT | {"predictor_training__steps": 7}), tmp_path / "longer.yaml")
    same = write_recipe(recipe, tmp_path / "recipe.yaml")
    for path, bars, difference in (
        (longer, "bars", "predictor_training.steps: 6 -> 7"),
        (same, "fewer", "corpus: "),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["pretrain", str(path), "--bars", str(tmp_path / f"{bars}.parquet"), "--out", str(out)])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "holds another run" in told
        assert difference in told
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before


def test_cheap_dropout_keeps_its_share_and_its_mean() -> None:
    layer, x = Dropout(0.25), torch.ones(300, 401, dtype=torch.bfloat16)
    torch.manual_seed(0)
    dropped = layer(x)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.005)
    assert dropped.float().mean().item() == pytest.approx(1.0, abs=0.01)
    torch.manual_seed(0)
    assert torch.equal(layer(x), dropped)
    assert torch.equal(layer.eval()(x), x)


def test_joint_projections_are_the_single_ones() -> None:
    torch.manual_seed(0)
    layers, x = [torch.nn.Linear(16, 8), torch.nn.Linear(16, 24)], torch.randn(5, 16)
    apart = [layer(x) for layer in layers]
    assert all(torch.equal(a, b) for a, b in zip(project(x, *layers), apart, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        joint, single = project(x, *layers), [layer(x) for layer in layers]
    assert [part.shape for part in joint] == [part.shape for part in single]
    assert all(torch.allclose(a.float(), b.float(), atol=0.02) for a, b in zip(joint, single, strict=True))
    # an adapter that stands where a layer stood is called
    adapter = torch.nn.Sequential(layers[0])
    adapter.weight = layers[0].weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hits: list[int] = []
        adapter.register_forward_hook(lambda *_: hits.append(1))
        project(x, adapter, layers[1])
    assert hits == [1]


def test_a_card_names_files_without_their_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is handed on; where its maker kept the bars is nobody's business and helps no reader."""
    given = ["/opt/bin/kronos-qlib", "pretrain", "recipes/r.yaml", "--bars", "/home/me/a.parquet", "--out=/tmp/x"]
    monkeypatch.setattr(sys, "argv", given)
    assert command_line() == "kronos-qlib pretrain r.yaml --bars a.parquet --out=x"


@pytest.mark.parametrize(("isolated", "first"), [(False, "2010-02-11"), (True, "2010-03-01")])
def test_a_card_begins_with_the_first_bar_that_was_learned(tmp_path: Path, isolated: bool, first: str) -> None:
    """Contexts reach back twelve sessions before the span and are learned too: cross-fitting must not score them."""
    recipe = tiny_recipe(**SHORT, train__start="2010-03-01", isolated=isolated)
    card = pretrain(recipe, tiny_corpus(tmp_path / "corpus"), tmp_path / "out")
    assert card["train_start"] == first


@pytest.mark.slow
def test_a_compiled_run_learns_what_a_plain_one_does(tmp_path: Path) -> None:
    corpus, curves = tiny_corpus(tmp_path / "corpus"), {}
    for compiled in (False, True):
        changes = {f"{part}_training__compile": compiled for part in ("tokenizer", "predictor")}
        pretrain(tiny_recipe(**SHORT, **changes), corpus, tmp_path / str(compiled))
        curves[compiled] = json.loads((tmp_path / str(compiled) / "curves.json").read_text())
    for part in ("tokenizer", "predictor"):
        plain, fast = (curves[compiled][part]["entries"][-1] for compiled in (False, True))
        for key in (name for name in plain if name.startswith(("train_", "valid_"))):
            assert fast[key] == pytest.approx(plain[key], rel=2e-3, abs=1e-4), (part, key)
