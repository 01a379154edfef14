"""Training an alpha head: batches of whole dates, chosen by the daily Rank IC of the valid span."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from kronos_qlib.evaluation.ic import ICSummary, daily_rank_ic, ic_summary
from kronos_qlib.kronos.threads import one_thread_kernels
from kronos_qlib.training.alpha_data import HeadData
from kronos_qlib.training.alpha_head import AlphaHead, HeadTraining
from kronos_qlib.training.alpha_losses import Loss, loss_function
from kronos_qlib.training.alpha_networks import FrozenNetwork, Positions, TunedNetwork
from kronos_qlib.training.optimiser import learning_parameters, read_moments, write_moments
from kronos_qlib.training.schedule import step_seed
from kronos_qlib.training.state import TrainingState, load_state, save_state

STANDARD_ROWS = 4096
SCORING_ROWS = 1024
CLIP_NORM = 1.0
logger = logging.getLogger(__name__)
HeadNetwork = FrozenNetwork | TunedNetwork


@dataclass(frozen=True)
class HeadFit:
    """What a training came to; the network holds the weights of the best epoch.

    Attributes
    ----------
    history : one entry an epoch: ``epoch``, ``train_loss``, ``valid_rank_ic``.
    best_epoch : counted from 1.
    valid : summary of the daily Rank ICs on the valid span, at the best epoch. It was chosen as the largest of
        ``len(history)``, so it flatters a little.
    """

    history: list[dict[str, float]]
    best_epoch: int
    valid: ICSummary


def new_head(training: HeadTraining, n_features: int) -> AlphaHead:
    """Return an untrained head; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        return AlphaHead(training.head(n_features))


def train_head(
    network: HeadNetwork, train: HeadData, valid: HeadData, training: HeadTraining, *, state: Path | None = None
) -> HeadFit:
    """Train in place.

    Parameters
    ----------
    network : FrozenNetwork or TunedNetwork, with a new head on the features' device.
    train, valid : rows of both spans, already purged; their positions are the network's.
    state : file to go on from after an interruption, written after every epoch and removed at the end; None: none.

    Raises
    ------
    ValueError : valid days on which no Rank IC is defined, or a state of another training.
    """
    loss = loss_function(training.loss, training.temperature)
    parameters = learning_parameters(network)
    optimiser = torch.optim.AdamW(network.groups(training))
    run = _Run(network, parameters, optimiser, _signature(train, valid, training, network))
    sample = train.position[np.linspace(0, len(train) - 1, min(STANDARD_ROWS, len(train))).astype(np.int64)]
    device = network.head.feature_center.device
    # a head alone is so small that one thread is enough, and its course then depends on no number of threads
    with one_thread_kernels(device) if isinstance(network, FrozenNetwork) else nullcontext():
        run.restore(state)
        while len(run.history) < training.epochs and len(run.history) - run.best_epoch < training.patience:
            epoch = len(run.history)
            train_loss = _epoch(network, optimiser, loss, train, training, epoch)
            rank_ic = ic_summary(valid_rank_ic(network, valid, sample, training.min_names)).mean
            run.note({"epoch": epoch + 1, "train_loss": train_loss, "valid_rank_ic": rank_ic})
            logger.info("epoch %d: train loss %.4f, valid Rank IC %.4f", epoch + 1, train_loss, rank_ic)
            if state is not None:
                run.save(state)
        run.take_best()
        daily = valid_rank_ic(network, valid, sample, training.min_names)
    if state is not None:
        state.unlink(missing_ok=True)
    return HeadFit(run.history, run.best_epoch, ic_summary(daily))


def valid_rank_ic(network: HeadNetwork, valid: HeadData, sample: Positions, min_names: int) -> pd.Series:
    """Daily Rank ICs of the network as it is; its outputs are standardised on a sample of training rows first."""
    network.eval()
    with torch.no_grad():
        network.head.fit_outputs(_outputs(network, sample))
        scores = network.head.combine(_outputs(network, valid.position)).double().cpu().numpy()
    daily = daily_rank_ic(pd.Series(scores, valid.label.index), valid.label, min_names=min_names)
    if not np.isfinite(daily.to_numpy()).any():
        raise ValueError(
            f"no valid day has a Rank IC: {valid.n_dates} days with {len(valid)} rows, labels or scores all equal"
        )
    return daily


def _epoch(
    network: HeadNetwork,
    optimiser: torch.optim.AdamW,
    loss: Loss,
    train: HeadData,
    training: HeadTraining,
    epoch: int,
) -> float:
    """One pass over the training dates in an order that seed and epoch fix; mean loss of its dates."""
    network.train()
    order = np.random.default_rng([training.seed, epoch]).permutation(train.n_dates)
    batches = np.array_split(order, -(-train.n_dates // training.dates_per_batch))
    total = 0.0
    for step, dates in enumerate(batches):
        with torch.random.fork_rng(devices=_devices(network)):
            torch.manual_seed(step_seed(training.seed, epoch * len(batches) + step))
            value = batch_loss(network, loss, train, dates)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], CLIP_NORM)
        optimiser.step()
        total += value.item() * len(dates)
    return total / train.n_dates


def batch_loss(network: HeadNetwork, loss: Loss, train: HeadData, dates: Positions) -> Tensor:
    """Loss of some whole dates, mean over the heads."""
    rows, mask = train.batch(dates)
    outputs = network(train.position[rows[mask]])
    inside = torch.from_numpy(mask).to(outputs.device)
    target = torch.from_numpy(train.target[rows]).to(outputs.device)
    losses = []
    for output in outputs:
        score = torch.zeros_like(target)
        score[inside] = output.to(target.dtype)
        losses.append(loss(score, target, inside))
    return torch.stack(losses).mean()


def _outputs(network: HeadNetwork, positions: Positions) -> Tensor:
    parts = [network(positions[start : start + SCORING_ROWS]) for start in range(0, len(positions), SCORING_ROWS)]
    return torch.cat(parts, dim=1)


def _devices(network: HeadNetwork) -> list[torch.device]:
    device = network.head.feature_center.device
    return [device] if device.type == "cuda" else []


class _Run:
    """History, best weights, and the way to a file and back."""

    def __init__(
        self,
        network: HeadNetwork,
        parameters: dict[str, nn.Parameter],
        optimiser: torch.optim.AdamW,
        signature: str,
    ) -> None:
        self.network, self.parameters, self.optimiser, self.signature = network, parameters, optimiser, signature
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self.best: dict[str, Tensor] = {}

    def note(self, entry: dict[str, float]) -> None:
        """Keep an epoch, and its weights where they are the best so far; the earlier one wins a tie."""
        self.history.append(entry)
        best = self.history[self.best_epoch - 1]["valid_rank_ic"] if self.best_epoch else -np.inf
        if entry["valid_rank_ic"] > best:
            self.best_epoch = len(self.history)
            self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def take_best(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self.best[name])

    def save(self, path: Path) -> None:
        record: dict[str, Any] = {
            "signature": self.signature, "history": self.history, "best_epoch": self.best_epoch, "steps": self._steps(),
        }  # fmt: skip
        state = TrainingState(record)
        state.put("weights", dict(self.parameters))
        state.put("best", self.best)
        for kind, moments in read_moments(self.optimiser, self.parameters).items():
            state.put(kind, moments)
        save_state(path, state)

    @torch.no_grad()
    def restore(self, path: Path | None) -> None:
        state = None if path is None else load_state(path)
        if state is None:
            return
        if state.record["signature"] != self.signature:
            raise ValueError(f"{path} belongs to another training (settings, rows or weights differ); remove it")
        self.history, self.best_epoch = state.record["history"], state.record["best_epoch"]
        self.best = {name: value.to(self.parameters[name].device) for name, value in state.group("best").items()}
        for name, value in state.group("weights").items():
            self.parameters[name].copy_(value)
        moments = {kind: state.group(kind) for kind in ("first_moment", "second_moment")}
        write_moments(self.optimiser, self.parameters, moments, state.record["steps"])

    def _steps(self) -> int:
        return int(next(iter(self.optimiser.state.values()))["step"])


def _signature(train: HeadData, valid: HeadData, training: HeadTraining, network: HeadNetwork) -> str:
    """Hash of what decides a training's course."""
    digest = hashlib.sha256(json.dumps(training.to_dict(), sort_keys=True).encode())
    for data in (train, valid):
        for array in (data.position, data.target, data.label.to_numpy()):
            digest.update(np.ascontiguousarray(array).tobytes())
    for name, parameter in sorted(network.named_parameters()):
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
