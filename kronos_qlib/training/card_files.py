"""A card on disk: written beside the weights that it describes, read back and checked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from kronos_qlib.kronos import fingerprint, load_card, load_model, load_tokenizer
from kronos_qlib.kronos.checkpoint import CARD_FILE, write_whole
from kronos_qlib.training.card import CheckpointCard, read_date

_NUMBERS = re.compile(r"\[\s+([-+.\deE]+(?:,\s+[-+.\deE]+)*)\s+\]")


def write_card(card: CheckpointCard, folder: str | Path) -> Path:
    """Write ``card.json`` beside ``model/`` and ``tokenizer/``, whole or not at all, and return its path.

    Raises
    ------
    ValueError : the folder's networks are not those of the card.
    """
    folder = Path(folder)
    found = {"tokenizer": load_tokenizer(folder), "model": load_model(folder)}
    for part, network in found.items():
        wanted, there = getattr(card.fingerprint, part), fingerprint(network)  # type: ignore[arg-type]
        if wanted != there:
            raise ValueError(
                f"the {part} in {folder} has fingerprint {there}, the card says {wanted}: make the card from the "
                "networks as they load from the folder (saving in bfloat16 rounds weights)"
            )
    path = folder / CARD_FILE
    write_whole(path, lambda part: part.write_text(card_text(card), encoding="utf-8"))
    return path


def read_card(location: str | Path, revision: str | None = None) -> CheckpointCard | dict[str, Any]:
    """Read a card and check it.

    Returns
    -------
    CheckpointCard, or the plain dict of a card without ``card_version`` (of an older make, or none: ``{}``), of which
    only the dates and lengths that are there are checked.

    Raises
    ------
    ValueError : something is missing, unknown or contradictory.
    """
    values = load_card(location, revision)
    if "card_version" in values:
        return CheckpointCard(**values)
    for key in ("train_start", "cutoff", "valid_start", "valid_end"):
        if values.get(key) is not None:
            read_date(values[key])
    for key in ("lookback", "horizon", "max_context"):
        value = values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"the card of {location} says {key}={value!r}; expected a whole number of at least 1")
    return values


def card_text(card: CheckpointCard) -> str:
    """Return the card as JSON, with a histogram on one line instead of hundreds."""
    text = json.dumps(card.to_dict(), indent=2, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + re.sub(r"\s+", " ", found.group(1)) + "]", text) + "\n"
