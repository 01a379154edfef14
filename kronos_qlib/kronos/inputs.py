"""Checks and conversions that both generators share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .config import SamplingConfig
from .ordering import close_orders
from .tokenizer import KronosTokenizer
from .transformer import STAMP_SIZES, Kronos
from .uniforms import uniforms, window_bytes_keys


@dataclass(frozen=True)
class GenerationInputs:
    """Validated inputs on the model's device."""

    x: Tensor  # (B, L, 6), normalised
    x_stamp: Tensor  # (B, L, 5) int64
    y_stamp: Tensor  # (B, H, 5) int64
    uniforms: Tensor  # (B, n_paths, H, 2) float64
    s1_order: Tensor | None  # (V1,): token order of the inverse CDF
    s2_order: Tensor | None  # (V1, V2)
    n_paths: int
    dtype: torch.dtype  # of the weights
    out_dtype: torch.dtype

    @property
    def horizon(self) -> int:
        return self.y_stamp.shape[1]


def check_match(model: Kronos, tokenizer: KronosTokenizer) -> None:
    """Raise unless model and tokenizer speak of the same tokens and are both in eval mode."""
    theirs = (tokenizer.config.s1_bits, tokenizer.config.s2_bits)
    ours = (model.config.s1_bits, model.config.s2_bits)
    if ours != theirs:
        raise ValueError(
            f"the model has s1_bits, s2_bits = {ours}, the tokenizer {theirs}; load the tokenizer it was trained with"
        )
    for name, module in (("model", model), ("tokenizer", tokenizer)):
        if module.training:
            raise ValueError(f"the {name} is in training mode, where dropout is active; call {name}.eval() first")


def prepare(
    model: Kronos,
    tokenizer: KronosTokenizer,
    x: object,
    x_stamp: object,
    y_stamp: object,
    sampling: SamplingConfig,
    max_context: int,
    keys: object,
) -> GenerationInputs:
    """Validate what a caller gave; every complaint is a ValueError that says what was found and expected."""
    check_match(model, tokenizer)
    device, dtype = _place(model)
    bars = _tensor(x, "x", 3, tokenizer.config.d_in)
    past, future = _stamps(x_stamp, "x_stamp"), _stamps(y_stamp, "y_stamp")
    batch, length, _ = bars.shape
    if past.shape[:2] != (batch, length):
        raise ValueError(f"x_stamp has shape {tuple(past.shape)}, expected ({batch}, {length}, 5) to go with x")
    if future.shape[0] != batch:
        raise ValueError(f"y_stamp has {future.shape[0]} windows, x has {batch}")
    horizon = future.shape[1]
    if batch == 0 or length == 0 or horizon == 0:
        raise ValueError(f"nothing to generate: {batch} windows of {length} bars, {horizon} steps")
    if not 1 <= horizon < max_context:
        raise ValueError(f"horizon {horizon} must be below max_context {max_context}; ask for fewer steps")
    if not bool(torch.isfinite(bars).all()):
        raise ValueError("x holds NaN or infinity; windows must be complete, repair or leave out such bars")
    window_keys = _keys(keys, bars)
    draws = torch.from_numpy(uniforms(sampling, window_keys, horizon))
    s1_order, s2_order = close_orders(tokenizer) if sampling.order == "close" else (None, None)
    return GenerationInputs(
        x=bars.to(device),
        x_stamp=past.to(device),
        y_stamp=future.to(device),
        uniforms=draws.to(device) if device.type != "mps" else draws.float().to(device),
        s1_order=s1_order,
        s2_order=s2_order,
        n_paths=sampling.n_paths,
        dtype=dtype,
        out_dtype=torch.float64 if dtype == torch.float64 else torch.float32,
    )


def _place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype


def _tensor(value: object, name: str, ndim: int, last: int) -> Tensor:
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
    if tensor.ndim != ndim or tensor.shape[-1] != last:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {ndim} axes with {last} columns last")
    return tensor


def _stamps(value: object, name: str) -> Tensor:
    stamps = _tensor(value, name, 3, len(STAMP_SIZES)).long()
    for column, (part, size) in enumerate(STAMP_SIZES):
        values = stamps[..., column]
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < size:
            raise ValueError(
                f"{name}: {part} runs from {int(values.min())} to {int(values.max())}, expected 0 to {size - 1}; "
                "columns are minute, hour, weekday, day, month"
            )
    return stamps


def _keys(keys: object, bars: Tensor) -> np.ndarray:
    if keys is None:
        return window_bytes_keys(bars.cpu().float().numpy())
    array = np.asarray(keys)
    if array.shape != (len(bars),) or array.dtype.kind not in "ui":
        raise ValueError(
            f"keys have shape {array.shape} and dtype {array.dtype}, expected ({len(bars)},) of uint64, one per window"
        )
    return array.astype(np.uint64)
