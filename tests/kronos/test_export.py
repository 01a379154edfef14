"""Export: what is written is the published format and the same network; what only we compute is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_network import tiny_networks
from typer.testing import CliRunner

from kronos_qlib.cli import app
from kronos_qlib.kronos import (
    CheckpointError,
    fingerprint,
    load_card,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from kronos_qlib.kronos.export import export_published

# The arguments of the original's constructors, from its published config.json files.
MODEL_KEYS = {
    "s1_bits", "s2_bits", "n_layers", "d_model", "n_heads", "ff_dim", "ffn_dropout_p", "attn_dropout_p",
    "resid_dropout_p", "token_dropout_p", "learn_te",
}  # fmt: skip
TOKENIZER_KEYS = {
    "d_in", "d_model", "n_heads", "ff_dim", "n_enc_layers", "n_dec_layers", "ffn_dropout_p", "attn_dropout_p",
    "resid_dropout_p", "s1_bits", "s2_bits", "beta", "gamma0", "gamma", "zeta", "group_size",
}  # fmt: skip


def write(folder: Path, rotary: str = "published", dtype: torch.dtype = torch.float32) -> Path:
    networks = tiny_networks(dependency_rotary=rotary)
    save_model(networks.model, folder / "model", dtype=dtype)
    save_tokenizer(networks.tokenizer, folder / "tokenizer", dtype=dtype)
    return folder


def test_the_published_keys_only_and_the_same_weights_in_float32(tmp_path: Path) -> None:
    source = write(tmp_path / "ours", dtype=torch.bfloat16)
    folders = export_published(source, tmp_path / "published")
    assert set(json.loads((folders["model"] / "config.json").read_text())) == MODEL_KEYS
    assert set(json.loads((folders["tokenizer"] / "config.json").read_text())) == TOKENIZER_KEYS
    assert fingerprint(load_model(folders["model"])) == fingerprint(load_model(source))
    assert fingerprint(load_tokenizer(folders["tokenizer"])) == fingerprint(load_tokenizer(source))
    tensors = load_file(folders["model"] / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    # names that the original's strict loading asks for, buffers included
    assert {
        "embedding.emb_s1.weight",
        "dep_layer.cross_attn.q_proj.bias",
        "transformer.0.self_attn.rotary.inv_freq",
    } <= (set(tensors))
    assert {"tokenizer.bsq.basis", "tokenizer.bsq.group_basis"} <= set(
        load_file(folders["tokenizer"] / "model.safetensors")
    )


@pytest.mark.parametrize("rotary", ["rotated", "unrotated"])
def test_a_variant_of_ours_is_refused_and_nothing_is_written(tmp_path: Path, rotary: str) -> None:
    source = write(tmp_path / "ours", rotary)
    with pytest.raises(ValueError, match=f"dependency_rotary='{rotary}'.*original would load"):
        export_published(source, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_the_checkpoint_itself_is_no_place_to_export_to(tmp_path: Path) -> None:
    source = write(tmp_path / "ours", dtype=torch.bfloat16)
    before = (source / "model" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="export to another folder"):
        export_published(source, source)
    assert (source / "model" / "model.safetensors").read_bytes() == before


def test_the_card_goes_with_the_weights(tmp_path: Path) -> None:
    source = write(tmp_path / "ours", dtype=torch.bfloat16)
    found = {"model": fingerprint(load_model(source)), "tokenizer": fingerprint(load_tokenizer(source))}
    text = json.dumps({"name": "tiny", "cutoff": "2014-12-31", "fingerprint": found}, indent=3)
    (source / "card.json").write_text(text, encoding="utf-8")
    written = export_published(source, tmp_path / "published")
    assert written["card"] == tmp_path / "published" / "card.json"
    assert written["card"].read_text(encoding="utf-8") == text
    for place in ("", "model", "tokenizer"):  # the original reads one of the two, ours any of the three
        assert load_card(tmp_path / "published" / place)["cutoff"] == "2014-12-31"
    # the original hands every key of config.json to its constructor, so nothing of the card may be in there
    assert set(json.loads((written["model"] / "config.json").read_text())) == MODEL_KEYS


def test_a_card_of_other_weights_is_not_taken_along(tmp_path: Path) -> None:
    source = write(tmp_path / "ours")
    (source / "card.json").write_text(json.dumps({"fingerprint": {"model": "0" * 16, "tokenizer": "1" * 16}}))
    with pytest.raises(CheckpointError, match="card of other weights"):
        export_published(source, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_without_a_card_none_is_left_of_an_earlier_export(tmp_path: Path) -> None:
    source = write(tmp_path / "ours")
    (source / "card.json").write_text("{}")  # of an older make: it names no fingerprint
    assert "card" in export_published(source, tmp_path / "published")
    (source / "card.json").unlink()
    assert set(export_published(source, tmp_path / "published")) == {"model", "tokenizer"}
    assert not (tmp_path / "published" / "card.json").exists()
    result = CliRunner().invoke(app, ["export", str(source), "--out", str(tmp_path / "published")])
    assert result.exit_code == 0, result.output
    assert "has no card, so none was written" in result.output
