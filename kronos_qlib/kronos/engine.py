"""The network rearranged for generation: packed weights, one prefix per window, many paths behind it.

Shapes: W windows, N paths, L bars of context, T new bars per path, S bars of suffix cached so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import NORM_EPSILON, Attention, TransformerBlock, rotary_table
from .tokenizer import KronosTokenizer
from .transformer import Kronos


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product in the weight's dtype."""
    return F.linear(x.to(weight.dtype), weight, bias)


def rms_scale(x: Tensor) -> Tensor:
    """``x`` over its root mean square; the norm's weight is folded into the product that follows."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return x * square.div_(x.shape[-1]).add_(NORM_EPSILON).rsqrt_()


@dataclass
class PrefixCache:
    """Keys and values of one layer for the bars that all paths of a window share, (W, heads, L, head_dim)."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]


@dataclass
class SuffixCache:
    """Keys and values of one layer for the bars that paths drew, (W, heads, N, H, head_dim), filled up to a length.

    Kept wide also in bfloat16: one query against a few bars is faster and finer as a float32 sum of products.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, prefix: PrefixCache, n_paths: int, horizon: int) -> SuffixCache:
        windows, heads, _, head_dim = prefix.keys.shape
        dtype = wide_dtype(prefix.keys.dtype)
        shape = (windows, heads, n_paths, horizon, head_dim)
        return cls(prefix.keys.new_empty(shape, dtype=dtype), prefix.keys.new_empty(shape, dtype=dtype))

    def append(self, keys: Tensor, values: Tensor, filled: int) -> tuple[Tensor, Tensor]:
        """Write T bars at ``filled``; returns views of all bars so far."""
        end = filled + keys.shape[3]
        self.keys[..., filled:end, :] = keys
        self.values[..., filled:end, :] = values
        return self.keys[..., :end, :], self.values[..., :end, :]


def attend(q: Tensor, prefix: PrefixCache, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of new bars to the shared prefix and to their own path.

    Parameters
    ----------
    q : tensor (W, heads, N, T, head_dim)
        Already scaled by head_dim ** -0.5, in the wide dtype.
    prefix : PrefixCache
    keys, values : tensors (W, heads, N, S, head_dim)
        The path's own bars; the last T of them are those of ``q``, seen causally.

    Returns
    -------
    tensor (W, heads, N, T, head_dim), wide
    """
    n_paths, new = q.shape[2:4]
    length, own, dtype = prefix.length, keys.shape[3], prefix.keys.dtype
    shared = torch.matmul(q.flatten(2, 3).to(dtype), prefix.keys.transpose(-1, -2)).unflatten(2, (n_paths, new))
    if own == 0:
        weights = torch.softmax(shared.to(q.dtype), dim=-1)
    else:
        single = (q * keys).sum(-1).unsqueeze(3) if new == 1 else torch.matmul(q, keys.transpose(-1, -2))
        if new > 1:
            future = torch.ones(new, own, dtype=torch.bool, device=q.device).triu(own - new + 1)
            single = single.masked_fill_(future, float("-inf"))
        weights = torch.softmax(torch.cat((shared.to(q.dtype), single), dim=-1), dim=-1)
    to_prefix = weights[..., :length].flatten(2, 3).to(dtype)
    out = torch.matmul(to_prefix, prefix.values).to(q.dtype).unflatten(2, (n_paths, new))
    if own == 0:
        return out
    to_own = weights[..., length:]
    if new == 1:
        return out + (to_own.transpose(-1, -2) * values).sum(3, keepdim=True)
    return out + torch.matmul(to_own, values)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions without copies of the halves; tables broadcast against ``x``; the result is wide."""
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class AttentionWeights:
    """Packed projections of one attention layer; queries come out scaled, an input norm is folded in."""

    def __init__(self, layer: Attention, dtype: torch.dtype, norm: Tensor | None = None) -> None:
        self.n_heads, self.head_dim = layer.n_heads, layer.head_dim
        scale = layer.head_dim**-0.5
        query, query_bias = layer.q_proj.weight * scale, layer.q_proj.bias * scale
        weight = torch.cat((query, layer.k_proj.weight, layer.v_proj.weight))
        bias = torch.cat((query_bias, layer.k_proj.bias, layer.v_proj.bias))
        self.qkv_weight = (weight if norm is None else weight * norm).to(dtype)
        self.qkv_bias = bias.to(dtype)
        self.out_weight, self.out_bias = layer.out_proj.weight.to(dtype), layer.out_proj.bias.to(dtype)

    def project(self, x: Tensor, first: int = 0, last: int = 3) -> Tensor:
        """Parts ``first`` to ``last`` of (q, k, v): (W, ..., d) -> (parts, W, heads, ..., head_dim)."""
        width = self.n_heads * self.head_dim
        rows = slice(first * width, last * width)
        split = linear(x, self.qkv_weight[rows], self.qkv_bias[rows]).unflatten(-1, (-1, self.n_heads, self.head_dim))
        return split.movedim((-3, -2), (0, 2))

    def merge(self, x: Tensor) -> Tensor:
        """(W, heads, ..., head_dim) -> output projection (W, ..., d)."""
        return linear(x.movedim(1, -2).flatten(-2), self.out_weight, self.out_bias)


class BlockWeights:
    """One transformer block on packed weights."""

    def __init__(self, block: TransformerBlock, dtype: torch.dtype) -> None:
        self.attention = AttentionWeights(block.self_attn, dtype, block.norm1.weight)
        gate_up = torch.cat((block.ffn.w1.weight, block.ffn.w3.weight))
        self.gate_up = (gate_up * block.norm2.weight).to(dtype)
        self.down = block.ffn.w2.weight.to(dtype)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Add the block's second half to the residual stream ``x``, in place."""
        gate, up = linear(rms_scale(x), self.gate_up).chunk(2, dim=-1)
        return x.add_(linear(F.silu(gate, inplace=True).mul_(up), self.down))

    def prefix(self, x: Tensor, *, keys_only: bool = False) -> tuple[Tensor, PrefixCache]:
        """Run the shared bars ``x`` (W, L, d), in place; ``keys_only`` skips what nobody reads after a last layer."""
        attention = self.attention
        cos, sin = rotary_table(x.shape[1], attention.head_dim, x.device, x.dtype == torch.float64)
        parts = attention.project(rms_scale(x), first=1 if keys_only else 0)
        v = parts[-1]
        *query, k = rotate_halves(parts[:-1], cos, sin).to(v.dtype)
        if query:
            (q,) = query
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
            x = self.feed_forward(x.add_(attention.merge(out)))
        # steps read the cache many times: laid out once
        return x, PrefixCache(k.contiguous(), v.contiguous())

    def suffix(self, x: Tensor, prefix: PrefixCache, cache: SuffixCache, filled: int) -> Tensor:
        """Run T new bars ``x`` (W, N, T, d) of every path, in place; their keys are appended at ``filled``."""
        attention = self.attention
        parts = attention.project(rms_scale(x))
        start, new = prefix.length + filled, x.shape[2]
        cos, sin = rotary_table(start + new, attention.head_dim, x.device, x.dtype == torch.float64)
        cos, sin = cos[start:], sin[start:]
        q, k = rotate_halves(parts[:2], cos, sin)
        keys, values = cache.append(k, parts[2], filled)
        out = attend(q, prefix, keys, values)
        return self.feed_forward(x.add_(attention.merge(out)))


class TokenizerEngine:
    """Encoder and decoder on packed weights."""

    def __init__(self, tokenizer: KronosTokenizer, dtype: torch.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.wide = wide_dtype(dtype)
        self.encoder = [BlockWeights(block, dtype) for block in _blocks(tokenizer.encoder)]
        self.decoder = [BlockWeights(block, dtype) for block in _blocks(tokenizer.decoder)]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised bars (W, L, 6) to ids; the two thin outer products stay wide, their cost is nothing."""
        z = _wide_linear(x.to(self.wide), self.tokenizer.embed)
        for block in self.encoder:
            z, _ = block.prefix(z)
        return self.tokenizer._split(_wide_linear(z, self.tokenizer.quant_embed))

    def decode(self, prefix_ids: tuple[Tensor, Tensor], path_ids: tuple[Tensor, Tensor]) -> Tensor:
        """Ids of the shared bars (W, L) and of the paths (W, N, H) to the paths' bars (W, N, H, 6)."""
        return self.decode_embedded(self.embed_code(*prefix_ids), self.embed_code(*path_ids))

    def decode_embedded(self, shared: Tensor, own: Tensor) -> Tensor:
        """Embedded tokens, shared (W, L, d) and of the paths (W, N, H, d), to the paths' bars (W, N, H, 6)."""
        n_paths, horizon = own.shape[1:3]
        for i, block in enumerate(self.decoder):
            after, cache = block.prefix(shared, keys_only=i == len(self.decoder) - 1)
            own = block.suffix(own, cache, SuffixCache.empty(cache, n_paths, horizon), 0)
            shared = after
        return _wide_linear(own, self.tokenizer.head)

    def embed_code(self, s1: Tensor, s2: Tensor, *, coarse: bool = False) -> Tensor:
        """Ids (...) to the decoder's input (..., d); ``coarse``: of s1 alone."""
        code = self.tokenizer.code(s1, s2).to(self.wide)
        if coarse:
            return _wide_linear(code[..., : self.tokenizer.config.s1_bits], self.tokenizer.post_quant_embed_pre)
        return _wide_linear(code, self.tokenizer.post_quant_embed)


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
        self.blocks = [BlockWeights(block, dtype) for block in _blocks(model.transformer)]
        self.norm = model.norm.weight.to(self.wide)
        self.dependency = AttentionWeights(model.dep_layer.cross_attn, dtype)
        self.rotate_dependency = model.dep_layer.rotary == "rotated"
        embedding, head = model.embedding, model.head
        # one table a half, with its part of the fusion applied: a lookup replaces a product
        first, second = embedding.fusion_proj.weight.to(self.wide).chunk(2, dim=1)
        bias = embedding.fusion_proj.bias.to(self.wide)
        self.s1_table = F.linear(embedding.emb_s1.weight.to(self.wide) * embedding.scale, first)
        self.s2_table = F.linear(embedding.emb_s2.weight.to(self.wide) * embedding.scale, second, bias)
        # the dependency layer's query depends on the id alone
        (self.query_table,) = self.dependency.project(embedding.emb_s1.weight.unsqueeze(0), last=1)
        self.query_table = self.query_table[0].transpose(0, 1).flatten(1).to(self.wide)
        self.s1_head = (head.proj_s1.weight.to(dtype), head.proj_s1.bias.to(dtype))
        s2_weight = head.proj_s2.weight * model.dep_layer.norm.weight
        self.s2_head = (s2_weight.to(dtype), head.proj_s2.bias.to(dtype))

    def embed_stamps(self, stamps: Tensor) -> Tensor:
        """Stamps (..., 5) to their part of the residual stream."""
        return self.model.time_emb(stamps).to(self.wide)

    def embed(self, s1: Tensor, s2: Tensor, times: Tensor) -> Tensor:
        """Ids and embedded stamps (broadcasting over paths) to the residual stream."""
        return (F.embedding(s1, self.s1_table) + F.embedding(s2, self.s2_table)).add_(times)

    def start(self, s1: Tensor, s2: Tensor, times: Tensor, n_paths: int, horizon: int) -> tuple[Tensor, ModelState]:
        """Run the shared bars (W, L) once; returns the last hidden state (W, d) and the caches."""
        x = self.embed(s1, s2, times)
        prefix = []
        for block in self.blocks:
            x, cache = block.prefix(x)
            prefix.append(cache)
        hidden = self._final_norm(x)
        keys, values = self._dependency_keys(hidden, 0)
        dependency = PrefixCache(keys.to(values.dtype).contiguous(), values.contiguous())
        suffix = [SuffixCache.empty(cache, n_paths, horizon) for cache in prefix]
        state = ModelState(prefix, suffix, dependency, SuffixCache.empty(dependency, n_paths, horizon))
        return hidden[:, -1], state

    def advance(self, s1: Tensor, s2: Tensor, times: Tensor, state: ModelState) -> Tensor:
        """Run T new bars of every path, ids (W, N, T), times (W, 1, T, d); returns the last hidden (W, N, d)."""
        x = self.embed(s1, s2, times)
        for block, prefix, suffix in zip(self.blocks, state.prefix, state.suffix, strict=True):
            x = block.suffix(x, prefix, suffix, state.filled)
        hidden = self._final_norm(x)
        keys, values = self._dependency_keys(hidden, state.dependency_prefix.length + state.filled)
        state.dependency_suffix.append(keys, values, state.filled)
        state.filled += s1.shape[2]
        return hidden[:, :, -1]

    def s1_logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, *self.s1_head)

    def s2_logits(self, hidden: Tensor, s1: Tensor, state: ModelState) -> Tensor:
        """Logits of s2 given ``s1`` (W, N); ``hidden`` is (W, N, d) or (W, 1, d) before the paths part."""
        dependency = self.dependency
        q = F.embedding(s1, self.query_table).unflatten(-1, (dependency.n_heads, dependency.head_dim))
        q = q.movedim(-2, 1).unsqueeze(3)
        if self.rotate_dependency:
            q = self._rotate(q, state.dependency_prefix.length + state.filled - 1)
        suffix, filled = state.dependency_suffix, state.filled
        out = attend(q, state.dependency_prefix, suffix.keys[..., :filled, :], suffix.values[..., :filled, :])
        return linear(rms_scale(hidden + dependency.merge(out.squeeze(3))), *self.s2_head)

    def _final_norm(self, x: Tensor) -> Tensor:
        return rms_scale(x).mul_(self.norm)

    def _dependency_keys(self, hidden: Tensor, start: int) -> tuple[Tensor, Tensor]:
        k, v = self.dependency.project(hidden, first=1)
        return (self._rotate(k, start) if self.rotate_dependency else k), v

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        cos, sin = rotary_table(start + x.shape[-2], self.dependency.head_dim, x.device, x.dtype == torch.float64)
        return rotate_halves(x, cos[start:], sin[start:])


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the residual stream and of norms."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _wide_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _blocks(modules: nn.Module) -> list[TransformerBlock]:
    return [block for block in modules.children() if isinstance(block, TransformerBlock)]
