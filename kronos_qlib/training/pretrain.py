"""From bars to a checkpoint: train a tokenizer, then a predictor on its tokens, and write both with their card.

The same folder goes on where an earlier process stopped; a folder of another recipe or other bars is refused.
"""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import Any

import torch

from kronos_qlib.kronos import (
    Kronos,
    KronosTokenizer,
    fingerprint,
    load_card,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from kronos_qlib.training.card import CheckpointCard, card_day, make_card, token_statistics
from kronos_qlib.training.card_files import write_card
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.recipe import PretrainRecipe, check_bits
from kronos_qlib.training.recipe_windows import Windows, check_policy
from kronos_qlib.training.run_folder import DTYPES, claim_folder, sources, write_curves
from kronos_qlib.training.stages import OnMetrics, train_predictor, train_tokenizer
from kronos_qlib.training.trainer import TrainingHistory

logger = logging.getLogger(__name__)


def pretrain(
    recipe: PretrainRecipe,
    corpus: Corpus,
    out: Path,
    *,
    command: str = "kronos_qlib.training.pretrain",
    processes: Processes | None = None,
    on_metrics: OnMetrics | None = None,
) -> dict[str, Any]:
    """Train a checkpoint, or finish one that an earlier process began in the same folder.

    Parameters
    ----------
    recipe : PretrainRecipe
    corpus : Corpus
        Its segments cut by ``recipe.policy()``.
    out : Path
        Gets ``tokenizer/``, ``model/``, ``card.json``, ``curves.json``; ``run.json`` and ``state/`` serve resuming.
    command : str
        For the card.
    processes : Processes, optional
        Of a distributed run.
    on_metrics : callable, optional
        Gets ``"tokenizer"`` or ``"predictor"`` and each history entry, in the first process.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    ValueError : the folder holds another run (with the differences), a span without windows, a loss that is no number.
    """
    processes = processes or Processes()
    check_policy(recipe, corpus)
    learned_days(recipe)
    windows = Windows.of(recipe, corpus)
    claim_folder(out, run_identity(recipe, corpus.fingerprint), processes)
    tokenizer, histories = _tokenizer(recipe, windows, out, processes, on_metrics)
    model, histories["predictor"] = _predictor(recipe, windows, tokenizer, out, processes, on_metrics)
    if processes.first:
        save_model(model, out / "model", dtype=DTYPES[recipe.weights_dtype])
        write_curves(out, histories)
        card = describe(recipe, windows, out, histories, command)
        write_card(card, out)
    processes.barrier()
    return json.loads((out / "card.json").read_text(encoding="utf-8"))


def run_identity(recipe: PretrainRecipe, corpus_fingerprint: str) -> dict[str, Any]:
    """Return what makes a run this one: a folder that says anything else is another run's."""
    return {"recipe": recipe.to_dict(), "corpus": corpus_fingerprint}


def learned_days(recipe: PretrainRecipe) -> tuple[datetime.date, datetime.date]:
    """Return first and last date of the bars that the weights learn, those of a tokenizer that is given included.

    Raises
    ------
    ValueError : the recipe is isolated, and the given tokenizer has learned bars outside the train span, or its card
        does not say which.
    """
    train = recipe.train
    if recipe.tokenizer_from is None:
        return train.start, train.end
    card = load_card(recipe.tokenizer_from)
    start, cutoff = card_day(card, "train_start"), card_day(card, "cutoff")
    known = start is not None and cutoff is not None
    if recipe.isolated and (start is None or cutoff is None or start < train.start or cutoff > train.end):
        learned = f"bars from {start} to {cutoff}" if known else "bars that no card dates"
        raise ValueError(
            f"the recipe is isolated to {train.start} … {train.end}, but tokenizer_from {recipe.tokenizer_from} has "
            f"learned {learned}; train a tokenizer on the span (tokenizer and tokenizer_training)"
        )
    if not known:
        logger.warning(
            "no card says which bars tokenizer_from %s has learned: the card's dates will be those of the predictor",
            recipe.tokenizer_from,
        )
    return min(start or train.start, train.start), max(cutoff or train.end, train.end)


def _tokenizer(
    recipe: PretrainRecipe, windows: Windows, out: Path, processes: Processes, on_metrics: OnMetrics | None
) -> tuple[KronosTokenizer, dict[str, TrainingHistory]]:
    """Train the tokenizer or take a given one; returned as it loads from the folder, so as it will forecast."""
    histories = {}
    if recipe.tokenizer_from is not None:
        given = load_tokenizer(recipe.tokenizer_from)
        check_bits(given.config, recipe.model)
    else:
        assert recipe.tokenizer is not None
        assert recipe.tokenizer_training is not None
        torch.manual_seed(recipe.tokenizer_training.seed)
        given = KronosTokenizer(recipe.tokenizer)
        histories["tokenizer"] = train_tokenizer(
            given, recipe.tokenizer_training, windows, out, processes, on_metrics=on_metrics
        )
    if processes.first:
        save_tokenizer(given, out / "tokenizer", dtype=DTYPES[recipe.weights_dtype])
        write_curves(out, histories)
    processes.barrier()
    return load_tokenizer(out / "tokenizer"), histories


def _predictor(
    recipe: PretrainRecipe,
    windows: Windows,
    tokenizer: KronosTokenizer,
    out: Path,
    processes: Processes,
    on_metrics: OnMetrics | None,
) -> tuple[Kronos, TrainingHistory]:
    config = recipe.predictor_training
    torch.manual_seed(config.seed)
    model = Kronos(recipe.model_shape())
    parameters = sum(p.numel() for p in model.parameters())
    logger.info("predictor of %s parameters on tokenizer %s", f"{parameters:,}", fingerprint(tokenizer))
    return model, train_predictor(model, tokenizer, config, windows, out, processes, on_metrics=on_metrics)


def describe(
    recipe: PretrainRecipe,
    windows: Windows,
    out: Path,
    histories: dict[str, TrainingHistory],
    command: str,
    counted: int = 20_000,
) -> CheckpointCard:
    """Make the card of the networks in the folder; tokens are counted on ``counted`` training windows."""
    config = recipe.predictor_training
    tokenizer, model = load_tokenizer(out), load_model(out)
    steps = int(histories["predictor"].entries[-1]["step"])
    first, last = learned_days(recipe)
    return make_card(
        tokenizer,
        model,
        name=recipe.name,
        lookback=recipe.lookback,
        horizon=recipe.forecast_horizon,
        max_context=recipe.max_context,
        train_start=min(first, windows.first_day()),
        cutoff=last,
        valid_start=recipe.valid.start,
        valid_end=recipe.valid.end,
        universe=recipe.universe,
        bars_seen=steps * config.batch_size * (recipe.lookback + recipe.horizon - 1),
        sources=sources(windows.corpus),
        policy=recipe.policy(),
        tokens=token_statistics(tokenizer, windows.counted(counted), lookback=recipe.lookback),
        valid_figures={name: done.best() for name, done in histories.items()},
        command=command,
        recipe=recipe.to_dict(),
    )
