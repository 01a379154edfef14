"""The alpha head: a small network from a window's hidden states to a score whose order within a date is what counts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from kronos_qlib.kronos.threads import one_thread_kernels
from kronos_qlib.training.alpha_data import LabelScale
from kronos_qlib.training.settings import Settings

SCORE_ROWS = 256


class HeadConfig(Settings):
    """Shape of an alpha head.

    Parameters
    ----------
    n_features : int
        Columns of the features.
    hidden : int
        Width of the hidden layer; 0: the head is linear.
    dropout : float
        Of the features, and of the hidden layer.
    n_heads : int
        Heads that differ in initialisation and dropout; the score is the mean of their standardised outputs.
    norm : str
        ``layer``: each row by its own mean and spread (a layer norm); ``standard``: each column by its mean and spread
        over the training rows.
    """

    n_features: int = Field(ge=1)
    hidden: int = Field(0, ge=0)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    n_heads: int = Field(1, ge=1)
    norm: Literal["layer", "standard"] = "standard"


class HeadTraining(Settings):
    """How a head is trained; the keys of the ``alpha_head:`` block of a workflow.

    Parameters
    ----------
    loss : str
        ``ic``, ``listnet`` or ``listmle``, see :mod:`kronos_qlib.training.alpha_losses`.
    temperature : float
        Of ListNet's target.
    label_scale : str
        ``rank`` or ``zscore``, within each date.
    label_reach : int, optional
        Bars that the label looks ahead; the last ones of train and valid are purged by it. None: read from the
        dataset's label expression.
    hidden, dropout, n_heads, norm : see :class:`HeadConfig`.
    rate, weight_decay : float
        Of AdamW, for the head.
    epochs, patience : int
        Passes over the training dates at most, and passes without a better valid Rank IC that end the training.
    dates_per_batch : int
        Whole dates in a batch.
    min_names : int
        Dates with fewer rows are left out.
    every : int
        Train on every so many sessions (valid stays whole): neighbouring days say much the same, and hidden states
        are what costs.
    unfreeze : int
        Last layers of the trunk that are trained too; 0: hidden states are computed once and kept.
    trunk_rate : float
        Their learning rate.
    pooled_bars : int
        Bars whose hidden states are averaged, beside the last one.
    dtype : str
        Of the trunk's products, ``float32`` or ``bfloat16``; None: the model's.
    seed : int
    cache : str, optional
        Folder where hidden states are kept between runs.
    out : str, optional
        Folder where the head is written; None: the recorder's artifacts.
    """

    loss: Literal["ic", "listnet", "listmle"] = "ic"
    temperature: float = Field(1.0, gt=0.0)
    label_scale: LabelScale = "rank"
    label_reach: int | None = Field(None, ge=1)
    hidden: int = Field(0, ge=0)
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    n_heads: int = Field(1, ge=1)
    norm: Literal["layer", "standard"] = "standard"
    rate: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    epochs: int = Field(30, ge=1)
    patience: int = Field(5, ge=1)
    dates_per_batch: int = Field(16, ge=1)
    min_names: int = Field(5, ge=2)
    every: int = Field(1, ge=1)
    unfreeze: int = Field(0, ge=0)
    trunk_rate: float = Field(1e-5, gt=0.0)
    pooled_bars: int = Field(10, ge=1)
    dtype: Literal["float32", "bfloat16"] | None = None
    seed: int = Field(0, ge=0, lt=2**63)
    cache: str | None = None
    out: str | None = None

    @field_validator("cache", "out", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        # an empty text is what a workflow's unset environment variable leaves
        return value or None

    def head(self, n_features: int) -> HeadConfig:
        """Shape of the head for features of some width."""
        shape: dict[str, Any] = {name: getattr(self, name) for name in ("hidden", "dropout", "n_heads", "norm")}
        return HeadConfig(n_features=n_features, **shape)


class HeadMember(nn.Module):
    """One head: dropout, then a linear map, or a layer of ``hidden`` units between."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width = config.hidden or config.n_features
        self.norm = nn.LayerNorm(config.n_features) if config.norm == "layer" else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.inner = nn.Linear(config.n_features, width) if config.hidden else None
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        x = self.drop(self.norm(features))
        if self.inner is not None:
            x = self.drop(nn.functional.silu(self.inner(x)))
        return self.score(x)[..., 0]


class AlphaHead(nn.Module):
    """Heads side by side, with the constants that standardise what goes in and what comes out."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(HeadMember(config) for _ in range(config.n_heads))
        # parameters, so that a strict load asks for them; no optimiser moves them
        self.feature_center = _constant(torch.zeros(config.n_features))
        self.feature_spread = _constant(torch.ones(config.n_features))
        self.score_center = _constant(torch.zeros(config.n_heads))
        self.score_spread = _constant(torch.ones(config.n_heads))

    def forward(self, features: Tensor) -> Tensor:
        """Raw outputs (n_heads, ...) for features (..., n_features)."""
        if self.config.norm == "standard":
            features = (features - self.feature_center) / self.feature_spread
        return torch.stack([member(features) for member in self.members])

    def combine(self, outputs: Tensor) -> Tensor:
        """Mean over the heads of their standardised outputs: (n_heads, N) to (N,)."""
        return ((outputs - self.score_center[:, None]) / self.score_spread[:, None]).mean(dim=0)

    @torch.no_grad()
    def fit_features(self, features: npt.NDArray[np.float32]) -> None:
        """Take each column's mean and spread over (some) training rows."""
        values = torch.from_numpy(np.asarray(features, dtype=np.float64))
        self.feature_center.copy_(values.mean(dim=0))
        self.feature_spread.copy_(values.std(dim=0, correction=0).clamp_min(1e-6))

    @torch.no_grad()
    def fit_outputs(self, outputs: Tensor) -> None:
        """Take each head's mean and spread over training rows, (n_heads, N): an IC loss leaves both free."""
        self.score_center.copy_(outputs.double().mean(dim=1))
        self.score_spread.copy_(outputs.double().std(dim=1, correction=0).clamp_min(1e-12))

    @torch.inference_mode()
    def score(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Score rows of features (n, n_features): float64 (n,), NaN where features are; bit-identical in any batch."""
        device = self.feature_center.device
        out = np.full(len(features), np.nan)
        known = np.flatnonzero(np.isfinite(np.asarray(features)).all(axis=1)) if len(features) else np.zeros(0, int)
        with one_thread_kernels(device):
            for start in range(0, len(known), SCORE_ROWS):
                chosen = known[start : start + SCORE_ROWS]
                # always the same number of rows, so that kernel shapes are fixed
                padded = np.zeros((SCORE_ROWS, features.shape[1]), dtype=np.float32)
                padded[: len(chosen)] = features[chosen]
                scores = self.combine(self(torch.from_numpy(padded).to(device)))
                out[chosen] = scores[: len(chosen)].double().cpu().numpy()
        return out


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
