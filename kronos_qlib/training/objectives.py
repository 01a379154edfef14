"""What the networks are trained for: reconstruction of bars, and prediction of the next token.

An objective turns a batch into tensors (``prepare``, no gradient) and those into a loss (``loss``, compiled where
asked). What has these two methods and ``chosen_by`` can be trained by :func:`kronos_qlib.training.trainer.train`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos_qlib.kronos import KronosTokenizer
from kronos_qlib.training.stream import TrainingBatch

Metrics = dict[str, Tensor]


class Objective(Protocol):
    """A loss and the figures beside it.

    Attributes
    ----------
    chosen_by : str
        Name of the metric whose smallest validation value picks the weights.
    """

    chosen_by: str

    def prepare(self, batch: TrainingBatch, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors that the loss takes; called without gradients."""

    def loss(self, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Metrics]:
        """Return the scalar to minimise (a mean over the batch) and detached scalars to report."""


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context that computes in a dtype by name; float32 changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


class TokenizerObjective:
    """Reconstruct bars from s1 alone and from both halves; chosen by the full reconstruction."""

    chosen_by = "full_mse"

    def prepare(self, batch: TrainingBatch, device: torch.device) -> tuple[Tensor, ...]:
        """Return the bars (B, L + H, 6)."""
        return (batch.x.to(device),)

    def loss(self, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Metrics]:
        """Return half the sum of both mean squared errors and the quantiser's loss (commitment and entropy)."""
        (x,) = inputs
        (coarse, full), quantiser, _, _ = network(x)
        coarse_mse, full_mse = F.mse_loss(coarse.float(), x), F.mse_loss(full.float(), x)
        loss = (coarse_mse + full_mse + quantiser) / 2
        metrics = {"loss": loss, "coarse_mse": coarse_mse, "full_mse": full_mse, "quantiser": quantiser}
        return loss, {name: value.detach() for name, value in metrics.items()}


class PredictorObjective:
    """Predict both halves of the next token, the true s1 teaching s2; chosen by the bars after the context.

    Parameters
    ----------
    tokenizer : KronosTokenizer
        Frozen; it encodes every batch anew, since a bar's ids depend on the window it stands in.
    context_weight : float
        Weight of a context bar's loss, where that of a bar after the context is 1.
    dtype : str
        In which the tokenizer encodes training batches; forecasting encodes in float32.
    compile : bool
        Compile the encoding, a sixth of a step's time otherwise.
    """

    chosen_by = "forecast"

    def __init__(
        self, tokenizer: KronosTokenizer, *, context_weight: float, dtype: str = "float32", compile: bool = False
    ) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.context_weight = context_weight
        self.dtype = dtype
        self.encode: Callable[[Tensor], tuple[Tensor, Tensor]] = (
            torch.compile(tokenizer.encode) if compile else tokenizer.encode
        )

    @torch.no_grad()
    def prepare(self, batch: TrainingBatch, device: torch.device) -> tuple[Tensor, ...]:
        """Return s1, s2 (B, T), stamps (B, T, 5), int64, and which of bars 1 … T - 1 lie after the context."""
        length = batch.x.shape[1]
        if not 1 < batch.context < length:
            raise ValueError(
                f"found windows of {length} bars, {batch.context} of them context; expected two or more of context and "
                "at least one to predict"
            )
        self.tokenizer.to(device)
        with autocast(self.dtype, device):
            s1, s2 = self.encode(batch.x.to(device))
        ahead = (torch.arange(1, length, device=device) >= batch.context).float()
        return s1, s2, batch.stamps.to(device), ahead

    def loss(self, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Metrics]:
        """Return the weighted mean cross-entropy of s1 plus s2, nats a bar, and it by half and kind of bar."""
        s1, s2, stamps, ahead = inputs
        s1_logits, s2_logits = network(s1[:, :-1], s2[:, :-1], stamps[:, :-1], s1[:, 1:])
        # mean over windows first: (T - 1,) nats of each position
        by_position = {"s1": cross_entropy(s1_logits, s1[:, 1:]), "s2": cross_entropy(s2_logits, s2[:, 1:])}
        metrics: Metrics = {}
        for half, nats in by_position.items():
            metrics[f"{half}_context"] = weighted_mean(nats, 1 - ahead)
            metrics[f"{half}_forecast"] = weighted_mean(nats, ahead)
        metrics["forecast"] = metrics["s1_forecast"] + metrics["s2_forecast"]
        loss = weighted_mean(by_position["s1"] + by_position["s2"], ahead + self.context_weight * (1 - ahead))
        metrics["loss"] = loss
        return loss, {name: value.detach() for name, value in metrics.items()}


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``values`` by ``weights``, both (T,)."""
    return (values * weights).sum() / weights.sum()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each position, (T,), mean over windows, computed in float32.

    The classes stay on the last axis: a transpose before the softmax would read the memory across.
    """
    each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return each.view(targets.shape).mean(dim=0)
