"""Find what a checkpoint consists of: model, tokenizer, card, and the lengths to use it with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kronos_qlib.kronos import Kronos, KronosTokenizer, load_card, load_model, load_tokenizer
from kronos_qlib.kronos.checkpoint import local_folder

DEFAULT_CONTEXT = 512
# Published configs name no context (trap 20); these are the lengths the checkpoints were trained with.
KNOWN_CONTEXTS = {"kronos-mini": 2048, "kronos-small": 512, "kronos-base": 512}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A loaded checkpoint; both networks are in eval mode."""

    model: Kronos
    tokenizer: KronosTokenizer
    card: dict[str, Any]
    lookback: int
    max_context: int


def load_pretrained(
    model: str | Path,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    tokenizer_revision: str | None = None,
) -> Pretrained:
    """Load both networks and the card; parameters as in ``KronosForecaster.from_pretrained``."""
    place = find_tokenizer(model) if tokenizer is None else tokenizer
    card = load_card(model, revision)
    return Pretrained(
        model=load_model(model, revision),
        tokenizer=load_tokenizer(place, tokenizer_revision),
        card=card,
        lookback=context_length("lookback", card, model),
        max_context=context_length("max_context", card, model),
    )


def find_tokenizer(model: str | Path) -> Path:
    """Return the tokenizer's folder that goes with a model's: ``tokenizer`` inside it, or beside one named
    ``model``.

    Raises
    ------
    ValueError : a hub id, or a folder without one.
    """
    folder = local_folder(model)
    if folder is None:
        raise ValueError(
            f"the hub's {str(model)!r} holds a model only; give tokenizer= as well, such as "
            "'NeoQuasar/Kronos-Tokenizer-base' ('-2k' for Kronos-mini), and tokenizer_revision="
        )
    for place in (folder / "tokenizer", folder.parent / "tokenizer"):
        if (place / "config.json").is_file():
            return place
    raise ValueError(
        f"found no tokenizer in or beside {folder}; give tokenizer=, the folder of the one it was trained with"
    )


def context_length(name: str, card: dict[str, Any], model: str | Path) -> int:
    """Return ``lookback`` or ``max_context``: of the card, else of a known checkpoint's name, else 512."""
    value = card.get(name)
    if value is None:
        return KNOWN_CONTEXTS.get(Path(str(model)).name.lower(), DEFAULT_CONTEXT)
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise ValueError(f"the card of {model} says {name}={value!r}; expected a whole number of at least 2")
    return value


def warn_of_default_lookback(model: str | Path, card: Mapping[str, Any], given: int | None) -> None:
    """Warn where windows hold 512 bars because nobody said how many: no setting, no card, no known checkpoint's name.

    A checkpoint forecasts windows of another length than it was trained on, without an error and worse.
    """
    known = Path(str(model)).name.lower() in KNOWN_CONTEXTS
    if given is None and card.get("lookback") is None and not known:
        _logger.warning(
            "no card of %s names a lookback: windows hold up to %d bars; set --lookback (lookback=) to the length that "
            "it was trained on", model, DEFAULT_CONTEXT,
        )  # fmt: skip
