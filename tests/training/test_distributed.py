"""Two processes are one: the same loss curve, one writer, and a run that changes their number on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
import torch
from tiny_training import TOKENIZER, tiny_corpus, tiny_recipe, write_recipe

from kronos_qlib.kronos import KronosTokenizer, TokenizerConfig, save_tokenizer
from kronos_qlib.training.distributed import Processes, processes_from_environment, slice_size
from kronos_qlib.training.pretrain import pretrain
from kronos_qlib.training.recipe import PretrainRecipe


def torchrun(folder: Path, *recipes: Path) -> None:
    """Run recipes in two gloo processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [tiny_training.__file__, str(folder), *map(str, recipes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def curve(out: Path, name: str) -> dict[str, list[float]]:
    """Every figure of a history by name, except the speed."""
    entries = json.loads((out / "curves.json").read_text())[name]["entries"]
    return {key: [entry[key] for entry in entries] for key in entries[0] if key != "tokens_per_second"}


def assert_same_curve(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert found[key] == pytest.approx(values, rel=1e-5), key


def predictor_recipe(folder: Path) -> PretrainRecipe:
    """A predictor on a tokenizer that is given, so that both runs learn the same tokens to the last bit."""
    torch.manual_seed(0)
    save_tokenizer(KronosTokenizer(TokenizerConfig(**TOKENIZER)), folder / "given" / "tokenizer")
    given = {"tokenizer": None, "tokenizer_training": None, "tokenizer_from": str(folder / "given")}
    return tiny_recipe(**given, predictor_training__ema=0.9, predictor_training__valid_every=4)


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    # a strong entropy term: without the code use of the whole batch the curves differ in the third digit
    coder = tiny_recipe(tokenizer__zeta=0.5, predictor_training__steps=4, tokenizer_training__valid_every=4)
    predictor = predictor_recipe(tmp_path)
    recipes = {"coder": coder, "predictor": predictor}
    for name, recipe in recipes.items():
        pretrain(recipe, corpus, tmp_path / "alone" / name)
    # the two processes take over where one stopped after half the steps
    half = tmp_path / "predictor" / "state"
    stop_after(predictor, corpus, tmp_path / "predictor", 12)
    assert half.is_dir()
    torchrun(tmp_path, *(write_recipe(recipe, tmp_path / f"{name}.yaml") for name, recipe in recipes.items()))
    assert_same_curve(curve(tmp_path / "coder", "tokenizer"), curve(tmp_path / "alone" / "coder", "tokenizer"))
    alone = curve(tmp_path / "alone" / "predictor", "predictor")
    assert_same_curve(curve(tmp_path / "predictor", "predictor"), alone)


def stop_after(recipe: PretrainRecipe, corpus: object, out: Path, step: int) -> None:
    """Begin a run and let it fail at a step."""

    class StoppedError(Exception):
        pass

    def stop(name: str, entry: dict[str, float]) -> None:
        if entry["step"] == step:
            raise StoppedError

    with pytest.raises(StoppedError):
        pretrain(recipe, corpus, out, on_metrics=stop)  # type: ignore[arg-type]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size=7 does not divide among 2 processes"):
        slice_size(7, Processes(rank=0, world=2))


def test_alone_there_is_nothing_to_join() -> None:
    alone = Processes()
    assert alone.alone
    assert alone.first
    assert alone.share_text("x") == "x"
    assert alone.gather(torch.ones(2)).shape == (1, 2)


def test_a_process_that_is_alone_works_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that torchrun started alone: one GPU needs no group."""
    for world in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if world is not None:
            monkeypatch.setenv("WORLD_SIZE", world)
        with processes_from_environment(torch.device("cuda")) as processes:
            assert (processes.alone, processes.device) == (True, torch.device("cuda"))
        with processes_from_environment() as processes:
            assert processes.device == torch.device("cpu")
