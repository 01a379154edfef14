"""The two stages of any training, from scratch or from given weights: first the tokenizer, then the predictor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kronos_qlib.kronos import Kronos, KronosTokenizer, fingerprint
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.objectives import PredictorObjective, TokenizerObjective
from kronos_qlib.training.recipe import PredictorTraining, Training
from kronos_qlib.training.recipe_windows import Windows
from kronos_qlib.training.trainer import TrainingHistory, train

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
    return train(
        tokenizer,
        objective,
        windows.stream(config),
        windows.validation(objective, config, processes),
        config,
        out / "state",
        name="tokenizer",
        identity={"corpus": windows.corpus.fingerprint, **(identity or {})},
        on_metrics=None if on_metrics is None else lambda entry: on_metrics("tokenizer", entry),
        distributed=processes,
    )


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
    objective = PredictorObjective(tokenizer, context_weight=config.context_weight, dtype=config.dtype)
    exact = PredictorObjective(tokenizer, context_weight=config.context_weight)
    frozen = {"tokenizer": fingerprint(tokenizer.cpu())}
    return train(
        model,
        objective,
        windows.stream(config),
        windows.validation(exact, config, processes),
        config,
        out / "state",
        name="predictor",
        identity={"corpus": windows.corpus.fingerprint, **frozen, **(identity or {})},
        on_metrics=None if on_metrics is None else lambda entry: on_metrics("predictor", entry),
        distributed=processes,
    )
