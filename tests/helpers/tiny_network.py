"""Very small networks with fixed weights, windows for them, and the way back from generated bars to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from golden_fill import parameter
from torch import Tensor

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, TokenizerConfig


@dataclass(frozen=True)
class Networks:
    """A model and its tokenizer, both in eval mode."""

    model: Kronos
    tokenizer: KronosTokenizer

    @property
    def n_s1(self) -> int:
        return 2**self.model.config.s1_bits

    @property
    def n_s2(self) -> int:
        return 2**self.model.config.s2_bits


def tokenizer_config(bits: int = 3, **changes: object) -> TokenizerConfig:
    settings = {
        "s1_bits": bits,
        "s2_bits": bits,
        "d_in": 6,
        "d_model": 16,
        "n_heads": 2,
        "ff_dim": 24,
        "n_enc_layers": 2,
        "n_dec_layers": 3,
        "group_size": 2 * bits,
    }
    return TokenizerConfig(**(settings | changes))


def model_config(bits: int = 3, **changes: object) -> ModelConfig:
    settings = {"s1_bits": bits, "s2_bits": bits, "n_layers": 2, "d_model": 16, "n_heads": 2, "ff_dim": 24}
    return ModelConfig(**(settings | changes))


def fill(module: torch.nn.Module, sharpness: float = 1.0) -> None:
    """Fixed weights by name.

    ``sharpness`` scales the output heads, so that distributions are far from flat; the dependency layer is made strong,
    so that s2 depends visibly on s1.
    """
    strong = {"dep_layer.cross_attn.q_proj.weight": 12.0, "dep_layer.cross_attn.out_proj.weight": 6.0}
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            values = torch.from_numpy(parameter(name, tuple(tensor.shape)))
            tensor.copy_(values * (sharpness if name.startswith("head.proj") else strong.get(name, 1.0)))
    module.eval()
    module.requires_grad_(False)


@cache
def tiny_networks(
    bits: int = 3, dtype: torch.dtype = torch.float32, dependency_rotary: str = "published", sharpness: float = 2.0
) -> Networks:
    """The smallest pair whose layers are all there: two blocks a side, 2**bits tokens a half."""
    tokenizer = KronosTokenizer(tokenizer_config(bits))
    model = Kronos(model_config(bits, dependency_rotary=dependency_rotary))
    fill(tokenizer)
    fill(model, sharpness)
    return Networks(model.to(dtype), tokenizer.to(dtype))


def windows(n: int, length: int, horizon: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random walks, normalised (n, length, 6) float32, with stamps of the context and of the horizon."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(size=(n, length, 6)).cumsum(axis=1)
    x = (walks - walks.mean(axis=1, keepdims=True)) / (walks.std(axis=1, keepdims=True) + 1e-5)
    stamps = rng.integers(0, [60, 24, 7, 32, 13], size=(n, length + horizon, 5))
    return np.clip(x, -5, 5).astype(np.float32), stamps[:, :length], stamps[:, length:]


def all_pairs(networks: Networks) -> tuple[Tensor, Tensor]:
    """Every joint token as (s1, s2), s2 running fastest."""
    n_s1, n_s2 = networks.n_s1, networks.n_s2
    return torch.arange(n_s1).repeat_interleave(n_s2), torch.arange(n_s2).repeat(n_s1)


@torch.inference_mode()
def tokens_of(networks: Networks, x: np.ndarray, paths: Tensor, max_context: int) -> Tensor:
    """Joint tokens (B, N, H), s1 * n_s2 + s2, that decode to ``paths`` (B, N, H, 6) after the context ``x``.

    Tries every token at every step; fails where none decodes to the bar or two do.
    """
    tokenizer = networks.tokenizer
    n_windows, n_paths, horizon, _ = paths.shape
    context = [ids.repeat_interleave(n_paths, 0) for ids in tokenizer.encode(torch.from_numpy(x).to(paths.dtype))]
    first = max(0, x.shape[1] + horizon - max_context)
    s1, s2 = (ids[:, first:] for ids in context)
    pairs = all_pairs(networks)
    tolerance = 1e-8 if paths.dtype == torch.float64 else 2e-4
    found = []
    for step in range(horizon):
        rows = [ids.repeat_interleave(len(pairs[0]), 0) for ids in (s1, s2)]
        tried = [torch.cat((row, new.repeat(len(s1))[:, None]), 1) for row, new in zip(rows, pairs, strict=True)]
        bars = tokenizer.decode(*tried)[:, -1].unflatten(0, (len(s1), -1))
        distance = (bars - paths[:, :, step].flatten(0, 1).unsqueeze(1)).abs().amax(-1)
        two = distance.topk(2, dim=1, largest=False).values
        assert float(two[:, 0].max()) < tolerance, "a bar is no token's"
        assert float(two[:, 1].min()) > tolerance, "two tokens decode to one bar; choose other weights"
        token = distance.argmin(1)
        found.append(token)
        s1 = torch.cat((s1, pairs[0][token, None]), 1)
        s2 = torch.cat((s2, pairs[1][token, None]), 1)
    return torch.stack(found, dim=1).view(n_windows, n_paths, horizon)
