"""A trained alpha head as it is kept: beside the checkpoint it belongs to, and refused for any other."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from kronos_qlib.kronos import CheckpointError, Kronos, KronosTokenizer, fingerprint
from kronos_qlib.kronos.checkpoint import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, check_tensors, write_whole
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.alpha_features import FEATURES_VERSION, FeatureSettings, feature_width, hidden_features
from kronos_qlib.training.alpha_head import AlphaHead, HeadConfig
from kronos_qlib.training.alpha_networks import tuned_names

HEAD_FOLDER = "alpha_head"
HEAD_PREFIX, TRUNK_PREFIX = "head.", "trunk."


@dataclass
class TrainedHead:
    """A head, the trunk layers that were trained with it, and what is known about both.

    Attributes
    ----------
    head : AlphaHead, in eval mode
    trunk_fingerprint : ``<model>-<tokenizer>`` of the checkpoint it was trained on.
    settings : FeatureSettings; a window is cut and read as in training.
    trunk : tuned parameters by their name in the model; empty when the trunk was frozen.
    card : ``label``, ``label_reach``, ``train_start``, ``cutoff`` (last day whose bars went into a training label),
        ``valid_start``, ``valid_end``, ``valid`` figures, ``training`` settings, ``history``.
    """

    head: AlphaHead
    trunk_fingerprint: str
    settings: FeatureSettings
    trunk: dict[str, Tensor] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of all weights, of the shape, of the feature settings and of the checkpoint; 16 hex digits."""
        facts = [self.head.config.to_dict(), self.settings.to_dict(), self.trunk_fingerprint]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def network(self, model: Kronos) -> Kronos:
        """Return the trunk that the head reads: the checkpoint's, with its tuned layers put in where there are any."""
        if not self.trunk:
            return model
        tuned = copy.deepcopy(model)
        parameters = dict(tuned.named_parameters())
        with torch.no_grad():
            for name, value in self.trunk.items():
                parameters[name].copy_(value)
        return tuned.eval()

    def score(
        self,
        model: Kronos,
        tokenizer: KronosTokenizer,
        panel: BarPanel,
        rows: npt.NDArray[np.int64],
        *,
        progress: bool = False,
    ) -> npt.NDArray[np.float64]:
        """Score the windows that end at some rows of a panel.

        Returns
        -------
        float64 (n,), no unit: only the order within a date means something. NaN where there is no window. A score uses
        the bars of its window, and depends on no other row.

        Raises
        ------
        ValueError : the networks are not those the head was trained on.
        """
        self.check_trunk(f"{fingerprint(model)}-{fingerprint(tokenizer)}")
        device = next(model.parameters()).device
        self.head.to(device)
        features = hidden_features(self.network(model), tokenizer, panel, rows, self.settings, progress=progress)
        return self.head.score(features)

    def check_trunk(self, found: str) -> None:
        """Refuse a checkpoint that the head was not trained on."""
        if found != self.trunk_fingerprint:
            raise CheckpointError(
                f"the alpha head was trained on a checkpoint with fingerprint {self.trunk_fingerprint}, this one has "
                f"{found}: hidden states of other weights mean other things; train a head for this checkpoint"
            )

    def save(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``card.json``; the configuration comes last."""
        place = Path(folder).expanduser()
        place.mkdir(parents=True, exist_ok=True)
        config = {
            "head": self.head.config.to_dict(), "features": self.settings.to_dict(),
            "trunk_fingerprint": self.trunk_fingerprint, "unfreeze": self._unfreeze(), "fingerprint": self.fingerprint,
        }  # fmt: skip
        tensors = self._tensors()
        write_whole(place / WEIGHTS_FILE, lambda part: save_file(tensors, part, metadata={"format": "pt"}))
        _write_json(place / CARD_FILE, {**self.card, "fingerprint": self.fingerprint})
        _write_json(place / CONFIG_FILE, config)

    def _unfreeze(self) -> int:
        return len({name.split(".")[1] for name in self.trunk if name.startswith("transformer.")})

    def _tensors(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {HEAD_PREFIX + name: value for name, value in self.head.named_parameters()}
        named.update({TRUNK_PREFIX + name: value for name, value in self.trunk.items()})
        return {name: value.detach().cpu().contiguous() for name, value in named.items()}


def load_head(folder: str | Path, model: Kronos, tokenizer: KronosTokenizer) -> TrainedHead:
    """Load a head for a checkpoint, strictly.

    Parameters
    ----------
    folder : the head's own folder, or a checkpoint's with ``alpha_head/`` in it.

    Raises
    ------
    CheckpointError
        A ValueError: no head there, files broken or of another form, tensors missing, unexpected, misshapen or not
        finite, a content that is not what was saved, or another checkpoint than the head's own.
    """
    place = find_head(folder)
    config = _read_json(place / CONFIG_FILE)
    try:
        head = AlphaHead(HeadConfig(**config["head"]))
        settings = _feature_settings(config["features"])
        expected, saved, unfreeze = config["trunk_fingerprint"], config["fingerprint"], int(config["unfreeze"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place / CONFIG_FILE} is no alpha head's configuration: {error!r}") from error
    loaded = TrainedHead(head, expected, settings, card=_read_json(place / CARD_FILE))
    loaded.check_trunk(f"{fingerprint(model)}-{fingerprint(tokenizer)}")
    if head.config.n_features != feature_width(model):
        raise CheckpointError(
            f"{place}: the head reads {head.config.n_features} features, the model gives {feature_width(model)}"
        )
    _load_tensors(loaded, model, unfreeze, place / WEIGHTS_FILE)
    if loaded.fingerprint != saved:
        raise CheckpointError(
            f"{place}: content and {CONFIG_FILE} disagree (fingerprint {loaded.fingerprint}, expected {saved}); "
            "the files were mixed up or changed, train the head again"
        )
    return loaded


def find_head(folder: str | Path) -> Path:
    """Return the head's folder, given itself or a checkpoint's."""
    given = Path(folder).expanduser()
    for place in (given / HEAD_FOLDER, given):
        path = place / CONFIG_FILE
        if path.is_file() and "head" in _read_json(path):
            return place
    raise CheckpointError(
        f"found no alpha head in {given} (nor in its {HEAD_FOLDER}/); train one: give KronosModel an alpha_head: "
        "block with training settings and call fit"
    )


def _load_tensors(loaded: TrainedHead, model: Kronos, unfreeze: int, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has a {CONFIG_FILE} but no {WEIGHTS_FILE}")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    own = {name.removeprefix(HEAD_PREFIX): value for name, value in found.items() if not name.startswith(TRUNK_PREFIX)}
    check_tensors(own, loaded.head, str(path))
    trunk = {name.removeprefix(TRUNK_PREFIX): value for name, value in found.items() if name.startswith(TRUNK_PREFIX)}
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    wanted = {name: shapes[name] for name in tuned_names(model, unfreeze)}
    if {name: tuple(value.shape) for name, value in trunk.items()} != wanted:
        raise CheckpointError(
            f"{path}: tuned tensors of the trunk are {sorted(trunk)}, the last {unfreeze} layers have {sorted(wanted)} "
            "(or their shapes differ)"
        )
    if broken := [name for name, value in trunk.items() if not bool(torch.isfinite(value).all())]:
        raise CheckpointError(f"{path}: NaN or infinite weights: {broken}")
    with torch.no_grad():
        for name, parameter in loaded.head.named_parameters():
            parameter.copy_(own[name])
    loaded.head.eval().requires_grad_(False)
    loaded.trunk = trunk


def _feature_settings(saved: dict[str, Any]) -> FeatureSettings:
    values = dict(saved)
    if values.pop("version") != FEATURES_VERSION:
        raise ValueError(f"features of version {saved['version']!r}; this release computes version {FEATURES_VERSION}")
    return FeatureSettings(**{**values, "policy": WindowPolicy(**values["policy"])})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, default=str) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object")
    return value
