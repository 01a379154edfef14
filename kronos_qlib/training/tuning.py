"""Which weights of a network go on learning: layers that stay, and low-rank adapters in the place of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kronos_qlib.kronos import Kronos, KronosTokenizer
from kronos_qlib.training.finetune_recipe import Lora, NetworkTuning


def frozen_prefixes(network: Kronos | KronosTokenizer, tuning: NetworkTuning) -> tuple[str, ...]:
    """Return the beginnings of the names of parameters that stay; ValueError for more blocks than there are."""
    is_model = isinstance(network, Kronos)
    blocks = network.transformer if isinstance(network, Kronos) else network.encoder
    if tuning.freeze_blocks > len(blocks):
        kind = "model has" if is_model else "tokenizer's encoder has"
        raise ValueError(f"freeze_blocks is {tuning.freeze_blocks}, the {kind} {len(blocks)} blocks; freeze fewer")
    stack, embeddings = ("transformer", ("embedding.", "time_emb.")) if is_model else ("encoder", ("embed.",))
    frozen = tuple(f"{stack}.{number}." for number in range(tuning.freeze_blocks))
    return frozen + (embeddings if tuning.freeze_embeddings else ())


def with_dropout(model: Kronos, dropout: float | None) -> Kronos:
    """Return the model with another feed-forward and residual dropout, the same weights; None: as it is."""
    if dropout is None:
        return model
    other = Kronos(model.config.model_copy(update={"ffn_dropout_p": dropout, "resid_dropout_p": dropout}))
    other.load_state_dict(model.state_dict())
    return other


@contextmanager
def learning(network: Kronos | KronosTokenizer, tuning: NetworkTuning) -> Iterator[None]:
    """Let the chosen weights of a network require a gradient inside the block; after it none does.

    With ``lora``, adapters stand in the network inside the block. They are merged into the weights at its end, also
    after an error, so that the network has its own parameter names again.

    Raises
    ------
    ValueError : nothing is left to learn, more blocks to freeze than there are, no layer for LoRA, peft is missing.
    """
    frozen = frozen_prefixes(network, tuning)
    own = set(dict(network.named_parameters()))
    tuner = None if tuning.lora is None else add_adapters(network, tuning.lora, tuning.seed)
    # sinusoids are constants, which the optimiser must not touch
    constants = ("time_emb.",) if isinstance(network, Kronos) and not network.config.learn_te else ()
    for name, parameter in network.named_parameters():
        mine = tuner is None or "lora_" in name
        parameter.requires_grad_(mine and not name.startswith(frozen + constants))
    try:
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError("every layer is frozen: nothing is left to learn; freeze fewer blocks, or name other ones")
        yield
    finally:
        if tuner is not None:
            tuner.merge_and_unload()
        network.requires_grad_(False)
        network.eval()
    if set(dict(network.named_parameters())) != own:
        raise ValueError("peft left parameters of its own in the network; use the version of constraints.txt")


def add_adapters(network: nn.Module, lora: Lora, seed: int) -> Any:
    """Put a LoRA adapter on each target layer, in place, and return peft's tuner, which can merge them."""
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise ValueError(
            f"LoRA needs peft, which does not import here ({error}); pip install 'kronos-qlib[finetune]', or leave "
            "lora out and freeze_blocks in its place"
        ) from error
    linear = sorted({name.split(".")[-1] for name, part in network.named_modules() if isinstance(part, nn.Linear)})
    unknown = sorted(set(lora.target_modules) - set(linear))
    if unknown:
        raise ValueError(f"lora: no linear layer is named {', '.join(unknown)}; there are {', '.join(linear)}")
    # peft declares a whole number and takes any
    scale: Any = lora.alpha
    config = LoraConfig(
        r=lora.rank, lora_alpha=scale, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
    )
    # the adapters' first matrices are random; the caller's generator stays where it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(network, {"default": config}, "default")
