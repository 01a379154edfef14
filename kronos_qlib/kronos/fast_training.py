"""Cheaper forms of a layer's operations for training under bfloat16 autocast on a CPU. Float32 is computed as ever."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


@torch.library.custom_op("kronos_qlib::scaled_mask", mutates_args=())
def scaled_mask(like: Tensor, dropped: int) -> Tensor:
    """Draw a dropout mask in the dtype of ``like``: 0 for ``dropped`` of 65,536 elements, 1 / (share kept) else.

    Four elements share a 64-bit draw of torch's generator, which is four times as fast as a draw for each.
    """
    draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: like.numel()] >= dropped - _LEVELS // 2
    return kept.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(like.shape)


@scaled_mask.register_fake
def _(like: Tensor, dropped: int) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


class Dropout(nn.Dropout):
    """Dropout whose probability is a multiple of 1 / 65,536 where a bfloat16 network trains on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * _LEVELS)
        if not self.training or not 0 < dropped < _LEVELS or x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        return x * scaled_mask(x.detach(), dropped)


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """Apply several linear layers to one input: in one product under autocast, one by one elsewhere.

    Layers that something has wrapped or replaced (adapters) are always called as they are.
    """
    plain = [layer for layer in layers if type(layer) is nn.Linear]
    if not torch.is_autocast_enabled(x.device.type) or len(plain) < len(layers):
        return [layer(x) for layer in layers]
    weight = torch.cat(tuple(layer.weight for layer in plain))
    biases = [layer.bias for layer in plain if layer.bias is not None]
    if biases and len(biases) < len(plain):
        return [layer(x) for layer in layers]
    joint = F.linear(x, weight, torch.cat(tuple(biases)) if biases else None)
    return list(joint.split([layer.out_features for layer in plain], dim=-1))
