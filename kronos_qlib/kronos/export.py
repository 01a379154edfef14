"""Write a checkpoint so that the original Kronos loads it, and refuse what the original would compute differently."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import (
    CARD_FILE,
    CheckpointError,
    card_path,
    fingerprint,
    load_card,
    load_model,
    load_tokenizer,
    local_folder,
    save_model,
    save_tokenizer,
    write_whole,
)
from .config import ModelConfig, TokenizerConfig

PUBLISHED_MODEL_KEYS = (
    "s1_bits", "s2_bits", "n_layers", "d_model", "n_heads", "ff_dim", "ffn_dropout_p", "attn_dropout_p",
    "resid_dropout_p", "token_dropout_p", "learn_te",
)  # fmt: skip
PUBLISHED_TOKENIZER_KEYS = (
    "d_in", "d_model", "n_heads", "ff_dim", "n_enc_layers", "n_dec_layers", "ffn_dropout_p", "attn_dropout_p",
    "resid_dropout_p", "s1_bits", "s2_bits", "beta", "gamma0", "gamma", "zeta", "group_size",
)  # fmt: skip


def export_published(location: str | Path, out: str | Path) -> dict[str, Path]:
    """Write both networks of a checkpoint in the published format, float32, and its card beside them.

    Parameters
    ----------
    location : folder with ``model/`` and ``tokenizer/``, or ``bundled:NAME``.
    out : folder; ``out/model`` and ``out/tokenizer`` get ``config.json`` and ``model.safetensors``. The original loads
        them with ``Kronos.from_pretrained(out/model)`` and ``KronosTokenizer.from_pretrained(out/tokenizer)``. The
        card goes to ``out/card.json``, where the original does not look; a checkpoint without a card leaves none there.

    Returns
    -------
    dict of Path : the folder of each network, and ``card``, the file, where the checkpoint has one.

    Raises
    ------
    CheckpointError
        A ValueError: a variant that the original does not know (it would load, and compute something else), a
        checkpoint that does not load, a card of other weights, or ``out`` is the checkpoint itself. Nothing is written
        then.
    """
    source, target = local_folder(location), Path(out).expanduser()
    if source is not None and source.resolve() == target.resolve():
        raise CheckpointError(f"{target} is the checkpoint itself; export to another folder")
    model, tokenizer = load_model(location), load_tokenizer(location)
    check_exportable(model.config, str(location))
    check_exportable(tokenizer.config, str(location))
    card = _card_text(location, {"model": fingerprint(model), "tokenizer": fingerprint(tokenizer)})
    written = {"model": target / "model", "tokenizer": target / "tokenizer"}
    (target / CARD_FILE).unlink(missing_ok=True)  # of an earlier export, so of other weights
    save_model(model, written["model"])
    save_tokenizer(tokenizer, written["tokenizer"])
    if card is not None:
        written["card"] = target / CARD_FILE
        write_whole(written["card"], lambda part: part.write_text(card, encoding="utf-8"))
    return written


def _card_text(location: str | Path, found: dict[str, str]) -> str | None:
    """Return the checkpoint's card as it is written, None without one; refuse a card of other weights."""
    folder = local_folder(location)
    path = None if folder is None else card_path(folder)
    if path is None:
        return None
    said = load_card(location).get("fingerprint")  # None: a card of an older make
    if said not in (None, found):
        raise CheckpointError(
            f"{path} is the card of other weights: it says fingerprint {said}, the networks of {location} have "
            f"{found}. Put the right card there, or move it away to export without one"
        )
    return path.read_text(encoding="utf-8")


def check_exportable(config: ModelConfig | TokenizerConfig, where: str) -> None:
    """Raise a CheckpointError that names every setting the original does not have."""
    is_model = isinstance(config, ModelConfig)
    known = PUBLISHED_MODEL_KEYS if is_model else PUBLISHED_TOKENIZER_KEYS
    values = config.to_published() if isinstance(config, ModelConfig) else config.to_dict()
    ours = {key: value for key, value in values.items() if key not in known}
    if ours:
        settings = ", ".join(f"{key}={value!r}" for key, value in ours.items())
        raise CheckpointError(
            f"the {'model' if is_model else 'tokenizer'} of {where} is a variant of ours: {settings}. The published "
            "format has no such setting, so the original would load these weights and compute something else. Train "
            "with dependency_rotary='published' to export."
        )
