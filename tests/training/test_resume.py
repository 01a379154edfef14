"""A run that was killed and started again ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_training
import torch
from tiny_training import tiny_corpus, tiny_recipe, write_recipe

from kronos_qlib.kronos import fingerprint, load_model, load_tokenizer
from kronos_qlib.training.pretrain import pretrain
from kronos_qlib.training.recipe import PretrainRecipe
from kronos_qlib.training.state import TrainingState, load_state, save_state
from kronos_qlib.training.stream import WindowStream

DROPOUT = {"model__ffn_dropout_p": 0.2, "model__resid_dropout_p": 0.1, "model__attn_dropout_p": 0.1}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fingerprints(out: Path) -> list[str]:
    return [fingerprint(load_tokenizer(out)), fingerprint(load_model(out))]


class PulledPlugError(Exception):
    """Stands for whatever ends a process."""


def interrupt(monkeypatch: pytest.MonkeyPatch, seed: int, at: int) -> None:
    """Fail when the batch of a step is asked for the first time by the part of the run that has this seed."""
    original = WindowStream.batch
    failed = []

    def batch(self: WindowStream, step: int, rank: int = 0, world: int = 1) -> object:
        if (self.seed, step) == (seed, at) and not failed and self.augmentation.mask_volume:
            failed.append(step)
            raise PulledPlugError
        return original(self, step, rank, world)

    monkeypatch.setattr(WindowStream, "batch", batch)


@pytest.mark.parametrize(
    ("part", "at", "changes"),
    [
        ("tokenizer", 1, {}),
        ("tokenizer", 13, {"tokenizer_training__ema": 0.9, "tokenizer_training__save_every": 5}),
        ("predictor", 8, {"predictor_training__ema": 0.9}),
        ("predictor", 19, {"predictor_training__dtype": "bfloat16", "predictor_training__save_every": 1}),
    ],
)
def test_interrupted_anywhere_the_weights_are_the_same(
    part: str, at: int, changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(**DROPOUT, predictor_training__seed=1, **changes)
    corpus = tiny_corpus(tmp_path / "corpus")
    pretrain(recipe, corpus, tmp_path / "whole")
    interrupt(monkeypatch, {"tokenizer": 0, "predictor": 1}[part], at)
    with pytest.raises(PulledPlugError):
        pretrain(recipe, corpus, tmp_path / "cut")
    pretrain(recipe, corpus, tmp_path / "cut")
    assert fingerprints(tmp_path / "cut") == fingerprints(tmp_path / "whole")
    whole, cut = (json.loads((tmp_path / name / "curves.json").read_text()) for name in ("whole", "cut"))
    for curves in (whole, cut):
        for history in curves.values():
            for entry in history["entries"]:
                del entry["tokens_per_second"]
    assert cut == whole


def saved_step(out: Path, name: str) -> int:
    """The step of a state on the disk, which another process may be replacing at this moment."""
    path = out / "state" / f"{name}.state.safetensors"
    if not path.exists():
        return 0
    # opened once: a reader that opens the path a second time may find the next state there
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(json.loads(header["__metadata__"]["record"])["step"])


def run_until_killed(folder: Path, recipe: PretrainRecipe, name: str, step: int) -> None:
    """Start the run in a process of its own and kill it once it has saved a step of one of its parts."""
    path = write_recipe(recipe, folder / "killed.yaml")
    command = [sys.executable, tiny_training.__file__, str(folder), str(path)]
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            while saved_step(folder / "killed", name) < step:
                assert process.poll() is None, "the run ended before it could be killed"
                time.sleep(0.002)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_the_weights_are_bit_identical(tmp_path: Path) -> None:
    # a state after every step: the kill may well hit the writing of one
    many = {"tokenizer_training__steps": 100, "predictor_training__steps": 100}
    saving = {"tokenizer_training__save_every": 1, "predictor_training__save_every": 1}
    recipe = tiny_recipe(**DROPOUT, **many, **saving)
    corpus = tiny_corpus(tmp_path / "corpus")
    run_until_killed(tmp_path, recipe, "tokenizer", 30)
    run_until_killed(tmp_path, recipe, "predictor", 50)
    assert not (tmp_path / "killed" / "model").exists()
    pretrain(recipe, corpus, tmp_path / "killed")
    # a run that saves at other steps is the same run
    pretrain(tiny_recipe(**DROPOUT, **many), corpus, tmp_path / "whole")
    assert fingerprints(tmp_path / "killed") == fingerprints(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    card = pretrain(tiny_recipe(), corpus, tmp_path / "out")
    monkeypatch.setattr(torch.optim.AdamW, "step", None)
    # who cuts the batches and how often a state is saved makes no other run of it
    same = tiny_recipe(tokenizer_training__workers=1, predictor_training__save_every=3)
    assert pretrain(same, corpus, tmp_path / "out")["fingerprint"] == card["fingerprint"]


def test_a_folder_of_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    recipe = tiny_recipe(tokenizer_training__steps=8, predictor_training__steps=8)
    pretrain(recipe, corpus, tmp_path / "out")
    other = tiny_recipe(tokenizer_training__steps=8, predictor_training__steps=8, predictor_training__rate=0.5)
    with pytest.raises(ValueError, match=r"predictor_training.rate: 0.003 -> 0.5"):
        pretrain(other, corpus, tmp_path / "out")


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.state.safetensors"
    path.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"x\.state\.safetensors is no readable training state"):
        load_state(path)


def test_a_failed_save_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.state.safetensors"
    save_state(path, TrainingState({"step": 1}, {"weights.a": torch.ones(2)}))

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_state(path, TrainingState({"step": 2}, {"weights.a": torch.zeros(2)}))
    state = load_state(path)
    assert state is not None
    assert state.record == {"step": 1}
    assert torch.equal(state.group("weights")["a"], torch.ones(2))
