"""Load and save networks in the published format: ``config.json`` and ``model.safetensors``. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import ModelConfig, TokenizerConfig
from .tokenizer import KronosTokenizer
from .transformer import Kronos

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "card.json"
BUNDLED = "bundled:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
C = TypeVar("C", ModelConfig, TokenizerConfig)
N = TypeVar("N", Kronos, KronosTokenizer)
_logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is; the message says why and what to do."""


def load_model(folder_or_hub_id: str | Path, revision: str | None = None) -> Kronos:
    """Load a model in eval mode, float32, on the CPU.

    Parameters
    ----------
    folder_or_hub_id : str or Path
        A folder with ``config.json`` and ``model.safetensors``; or one that holds such a folder named ``model``; or
        ``bundled:NAME``; or a Hugging Face id such as ``NeoQuasar/Kronos-small``.
    revision : str, optional
        Required for a hub id: the commit to pin.

    Raises
    ------
    CheckpointError
        A ValueError: files missing or broken, unknown keys, tensors missing, unexpected, of a wrong shape or not
        finite (each is named).
    """
    folder = _network_folder(folder_or_hub_id, "model", revision)
    model = Kronos(_read_config(folder, ModelConfig))
    return _load_weights(model, folder)


def load_tokenizer(folder_or_hub_id: str | Path, revision: str | None = None) -> KronosTokenizer:
    """Load a tokenizer; like :func:`load_model`, with a folder named ``tokenizer``."""
    folder = _network_folder(folder_or_hub_id, "tokenizer", revision)
    tokenizer = KronosTokenizer(_read_config(folder, TokenizerConfig))
    return _load_weights(tokenizer, folder)


def load_card(folder_or_hub_id: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The checkpoint's card (``card.json``: lookback, cutoff, …), ``{}`` where it has none."""
    path = card_path(local_folder(folder_or_hub_id) or _download(str(folder_or_hub_id), revision))
    return {} if path is None else _read_json(path)


def card_path(folder: Path) -> Path | None:
    """The card of a checkpoint's folder, or of the folder of one of its networks; None where there is none."""
    found = [place / CARD_FILE for place in (folder, folder.parent) if (place / CARD_FILE).is_file()]
    return found[0] if found else None


def save_model(model: Kronos, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a model in the published format; ``dtype`` bfloat16 halves the file, loading is float32 again."""
    _save(model, model.config.to_published(), Path(folder), dtype)


def save_tokenizer(tokenizer: KronosTokenizer, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a tokenizer in the published format."""
    _save(tokenizer, tokenizer.config.to_dict(), Path(folder), dtype)


def fingerprint(module: Kronos | KronosTokenizer) -> str:
    """Hash of configuration and weights, 16 hex digits; independent of the device, not of the dtype."""
    digest = hashlib.sha256(json.dumps(module.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def local_folder(folder_or_hub_id: str | Path) -> Path | None:
    """The local folder that a location names, or None for a hub id."""
    text = str(folder_or_hub_id)
    if text.startswith(BUNDLED):
        return _bundled_folder(text.removeprefix(BUNDLED))
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if isinstance(folder_or_hub_id, Path) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(
            f"no checkpoint folder at {text!r}; give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, "
            "'bundled:NAME', or a hub id 'owner/name' with a revision"
        )
    return None


def _bundled_folder(name: str) -> Path:
    root = Path(__file__).resolve().parent.parent / "checkpoints"
    names = sorted(path.name for path in root.glob("*") if path.is_dir()) if root.is_dir() else []
    if name not in names:
        raise CheckpointError(f"no bundled checkpoint {name!r}; the package holds {', '.join(names) or 'none'}")
    return root / name


def _network_folder(location: str | Path, kind: str, revision: str | None) -> Path:
    folder = local_folder(location)
    if folder is None:
        return _download(str(location), revision)
    for place in (folder / kind, folder):
        if (place / CONFIG_FILE).is_file():
            return place
    raise CheckpointError(f"{folder} holds no {CONFIG_FILE}, nor does its subfolder {kind!r}; is it a checkpoint?")


def _download(hub_id: str, revision: str | None) -> Path:
    """Fetch a pinned snapshot through huggingface_hub."""
    if revision is None:
        raise CheckpointError(
            f"{hub_id!r} is a hub id: pin it with revision='<commit hash>' (the model page's history lists commits), "
            "so that a result can be repeated"
        )
    from huggingface_hub import snapshot_download

    if not _COMMIT.fullmatch(revision):
        warnings.warn(f"{hub_id}@{revision} can move; a commit hash of 40 digits cannot", stacklevel=3)
    try:
        folder = snapshot_download(hub_id, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE])
    except Exception as error:  # the client's own, requests', httpx' and xet's errors share no base class
        raise CheckpointError(
            f"could not fetch {hub_id}@{revision} ({type(error).__name__}: {error}); check the id, the revision and "
            "the network, or download the folder elsewhere and give its path"
        ) from error
    return Path(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object of settings")
    return value


def _read_config(folder: Path, kind: type[C]) -> C:
    path = folder / CONFIG_FILE
    try:
        return kind(**_read_json(path))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _load_weights(module: N, folder: Path) -> N:
    """Load strictly (trap 17) and put the module in eval mode (trap 1)."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has a {CONFIG_FILE} but no {WEIGHTS_FILE}")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    wanted = dict(module.named_parameters())
    check_tensors(found, module, str(path))
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])
    module.eval()
    module.requires_grad_(False)
    _logger.info("loaded %s in eval mode, fingerprint %s", path, fingerprint(module))
    return module


def check_tensors(found: dict[str, Tensor], module: nn.Module, where: str) -> None:
    """Raise a CheckpointError that names every missing, unexpected, misshapen or non-finite tensor.

    Buffers (rotary frequencies, bit weights) are constants: a checkpoint may hold or lack them.
    """
    parameters = dict(module.named_parameters())
    buffers = {name for name, _ in module.named_buffers()}
    problems = []
    if missing := sorted(set(parameters) - set(found)):
        problems.append(f"missing tensors: {_listing(missing)}")
    if unexpected := sorted(set(found) - set(parameters) - buffers):
        problems.append(f"unexpected tensors: {_listing(unexpected)}")
    common = sorted(set(parameters) & set(found))
    shapes = [
        f"{name} has shape {tuple(found[name].shape)}, the configuration wants {tuple(parameters[name].shape)}"
        for name in common
        if found[name].shape != parameters[name].shape
    ]
    if shapes:
        problems.append("wrong shapes: " + _listing(shapes))
    if broken := [name for name in common if not bool(torch.isfinite(found[name].float()).all())]:
        problems.append(f"NaN or infinite weights: {_listing(broken)}")
    if problems:
        raise CheckpointError(f"{where}: " + "; ".join(problems) + ". Is this the weights file of that config.json?")


def _listing(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _save(module: nn.Module, config: dict[str, Any], folder: Path, dtype: torch.dtype) -> None:
    """Weights first and the configuration last, each moved into place when whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in module.state_dict().items()
    }
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    write_whole(folder / WEIGHTS_FILE, lambda part: save_file(tensors, part, metadata={"format": "pt"}))
    write_whole(folder / CONFIG_FILE, lambda part: part.write_text(text, encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path`` and move into place; a failure leaves what was there, and nothing half-written."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
