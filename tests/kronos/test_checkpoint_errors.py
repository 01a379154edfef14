"""Every way in which a checkpoint's files can be wrong: each is a CheckpointError that names what and where."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_network import tiny_networks

from kronos_qlib.kronos import CheckpointError, fingerprint, load_model, load_tokenizer, save_model


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# --- weights ---


def test_missing_tensors_are_named(folder: Path) -> None:
    edit_weights(folder / "model", lambda t: [t.pop(name) for name in ("norm.weight", "head.proj_s2.bias")])
    with pytest.raises(CheckpointError, match=r"missing tensors: head\.proj_s2\.bias, norm\.weight"):
        load_model(folder)


def test_unexpected_tensors_are_named(folder: Path) -> None:
    edit_weights(folder / "model", lambda t: t.update({"head.proj_s3.weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match=r"unexpected tensors: head\.proj_s3\.weight"):
        load_model(folder)


def test_wrong_shapes_are_named_with_both_shapes(folder: Path) -> None:
    edit_weights(folder / "model", lambda t: t.update({"norm.weight": torch.ones(17)}))
    with pytest.raises(CheckpointError, match=r"norm\.weight has shape \(17,\), the configuration wants \(16,\)"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    edit_weights(folder / "tokenizer", lambda t: t["embed.weight"].__setitem__((3, 2), value))
    with pytest.raises(CheckpointError, match=r"NaN or infinite weights: embed\.weight"):
        load_tokenizer(folder)


def test_all_problems_are_told_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["norm.weight"]
        tensors["extra"] = torch.zeros(1)
        tensors["head.proj_s1.bias"] = torch.zeros(3)
        tensors["head.proj_s2.bias"][0] = float("nan")

    edit_weights(folder / "model", spoil)
    with pytest.raises(CheckpointError, match=r"missing.*norm.*unexpected.*extra.*shape.*proj_s1.*NaN.*proj_s2"):
        load_model(folder)


def test_a_long_list_of_names_is_cut(folder: Path) -> None:
    edit_weights(folder / "model", lambda t: [t.pop(name) for name in list(t) if name.startswith("transformer.0")])
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        load_model(folder)


def test_the_other_networks_weights(folder: Path) -> None:
    shutil.copy(folder / "tokenizer" / "model.safetensors", folder / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing tensors.*unexpected tensors.*of that config\.json"):
        load_model(folder)


def test_buffers_may_be_there_or_not(folder: Path) -> None:
    """The original's persistent buffers are constants, whose values are never read from a file."""
    tokenizer = folder / "tokenizer"
    expected = fingerprint(load_tokenizer(folder))
    buffers = {name for name, _ in tiny_networks().tokenizer.named_buffers()}
    assert buffers
    assert buffers <= set(load_file(tokenizer / "model.safetensors"))
    edit_weights(tokenizer, lambda t: t.update({name: torch.zeros_like(t[name]) for name in buffers}))
    loaded = load_tokenizer(folder)
    assert all(bool(tensor.any()) for _, tensor in loaded.named_buffers())
    assert fingerprint(loaded) == expected
    edit_weights(tokenizer, lambda t: [t.pop(name) for name in buffers])
    assert fingerprint(load_tokenizer(folder)) == expected


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights(folder: Path, keep: float) -> None:
    path = folder / "model" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(folder)


def test_weights_missing_altogether(folder: Path) -> None:
    (folder / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_model(folder)


def test_a_pickle_is_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in place of the weights nor beside them; loading and saving never call pickle."""
    state = tiny_networks().model.state_dict()
    torch.save(state, folder / "model" / "pytorch_model.bin")

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    save_model(load_model(folder), folder / "again")
    (folder / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_model(folder)
    shutil.copy(folder / "model" / "pytorch_model.bin", folder / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(folder)


# --- configuration files ---


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"n_layers": 2', "\x00\xff"])
def test_a_broken_config(folder: Path, text: str) -> None:
    (folder / "model" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(folder)


def test_an_unknown_key_names_the_nearest(folder: Path) -> None:
    edit_config(folder / "model", n_layer=2)
    with pytest.raises(CheckpointError, match=r"(?s)config\.json.*'n_layer' \(did you mean 'n_layers'\?\)"):
        load_model(folder)


def test_a_missing_key_is_named(folder: Path) -> None:
    config = json.loads((folder / "model" / "config.json").read_text())
    del config["d_model"]
    (folder / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="d_model"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": "two"}, "n_layers"),
        ({"n_heads": 3}, "n_heads=3"),
        ({"s1_bits": None}, "s1_bits"),
        ({"d_model": -16}, "d_model"),
        ({"ffn_dropout_p": 1.5}, "ffn_dropout_p"),
        ({"dependency_rotary": "sideways"}, "dependency_rotary"),
    ],
)
def test_impossible_settings(folder: Path, changes: dict[str, object], message: str) -> None:
    edit_config(folder / "model", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_tokenizer_where_a_model_should_be(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="ModelConfig: unknown key"):
        load_model(folder / "tokenizer")
    with pytest.raises(CheckpointError, match="TokenizerConfig: unknown key"):
        load_tokenizer(folder / "model")


def test_a_config_of_another_size(folder: Path) -> None:
    edit_config(folder / "model", n_layers=3)
    with pytest.raises(CheckpointError, match=r"missing tensors: transformer\.2"):
        load_model(folder)
