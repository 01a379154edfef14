"""Settings of a training run. Unknown keys and impossible values are ValueErrors that say what to write instead."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from kronos_qlib.kronos import ModelConfig, TokenizerConfig
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.augment import Augmentation
from kronos_qlib.training.settings import Settings
from kronos_qlib.training.stagnant import StretchFilter

# how often a state is saved, and who cuts the batches: a run may go on with others
WITHOUT_RESULT = ("save_every", "workers")


class Training(Settings):
    """How any network is optimised: AdamW, warm-up and cosine, clipping, early stopping.

    Attributes
    ----------
    steps, batch_size : int
        Optimiser steps; windows a step over all processes together.
    rate, final_fraction : float
        Peak learning rate, and what is left of it after the last step.
    warmup : int
        Steps to the peak.
    weight_decay : float
        On matrices; vectors (norms, biases) are never decayed.
    clip : float
        Largest norm of the gradient.
    ema : float or None
        Decay of an average of the weights; when given, the average is what is validated and kept.
    valid_every : int
        Steps between validations; the last step is always validated.
    valid_windows : int
        Most windows of a validation; the same ones every time.
    patience : int or None
        Validations without a better one before the run stops; None: never.
    save_every : int or None
        Steps between saved states beside those of the validations.
    dtype : str
        ``bfloat16`` computes under autocast (weights, sums and losses stay float32).
    compile : bool
        Compile the step with ``torch.compile``: a minute at the start, a faster step after it.
    seed : int
        Of the initial weights, the order of windows and dropout.
    workers : int
        Processes that cut batches; any number gives the same batches.
    """

    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    rate: float = Field(1e-3, gt=0.0)
    final_fraction: float = Field(0.0, ge=0.0, le=1.0)
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.05, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.98, ge=0.0, lt=1.0)
    clip: float = Field(1.0, gt=0.0)
    ema: float | None = Field(None, gt=0.0, lt=1.0)
    valid_every: int = Field(250, ge=1)
    valid_windows: int = Field(2_048, ge=1)
    patience: int | None = Field(None, ge=1)
    save_every: int | None = Field(None, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    seed: int = Field(0, ge=0, lt=2**63)
    workers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup={self.warmup} leaves no step of steps={self.steps}; take a shorter warm-up")
        return self

    def identity(self) -> dict[str, Any]:
        """Return what fixes the result: everything but how often a state is saved and who cuts the batches."""
        return {key: value for key, value in self.to_dict().items() if key not in WITHOUT_RESULT}


class TokenizerTraining(Training):
    """How a tokenizer is trained."""


class PredictorTraining(Training):
    """How a predictor is trained.

    Attributes
    ----------
    context_weight : float
        Weight of a context bar's prediction in the loss; a bar after the context weighs 1. The z-score of a context
        bar has seen the bars after it, so its loss teaches the shape of bars but also a false pull to the mean.
    dropout : float or None
        Replaces the feed-forward and residual dropout of the network; None keeps them.
    """

    context_weight: float = Field(0.2, ge=0.0, le=1.0)
    dropout: float | None = Field(None, ge=0.0, lt=1.0)


class Span(Settings):
    """Dates, both included; the bars to predict of a window lie inside it, its context may begin before."""

    start: datetime.date
    end: datetime.date

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"a span from {self.start} to {self.end} is empty; swap its ends")
        return self


class WindowRecipe(Settings):
    """What pretraining and fine-tuning ask of the bars, and what both write on the card.

    Attributes
    ----------
    universe : str
        For the card.
    lookback, horizon : int
        Context bars, and bars to predict after them, of a training window.
    forecast_horizon, max_context : int
        What the card recommends to who forecasts.
    train, valid : Span
        Learn from; choose the best step by. Train ends before valid begins.
    isolated : bool
        Keep the context of training windows from reaching back before the train span too, as cross-fitting needs:
        then no bar before ``train.start`` has touched the weights.
    valid_source : str or None
        Source of the corpus from which the validation windows come, and no training window; None: all sources serve
        both.
    max_gap, max_jump
        Of the window policy (see ``market.windows``).
    augmentation : Augmentation
        Of training windows; those of the validation are never changed.
    filters : StretchFilter
        Which illiquid and stagnant windows are left out.
    mixture : dict or None
        Share of each source in a batch, by name; None: every window counts alike.
    """

    universe: str = Field(min_length=1)
    lookback: int = Field(ge=2)
    horizon: int = Field(10, ge=1)
    forecast_horizon: int = Field(10, ge=1)
    max_context: int = Field(512, ge=2)
    train: Span
    valid: Span
    isolated: bool = False
    valid_source: str | None = None
    max_gap: int | None = 60
    max_jump: float | None = 0.30
    augmentation: Augmentation = Augmentation()
    filters: StretchFilter = StretchFilter()
    mixture: dict[str, float] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.valid.start <= self.train.end:
            raise ValueError(
                f"valid begins on {self.valid.start}, train ends on {self.train.end}; valid must begin after train"
            )
        return self

    def policy(self) -> WindowPolicy:
        """Return the rule by which the corpus is cut into segments."""
        return WindowPolicy.up_to(self.lookback, max_gap=self.max_gap, max_jump=self.max_jump)


class PretrainRecipe(WindowRecipe):
    """Everything that fixes a checkpoint beside the bars.

    Attributes
    ----------
    name : str
        For the card.
    tokenizer, tokenizer_training
        Shape and training of the tokenizer; or ``tokenizer_from``, a checkpoint whose tokenizer is taken as it is. What
        it has learned counts in the card's ``train_start`` and ``cutoff``, and must lie in the train span of an
        isolated recipe.
    model, predictor_training
        Shape and training of the predictor.
    weights_dtype : str
        Of the written weights.
    """

    name: str = Field(min_length=1)
    lookback: int = Field(90, ge=2)
    tokenizer: TokenizerConfig | None = None
    tokenizer_training: TokenizerTraining | None = None
    tokenizer_from: str | None = None
    model: ModelConfig
    predictor_training: PredictorTraining
    weights_dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if "/" in name or name.startswith("."):
            raise ValueError(f"name={name!r} must not look like a path")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        own = self.tokenizer is not None and self.tokenizer_training is not None
        if own == (self.tokenizer_from is not None):
            raise ValueError("give tokenizer and tokenizer_training, or tokenizer_from, and not both")
        if self.tokenizer is not None:
            check_bits(self.tokenizer, self.model)
        return self

    def model_shape(self) -> ModelConfig:
        """Return the predictor's shape with the dropout of its training."""
        dropout = self.predictor_training.dropout
        if dropout is None:
            return self.model
        return self.model.model_copy(update={"ffn_dropout_p": dropout, "resid_dropout_p": dropout})


def check_bits(tokenizer: TokenizerConfig, model: ModelConfig) -> None:
    """Raise a ValueError unless both networks speak of the same tokens."""
    ours, theirs = (model.s1_bits, model.s2_bits), (tokenizer.s1_bits, tokenizer.s2_bits)
    if ours != theirs:
        raise ValueError(f"the model has {ours[0]} + {ours[1]} bits, its tokenizer {theirs[0]} + {theirs[1]}")


def read_settings(path: Path, kind: str) -> dict[str, Any]:
    """Read the YAML of a ``kind`` of recipe as a mapping; a ValueError names the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected the settings of a {kind} recipe")
    return content


def load_recipe(path: Path) -> PretrainRecipe:
    """Read a recipe from a YAML file; every mistake in it is a ValueError that names the file."""
    content = read_settings(path, "pretraining")
    try:
        return PretrainRecipe(**content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differences(found: dict[str, Any], wanted: dict[str, Any], where: str = "") -> list[str]:
    """List the settings in which two runs differ, ``key: found -> wanted``; not those that change no result."""
    lines = []
    for key in sorted((found.keys() | wanted.keys()) - set(WITHOUT_RESULT)):
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{where}{key}.")
        elif old != new:
            lines.append(f"{where}{key}: {old!r} -> {new!r}")
    return lines
