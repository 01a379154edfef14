"""The weights that a method uses: their fingerprint, and whether they have seen the dates that it is judged on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kronos_qlib.forecast.cutoff import card_date
from kronos_qlib.forecast.reduction import CheckpointSource
from kronos_qlib.forecast.store_cards import read_card
from kronos_qlib.forecast.store_catalog import content_fingerprint, fingerprints, saved_source
from kronos_qlib.kronos import load_card, save_model, save_tokenizer
from kronos_qlib.resources import BUNDLED, checkpoint_path

RANDOM_SEED = 0


@dataclass(frozen=True)
class Weights:
    """Fingerprint (empty: no weights in use), last day of their training data (None: not known)."""

    fingerprint: str = ""
    cutoff: pd.Timestamp | None = None

    def seen(self, start: str) -> str:
        """Whether they were trained on days from ``start`` on: ``yes``, ``no`` or ``unknown``."""
        if not self.fingerprint:
            return "no"
        if self.cutoff is None:
            return "unknown"
        return "yes" if self.cutoff >= pd.Timestamp(start) else "no"


def find_weights(given: Sequence[str]) -> Weights:
    """Weights in the folders among ``given``: those with safetensors in them, and forecast stores.

    The fingerprint is of the bytes of all safetensors files, by their place in the folder, so that any kind of
    checkpoint has one, and of a forecast store's content. The cutoff is the latest of the cards', also of weights in a
    store that answer for other rows; None as soon as one names none.
    """
    folders = [place for value in given if (place := _folder(value)) is not None]
    files = [(folder, file) for folder in folders for file in sorted(folder.rglob("*.safetensors"))]
    stores = [folder for folder in folders if fingerprints(folder)]
    if not files and not stores:
        return Weights()
    digest = hashlib.sha256()
    for folder, file in files:
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    cutoffs = [card_date(load_card(folder), "cutoff") for folder in dict(files)]
    for store in stores:
        digest.update(content_fingerprint(store).encode())
        used = {saved_source(store, name)["weights"] for name in fingerprints(store)}
        cutoffs += [card_date(read_card(store, weights) or {}, "cutoff") for weights in sorted(used)]
    known = [day for day in cutoffs if day is not None]
    return Weights(digest.hexdigest()[:16], max(known) if len(known) == len(cutoffs) else None)


def file_fingerprint(path: Path) -> str:
    """Hash of a file's bytes, 16 hex digits."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}; expected a parquet file of scores") from error


def random_checkpoint(location: str, folder: Path) -> Path:
    """A checkpoint of the same shape and tokenizer with freshly drawn weights, made once, in ``folder``.

    Its card is that of the checkpoint: its tokenizer has seen what that has.
    """
    place = folder / f"{find_weights([location]).fingerprint}-{RANDOM_SEED}"
    if place.is_dir():
        return place
    source = CheckpointSource(location, device="cpu", random_seed=RANDOM_SEED)
    drawn = source.load()
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder))
    try:
        save_model(drawn.model, partial / "model")
        save_tokenizer(drawn.tokenizer, partial / "tokenizer")
        (partial / "card.json").write_text(json.dumps(drawn.card), encoding="utf-8")
        os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _folder(value: str) -> Path | None:
    place = checkpoint_path(value) if value.startswith(BUNDLED) else Path(value).expanduser()
    return place if place.is_dir() else None
