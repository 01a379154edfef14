"""Settings of fine-tuning: which networks learn, which of their layers, for how long, on which bars."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from kronos_qlib.training.augment import Augmentation
from kronos_qlib.training.recipe import PredictorTraining, WindowRecipe
from kronos_qlib.training.settings import Settings
from kronos_qlib.training.stagnant import StretchFilter

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


class Lora(Settings):
    """Low-rank adapters (LoRA) of linear layers; only they learn, and they are merged into the weights when saved.

    Attributes
    ----------
    rank, alpha : int, float
        Of the update ``alpha / rank * B A``.
    dropout : float
        On the adapters' inputs.
    target_modules : tuple of str
        Linear layers that get one, by the end of their name.
    """

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0.0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] = Field(ATTENTION, min_length=1)


class NetworkTuning(Settings):
    """How one network goes on learning.

    Attributes
    ----------
    steps, epochs : int, float
        Optimiser steps; or passes over the training windows. One of them.
    rate, final_fraction, weight_decay, clip, ema, save_every, compile, workers : see :class:`Training`
        The rate is a tenth of pretraining's: what is known should stay.
    warmup, valid_every : int or None
        None: a twentieth and a tenth of the steps.
    patience : int or None
        Validations without a better one before it stops.
    freeze_blocks : int
        The first so many transformer blocks (of a tokenizer: of its encoder) keep their weights.
    freeze_embeddings : bool
        Token and time embeddings (of a tokenizer: the layer that reads bars) keep their weights.
    lora : Lora or None
        Adapters instead of the weights themselves; needs the extra ``finetune``.
    context_weight, dropout : see :class:`PredictorTraining`; of no account for a tokenizer.
    """

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0.0)
    batch_size: int = Field(64, ge=1)
    rate: float = Field(1e-4, gt=0.0)
    final_fraction: float = Field(0.1, ge=0.0, le=1.0)
    warmup: int | None = Field(None, ge=0)
    weight_decay: float = Field(0.05, ge=0.0)
    clip: float = Field(1.0, gt=0.0)
    ema: float | None = Field(None, gt=0.0, lt=1.0)
    valid_every: int | None = Field(None, ge=1)
    valid_windows: int = Field(2_048, ge=1)
    patience: int | None = Field(3, ge=1)
    save_every: int | None = Field(None, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    seed: int = Field(0, ge=0, lt=2**63)
    workers: int = Field(0, ge=0)
    freeze_blocks: int = Field(0, ge=0)
    freeze_embeddings: bool = False
    lora: Lora | None = None
    context_weight: float = Field(0.2, ge=0.0, le=1.0)
    dropout: float | None = Field(None, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"found steps={self.steps} and epochs={self.epochs}; give one of them")
        return self

    def training(self, windows: int) -> PredictorTraining:
        """Return the trainer's settings for so many training windows."""
        steps = self.steps or math.ceil((self.epochs or 0.0) * windows / self.batch_size)
        own = {key: value for key, value in self if key in PredictorTraining.model_fields}
        own |= {
            "steps": steps,
            "warmup": steps // 20 if self.warmup is None else self.warmup,
            "valid_every": max(1, steps // 10) if self.valid_every is None else self.valid_every,
        }
        return PredictorTraining(**own)


class Tuning(Settings):
    """What fine-tuning does, whatever the bars.

    Attributes
    ----------
    name : str
        Of the new checkpoint, for its card.
    horizon : int
        Bars to predict after the context of a training window.
    tokenizer : NetworkTuning or None
        None: the tokenizer stays as it is.
    predictor : NetworkTuning
        Always learns: one whose tokenizer has changed would read tokens that mean something else.
    augmentation : Augmentation
        Of training windows.
    filters : StretchFilter
        Which illiquid and stagnant windows are left out.
    weights_dtype : str
        Of the written weights. float32, for a small change is lost in bfloat16's eight bits.
    parent_cutoff, parent_train_start : date
        Last and first date of the bars that the given weights have learned; the last is needed where its card names no
        cutoff. Where nothing names the first, the new card says 1900-01-01: any earlier bar may have been seen.
    """

    name: str = Field("finetuned", min_length=1, pattern=r"^[^./][^/]*$")
    horizon: int = Field(10, ge=1)
    tokenizer: NetworkTuning | None = None
    predictor: NetworkTuning | None = None
    augmentation: Augmentation = Augmentation()
    filters: StretchFilter = StretchFilter()
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    parent_cutoff: datetime.date | None = None
    parent_train_start: datetime.date | None = None

    @model_validator(mode="after")
    def _predictor_follows(self) -> Self:
        if self.predictor is None:
            raise ValueError(
                "predictor is not set; give it steps or epochs, such as predictor: {epochs: 1}. A tokenizer is never "
                "tuned alone: its tokens change their meaning, and the predictor must learn the new ones"
            )
        return self

    @property
    def predictor_tuning(self) -> NetworkTuning:
        """The predictor's settings, which are always there."""
        assert self.predictor is not None
        return self.predictor


class FinetuneRecipe(WindowRecipe, Tuning):
    """Everything that fixes a fine-tuned checkpoint beside the bars and the weights it begins with.

    The lengths are those of :class:`WindowRecipe`; :meth:`for_card` takes the parent's.
    """

    @classmethod
    def for_card(cls, card: Mapping[str, Any], **settings: Any) -> FinetuneRecipe:
        """Make a recipe that takes the lengths it does not name from the parent's card."""
        known = {"lookback": "lookback", "forecast_horizon": "horizon", "max_context": "max_context"}
        lengths = {key: card[theirs] for key, theirs in known.items() if card.get(theirs) is not None}
        return cls(**{**lengths, **settings})
