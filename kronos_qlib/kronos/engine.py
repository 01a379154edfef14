"""The network rearranged for generation: packed weights, one prefix per window, many paths behind it.

Shapes: W windows, N paths, L bars of context, T new bars per path, S bars of suffix cached so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import NORM_EPSILON, Attention, TransformerBlock, rotary_table, rotate
from .tokenizer import KronosTokenizer
from .transformer import Kronos


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product in the weight's dtype."""
    return F.linear(x.to(weight.dtype), weight, bias)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of the residual stream, which stays in float32 (float64 in double precision)."""
    return F.rms_norm(x, (x.shape[-1],), weight, NORM_EPSILON)


@dataclass
class PrefixCache:
    """Keys and values of one layer for the bars that all paths of a window share, (W, heads, L, head_dim)."""

    keys: Tensor
    values: Tensor


@dataclass
class SuffixCache:
    """Keys and values of one layer for the bars that paths drew, (W, heads, N, H, head_dim), filled up to a length."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, prefix: PrefixCache, n_paths: int, horizon: int) -> SuffixCache:
        windows, heads, _, head_dim = prefix.keys.shape
        shape = (windows, heads, n_paths, horizon, head_dim)
        return cls(prefix.keys.new_zeros(shape), prefix.keys.new_zeros(shape))


def attend(q: Tensor, prefix: PrefixCache, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of new bars to the shared prefix and to their own path.

    Parameters
    ----------
    q : tensor (W, heads, N, T, head_dim)
    prefix : PrefixCache
    keys, values : tensors (W, heads, N, S, head_dim)
        The path's own bars; the last T of them are those of ``q``, seen causally.

    Returns
    -------
    tensor (W, heads, N, T, head_dim)
    """
    n_paths, new, head_dim = q.shape[2:]
    length, own = prefix.keys.shape[2], keys.shape[3]
    q = q * head_dim**-0.5
    to_prefix = torch.matmul(q.flatten(2, 3), prefix.keys.transpose(-1, -2)).unflatten(2, (n_paths, new))
    to_own = torch.matmul(q, keys.transpose(-1, -2))
    if new > 1:
        future = torch.ones(new, own, dtype=torch.bool, device=q.device).triu(own - new + 1)
        to_own = to_own.masked_fill(future, float("-inf"))
    weights = torch.softmax(torch.cat((to_prefix, to_own), dim=-1), dim=-1)
    from_prefix = torch.matmul(weights[..., :length].flatten(2, 3), prefix.values).unflatten(2, (n_paths, new))
    return from_prefix + torch.matmul(weights[..., length:], values)


class AttentionWeights:
    """Packed projections of one attention layer."""

    def __init__(self, layer: Attention, dtype: torch.dtype) -> None:
        self.n_heads, self.head_dim = layer.n_heads, layer.head_dim
        self.q_weight, self.q_bias = layer.q_proj.weight.to(dtype), layer.q_proj.bias.to(dtype)
        self.kv_weight = torch.cat((layer.k_proj.weight, layer.v_proj.weight)).to(dtype)
        self.kv_bias = torch.cat((layer.k_proj.bias, layer.v_proj.bias)).to(dtype)
        self.qkv_weight = torch.cat((self.q_weight, self.kv_weight))
        self.qkv_bias = torch.cat((self.q_bias, self.kv_bias))
        self.out_weight, self.out_bias = layer.out_proj.weight.to(dtype), layer.out_proj.bias.to(dtype)

    def heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(W, ..., parts * d) -> ``parts`` tensors (W, heads, ..., head_dim)."""
        split = x.unflatten(-1, (parts, self.n_heads, self.head_dim))
        return tuple(part.movedim(-2, 1) for part in split.unbind(-3))

    def merge(self, x: Tensor) -> Tensor:
        """(W, heads, ..., head_dim) -> output projection (W, ..., d)."""
        return linear(x.movedim(1, -2).flatten(-2), self.out_weight, self.out_bias)


class BlockWeights:
    """One transformer block on packed weights."""

    def __init__(self, block: TransformerBlock, dtype: torch.dtype, wide: torch.dtype) -> None:
        self.attention = AttentionWeights(block.self_attn, dtype)
        self.norm1, self.norm2 = block.norm1.weight.to(wide), block.norm2.weight.to(wide)
        self.gate_up = torch.cat((block.ffn.w1.weight, block.ffn.w3.weight)).to(dtype)
        self.down = block.ffn.w2.weight.to(dtype)

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, up = linear(rms_norm(x, self.norm2), self.gate_up).chunk(2, dim=-1)
        return x + linear(F.silu(gate) * up, self.down)

    def prefix(self, x: Tensor, *, keys_only: bool = False) -> tuple[Tensor, PrefixCache]:
        """Run the shared bars ``x`` (W, L, d); ``keys_only`` skips what nobody reads after a last layer."""
        attention = self.attention
        q, k, v = attention.heads(linear(rms_norm(x, self.norm1), attention.qkv_weight, attention.qkv_bias), 3)
        cos, sin = rotary_table(x.shape[1], attention.head_dim, x.device, x.dtype == torch.float64)
        k = rotate(k, cos, sin)
        if not keys_only:
            out = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
            x = self.feed_forward(x + attention.merge(out))
        return x, PrefixCache(k, v)

    def suffix(self, x: Tensor, prefix: PrefixCache, cache: SuffixCache, filled: int) -> Tensor:
        """Run T new bars ``x`` (W, N, T, d) of every path; their keys are appended at ``filled``."""
        attention = self.attention
        q, k, v = attention.heads(linear(rms_norm(x, self.norm1), attention.qkv_weight, attention.qkv_bias), 3)
        start, new = prefix.keys.shape[2] + filled, x.shape[2]
        cos, sin = rotary_table(start + new, attention.head_dim, x.device, x.dtype == torch.float64)
        cache.keys[:, :, :, filled : filled + new] = rotate(k, cos[start:], sin[start:])
        cache.values[:, :, :, filled : filled + new] = v
        end = filled + new
        out = attend(rotate(q, cos[start:], sin[start:]), prefix, cache.keys[..., :end, :], cache.values[..., :end, :])
        return self.feed_forward(x + attention.merge(out))


class TokenizerEngine:
    """Encoder and decoder on packed weights."""

    def __init__(self, tokenizer: KronosTokenizer, dtype: torch.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.wide = wide_dtype(dtype)
        self.encoder = [BlockWeights(block, dtype, self.wide) for block in _blocks(tokenizer.encoder)]
        self.decoder = [BlockWeights(block, dtype, self.wide) for block in _blocks(tokenizer.decoder)]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised bars (W, L, 6) to ids; the two thin outer products stay wide, their cost is nothing."""
        z = _wide_linear(x.to(self.wide), self.tokenizer.embed)
        for block in self.encoder:
            z, _ = block.prefix(z)
        return self.tokenizer._split(_wide_linear(z, self.tokenizer.quant_embed))

    def decode(self, prefix_ids: tuple[Tensor, Tensor], path_ids: tuple[Tensor, Tensor]) -> Tensor:
        """Ids of the shared bars (W, L) and of the paths (W, N, H) to the paths' bars (W, N, H, 6)."""
        shared, own = self._embed(*prefix_ids), self._embed(*path_ids)
        n_paths, horizon = path_ids[0].shape[1:]
        for i, block in enumerate(self.decoder):
            after, cache = block.prefix(shared, keys_only=i == len(self.decoder) - 1)
            own = block.suffix(own, cache, SuffixCache.empty(cache, n_paths, horizon), 0)
            shared = after
        return _wide_linear(own, self.tokenizer.head)

    def _embed(self, s1: Tensor, s2: Tensor) -> Tensor:
        return _wide_linear(self.tokenizer.code(s1, s2).to(self.wide), self.tokenizer.post_quant_embed)


@dataclass
class ModelState:
    """What the model remembers of a window and its paths: a prefix and a suffix cache per layer."""

    prefix: list[PrefixCache]
    suffix: list[SuffixCache]
    dependency_prefix: PrefixCache
    dependency_suffix: SuffixCache
    filled: int = 0


class ModelEngine:
    """The autoregressive model on packed weights."""

    def __init__(self, model: Kronos, dtype: torch.dtype) -> None:
        self.model, self.wide = model, wide_dtype(dtype)
        self.blocks = [BlockWeights(block, dtype, self.wide) for block in _blocks(model.transformer)]
        self.norm = model.norm.weight.to(self.wide)
        self.dependency = AttentionWeights(model.dep_layer.cross_attn, dtype)
        self.dependency_norm = model.dep_layer.norm.weight.to(self.wide)
        self.rotate_dependency = model.dep_layer.rotary == "rotated"
        self.s1_embedding = model.embedding.emb_s1.weight.to(dtype)
        embedding = model.embedding
        # one table a half, with its part of the fusion applied: a lookup replaces a product
        first, second = embedding.fusion_proj.weight.to(self.wide).chunk(2, dim=1)
        scale = embedding.scale
        self.s1_table = F.linear(embedding.emb_s1.weight.to(self.wide) * scale, first)
        self.s2_table = F.linear(
            embedding.emb_s2.weight.to(self.wide) * scale, second, embedding.fusion_proj.bias.to(self.wide)
        )
        self.s1_head = (model.head.proj_s1.weight.to(dtype), model.head.proj_s1.bias.to(dtype))
        self.s2_head = (model.head.proj_s2.weight.to(dtype), model.head.proj_s2.bias.to(dtype))

    def embed(self, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
        """Ids and stamps (broadcasting over paths) to the residual stream."""
        return (
            F.embedding(s1, self.s1_table) + F.embedding(s2, self.s2_table) + self.model.time_emb(stamps).to(self.wide)
        )

    def start(self, s1: Tensor, s2: Tensor, stamps: Tensor, n_paths: int, horizon: int) -> tuple[Tensor, ModelState]:
        """Run the shared bars (W, L) once; returns the last hidden state (W, d) and the caches."""
        x = self.embed(s1, s2, stamps)
        prefix = []
        for block in self.blocks:
            x, cache = block.prefix(x)
            prefix.append(cache)
        hidden = rms_norm(x, self.norm)
        dependency = PrefixCache(*self._dependency_keys(hidden, 0))
        suffix = [SuffixCache.empty(cache, n_paths, horizon) for cache in prefix]
        state = ModelState(prefix, suffix, dependency, SuffixCache.empty(dependency, n_paths, horizon))
        return hidden[:, -1], state

    def advance(self, s1: Tensor, s2: Tensor, stamps: Tensor, state: ModelState) -> Tensor:
        """Run T new bars of every path, ids (W, N, T), stamps (W, 1, T, 5); returns the last hidden (W, N, d)."""
        x = self.embed(s1, s2, stamps)
        filled, new = state.filled, s1.shape[2]
        for block, prefix, suffix in zip(self.blocks, state.prefix, state.suffix, strict=True):
            x = block.suffix(x, prefix, suffix, filled)
        hidden = rms_norm(x, self.norm)
        keys, values = self._dependency_keys(hidden, state.dependency_prefix.keys.shape[2] + filled)
        state.dependency_suffix.keys[:, :, :, filled : filled + new] = keys
        state.dependency_suffix.values[:, :, :, filled : filled + new] = values
        state.filled = filled + new
        return hidden[:, :, -1]

    def s1_logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, *self.s1_head)

    def s2_logits(self, hidden: Tensor, s1: Tensor, state: ModelState) -> Tensor:
        """Logits of s2 given ``s1`` (W, N); ``hidden`` is (W, N, d) or (W, 1, d) before the paths part."""
        dependency = self.dependency
        query = linear(F.embedding(s1, self.s1_embedding), dependency.q_weight, dependency.q_bias)
        q = query.unflatten(-1, (dependency.n_heads, dependency.head_dim)).movedim(-2, 1).unsqueeze(3)
        position = state.dependency_prefix.keys.shape[2] + state.filled - 1
        if self.rotate_dependency:
            q = self._rotate(q, position)
        suffix, filled = state.dependency_suffix, state.filled
        out = attend(q, state.dependency_prefix, suffix.keys[..., :filled, :], suffix.values[..., :filled, :])
        attended = dependency.merge(out.squeeze(3))
        return linear(rms_norm(hidden + attended, self.dependency_norm), *self.s2_head)

    def _dependency_keys(self, hidden: Tensor, start: int) -> tuple[Tensor, Tensor]:
        k, v = self.dependency.heads(linear(hidden, self.dependency.kv_weight, self.dependency.kv_bias), 2)
        return (self._rotate(k, start) if self.rotate_dependency else k), v

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        end = start + x.shape[-2]
        cos, sin = rotary_table(end, self.dependency.head_dim, x.device, x.dtype == torch.float64)
        return rotate(x, cos[start:], sin[start:])


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the residual stream and of norms."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wide_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _blocks(modules: nn.Module) -> list[TransformerBlock]:
    return [block for block in modules.children() if isinstance(block, TransformerBlock)]
