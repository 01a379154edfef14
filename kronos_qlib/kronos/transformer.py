"""The model: tokens and time stamps to the next token's two halves (paper section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .layers import Attention, RMSNorm, TransformerBlock

DEPENDENCY_HEADS = 4
STAMP_SIZES = (("minute", 60), ("hour", 24), ("weekday", 7), ("day", 32), ("month", 13))


class HierarchicalEmbedding(nn.Module):
    """Embeds both halves of a token and fuses them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model)
        self.emb_s1 = nn.Embedding(2**config.s1_bits, config.d_model)
        self.emb_s2 = nn.Embedding(2**config.s2_bits, config.d_model)
        self.fusion_proj = nn.Linear(config.d_model * 2, config.d_model)

    def forward(self, s1: Tensor, s2: Tensor) -> Tensor:
        pair = torch.cat((self.emb_s1(s1), self.emb_s2(s2)), dim=-1) * self.scale
        return self.fusion_proj(pair)


class FixedEmbedding(nn.Module):
    """Sinusoids of an index, for checkpoints with ``learn_te`` off."""

    def __init__(self, size: int, d_model: int) -> None:
        super().__init__()
        position = torch.arange(size).float().unsqueeze(1)
        rate = torch.exp(torch.arange(0, d_model, 2).float() * -(math.log(10000.0) / d_model))
        table = torch.zeros(size, d_model)
        table[:, 0::2] = torch.sin(position * rate)
        table[:, 1::2] = torch.cos(position * rate)
        self.emb = nn.Embedding(size, d_model)
        self.emb.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, index: Tensor) -> Tensor:
        return self.emb(index)


class TemporalEmbedding(nn.Module):
    """Sum of five embeddings of a bar's stamp."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kind = nn.Embedding if config.learn_te else FixedEmbedding
        for name, size in STAMP_SIZES:
            self.add_module(f"{name}_embed", kind(size, config.d_model))

    def forward(self, stamp: Tensor) -> Tensor:
        """Stamps (..., 5): minute, hour, weekday, day, month."""
        parts = [self.get_submodule(f"{name}_embed")(stamp[..., i]) for i, (name, _) in enumerate(STAMP_SIZES)]
        minute, hour, weekday, day, month = parts
        return hour + weekday + day + month + minute


class DependencyLayer(nn.Module):
    """Conditions s2 on s1: cross-attention from the s1 token's raw embedding to the hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cross_attn = Attention(config.d_model, DEPENDENCY_HEADS, config.attn_dropout_p, config.resid_dropout_p)
        self.norm = RMSNorm(config.d_model)
        self.rotary = config.dependency_rotary

    def forward(self, hidden: Tensor, s1_embedding: Tensor) -> Tensor:
        """Every position at once, causal in training and in validation alike (trap 3)."""
        rotary = self.rotary != "unrotated"
        return self.norm(hidden + self.cross_attn(s1_embedding, hidden, causal=True, rotary=rotary))

    def step(self, hidden: Tensor, s1_embedding: Tensor) -> Tensor:
        """The last position alone, as in decoding: ``hidden`` (B, T, d), ``s1_embedding`` (B, 1, d) -> (B, d).

        The published decoding leaves query and keys unrotated (trap 2).
        """
        query = s1_embedding
        if self.rotary == "rotated":
            # a query of full length, so that it is rotated by its own position
            query = s1_embedding.expand_as(hidden)
            attended = self.cross_attn(query, hidden, causal=True)[:, -1]
        else:
            attended = self.cross_attn(query, hidden, causal=False, rotary=False)[:, 0]
        return self.norm(hidden[:, -1] + attended)


class DualHead(nn.Module):
    """Logits of the two halves."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.proj_s1 = nn.Linear(config.d_model, 2**config.s1_bits)
        self.proj_s2 = nn.Linear(config.d_model, 2**config.s2_bits)


class Kronos(nn.Module):
    """Autoregressive transformer over hierarchical tokens.

    Parameters
    ----------
    config : ModelConfig
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_drop = nn.Dropout(config.token_dropout_p)
        self.embedding = HierarchicalEmbedding(config)
        self.time_emb = TemporalEmbedding(config)
        self.transformer = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model)
        self.dep_layer = DependencyLayer(config)
        self.head = DualHead(config)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding) and module.weight.requires_grad:
                nn.init.normal_(module.weight, std=self.config.d_model**-0.5)

    def hidden(self, s1: Tensor, s2: Tensor, stamp: Tensor) -> Tensor:
        """Hidden states after the last norm, (B, T, d_model), for ids (B, T) and stamps (B, T, 5)."""
        x = self.token_drop(self.embedding(s1, s2) + self.time_emb(stamp))
        for block in self.transformer:
            x = block(x)
        return self.norm(x)

    def forward(self, s1: Tensor, s2: Tensor, stamp: Tensor, s1_targets: Tensor) -> tuple[Tensor, Tensor]:
        """Next-token logits with teacher forcing.

        Parameters
        ----------
        s1, s2 : int64 tensors (B, T)
            Ids of bars 0 … T - 1.
        stamp : int64 tensor (B, T, 5)
            Their stamps.
        s1_targets : int64 tensor (B, T)
            The true s1 of bars 1 … T, on which s2 is conditioned (trap 18).

        Returns
        -------
        s1_logits, s2_logits : tensors (B, T, 2**bits)
            Position t predicts bar t + 1 from bars up to t; causal in training and evaluation mode.
        """
        hidden = self.hidden(s1, s2, stamp)
        conditioned = self.dep_layer(hidden, self.embedding.emb_s1(s1_targets))
        return self.head.proj_s1(hidden), self.head.proj_s2(conditioned)

    def s1_step(self, hidden: Tensor) -> Tensor:
        """Logits (B, 2**s1_bits) of the bar after the last one of ``hidden`` (B, T, d)."""
        return self.head.proj_s1(hidden[:, -1])

    def s2_step(self, hidden: Tensor, s1_next: Tensor) -> Tensor:
        """Logits (B, 2**s2_bits) of the next bar, whose s1 is ``s1_next`` (B,): the one-query decoding step."""
        embedding = self.embedding.emb_s1(s1_next).unsqueeze(1)
        return self.head.proj_s2(self.dep_layer.step(hidden, embedding))
