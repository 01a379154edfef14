"""From bars to a checkpoint: train a tokenizer, then a predictor on its tokens, and write both with their card.

The same folder goes on where an earlier process stopped; a folder of another recipe or other bars is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kronos_qlib.kronos import (
    Kronos,
    KronosTokenizer,
    fingerprint,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from kronos_qlib.kronos.checkpoint import write_whole
from kronos_qlib.training.augment import Augmentation
from kronos_qlib.training.card import CheckpointCard, make_card, token_statistics, write_card
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.objectives import Objective, PredictorObjective, TokenizerObjective
from kronos_qlib.training.recipe import PretrainRecipe, Training, check_bits, differences
from kronos_qlib.training.stream import WindowStream
from kronos_qlib.training.trainer import TrainingHistory, train
from kronos_qlib.training.validation import Validation, held_out_batches

logger = logging.getLogger(__name__)
RUN_FILE, CURVES_FILE = "run.json", "curves.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OnMetrics = Callable[[str, dict[str, float]], None]


@dataclass(frozen=True)
class Windows:
    """Ends of the windows to learn from and of those to choose by, and the recipe that cuts them."""

    recipe: PretrainRecipe
    corpus: Corpus
    train: Any
    valid: Any

    @classmethod
    def of(cls, recipe: PretrainRecipe, corpus: Corpus) -> Windows:
        """Choose both sets; ValueError where one of them is empty (trap 14)."""
        chosen = {}
        for name, span in (("train", recipe.train), ("valid", recipe.valid)):
            try:
                selection = corpus.select(
                    recipe.lookback,
                    recipe.horizon,
                    str(span.start),
                    str(span.end),
                    sources=source_names(recipe, corpus, name),
                    filters=recipe.filters,
                    earliest=str(span.start) if recipe.isolated and name == "train" else None,
                )
            except ValueError as error:
                raise ValueError(f"the {name} span holds nothing: {error}") from error
            chosen[name] = selection.ends
        return cls(recipe, corpus, **chosen)

    def stream(self, config: Training) -> WindowStream:
        """Training batches."""
        return WindowStream(
            self.corpus,
            self.train,
            lookback=self.recipe.lookback,
            horizon=self.recipe.horizon,
            batch_size=config.batch_size,
            seed=config.seed,
            augmentation=self.recipe.augmentation,
            weights=self.recipe.mixture,
        )

    def validation(self, objective: Objective, config: Training, processes: Processes) -> Validation:
        """Held-out windows, unchanged, the same ones for any batch size and seed of the training."""
        size = min(256, config.valid_windows, len(self.valid))
        stream = WindowStream(
            self.corpus,
            self.valid,
            lookback=self.recipe.lookback,
            horizon=self.recipe.horizon,
            batch_size=size,
            seed=0,
            augmentation=Augmentation.off(),
        )
        batches = held_out_batches(stream, min(config.valid_windows, len(self.valid)), size)
        return Validation(objective, batches, dtype=config.dtype, processes=processes)


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
    windows = Windows.of(recipe, corpus)
    claim_folder(out, recipe, corpus, processes)
    histories: dict[str, TrainingHistory] = {}
    tokenizer, histories = _tokenizer(windows, out, processes, on_metrics)
    model, histories["predictor"] = _predictor(windows, tokenizer, out, processes, on_metrics)
    if processes.first:
        save_model(model, out / "model", dtype=DTYPES[recipe.weights_dtype])
        write_curves(out, histories)
        card = describe(windows, out, histories, command)
        write_card(card, out)
    processes.barrier()
    return json.loads((out / "card.json").read_text(encoding="utf-8"))


def source_names(recipe: PretrainRecipe, corpus: Corpus, part: str) -> list[str] | None:
    """Return the sources of the ``train`` or the ``valid`` windows; None: all."""
    only = recipe.valid_source
    if only is None:
        return None
    if only not in corpus.source_names or len(corpus.source_names) == 1:
        raise ValueError(
            f"the recipe takes its validation from source {only!r} alone, the corpus has {list(corpus.source_names)}; "
            "give the validation's bars beside the others (--valid-bars FILE, whose source is named 'valid')"
        )
    return [only] if part == "valid" else [name for name in corpus.source_names if name != only]


def check_policy(recipe: PretrainRecipe, corpus: Corpus) -> None:
    """Raise a ValueError unless the corpus was cut into segments by the recipe's rule."""
    wanted = {"max_gap": recipe.max_gap, "max_jump": recipe.max_jump}
    for fact in corpus.meta["sources"]:
        found = {key: fact["description"][key] for key in wanted}
        if found != wanted:
            raise ValueError(f"source {fact['name']!r} was cut with {found}, the recipe says {wanted}; build it anew")


def claim_folder(out: Path, recipe: PretrainRecipe, corpus: Corpus, processes: Processes) -> None:
    """Write what this run is, or check that the folder belongs to it; ValueError with the differences where not."""
    wanted = {"recipe": recipe.to_dict(), "corpus": corpus.fingerprint}
    path = out / RUN_FILE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if changed := differences(found, wanted):
            raise ValueError(
                f"{out} holds another run; take another --out, or its own recipe to go on. "
                f"Differences (there -> here): {'; '.join(line.removeprefix('recipe.') for line in changed)}"
            )
    processes.barrier()
    if processes.first and not path.is_file():
        if out.is_dir() and any((out / name).exists() for name in ("tokenizer", "model", "card.json")):
            raise ValueError(f"{out} holds a checkpoint but no {RUN_FILE}; take another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: part.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8"))
    processes.barrier()


def _tokenizer(
    windows: Windows, out: Path, processes: Processes, on_metrics: OnMetrics | None
) -> tuple[KronosTokenizer, dict[str, TrainingHistory]]:
    """Train the tokenizer or take a given one; returned as it loads from the folder, so as it will forecast."""
    recipe = windows.recipe
    dtype = DTYPES[recipe.weights_dtype]
    if recipe.tokenizer_from is not None:
        given = load_tokenizer(recipe.tokenizer_from)
        check_bits(given.config, recipe.model)
        histories = {}
    else:
        assert recipe.tokenizer is not None
        assert recipe.tokenizer_training is not None
        config, objective = recipe.tokenizer_training, TokenizerObjective()
        torch.manual_seed(config.seed)
        given = KronosTokenizer(recipe.tokenizer)
        history = train(
            given,
            objective,
            windows.stream(config),
            windows.validation(objective, config, processes),
            config,
            out / "state",
            name="tokenizer",
            identity={"corpus": windows.corpus.fingerprint},
            on_metrics=None if on_metrics is None else lambda entry: on_metrics("tokenizer", entry),
            distributed=processes,
        )
        histories = {"tokenizer": history}
    if processes.first:
        save_tokenizer(given, out / "tokenizer", dtype=dtype)
        write_curves(out, histories)
    processes.barrier()
    return load_tokenizer(out / "tokenizer"), histories


def _predictor(
    windows: Windows, tokenizer: KronosTokenizer, out: Path, processes: Processes, on_metrics: OnMetrics | None
) -> tuple[Kronos, TrainingHistory]:
    config = windows.recipe.predictor_training
    torch.manual_seed(config.seed)
    model = Kronos(windows.recipe.model_shape())
    parameters = sum(p.numel() for p in model.parameters())
    logger.info("predictor of %s parameters on tokenizer %s", f"{parameters:,}", fingerprint(tokenizer))
    # batches are encoded as they are learned, in the training's dtype; validation is encoded as forecasts are
    objective = PredictorObjective(tokenizer, context_weight=config.context_weight, dtype=config.dtype)
    exact = PredictorObjective(tokenizer, context_weight=config.context_weight)
    history = train(
        model,
        objective,
        windows.stream(config),
        windows.validation(exact, config, processes),
        config,
        out / "state",
        name="predictor",
        identity={"corpus": windows.corpus.fingerprint, "tokenizer": fingerprint(tokenizer.cpu())},
        on_metrics=None if on_metrics is None else lambda entry: on_metrics("predictor", entry),
        distributed=processes,
    )
    return model, history


def write_curves(out: Path, histories: dict[str, TrainingHistory]) -> None:
    """Write the histories as JSON."""
    curves = {name: history.to_dict() for name, history in histories.items()}
    write_whole(out / CURVES_FILE, lambda part: part.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8"))


def describe(
    windows: Windows, out: Path, histories: dict[str, TrainingHistory], command: str, counted: int = 20_000
) -> CheckpointCard:
    """Make the card of the networks in the folder; tokens are counted on ``counted`` training windows."""
    recipe, config = windows.recipe, windows.recipe.predictor_training
    tokenizer, model = load_tokenizer(out), load_model(out)
    size = min(256, len(windows.train))
    stream = WindowStream(
        windows.corpus,
        windows.train,
        lookback=recipe.lookback,
        horizon=recipe.horizon,
        batch_size=size,
        seed=0,
        augmentation=Augmentation.off(),
    )
    batches = held_out_batches(stream, min(counted, len(windows.train)), size)
    history = histories["predictor"]
    steps = int(history.entries[-1]["step"])
    return make_card(
        tokenizer,
        model,
        name=recipe.name,
        lookback=recipe.lookback,
        horizon=recipe.forecast_horizon,
        max_context=recipe.max_context,
        train_start=recipe.train.start,
        cutoff=recipe.train.end,
        valid_start=recipe.valid.start,
        valid_end=recipe.valid.end,
        universe=recipe.universe,
        bars_seen=steps * config.batch_size * (recipe.lookback + recipe.horizon - 1),
        sources=sources(windows.corpus),
        policy=recipe.policy(),
        tokens=token_statistics(tokenizer, batches, lookback=recipe.lookback),
        valid_figures={name: done.best() for name, done in histories.items()},
        command=command,
        recipe=recipe.to_dict(),
    )


def sources(corpus: Corpus) -> list[dict[str, Any]]:
    """Return the corpus' sources as a card lists them."""
    return [
        {
            "name": fact["name"],
            "fingerprint": corpus.fingerprint,
            "bars": fact["rows"][1] - fact["rows"][0],
            "details": {"instruments": len(fact["instruments"]), "first": fact["first"], "last": fact["last"]},
        }
        for fact in corpus.meta["sources"]
    ]
