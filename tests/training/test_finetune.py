"""Fine-tuning: what learns and what stays, what is known afterwards, what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_training import tiny_corpus, tiny_frame, tiny_panel, tiny_recipe

from kronos_qlib.cli import main
from kronos_qlib.forecast.crossfit import SeenBars
from kronos_qlib.kronos import Kronos, ModelConfig, fingerprint, load_card, load_model, load_tokenizer
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.training.card_files import read_card
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.finetune import Start, finetune
from kronos_qlib.training.finetune_recipe import FinetuneRecipe, Lora, NetworkTuning
from kronos_qlib.training.pretrain import pretrain
from kronos_qlib.training.recipe import PredictorTraining
from kronos_qlib.training.tuning import learning, with_dropout

SHORT = {"tokenizer_training__steps": 6, "predictor_training__steps": 6, "model__n_layers": 2}
STEPS = {"steps": 6, "batch_size": 8, "rate": 3e-3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("finetune") / "corpus")


@pytest.fixture(scope="module")
def parent(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny networks that learned January to May and were chosen on June."""
    place = tmp_path_factory.mktemp("finetune") / "parent"
    spans = {"train__end": "2010-05-31", "valid": {"start": "2010-06-01", "end": "2010-06-30"}}
    pretrain(tiny_recipe(**SHORT, **spans), corpus, place)
    return place


def tiny_tuning(**changes: Any) -> FinetuneRecipe:
    """Six steps on July to September, chosen on October to December."""
    values: dict[str, Any] = {
        "universe": "the same walks", "lookback": 12, "horizon": 4, "forecast_horizon": 4, "predictor": STEPS,
        "train": {"start": "2010-07-01", "end": "2010-09-30"}, "valid": {"start": "2010-10-01", "end": "2010-12-31"},
    }  # fmt: skip
    return FinetuneRecipe(**{**values, **changes})


def weights(location: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(location).named_parameters())


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def tuned(corpus: Corpus, parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finetune") / "tuned"
    finetune(parent, corpus, tiny_tuning(), place, command="the command")
    return place


def test_the_result_is_an_ordinary_checkpoint(parent: Path, tuned: Path) -> None:
    card, older = read_card(tuned), read_card(parent)
    assert not isinstance(card, dict)
    assert not isinstance(older, dict)
    assert len(changed(weights(parent), weights(tuned))) == len(weights(parent))
    assert fingerprint(load_tokenizer(tuned)) == fingerprint(load_tokenizer(parent))
    assert (card.fingerprint.model, card.lookback) == (fingerprint(load_model(tuned)), 12)
    assert (str(card.train_start), str(card.cutoff)) == ("2010-01-01", "2010-09-30")
    assert (str(card.valid_start), str(card.valid_end)) == ("2010-06-01", "2010-12-31")
    assert card.parent is not None
    assert card.parent.fingerprint == f"{older.fingerprint.model}-{older.fingerprint.tokenizer}"
    assert str(card.parent.cutoff) == "2010-05-31"
    assert card.bars_seen == older.bars_seen + 6 * 8 * 15
    assert card.tokens.bars != older.tokens.bars
    figures = card.valid_figures["predictor"]
    assert figures["before"]["valid_forecast"] != figures["valid_forecast"]
    assert list(json.loads((tuned / "curves.json").read_text())) == ["predictor"]
    assert load_card(tuned)["command"] == "the command"


def test_years_between_that_nobody_learned_are_held_out(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    # contexts of July's windows reach back into June, those of an isolated recipe do not
    later = {"train": {"start": "2010-07-20", "end": "2010-09-30"}}
    card = finetune(parent, corpus, tiny_tuning(**later, isolated=True), tmp_path / "isolated")
    assert card["held_out"] == [["2010-06-01", "2010-07-19"]]
    assert (card["train_start"], card["cutoff"]) == ("2010-01-01", "2010-09-30")
    reached = finetune(parent, corpus, tiny_tuning(**later), tmp_path / "reaching")["held_out"]
    assert "2010-06-01" < reached[0][1] < "2010-07-19"
    seen = dataclasses.replace(SeenBars.from_card(card, "child"), chosen_on=None)
    june, july = (np.array([f"2010-{day}"], dtype="datetime64[D]") for day in ("06-01", "07-19"))
    assert seen.untouched(june, july).all()
    assert not seen.untouched(june, july + 1).any()
    assert not seen.untouched(june - 1, july).any()
    # a grandchild that learns August alone leaves the gap as it is
    again = tiny_tuning(train={"start": "2010-08-20", "end": "2010-09-30"}, isolated=True)
    assert finetune(tmp_path / "isolated", corpus, again, tmp_path / "again")["held_out"] == card["held_out"]


def test_frozen_layers_keep_every_bit(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    frozen = tiny_tuning(predictor={**STEPS, "freeze_blocks": 1, "freeze_embeddings": True})
    finetune(parent, corpus, frozen, tmp_path / "out")
    moved = changed(weights(parent), weights(tmp_path / "out"))
    stay = ("transformer.0.", "embedding.", "time_emb.")
    assert moved == {name for name in weights(parent) if not name.startswith(stay)}


def test_a_tuned_tokenizer_brings_its_predictor(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    recipe = tiny_tuning(tokenizer={**STEPS, "freeze_blocks": 1, "freeze_embeddings": True})
    card = finetune(parent, corpus, recipe, tmp_path / "out")
    before, after = (dict(load_tokenizer(place).named_parameters()) for place in (parent, tmp_path / "out"))
    assert changed(before, after) == {name for name in before if not name.startswith(("embed.", "encoder.0."))}
    assert set(card["valid_figures"]) == {"tokenizer", "predictor"}
    assert len(changed(weights(parent), weights(tmp_path / "out"))) == len(weights(parent))
    with pytest.raises(ValueError, match="A tokenizer is never tuned alone"):
        tiny_tuning(tokenizer=STEPS, predictor=None)


def test_a_finished_run_is_not_done_again_and_another_is_refused(corpus: Corpus, parent: Path, tuned: Path) -> None:
    before, seen = weights(tuned), []
    finetune(parent, corpus, tiny_tuning(), tuned, command="x", on_metrics=lambda *entry: seen.append(entry))
    assert not seen
    assert not changed(before, weights(tuned))
    with pytest.raises(ValueError, match=r"holds another run.*predictor.rate: 0.003 -> 0.01"):
        finetune(parent, corpus, tiny_tuning(predictor={**STEPS, "rate": 0.01}), tuned)
    with pytest.raises(ValueError, match=r"holds another run.*parent: "):
        finetune("bundled:synthetic", corpus, tiny_tuning(), tuned)


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def test_a_run_that_was_cut_off_ends_with_the_same_bits(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    recipe = tiny_tuning(tokenizer={**STEPS, "valid_every": 2}, predictor={**STEPS, "valid_every": 2, "dropout": 0.1})

    def cut(network: str, entry: dict[str, float]) -> None:
        if (network, entry["step"]) == ("predictor", 4):
            raise Killed

    with pytest.raises(Killed):
        finetune(parent, corpus, recipe, tmp_path / "cut", on_metrics=cut)
    finetune(parent, corpus, recipe, tmp_path / "cut")
    finetune(parent, corpus, recipe, tmp_path / "whole")
    assert not changed(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_bars_after_train_teach_nothing(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    """One validation, so that valid has no choice to make: the weights are those of the training bars alone."""
    recipe = tiny_tuning(predictor={**STEPS, "valid_every": 6})
    frame = tiny_frame()
    after = (frame["datetime"] > "2010-09-30").to_numpy()
    noise = np.random.default_rng(0).uniform(0.95, 1.05, (int(after.sum()), 1))
    fields = ["open", "high", "low", "close", "volume", "amount"]
    frame.loc[after, fields] *= noise
    panel = BarPanel.from_frame(frame, calendar=tiny_panel().calendar)
    other = Corpus.from_panels(tmp_path / "corpus", {"walks": panel}, recipe.policy())
    finetune(parent, corpus, recipe, tmp_path / "a")
    card = finetune(parent, other, recipe, tmp_path / "b")
    assert not changed(weights(tmp_path / "a"), weights(tmp_path / "b"))
    figures = card["valid_figures"]["predictor"], load_card(tmp_path / "a")["valid_figures"]["predictor"]
    assert figures[0]["valid_forecast"] != figures[1]["valid_forecast"]
    assert load_card(tmp_path / "a")["tokens"] == card["tokens"]


def test_trap_14_an_empty_valid_span_is_refused(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    recipe = tiny_tuning(valid={"start": "2012-01-01", "end": "2012-12-31"})
    with pytest.raises(ValueError, match="the valid span holds nothing"):
        finetune(parent, corpus, recipe, tmp_path / "out")


def test_a_parent_without_a_cutoff_must_be_given_one(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    start = Start(load_model(parent), load_tokenizer(parent))
    with pytest.raises(ValueError, match="set parent_cutoff"):
        finetune(start, corpus, tiny_tuning(), tmp_path / "out")
    card = finetune(start, corpus, tiny_tuning(parent_cutoff="2024-06-30"), tmp_path / "out")
    assert (card["cutoff"], card["train_start"]) == ("2024-06-30", "1900-01-01")
    assert card["parent"]["train_start"] is None
    # the first context reaches back before July
    known = tiny_tuning(parent_cutoff="2024-06-30", parent_train_start="2010-06-28")
    assert finetune(start, corpus, known, tmp_path / "known")["train_start"] == "2010-06-15"


def test_weights_that_got_no_better_on_valid_are_not_kept(
    corpus: Corpus, parent: Path, tmp_path: Path, caplog: Any
) -> None:  # fmt: skip
    ruinous = {"steps": 2, "rate": 3.0, "batch_size": 8}
    recipe = tiny_tuning(tokenizer=ruinous, predictor={**ruinous, "dropout": 0.1})
    with caplog.at_level(logging.WARNING):
        card = finetune(parent, corpus, recipe, tmp_path / "out")
    for name in ("tokenizer", "predictor"):
        assert f"fine-tuning made the {name} no better" in caplog.text
        figures = card["valid_figures"][name]
        assert figures["step"] == 0
        assert figures.items() >= figures["before"].items()
    assert not changed(weights(parent), weights(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictor": {"stepz": 5}}, "NetworkTuning: unknown key 'stepz' .did you mean 'steps'"),
        ({"predicter": STEPS}, "FinetuneRecipe: unknown key 'predicter' .did you mean 'predictor'"),
        ({"predictor": {"steps": 5, "epochs": 1}}, "give one of them"),
        ({"predictor": {}}, "give one of them"),
        ({"predictor": {**STEPS, "lora": {"rnk": 2}}}, "Lora: unknown key 'rnk' .did you mean 'rank'"),
        ({"valid": {"start": "2010-08-01", "end": "2010-12-31"}}, "valid must begin after train"),
    ],
)
def test_mistakes_in_a_recipe_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_tuning(**changes)


def test_lengths_come_from_the_card_unless_given() -> None:
    given = {key: value for key, value in tiny_tuning().to_dict().items() if key not in ("lookback", "max_context")}
    recipe = FinetuneRecipe.for_card({"lookback": 33, "max_context": 99, "horizon": 7}, **given)
    assert (recipe.lookback, recipe.max_context, recipe.forecast_horizon) == (33, 99, 4)


def test_epochs_are_counted_in_windows() -> None:
    assert NetworkTuning(epochs=2, batch_size=8).training(100) == PredictorTraining(
        steps=25, batch_size=8, rate=1e-4, final_fraction=0.1, warmup=1, valid_every=2, patience=3
    )


def small_model() -> Kronos:
    torch.manual_seed(0)
    shape = {"s1_bits": 3, "s2_bits": 3, "d_model": 16, "n_heads": 2, "ff_dim": 24, "n_layers": 2}
    return Kronos(ModelConfig(**shape)).eval()


def test_too_much_frozen_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="freeze_blocks is 3, the model has 2 blocks"),
        learning(small_model(), NetworkTuning(steps=1, freeze_blocks=3)),
    ):
        pass


def test_another_dropout_keeps_the_weights() -> None:
    model = small_model()
    other = with_dropout(model, 0.3)
    assert other.config.ffn_dropout_p == other.config.resid_dropout_p == 0.3
    assert not changed(dict(model.named_parameters()), dict(other.named_parameters()))
    assert with_dropout(model, None) is model


def outputs(model: Kronos) -> torch.Tensor:
    torch.manual_seed(1)
    s1, s2 = torch.randint(0, 8, (2, 3, 9))
    stamps = torch.stack([torch.randint(0, size, (3, 9)) for size in (60, 24, 7, 32, 13)], dim=-1)
    with torch.no_grad():
        return torch.cat(model(s1, s2, stamps, s1), dim=-1)


def test_merged_adapters_compute_what_they_did_apart() -> None:
    pytest.importorskip("peft", reason="LoRA needs peft (the extra finetune)")
    model = small_model()
    before, own = outputs(model), {name: p.clone() for name, p in model.named_parameters()}
    with learning(model, NetworkTuning(steps=1, lora=Lora(rank=2), freeze_blocks=1)):
        assert torch.equal(outputs(model), before)  # an adapter begins as nothing
        adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert adapters
        assert all("lora_" in name and not name.startswith("transformer.0.") for name in adapters)
        with torch.no_grad():
            for parameter in adapters.values():
                parameter.add_(0.3 * torch.randn_like(parameter))
        apart = outputs(model)
    assert not torch.allclose(apart, before, atol=1e-3)
    torch.testing.assert_close(outputs(model), apart, rtol=1e-5, atol=1e-5)
    projections = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight")
    moved = changed(own, dict(model.named_parameters()))
    assert moved == {name for name in own if name.endswith(projections) and not name.startswith("transformer.0.")}


def test_lora_end_to_end(corpus: Corpus, parent: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft (the extra finetune)")
    recipe = tiny_tuning(predictor={**STEPS, "lora": {"rank": 2, "target_modules": ["q_proj", "w2"]}})
    finetune(parent, corpus, recipe, tmp_path / "out")
    moved = changed(weights(parent), weights(tmp_path / "out"))
    assert moved == {name for name in weights(parent) if name.endswith(("q_proj.weight", "w2.weight"))}
    assert not isinstance(read_card(tmp_path / "out"), dict)
    wrong = tiny_tuning(predictor={**STEPS, "lora": {"target_modules": ["q_porj"]}})
    with pytest.raises(ValueError, match=r"no linear layer is named q_porj; there are .*q_proj"):
        finetune(parent, corpus, wrong, tmp_path / "wrong")


def test_without_peft_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with (
        pytest.raises(ValueError, match=r"pip install 'kronos-qlib\[finetune\]'"),
        learning(small_model(), NetworkTuning(steps=1, lora=Lora())),
    ):
        pass


def test_the_command_takes_a_recipe_and_options(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_frame().to_parquet(tmp_path / "bars.parquet")
    content = tiny_tuning().to_dict()
    recipe = {key: content[key] for key in ("universe", "horizon", "train", "valid", "predictor")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "valid_source": "valid"}))
    files = ["--bars", str(tmp_path / "bars.parquet"), "--valid-bars", str(tmp_path / "bars.parquet")]
    arguments = ["finetune", str(parent), *files, "--out", str(tmp_path / "out")]
    threads = torch.get_num_threads()
    for options in (["--recipe", str(tmp_path / "recipe.yaml"), "--rate", "0.002", "--threads", "1"],) * 2:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *options])
        assert ended.value.code in (0, None), capsys.readouterr().err
    torch.set_num_threads(threads)
    assert "predictor: before" in capsys.readouterr().out
    assert load_card(tmp_path / "out")["recipe"]["predictor"]["rate"] == 0.002
    assert load_card(tmp_path / "out")["lookback"] == 12
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5_000
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--train", "2010-07-01", "--steps", "4"])
    assert ended.value.code == 2
    assert "--train START:END" in capsys.readouterr().err
