"""A head on the disk: the same scores after loading, and refusals of whatever does not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_panel import make_panel
from tiny_network import fill, model_config, tiny_networks

from kronos_qlib.kronos import CheckpointError, Kronos, fingerprint
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.alpha_features import FeatureSettings
from kronos_qlib.training.alpha_files import TrainedHead, load_head
from kronos_qlib.training.alpha_head import AlphaHead, HeadConfig
from kronos_qlib.training.alpha_networks import tuned_names

SETTINGS = FeatureSettings(WindowPolicy(lookback=30, min_bars=12), max_context=64, pooled_bars=5)


def make_head(unfreeze: int = 0) -> TrainedHead:
    networks = tiny_networks()
    torch.manual_seed(0)
    head = AlphaHead(HeadConfig(n_features=32, hidden=4, n_heads=2, norm="layer")).eval()
    own = f"{fingerprint(networks.model)}-{fingerprint(networks.tokenizer)}"
    parameters = dict(networks.model.named_parameters())
    trunk = {name: parameters[name] * 1.1 for name in tuned_names(networks.model, unfreeze)}
    return TrainedHead(head, own, SETTINGS, trunk, {"cutoff": "2020-01-10"})


def scores(head: TrainedHead) -> np.ndarray:
    networks, panel = tiny_networks(), make_panel()
    return head.score(networks.model, networks.tokenizer, panel, panel.offsets[1:] - 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_head(1).save(tmp_path / "checkpoint" / "alpha_head")
    return tmp_path / "checkpoint"


def load(place: Path) -> TrainedHead:
    networks = tiny_networks()
    return load_head(place, networks.model, networks.tokenizer)


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_a_loaded_head_scores_the_same_bits(tmp_path: Path, unfreeze: int) -> None:
    head = make_head(unfreeze)
    head.save(tmp_path)
    back = load(tmp_path)
    assert back.fingerprint == head.fingerprint
    assert back.settings == SETTINGS
    assert back.card["cutoff"] == "2020-01-10"
    assert np.isfinite(scores(head)).sum() == 4
    assert np.array_equal(scores(back), scores(head), equal_nan=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["card.json", "config.json", "model.safetensors"]


def test_tuned_layers_count_and_the_checkpoint_stays_as_it_is() -> None:
    before = fingerprint(tiny_networks().model)
    assert not np.array_equal(scores(make_head(1)), scores(make_head(0)), equal_nan=True)
    assert fingerprint(tiny_networks().model) == before


def test_it_is_found_beside_the_checkpoint_and_by_itself(folder: Path) -> None:
    assert load(folder).fingerprint == load(folder / "alpha_head").fingerprint


def test_another_trunk_is_refused(folder: Path) -> None:
    other = Kronos(model_config())
    fill(other, sharpness=3.0)
    with pytest.raises(CheckpointError, match=f"trained on a checkpoint .*{fingerprint(other)}"):
        load_head(folder, other, tiny_networks().tokenizer)
    panel = make_panel()
    with pytest.raises(CheckpointError, match="train a head for this checkpoint"):
        load(folder).score(other, tiny_networks().tokenizer, panel, panel.offsets[1:] - 1)


def test_no_head_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no alpha head in .* block"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.members.0.score.weight"), "missing tensors: members.0.score.weight"),
        (lambda t: t.pop("head.feature_center"), "missing tensors: feature_center"),
        (lambda t: t.update({"head.extra": torch.zeros(1)}), "unexpected tensors: extra"),
        (lambda t: t.update({"head.score_spread": torch.zeros(3)}), "wrong shapes"),
        (lambda t: t["head.members.1.inner.bias"].fill_(float("nan")), "NaN or infinite weights"),
        (lambda t: t.pop("trunk.norm.weight"), "tuned tensors of the trunk"),
        (lambda t: t["trunk.norm.weight"].fill_(float("inf")), "NaN or infinite weights"),
        (lambda t: t["head.members.1.inner.bias"].add_(1e-3), "content and config.json disagree"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_named(folder: Path, change: object, message: str) -> None:
    path = folder / "alpha_head" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["head"].update(hiden=3), "did you mean 'hidden'"),
        (lambda c: c["features"].update(version="0"), "features of version"),
        (lambda c: c.pop("trunk_fingerprint"), "trunk_fingerprint"),
        (lambda c: c["features"]["policy"].update(lookback=29), "content and config.json disagree"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder: Path, change: object, message: str) -> None:
    path = folder / "alpha_head" / "config.json"
    config = json.loads(path.read_text())
    change(config)  # type: ignore[operator]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    shutil.move(folder / "alpha_head" / "model.safetensors", folder / "elsewhere")
    with pytest.raises(CheckpointError, match=r"but no model\.safetensors"):
        load(folder)
