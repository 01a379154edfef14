"""The network and its sampler; imports torch and nothing of ours."""

from .checkpoint import (
    CheckpointError,
    fingerprint,
    load_card,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from .config import ModelConfig, SamplingConfig, TokenizerConfig, check_keys
from .generate import generate, generate_tokens
from .naive import generate_naive
from .normalise import denormalise, normalise
from .ragged import generate_ragged
from .tokenizer import KronosTokenizer
from .transformer import Kronos

__all__ = [
    "CheckpointError",
    "Kronos",
    "KronosTokenizer",
    "ModelConfig",
    "SamplingConfig",
    "TokenizerConfig",
    "check_keys",
    "denormalise",
    "fingerprint",
    "generate",
    "generate_naive",
    "generate_ragged",
    "generate_tokens",
    "load_card",
    "load_model",
    "load_tokenizer",
    "normalise",
    "save_model",
    "save_tokenizer",
]
