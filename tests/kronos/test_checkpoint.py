"""Saving and loading in the published format, from folders, the package and the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_network import load_golden
from safetensors.torch import load_file
from tiny_network import tiny_networks, windows

from kronos_qlib.kronos import (
    CheckpointError,
    SamplingConfig,
    fingerprint,
    generate,
    load_card,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# --- round trips ---


def test_round_trip_is_exact(folder: Path) -> None:
    networks = tiny_networks()
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert model.config == networks.model.config
    assert tokenizer.config == networks.tokenizer.config
    for loaded, saved in ((model, networks.model), (tokenizer, networks.tokenizer)):
        assert fingerprint(loaded) == fingerprint(saved)
        for (name, ours), (other, theirs) in zip(loaded.named_parameters(), saved.named_parameters(), strict=True):
            assert name == other
            assert torch.equal(ours, theirs)
    data = windows(2, 8, 2)
    sampling = SamplingConfig(n_paths=3)
    assert torch.equal(
        generate(model, tokenizer, *data, sampling, 64),
        generate(networks.model, networks.tokenizer, *data, sampling, 64),
    )


def test_bfloat16_storage_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    model = load_golden("tiny").model
    save_model(model, tmp_path / "full")
    save_model(model, tmp_path / "half", dtype=torch.bfloat16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_model(tmp_path / "half")
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert ours.dtype == torch.float32, name
        assert torch.equal(ours, theirs.bfloat16().float()), name
    # integer buffers are not rounded away
    save_tokenizer(load_golden("tiny").tokenizer, tmp_path / "tokenizer", dtype=torch.bfloat16)
    assert load_file(tmp_path / "tokenizer" / "model.safetensors")["tokenizer.bsq.basis"].dtype == torch.int64
    # nor are the rotary tables of what is loaded
    rotary = loaded.transformer[0].self_attn.rotary.inv_freq
    assert torch.equal(rotary, model.transformer[0].self_attn.rotary.inv_freq)


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_published_layout(tmp_path: Path, size: str) -> None:
    """Two files; names, shapes and keys are those of the published checkpoints (golden descriptions)."""
    golden = load_golden(size)
    for save, module, kind in (
        (save_model, golden.model, "model"),
        (save_tokenizer, golden.tokenizer, "tokenizer"),
    ):
        save(module, tmp_path / kind)  # type: ignore[operator]
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == ["config.json", "model.safetensors"]
        shapes = {name: list(t.shape) for name, t in load_file(tmp_path / kind / "model.safetensors").items()}
        assert shapes == golden.description[f"{kind}_state"]
        assert json.loads((tmp_path / kind / "config.json").read_text()) == golden.description[kind]


def test_our_own_setting_is_written_only_when_it_differs(tmp_path: Path) -> None:
    rotated = tiny_networks(dependency_rotary="rotated").model
    save_model(rotated, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dependency_rotary"] == "rotated"
    assert load_model(tmp_path).config.dependency_rotary == "rotated"


def test_loading_puts_in_eval_mode_and_freezes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kronos_qlib"):
        model = load_model(folder)
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert "eval mode" in caplog.text
    assert fingerprint(model) in caplog.text


def test_saving_again_replaces_what_was_there(folder: Path) -> None:
    changed = tiny_networks.__wrapped__(sharpness=3.0).model
    save_model(changed, folder / "model")
    assert fingerprint(load_model(folder)) == fingerprint(changed)
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["config.json", "model.safetensors"]


# --- places ---


def test_a_location_may_be_the_network_or_what_holds_it(folder: Path) -> None:
    expected = fingerprint(load_model(folder))
    for place in (folder / "model", str(folder), str(folder / "model"), f"{folder}/"):
        assert fingerprint(load_model(place)) == expected
    assert fingerprint(load_tokenizer(folder / "tokenizer")) == fingerprint(load_tokenizer(folder))


def test_a_tilde_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert fingerprint(load_model(f"~/{folder.name}")) == fingerprint(load_model(folder))


def test_card(folder: Path) -> None:
    expected = {"name": "tiny", "lookback": 90}
    assert load_card(folder) == load_card(folder / "model") == load_card(folder / "tokenizer") == expected
    (folder / "card.json").unlink()
    assert load_card(folder) == {}
    with pytest.raises(CheckpointError, match="pin it with revision"):
        load_card("NeoQuasar/Kronos-small")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "", '{"lookback": 90'])
def test_a_broken_card_is_an_error(folder: Path, text: str) -> None:
    (folder / "card.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"card\.json"):
        load_card(folder)


@pytest.mark.parametrize("location", ["/nowhere/at/all", "nowhere", "./a/b/c", "", "a b/c", Path("owner/name")])
def test_a_place_that_is_no_folder(location: str | Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint folder|holds no config\.json"):
        load_model(location)


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json.*'tokenizer'"):
        load_tokenizer(tmp_path)


def test_an_unknown_bundled_name(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no bundled checkpoint 'nothing'"):
        load_model("bundled:nothing")
    with pytest.raises(CheckpointError, match="no bundled checkpoint"):
        load_model(f"bundled:../../{folder}")
    with pytest.raises(CheckpointError, match="no bundled checkpoint ''"):
        load_card("bundled:")


# --- the hub ---


def test_a_hub_id_without_a_revision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("downloaded unpinned"))
    with pytest.raises(CheckpointError, match="pin it with revision="):
        load_model("NeoQuasar/Kronos-small")


def test_a_pinned_revision_is_what_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(hub_id: str, **settings: object) -> str:
        calls.append((hub_id, settings))
        return str(folder / "tokenizer")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load_tokenizer("NeoQuasar/Kronos-Tokenizer-base", COMMIT)
    assert fingerprint(loaded) == fingerprint(tiny_networks().tokenizer)
    ((hub_id, settings),) = calls
    assert hub_id == "NeoQuasar/Kronos-Tokenizer-base"
    assert settings["revision"] == COMMIT
    # weights come as safetensors only
    assert set(settings["allow_patterns"]) == {"config.json", "model.safetensors", "card.json"}


def test_a_revision_that_can_move_warns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder / "model"))
    with pytest.warns(UserWarning, match="NeoQuasar/Kronos-small@main can move"):
        load_model("NeoQuasar/Kronos-small", "main")


def _failures() -> list[Exception]:
    from huggingface_hub import errors

    class TransportError(Exception):
        """Stands for the HTTP client's own errors, whose class depends on the client."""

    return [
        errors.LocalEntryNotFoundError("offline and not cached"),
        errors.HFValidationError("no such form of a name"),
        ConnectionError("no route"),
        TransportError("connection reset"),
    ]


@pytest.mark.parametrize("failure", _failures(), ids=lambda failure: type(failure).__name__)
def test_a_failed_download_says_what_to_do(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CheckpointError, match=rf"could not fetch NeoQuasar/Kronos-small@{COMMIT}.*give its path") as e:
        load_model("NeoQuasar/Kronos-small", COMMIT)
    assert e.value.__cause__ is failure


def test_a_local_folder_needs_no_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder owner/name under the working directory is that folder, not a hub id."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("went to the hub"))
    monkeypatch.chdir(folder.parent)
    (folder.parent / "owner").mkdir()
    shutil.copytree(folder / "model", folder.parent / "owner" / "name")
    assert fingerprint(load_model("owner/name")) == fingerprint(tiny_networks().model)


# --- fingerprints ---


def test_the_fingerprint_changes_with_one_weight_and_with_the_settings() -> None:
    networks = tiny_networks.__wrapped__()
    before = fingerprint(networks.model)
    assert len(before) == 16
    assert int(before, 16) >= 0
    weight = networks.model.head.proj_s2.weight.data
    weight[3, 4] = float(np.nextafter(np.float32(weight[3, 4]), np.float32(9)))
    assert fingerprint(networks.model) != before
    other = tiny_networks(dependency_rotary="unrotated").model
    assert fingerprint(other) not in {before, fingerprint(networks.model)}
    assert fingerprint(tiny_networks.__wrapped__().model) == before


def test_the_fingerprint_ignores_mode_and_buffers() -> None:
    networks = tiny_networks.__wrapped__()
    before = fingerprint(networks.tokenizer)
    networks.tokenizer.train()
    networks.tokenizer.encoder[0].self_attn.rotary.inv_freq.zero_()
    assert fingerprint(networks.tokenizer) == before


# --- an interrupted save ---


def test_an_interrupted_save_leaves_no_checkpoint_or_the_old_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tiny_networks.__wrapped__(sharpness=3.0).model

    def full_disk(tensors: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("kronos_qlib.kronos.checkpoint.save_file", full_disk)
    before = fingerprint(load_model(folder))
    for place in (folder / "model", tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            save_model(changed, place)
        assert not list(place.glob("*.part")), "nothing half-written remains"
    assert fingerprint(load_model(folder)) == before
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "new")
