"""The tokenizer: bars to two token halves and back (paper section 3.1). It is causal end to end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import TokenizerConfig
from .layers import TransformerBlock
from .quantizer import BinarySphericalQuantizer, bits_to_ids, ids_to_bits


class KronosTokenizer(nn.Module):
    """Encoder, binary spherical quantiser and decoder.

    Parameters
    ----------
    config : TokenizerConfig
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        bits = config.s1_bits + config.s2_bits
        self.embed = nn.Linear(config.d_in, config.d_model)
        self.head = nn.Linear(config.d_model, config.d_in)
        self.encoder = nn.ModuleList([TransformerBlock(config) for _ in range(config.n_enc_layers - 1)])
        self.decoder = nn.ModuleList([TransformerBlock(config) for _ in range(config.n_dec_layers - 1)])
        self.quant_embed = nn.Linear(config.d_model, bits)
        self.post_quant_embed_pre = nn.Linear(config.s1_bits, config.d_model)
        self.post_quant_embed = nn.Linear(bits, config.d_model)
        quantizer = BinarySphericalQuantizer(
            bits, config.group_size, config.beta, config.gamma0, config.gamma, config.zeta
        )
        self.tokenizer = nn.ModuleDict({"bsq": quantizer})

    def _latent(self, x: Tensor) -> Tensor:
        z = self.embed(x)
        for block in self.encoder:
            z = block(z)
        return self.quant_embed(z)

    def _decode_latent(self, z: Tensor) -> Tensor:
        for block in self.decoder:
            z = block(z)
        return self.head(z)

    def _split(self, signs: Tensor) -> tuple[Tensor, Tensor]:
        s1_bits = self.config.s1_bits
        return bits_to_ids(signs[..., :s1_bits]), bits_to_ids(signs[..., s1_bits:])

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        """Reconstruct for training.

        Parameters
        ----------
        x : tensor (B, T, 6)
            Normalised bars.

        Returns
        -------
        (coarse, full), loss, s1, s2
            Reconstructions from s1 alone and from both halves, (B, T, 6) each; the quantiser's loss, a scalar;
            ids (B, T), int64.
        """
        quantised, loss = self.tokenizer["bsq"](self._latent(x))
        coarse = self._decode_latent(self.post_quant_embed_pre(quantised[..., : self.config.s1_bits]))
        full = self._decode_latent(self.post_quant_embed(quantised))
        s1, s2 = self._split(quantised)
        return (coarse, full), loss, s1, s2

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised bars (B, T, 6) to ids (s1, s2), int64 (B, T) each."""
        return self._split(self._latent(x))

    def code(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Quantised vector of ids (...): (..., s1_bits + s2_bits), in the dtype of the weights."""
        signs = torch.cat((ids_to_bits(s1, self.config.s1_bits), ids_to_bits(s2, self.config.s2_bits)), dim=-1)
        return (signs * signs.shape[-1] ** -0.5).type_as(self.head.weight)

    def decode(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Ids (B, T) to normalised bars (B, T, 6)."""
        return self._decode_latent(self.post_quant_embed(self.code(s1, s2)))
