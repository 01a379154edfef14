"""Write a checkpoint so that the original Kronos loads it, and refuse what the original would compute differently."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import CheckpointError, load_model, load_tokenizer, local_folder, save_model, save_tokenizer
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
    """Write both networks of a checkpoint in the published format, float32, each in a folder of its own.

    Parameters
    ----------
    location : folder with ``model/`` and ``tokenizer/``, or ``bundled:NAME``.
    out : folder; ``out/model`` and ``out/tokenizer`` get ``config.json`` and ``model.safetensors``. The original loads
        them with ``Kronos.from_pretrained(out/model)`` and ``KronosTokenizer.from_pretrained(out/tokenizer)``.

    Returns
    -------
    dict of Path : the folder of each network.

    Raises
    ------
    CheckpointError
        A ValueError: a variant that the original does not know (it would load, and compute something else), a
        checkpoint that does not load, or ``out`` is the checkpoint itself. Nothing is written then.
    """
    source, target = local_folder(location), Path(out).expanduser()
    if source is not None and source.resolve() == target.resolve():
        raise CheckpointError(f"{target} is the checkpoint itself; export to another folder")
    model, tokenizer = load_model(location), load_tokenizer(location)
    check_exportable(model.config, str(location))
    check_exportable(tokenizer.config, str(location))
    folders = {"model": target / "model", "tokenizer": target / "tokenizer"}
    save_model(model, folders["model"])
    save_tokenizer(tokenizer, folders["tokenizer"])
    return folders


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
