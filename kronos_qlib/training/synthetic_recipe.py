"""The numbers behind the quickstart's checkpoint: spans, shapes and how long both networks are trained."""

from __future__ import annotations

from dataclasses import dataclass

from kronos_qlib.kronos import ModelConfig, TokenizerConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes the checkpoint, beside the market.

    Attributes
    ----------
    lookback, horizon : int
        Context bars, and bars to predict after them, of a training window.
    forecast_horizon : int
        Steps of a forecast that the card recommends; nothing is trained on it.
    context_weight : float
        Weight of a context bar's prediction in the loss. The z-score of a context bar has seen the bars after it, so
        that loss teaches the shape of bars but also a false pull to the mean; forecasts are made after the context.
    valid_start, cutoff : str
        Train before ``valid_start``; choose the best step from there to ``cutoff``.
    """

    seed: int = 0
    lookback: int = 60
    horizon: int = 16
    forecast_horizon: int = 10
    context_weight: float = 0.2
    train_start: str = "2012-01-01"
    valid_start: str = "2018-01-01"
    cutoff: str = "2018-12-31"
    bits: int = 7
    tokenizer_width: int = 48
    width: int = 64
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1
    batch_size: int = 64
    tokenizer_steps: int = 1_200
    tokenizer_rate: float = 2e-3
    steps: int = 3_000
    rate: float = 2e-3
    weight_decay: float = 0.05
    valid_windows: int = 2_048
    valid_every: int = 250

    def tokenizer_config(self) -> TokenizerConfig:
        """One block on either side of the quantiser."""
        return TokenizerConfig(
            s1_bits=self.bits,
            s2_bits=self.bits,
            d_model=self.tokenizer_width,
            n_heads=self.heads,
            ff_dim=2 * self.tokenizer_width,
            ffn_dropout_p=0.0,
            attn_dropout_p=0.0,
            resid_dropout_p=0.0,
            d_in=6,
            n_enc_layers=2,
            n_dec_layers=2,
            group_size=self.bits,
        )

    def model_config(self) -> ModelConfig:
        """The consistent dependency layer: what is trained is what decodes."""
        return ModelConfig(
            s1_bits=self.bits,
            s2_bits=self.bits,
            d_model=self.width,
            n_layers=self.layers,
            n_heads=self.heads,
            ff_dim=2 * self.width,
            ffn_dropout_p=self.dropout,
            attn_dropout_p=0.0,
            resid_dropout_p=self.dropout,
            token_dropout_p=0.0,
            dependency_rotary="unrotated",
        )
