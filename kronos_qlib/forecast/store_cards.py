"""Cards of the weights in a forecast store, so that a reader can tell which rows they have seen.

::

    weights/<fingerprint>.json      {"weights": fingerprint, "card": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kronos_qlib.forecast.store_files import write_note


def save_card(store: Path, weights: str, card: Mapping[str, Any]) -> None:
    """Note the card of some weights, whole or not at all; an empty card never replaces one."""
    path = _path(store, weights)
    if (not card and path.exists()) or read_card(store, weights) == dict(card):
        return
    write_note(path, {"weights": weights, "card": dict(card)}, default=str)


def read_card(store: Path, weights: str) -> dict[str, Any] | None:
    """Return the card of some weights; None when the store has none.

    Raises
    ------
    ValueError : the file cannot be read.
    """
    path = _path(store, weights)
    if not path.exists():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))["card"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove it and run the build again, which notes it"
        ) from error
    return dict(card)


def _path(store: Path, weights: str) -> Path:
    return store / "weights" / f"{weights}.json"
