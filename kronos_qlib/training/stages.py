"""The two stages of any training, from scratch or from given weights: first the tokenizer, then the predictor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kronos_qlib.kronos import Kronos, KronosTokenizer, fingerprint
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.objectives import Objective, PredictorObjective, TokenizerObjective
from kronos_qlib.training.recipe import PredictorTraining, Training
from kronos_qlib.training.recipe_windows import Windows
from kronos_qlib.training.trainer import TrainingHistory, train
from kronos_qlib.training.validation import Validation

OnMetrics = Callable[[str, dict[str, float]], None]


def train_tokenizer(
    tokenizer: KronosTokenizer,
    config: Training,
    windows: Windows,
    out: Path,
    processes: Processes,
    *,
    on_metrics: OnMetrics | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainingHistory:
    """Train what of a tokenizer requires a gradient; its state lies in ``out/state``."""
    objective = TokenizerObjective()
    validation = windows.validation(objective, config, processes)
    return _train("tokenizer", tokenizer, objective, validation, config, windows, out, processes, on_metrics, identity)


def train_predictor(
    model: Kronos,
    tokenizer: KronosTokenizer,
    config: PredictorTraining,
    windows: Windows,
    out: Path,
    processes: Processes,
    *,
    on_metrics: OnMetrics | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainingHistory:
    """Train what of a predictor requires a gradient, on the tokens of a frozen tokenizer."""
    # batches are encoded as they are learned, in the training's dtype; validation is encoded as forecasts are
    objective = PredictorObjective(
        tokenizer, context_weight=config.context_weight, dtype=config.dtype, compile=config.compile
    )
    exact = PredictorObjective(tokenizer, context_weight=config.context_weight)
    validation = windows.validation(exact, config, processes)
    fixed = {"tokenizer": fingerprint(tokenizer.cpu()), **(identity or {})}
    return _train("predictor", model, objective, validation, config, windows, out, processes, on_metrics, fixed)


def _train(
    name: str,
    network: nn.Module,
    objective: Objective,
    validation: Validation,
    config: Training,
    windows: Windows,
    out: Path,
    processes: Processes,
    on_metrics: OnMetrics | None,
    identity: Mapping[str, Any] | None,
) -> TrainingHistory:
    return train(
        network,
        objective,
        windows.stream(config),
        validation,
        config,
        out / "state",
        name=name,
        identity={"corpus": windows.corpus.fingerprint, **(identity or {})},
        on_metrics=None if on_metrics is None else lambda entry: on_metrics(name, entry),
        distributed=processes,
    )
