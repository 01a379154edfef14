"""Networks and figures of ``tests/data/golden``: what the original implementation computes on fixed weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_fill import parameter

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, TokenizerConfig

FOLDER = Path(__file__).resolve().parents[1] / "data" / "golden"


@dataclass(frozen=True)
class Golden:
    """One size: the networks with their fixed weights, the description and the figures."""

    model: Kronos
    tokenizer: KronosTokenizer
    description: dict[str, Any]
    figures: dict[str, np.ndarray]


def _fill(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            tensor.copy_(torch.from_numpy(parameter(name, tuple(tensor.shape))))


@cache
def load_golden(name: str) -> Golden:
    """``tiny`` or ``mini``, in eval mode."""
    description = json.loads((FOLDER / f"{name}.json").read_text())
    tokenizer = KronosTokenizer(TokenizerConfig(**description["tokenizer"]))
    model = Kronos(ModelConfig(**description["model"]))
    for module in (tokenizer, model):
        _fill(module)
        module.eval()
        module.requires_grad_(False)
    with np.load(FOLDER / f"{name}.npz") as figures:
        return Golden(model, tokenizer, description, dict(figures))
