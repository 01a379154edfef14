"""Token orders by the close that a token decodes to, so that neighbouring uniforms mean neighbouring outcomes."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .tokenizer import KronosTokenizer

CLOSE = 3  # column of the close in a bar
_EXACT_TOKENS = 1 << 17  # above this many joint tokens, s2 gets one order for all s1
_REPRESENTATIVES = 16  # of the other half, where not all pairs are decoded
_CHUNK = 1 << 14

_cache: WeakKeyDictionary[KronosTokenizer, tuple[Any, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


@torch.inference_mode()
def close_orders(tokenizer: KronosTokenizer) -> tuple[Tensor, Tensor]:
    """Orders by decoded close.

    Each token is decoded as a sequence of one bar: an approximation of what it means after a context, which affects
    how evenly stratified draws spread and never their distribution.

    Returns
    -------
    s1_order : int64 tensor (V1,)
        s1 ids by the mean close of their joint tokens.
    s2_order : int64 tensor (V1, V2)
        For each s1 id, s2 ids by close.
    """
    parameters = list(tokenizer.parameters())
    # weights made in inference mode have no version, nor can they change outside it
    versions = tuple(-1 if p.is_inference() else p._version for p in parameters)
    version = (versions, parameters[0].device, parameters[0].dtype)
    found = _cache.get(tokenizer)
    if found is None or found[0] != version:
        found = (version, _compute(tokenizer))
        _cache[tokenizer] = found
    return found[1]


def _compute(tokenizer: KronosTokenizer) -> tuple[Tensor, Tensor]:
    n_s1, n_s2 = 2**tokenizer.config.s1_bits, 2**tokenizer.config.s2_bits
    device = tokenizer.head.weight.device
    all_s1, all_s2 = torch.arange(n_s1, device=device), torch.arange(n_s2, device=device)
    if n_s1 * n_s2 <= _EXACT_TOKENS:
        closes = _closes(tokenizer, all_s1, all_s2)
        return closes.mean(dim=1).argsort(stable=True), closes.argsort(dim=1, stable=True)
    s2_sample = all_s2[:: max(1, n_s2 // _REPRESENTATIVES)]
    s1_order = _closes(tokenizer, all_s1, s2_sample).mean(dim=1).argsort(stable=True)
    s1_sample = s1_order[:: max(1, n_s1 // _REPRESENTATIVES)]
    s2_order = _closes(tokenizer, s1_sample, all_s2).mean(dim=0).argsort(stable=True)
    return s1_order, s2_order.expand(n_s1, n_s2)


def _closes(tokenizer: KronosTokenizer, s1: Tensor, s2: Tensor) -> Tensor:
    """Decoded close of every pair, (len(s1), len(s2))."""
    first = s1.repeat_interleave(len(s2))
    second = s2.repeat(len(s1))
    parts = [
        tokenizer.decode(a.unsqueeze(1), b.unsqueeze(1))[:, 0, CLOSE]
        for a, b in zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
    ]
    return torch.cat(parts).view(len(s1), len(s2)).float()
