"""Blocks that the tokenizer and the model share. Parameter names are those of published checkpoints."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import NetworkConfig
from .fast_training import Dropout, project

ROTARY_BASE = 10000.0
NORM_EPSILON = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (float64 stays float64)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + NORM_EPSILON)
        return normed.type_as(x) * self.weight


class FeedForward(nn.Module):
    """SwiGLU: ``w2(silu(w1 x) * w3 x)``, no bias."""

    def __init__(self, d_model: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, ff_dim, bias=False)
        self.w3 = nn.Linear(d_model, ff_dim, bias=False)
        self.w2 = nn.Linear(ff_dim, d_model, bias=False)
        self.ffn_dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = project(x, self.w1, self.w3)
        return self.ffn_dropout(self.w2(F.silu(gate) * value))


def inverse_frequencies(head_dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rotary frequencies, shape (head_dim / 2,)."""
    exponents = torch.arange(0, head_dim, 2, dtype=dtype) / head_dim
    return 1.0 / (ROTARY_BASE**exponents)


@lru_cache(maxsize=64)
def rotary_table(length: int, head_dim: int, device: torch.device, wide: bool) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 … length - 1, each (length, head_dim).

    Never taken from a module's buffer: ``model.to(bfloat16)`` would round it and break positions above 256 (trap 9).
    """
    dtype = torch.float64 if wide else torch.float32
    # a table made while sampling is kept, and training must be able to use it
    with torch.inference_mode(False):
        angles = torch.outer(torch.arange(length, dtype=dtype), inverse_frequencies(head_dim, dtype))
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(device), angles.sin().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last axis; ``cos`` and ``sin`` broadcast against ``x`` (..., positions, head_dim)."""
    (first, second), (cos, _), (sin, _) = (part.chunk(2, dim=-1) for part in (x, cos, sin))
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


class Rotary(nn.Module):
    """Holds the published ``inv_freq`` entry, so that state dicts match; the tables are computed apart."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("inv_freq", inverse_frequencies(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Rotate ``x`` (..., T, head_dim) by positions 0 … T - 1."""
        cos, sin = rotary_table(x.shape[-2], self.head_dim, x.device, x.dtype == torch.float64)
        return rotate(x, cos, sin)


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool) -> Tensor:
    """Attention from plain products, (B, H, Tq, D) with (B, H, Tk, D), for training on a CPU in bfloat16.

    The fused kernel's backward pass is five times slower there (150 against 30 ms at 64 x 4 heads x 119 bars x 32), and
    a compiler can join what stands around plain products, as when a batch is encoded.
    """
    batch, heads, length, width = query.shape
    q, k, v = (x.reshape(batch * heads, -1, width) for x in (query, key, value))
    mask = torch.zeros(length, k.shape[1], dtype=query.dtype)
    if causal:
        mask = mask.masked_fill(torch.ones_like(mask, dtype=torch.bool).triu(1), float("-inf"))
    scores = torch.baddbmm(mask.expand(batch * heads, -1, -1), q * width**-0.5, k.transpose(1, 2))
    weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
    return torch.bmm(weights, v).view(batch, heads, length, width)


class Attention(nn.Module):
    """Projections of multi-head attention with rotary positions; used as self- and as cross-attention."""

    def __init__(self, d_model: int, n_heads: int, attn_dropout: float, resid_dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.head_dim = d_model // n_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        self.rotary = Rotary(self.head_dim)
        self.attn_dropout_p = attn_dropout
        self.resid_dropout = Dropout(resid_dropout)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, n_heads, T, head_dim)."""
        return x.unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)

    def forward(self, query: Tensor, memory: Tensor, *, causal: bool = True, rotary: bool = True) -> Tensor:
        """Attend from ``query`` (B, Tq, d) to ``memory`` (B, Tk, d); causal needs Tq = Tk."""
        if query is memory:
            projected = project(memory, self.q_proj, self.k_proj, self.v_proj)
        else:
            projected = [self.q_proj(query), *project(memory, self.k_proj, self.v_proj)]
        q, k, v = (self.split_heads(part) for part in projected)
        if rotary:
            q, k = self.rotary(q), self.rotary(k)
        dropout = self.attn_dropout_p if self.training else 0.0
        training = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if training and q.dtype == torch.bfloat16 and q.device.type == "cpu":
            out = explicit_attention(q, k, v, dropout, causal)
        else:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
        return self.resid_dropout(self.out_proj(out.transpose(1, 2).flatten(-2)))


class TransformerBlock(nn.Module):
    """Pre-norm causal self-attention and SwiGLU feed-forward."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.d_model)
        self.self_attn = Attention(config.d_model, config.n_heads, config.attn_dropout_p, config.resid_dropout_p)
        self.norm2 = RMSNorm(config.d_model)
        self.ffn = FeedForward(config.d_model, config.ff_dim, config.ffn_dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed)
        return x + self.ffn(self.norm2(x))
