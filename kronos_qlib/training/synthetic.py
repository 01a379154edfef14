"""Train the quickstart's checkpoint on the synthetic market: one plain loop for each of the two networks.

``python -m kronos_qlib.training.synthetic --out FOLDER`` writes ``FOLDER/tokenizer``, ``FOLDER/model`` and
``FOLDER/card.json``. Nothing after the cutoff is read. The same command on the same machine gives the same weights.

The loop stays beside :mod:`kronos_qlib.training.trainer`, whose optimiser, rates, order of windows and seeds differ:
with it, the recipe on the bundled checkpoint's card would give other weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kronos_qlib.kronos import Kronos, KronosTokenizer, fingerprint, save_model, save_tokenizer
from kronos_qlib.market.synthetic import SyntheticConfig, make_market
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.synthetic_data import TrainingWindows, market_panel
from kronos_qlib.training.synthetic_recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spans:
    """Windows to learn from and windows to choose by."""

    train: TrainingWindows
    valid: TrainingWindows


def make_spans(recipe: Recipe, market_config: SyntheticConfig) -> Spans:
    """Simulate the market and cut its windows; the year from ``valid_start`` is never trained on."""
    policy = WindowPolicy.up_to(recipe.lookback)
    panel = market_panel(make_market(market_config))
    valid_start, cutoff = pd.Timestamp(recipe.valid_start), pd.Timestamp(recipe.cutoff)
    day = pd.Timedelta(days=1)
    return Spans(
        TrainingWindows.between(panel, policy, recipe.horizon, pd.Timestamp(recipe.train_start), valid_start - day),
        TrainingWindows.between(panel, policy, recipe.horizon, valid_start, cutoff),
    )


def batches(n_windows: int, batch_size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Positions of windows, for ever: shuffled passes, an incomplete last batch is left out."""
    size = min(batch_size, n_windows)
    while True:
        order = random.permutation(n_windows)
        for begin in range(0, n_windows - size + 1, size):
            yield order[begin : begin + size]


def train(
    network: nn.Module,
    loss: Callable[[np.ndarray], Tensor],
    validate: Callable[[], float],
    n_windows: int,
    steps: int,
    rate: float,
    recipe: Recipe,
    name: str,
) -> list[dict[str, float]]:
    """AdamW under a one-cycle schedule; at the end the network holds the weights of its best valid step.

    Parameters
    ----------
    loss : from positions of training windows to a scalar
    validate : the loss to choose by, called in evaluation mode

    Returns
    -------
    list of dict
        ``step`` and ``valid_loss`` of each validation.
    """
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps, pct_start=0.1)
    order = batches(n_windows, recipe.batch_size, np.random.default_rng(recipe.seed))
    history: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    started = time.monotonic()
    for step in range(1, steps + 1):
        network.train()
        value = loss(next(order))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % recipe.valid_every == 0 or step == steps:
            network.eval()
            with torch.inference_mode():
                valid_loss = validate()
            if not best or valid_loss < min(entry["valid_loss"] for entry in history):
                best = {key: tensor.clone() for key, tensor in network.state_dict().items()}
            history.append({"step": step, "valid_loss": valid_loss})
            elapsed = time.monotonic() - started
            logger.info("%s step %d: train %.4f, valid %.4f, %.0f s", name, step, value.item(), valid_loss, elapsed)
    network.load_state_dict(best)
    network.eval()
    return history


def train_tokenizer(recipe: Recipe, spans: Spans) -> tuple[KronosTokenizer, list[dict[str, float]]]:
    """Train the tokenizer to reconstruct windows from s1 alone and from both halves."""
    torch.manual_seed(recipe.seed)
    tokenizer = KronosTokenizer(recipe.tokenizer_config())
    chosen = valid_positions(recipe, spans)
    valid = torch.from_numpy(spans.valid.batch(chosen)[0])

    def loss(positions: np.ndarray) -> Tensor:
        x = torch.from_numpy(spans.train.batch(positions)[0])
        (coarse, full), quantiser_loss, _, _ = tokenizer(x)
        return (F.mse_loss(coarse, x) + F.mse_loss(full, x) + quantiser_loss) / 2

    def validate() -> float:
        (_, full), _, _, _ = tokenizer(valid)
        return F.mse_loss(full, valid).item()

    history = train(
        tokenizer, loss, validate, len(spans.train), recipe.tokenizer_steps, recipe.tokenizer_rate, recipe, "tokenizer"
    )
    return tokenizer, history


def valid_positions(recipe: Recipe, spans: Spans) -> np.ndarray:
    """The windows to choose by: the same random ones at every validation."""
    size = min(recipe.valid_windows, len(spans.valid))
    return np.sort(np.random.default_rng(recipe.seed).choice(len(spans.valid), size, replace=False))


@dataclass(frozen=True)
class Tokens:
    """Windows as ids: s1, s2 (W, T), stamps (W, T, 5); int16 until a batch is taken, int64 then."""

    s1: Tensor
    s2: Tensor
    stamps: Tensor

    def take(self, positions: np.ndarray) -> Tokens:
        """Some windows."""
        index = torch.from_numpy(positions)
        return Tokens(self.s1[index].long(), self.s2[index].long(), self.stamps[index].long())


@torch.inference_mode()
def encode(tokenizer: KronosTokenizer, windows: TrainingWindows, positions: np.ndarray) -> Tokens:
    """Tokenise windows, a thousand at a time."""
    parts = []
    for chunk in np.array_split(positions, max(1, len(positions) // 1_000)):
        x, stamps = windows.batch(chunk)
        columns = (*tokenizer.encode(torch.from_numpy(x)), torch.from_numpy(stamps))
        parts.append([column.short() for column in columns])
    return Tokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def next_token_loss(model: Kronos, tokens: Tokens, weights: Tensor) -> Tensor:
    """Mean cross-entropy of s1 and s2 given the true s1, by weight of the predicted bar; ``weights`` (T - 1,)."""
    s1, s2 = tokens.s1, tokens.s2
    s1_logits, s2_logits = model(s1[:, :-1], s2[:, :-1], tokens.stamps[:, :-1], s1[:, 1:])
    each = F.cross_entropy(s1_logits.transpose(1, 2), s1[:, 1:], reduction="none") + F.cross_entropy(
        s2_logits.transpose(1, 2), s2[:, 1:], reduction="none"
    )
    return (each.mean(dim=0) * weights).sum() / weights.sum()


def train_model(recipe: Recipe, spans: Spans, tokenizer: KronosTokenizer) -> tuple[Kronos, list[dict[str, float]]]:
    """Train the predictor on the tokenizer's ids; chosen by the loss of the bars after the context."""
    torch.manual_seed(recipe.seed + 1)
    model = Kronos(recipe.model_config())
    tokens = encode(tokenizer, spans.train, np.arange(len(spans.train)))
    chosen = valid_positions(recipe, spans)
    valid = encode(tokenizer, spans.valid, chosen).take(np.arange(len(chosen)))
    ahead = (torch.arange(1, recipe.lookback + recipe.horizon) >= recipe.lookback).float()
    weights = ahead + recipe.context_weight * (1 - ahead)

    def validate() -> float:
        return next_token_loss(model, valid, ahead).item()

    history = train(
        model,
        lambda positions: next_token_loss(model, tokens.take(positions), weights),
        validate,
        len(spans.train),
        recipe.steps,
        recipe.rate,
        recipe,
        "model",
    )
    return model, history


def make_checkpoint(out: Path, recipe: Recipe, market_config: SyntheticConfig, command: str = "") -> dict[str, Any]:
    """Train both networks, write the folder, and return its card."""
    spans = make_spans(recipe, market_config)
    logger.info("%d windows to train on, %d to choose by", len(spans.train), len(spans.valid))
    tokenizer, tokenizer_history = train_tokenizer(recipe, spans)
    model, history = train_model(recipe, spans, tokenizer)
    save_tokenizer(tokenizer, out / "tokenizer")
    save_model(model, out / "model")
    card = {
        "name": "synthetic",
        "lookback": recipe.lookback,
        "horizon": recipe.forecast_horizon,
        "max_context": 512,
        "train_start": recipe.train_start,
        "cutoff": recipe.cutoff,
        "valid_start": recipe.valid_start,
        "universe": f"all {market_config.n_instruments} stocks of the synthetic market",
        "window_policy": WindowPolicy().version,
        "market": dataclasses.asdict(market_config),
        "recipe": dataclasses.asdict(recipe),
        "command": command,
        "fingerprint": {"tokenizer": fingerprint(tokenizer), "model": fingerprint(model)},
        "valid_loss": {
            "tokenizer_reconstruction_mse": min(entry["valid_loss"] for entry in tokenizer_history),
            "next_token_cross_entropy": min(entry["valid_loss"] for entry in history),
        },
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def main(arguments: list[str] | None = None) -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(prog="python -m kronos_qlib.training.synthetic", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--market-seed", type=int, default=SyntheticConfig().seed, help="seed of the market")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    for field in dataclasses.fields(Recipe):
        flag, kind = "--" + field.name.replace("_", "-"), type(field.default)
        parser.add_argument(flag, type=kind, default=field.default, help=f"default: {field.default}")
    given = vars(parser.parse_args(arguments))
    out, seed, threads = given.pop("out"), given.pop("market_seed"), given.pop("threads")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    changed = [f"--{k.replace('_', '-')} {v}" for k, v in given.items() if v != getattr(Recipe(), k)]
    command = " ".join(["python -m kronos_qlib.training.synthetic --out FOLDER", *changed])
    make_checkpoint(out, Recipe(**given), SyntheticConfig(seed=seed), command)


if __name__ == "__main__":
    main()
