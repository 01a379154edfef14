"""Let a checkpoint go on learning on other bars, and write the result as a checkpoint with a card of its own.

The same folder goes on where an earlier process stopped, as pretraining does.
"""

from __future__ import annotations

import copy
import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

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
from kronos_qlib.training import card as cards
from kronos_qlib.training.card_files import write_card
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.finetune_recipe import FinetuneRecipe
from kronos_qlib.training.learned_spans import gaps, learned
from kronos_qlib.training.objectives import Objective, PredictorObjective, TokenizerObjective
from kronos_qlib.training.recipe import Training, check_bits
from kronos_qlib.training.recipe_windows import Windows, check_policy
from kronos_qlib.training.run_folder import DTYPES, claim_folder, sources, write_curves
from kronos_qlib.training.stages import OnMetrics, train_predictor, train_tokenizer
from kronos_qlib.training.trainer import TrainingHistory
from kronos_qlib.training.tuning import learning, with_dropout

logger = logging.getLogger(__name__)
# windows whose tokens the card counts: 360,000 bars of 90-bar contexts, which a CPU encodes in seconds
COUNTED = 4_000
# the figure on valid that chooses the weights which are kept
CHOSEN_BY = {"tokenizer": TokenizerObjective.chosen_by, "predictor": PredictorObjective.chosen_by}
# the first date of a parent that names none: cross-fitting must take no earlier bar for unseen
BEFORE_ALL_BARS = datetime.date(1900, 1, 1)


@dataclass(frozen=True)
class Start:
    """The weights that fine-tuning begins with.

    Attributes
    ----------
    model, tokenizer : networks
        Never changed: copies of them learn.
    card : mapping
        What is known of them; its ``cutoff`` above all.
    """

    model: Kronos
    tokenizer: KronosTokenizer
    card: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, checkpoint: str | Path) -> Self:
        """Load a folder with ``model/`` and ``tokenizer/``, or ``bundled:NAME``."""
        return cls(load_model(checkpoint), load_tokenizer(checkpoint), load_card(checkpoint))

    @property
    def fingerprint(self) -> str:
        """``<model>-<tokenizer>``."""
        return f"{fingerprint(self.model)}-{fingerprint(self.tokenizer)}"

    def dates(self, recipe: FinetuneRecipe) -> tuple[datetime.date | None, datetime.date]:
        """Return first and last date that the weights have learned; a ValueError where the last is not known."""
        start, cutoff = (cards.card_day(self.card, key) for key in ("train_start", "cutoff"))
        known = [day for day in (cutoff, recipe.parent_cutoff) if day is not None]
        if not known:
            raise ValueError(
                "the checkpoint names no cutoff, so what it has seen is not known and no backtest of its child can be "
                "marked; set parent_cutoff to the last date of its training bars (2024-06-30 for the published Kronos)"
            )
        return start or recipe.parent_train_start, max(known)


def finetune(
    checkpoint: Start | str | Path,
    corpus: Corpus,
    recipe: FinetuneRecipe,
    out: Path,
    *,
    command: str = "kronos_qlib.training.finetune",
    processes: Processes | None = None,
    on_metrics: OnMetrics | None = None,
) -> dict[str, Any]:
    """Fine-tune a checkpoint, or finish what an earlier process began in the same folder.

    Parameters
    ----------
    checkpoint : Start, or a folder or ``bundled:NAME``
    corpus : Corpus
        Its segments cut by ``recipe.policy()``.
    recipe : FinetuneRecipe
    out : Path
        Gets ``tokenizer/``, ``model/``, ``card.json``, ``curves.json``; ``run.json`` and ``state/`` serve resuming.
    command, processes, on_metrics : as for :func:`kronos_qlib.training.pretrain.pretrain`

    Returns
    -------
    dict
        The card: the parent's fingerprint in ``parent``; ``cutoff`` the later one of the parent's and the end of
        ``recipe.train``, ``train_start`` the earlier one, ``held_out`` what neither learned between them (an isolated
        recipe keeps its contexts from reaching into it); ``valid_figures`` with the ``step`` that was kept, 0 for the
        given weights, and the figures ``before``, of the weights that the stage began with.

    Notes
    -----
    No bar after ``recipe.train.end`` is learned; bars of ``recipe.valid`` only choose the step that is kept. The given
    weights are a candidate as well: where no step is better on valid they are kept, and a warning says so.

    Raises
    ------
    ValueError : the folder holds another run, a span without windows, an unknown cutoff, nothing left to learn, LoRA
        without peft, a loss that is no number.
    """
    processes = processes or Processes()
    start = checkpoint if isinstance(checkpoint, Start) else Start.load(checkpoint)
    check_bits(start.tokenizer.config, start.model.config)
    check_policy(recipe, corpus)
    _, cutoff = start.dates(recipe)
    if recipe.valid.start <= cutoff:
        logger.warning(
            "valid begins on %s, but the given weights learned bars up to %s: its figures are flattered, and early "
            "stopping with them", recipe.valid.start, cutoff,
        )  # fmt: skip
    windows = Windows.of(recipe, corpus)
    claim_folder(out, run_identity(start, recipe, corpus.fingerprint), processes)
    run = _Run(start, windows, recipe, Path(out), processes, on_metrics)
    run.tokenizer()
    run.predictor()
    if processes.first:
        write_curves(run.out, run.histories)
        write_card(run.describe(command), run.out)
    processes.barrier()
    return load_card(run.out)


def run_identity(start: Start, recipe: FinetuneRecipe, corpus_fingerprint: str) -> dict[str, Any]:
    """Return what makes a run this one: a folder that says anything else is another run's."""
    return {"recipe": recipe.to_dict(), "corpus": corpus_fingerprint, "parent": start.fingerprint}


class _Run:
    """Both stages of one fine-tuning."""

    def __init__(
        self,
        start: Start,
        windows: Windows,
        recipe: FinetuneRecipe,
        out: Path,
        processes: Processes,
        on_metrics: OnMetrics | None,
    ) -> None:
        self.start, self.windows, self.recipe, self.out = start, windows, recipe, out
        self.processes, self.on_metrics = processes, on_metrics
        self.histories: dict[str, TrainingHistory] = {}
        self.before: dict[str, dict[str, float]] = {}

    def tokenizer(self) -> None:
        """Tune the tokenizer where the recipe says so; write it either way."""
        network, tuning = copy.deepcopy(self.start.tokenizer).cpu(), self.recipe.tokenizer
        if tuning is not None:
            config = tuning.training(len(self.windows.train))
            self._measure("tokenizer", network, TokenizerObjective(), config)
            with learning(network, tuning):
                self.histories["tokenizer"] = train_tokenizer(
                    network, config, self.windows, self.out, self.processes, on_metrics=self.on_metrics,
                    identity=self._identity("tokenizer"),
                )  # fmt: skip
            self._keep_better("tokenizer", network, self.start.tokenizer)
        if self.processes.first:
            save_tokenizer(network, self.out / "tokenizer", dtype=DTYPES[self.recipe.weights_dtype])
            write_curves(self.out, self.histories)
        self.processes.barrier()

    def predictor(self) -> None:
        """Tune the predictor on the tokens of the written tokenizer."""
        tuning, tokenizer = self.recipe.predictor_tuning, load_tokenizer(self.out)
        config = tuning.training(len(self.windows.train))
        network = with_dropout(copy.deepcopy(self.start.model).cpu(), tuning.dropout)
        exact = PredictorObjective(tokenizer, context_weight=config.context_weight)
        self._measure("predictor", network, exact, config)
        with learning(network, tuning):
            self.histories["predictor"] = train_predictor(
                network, tokenizer, config, self.windows, self.out, self.processes, on_metrics=self.on_metrics,
                identity=self._identity("predictor"),
            )  # fmt: skip
        self._keep_better("predictor", network, self.start.model)
        if self.processes.first:
            save_model(network, self.out / "model", dtype=DTYPES[self.recipe.weights_dtype])

    def describe(self, command: str) -> cards.CheckpointCard:
        """Make the card of what was written."""
        recipe, start, known = self.recipe, self.start, self.start.card
        first, cutoff = start.dates(recipe)
        config = recipe.predictor_tuning.training(len(self.windows.train))
        steps = int(self.histories["predictor"].entries[-1]["step"])
        tokenizer = load_tokenizer(self.out)
        older_valid = [cards.card_day(known, key) for key in ("valid_start", "valid_end")]
        begin = min(recipe.train.start, self.windows.first_day())
        older = learned(first or BEFORE_ALL_BARS, cutoff, cards.card_spans(known, "held_out"))
        return cards.make_card(
            tokenizer,
            load_model(self.out),
            name=recipe.name,
            lookback=recipe.lookback,
            horizon=recipe.forecast_horizon,
            max_context=recipe.max_context,
            train_start=min(first or BEFORE_ALL_BARS, begin),
            cutoff=max(cutoff, recipe.train.end),
            valid_start=min(day for day in (older_valid[0], recipe.valid.start) if day is not None),
            valid_end=max(day for day in (older_valid[1], recipe.valid.end) if day is not None),
            universe=recipe.universe,
            bars_seen=int(known.get("bars_seen") or 0)
            + steps * config.batch_size * (recipe.lookback + recipe.horizon - 1),
            sources=sources(self.windows.corpus),
            policy=recipe.policy(),
            tokens=cards.token_statistics(tokenizer, self.windows.counted(COUNTED), lookback=recipe.lookback),
            valid_figures={name: self._figures(name) for name in self.histories},
            command=command,
            recipe=recipe.to_dict(),
            parent=cards.Parent(
                name=known.get("name"),
                fingerprint=start.fingerprint,
                universe=known.get("universe"),
                train_start=first,
                cutoff=cutoff,
                parent=known.get("parent"),
            ),
            held_out=gaps([*older, (begin, recipe.train.end)]),
        )

    def _identity(self, network: str) -> dict[str, Any]:
        tuning = getattr(self.recipe, network).to_dict()
        kept = ("freeze_blocks", "freeze_embeddings", "lora", "dropout")
        return {"parent": self.start.fingerprint, **{key: tuning[key] for key in kept}}

    def _measure(self, name: str, network: Kronos | KronosTokenizer, objective: Objective, config: Training) -> None:
        """Note the figures on valid before the first step, on the windows and in the dtype of those that follow."""
        network.to(self.processes.device)
        found = self.windows.validation(objective, config, self.processes)(network)
        self.before[name] = {f"valid_{key}": value for key, value in found.items()}
        logger.info("%s before: %s %.4f on valid", name, objective.chosen_by, found[objective.chosen_by])

    def _better(self, name: str) -> bool:
        return self.histories[name].best_value < self.before[name][f"valid_{CHOSEN_BY[name]}"]

    def _keep_better(self, name: str, network: Kronos | KronosTokenizer, given: Kronos | KronosTokenizer) -> None:
        """Go back to the given weights where no step was better on valid, and say so."""
        if self._better(name):
            return
        before, after = self.before[name][f"valid_{CHOSEN_BY[name]}"], self.histories[name].best_value
        logger.warning(
            "fine-tuning made the %s no better: %s %.4f on valid before, %.4f at the best step; the given weights are "
            "kept. Lower the rate, freeze more, or tune on bars that they have not seen", name, CHOSEN_BY[name], before,
            after,
        )  # fmt: skip
        network.load_state_dict(given.state_dict())

    def _figures(self, name: str) -> dict[str, Any]:
        """Return the figures on valid of the weights that were kept, and those before."""
        kept = self.histories[name].best() if self._better(name) else {"step": 0, **self.before[name]}
        return {**kept, "before": self.before[name]}
