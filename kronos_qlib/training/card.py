"""The card of a checkpoint: what its weights have seen, how they were made and how good they are.

A card is written once, beside the weights (:mod:`kronos_qlib.training.card_files`), and read by everything that
forecasts: lookback and context, the cutoff that splits a backtest, the token histograms that tell when a market has
drifted away.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, TokenizerConfig, fingerprint
from kronos_qlib.kronos.normalise import CLIP, EPSILON
from kronos_qlib.kronos.token_statistics import TokenCounter, TokenStatistics
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.commit import source_commit
from kronos_qlib.training.settings import Settings

PREPROCESSING: dict[str, Any] = {
    "version": "1",
    "scaling": "z-score of each window and column by its context bars (population standard deviation + epsilon)",
    "epsilon": EPSILON,
    "clip": CLIP,
}


class Source(Settings):
    """Where bars came from: a file or store by name, the hash of its content, and more that is known about it."""

    name: str = Field(min_length=1)
    fingerprint: str = Field(min_length=1)
    bars: int = Field(ge=1)
    details: dict[str, Any] = Field(default_factory=dict)


class Fingerprints(Settings):
    """Hashes of both networks as they load from the folder."""

    tokenizer: str = Field(pattern="^[0-9a-f]{16}$")
    model: str = Field(pattern="^[0-9a-f]{16}$")


class Configuration(Settings):
    """Shapes of both networks."""

    tokenizer: TokenizerConfig
    model: ModelConfig


class Parent(Settings):
    """Weights that others were fine-tuned from.

    Attributes
    ----------
    fingerprint : str
        ``<model>-<tokenizer>``.
    train_start, cutoff : date or None
        What they had learned from; the child's card spans it too.
    parent : Parent or None
        Where they had been fine-tuned themselves.
    """

    name: str | None = None
    fingerprint: str = Field(min_length=1)
    universe: str | None = None
    train_start: datetime.date | None = None
    cutoff: datetime.date
    parent: Parent | None = None


class CheckpointCard(Settings):
    """Facts about a checkpoint; anything missing, unknown or contradictory is a ValueError.

    Attributes
    ----------
    card_version : int
        1. A card without it is of an older make, see :func:`kronos_qlib.training.card_files.read_card`.
    train_start, cutoff : date
        First and last date of the bars that touched the weights. Contexts count: their bars are learned too, if with
        less weight, and a window's context may begin before the span whose bars it was to predict (unless that is
        isolated).
    held_out : list of pairs of dates
        Spans between the two, ends included, no bar of which touched the weights: cross-fitting takes rows of theirs.
    valid_start, valid_end : date
        Span that the weights were chosen by. Where it ends after the cutoff, figures on it are flattered a little.
    universe : str
        Whose bars, in words.
    bars_seen : int
        Bars that the model was trained to predict, repetitions included.
    sources : list of Source
    preprocessing : dict
        What stands before the tokenizer, with its version.
    window_policy, windows : str, dict
        Version of the rule that cuts windows, and its fields.
    valid_figures : dict
        What was measured on the valid span.
    tokens : TokenStatistics
        Token histograms and clip shares of context bars of the training span.
    recipe : dict
        Everything else that fixes the weights: steps, rates, seed.
    parent : Parent or None
        Of fine-tuned weights: those that they began as.
    """

    card_version: Literal[1] = 1
    name: str = Field(min_length=1)
    lookback: int = Field(ge=2)
    horizon: int = Field(ge=1)
    max_context: int = Field(ge=2)
    train_start: datetime.date
    cutoff: datetime.date
    valid_start: datetime.date
    valid_end: datetime.date
    universe: str = Field(min_length=1)
    bars_seen: int = Field(ge=1)
    sources: list[Source] = Field(min_length=1)
    preprocessing: dict[str, Any] = Field(min_length=1)
    window_policy: str = Field(min_length=1)
    windows: dict[str, Any] = Field(min_length=1)
    configuration: Configuration
    valid_figures: dict[str, Any] = Field(min_length=1)
    tokens: TokenStatistics
    fingerprint: Fingerprints
    command: str = Field(min_length=1)
    commit: str = Field(min_length=1)
    recipe: dict[str, Any] = Field(default_factory=dict)
    parent: Parent | None = None
    held_out: list[tuple[datetime.date, datetime.date]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _dates_in_order(self) -> Self:
        if self.train_start > self.cutoff:
            raise ValueError(f"train_start {self.train_start} lies after the cutoff {self.cutoff}")
        if self.valid_start > self.valid_end:
            raise ValueError(f"valid_start {self.valid_start} lies after valid_end {self.valid_end}")
        for begin, end in self.held_out:
            if not self.train_start < begin <= end < self.cutoff:
                raise ValueError(
                    f"held_out has {begin} to {end}; expected a span between train_start and cutoff, the first first"
                )
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if self.horizon >= self.max_context:
            raise ValueError(f"horizon {self.horizon} must be below max_context {self.max_context}")
        if self.windows.get("lookback") != self.lookback:
            raise ValueError(f"windows hold {self.windows.get('lookback')} bars, lookback says {self.lookback}")
        if self.windows.get("version") != self.window_policy:
            raise ValueError(
                f"window_policy is {self.window_policy!r}, windows say version {self.windows.get('version')!r}"
            )
        if self.tokens.lookback > self.lookback:
            raise ValueError(
                f"tokens were counted in windows of {self.tokens.lookback} bars, lookback is {self.lookback}: count "
                "context bars only (token_statistics takes lookback=)"
            )
        return self

    @model_validator(mode="after")
    def _widths_agree(self) -> Self:
        tokenizer, model = self.configuration.tokenizer, self.configuration.model
        for half in ("s1", "s2"):
            bits, theirs = getattr(tokenizer, f"{half}_bits"), getattr(model, f"{half}_bits")
            if bits != theirs:
                raise ValueError(f"the tokenizer has {bits} bits for {half}, the model {theirs}")
            if len(getattr(self.tokens, half)) != 2**bits:
                raise ValueError(f"the histogram of {half} has {len(getattr(self.tokens, half))} ids, not {2**bits}")
        return self

    @model_validator(mode="after")
    def _is_plain_json(self) -> Self:
        # pydantic would write NaN as null, and a figure that is none should not pass for one
        for name in ("valid_figures", "recipe", "windows", "preprocessing"):
            try:
                json.dumps(getattr(self, name), allow_nan=False)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{name} holds something that is no JSON (NaN, infinity, an object): {error}"
                ) from error
        return self


def make_card(
    tokenizer: KronosTokenizer,
    model: Kronos,
    *,
    name: str,
    lookback: int,
    horizon: int,
    max_context: int,
    train_start: str | datetime.date,
    cutoff: str | datetime.date,
    valid_start: str | datetime.date,
    valid_end: str | datetime.date,
    universe: str,
    bars_seen: int,
    sources: Iterable[Source | Mapping[str, Any]],
    policy: WindowPolicy,
    tokens: TokenStatistics,
    valid_figures: Mapping[str, Any],
    command: str,
    commit: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    parent: Parent | None = None,
    held_out: Iterable[tuple[datetime.date, datetime.date]] = (),
) -> CheckpointCard:
    """Make the card of two networks that were just trained.

    Parameters
    ----------
    tokenizer, model : networks
        As they load from the folder: saving in bfloat16 rounds weights and with them the fingerprint.
    policy : WindowPolicy
        The rule of the training windows; its lookback is replaced by ``lookback``.
    commit : str, optional
        None: that of the package's repository, else the package's version.
    Others as in :class:`CheckpointCard`.

    Raises
    ------
    ValueError : something is missing or contradicts something else.
    """
    return CheckpointCard(
        name=name,
        lookback=lookback,
        horizon=horizon,
        max_context=max_context,
        train_start=read_date(train_start),
        cutoff=read_date(cutoff),
        valid_start=read_date(valid_start),
        valid_end=read_date(valid_end),
        universe=universe,
        bars_seen=bars_seen,
        sources=[source if isinstance(source, Source) else Source(**source) for source in sources],
        preprocessing=PREPROCESSING,
        window_policy=policy.version,
        windows={**policy.to_dict(), "lookback": lookback},
        configuration=Configuration(tokenizer=tokenizer.config, model=model.config),
        valid_figures=dict(valid_figures),
        tokens=tokens,
        fingerprint=Fingerprints(tokenizer=fingerprint(tokenizer), model=fingerprint(model)),
        command=command,
        commit=commit or source_commit(),
        recipe=dict(recipe or {}),
        parent=parent,
        held_out=list(held_out),
    )


@torch.inference_mode()
def token_statistics(tokenizer: KronosTokenizer, batches: Iterable[Tensor | Any], *, lookback: int) -> TokenStatistics:
    """Count tokens and clipped values of context bars, batch by batch.

    Parameters
    ----------
    tokenizer : KronosTokenizer
        In eval mode.
    batches : iterable of tensors (B, T, 6), or of objects that hold one as ``x``
        Windows normalised by their first ``lookback`` bars and clipped. Only these bars are counted: the ones after
        them are scaled by strangers, and no forecast sees them.

    Raises
    ------
    ValueError : no window, a window shorter than ``lookback``, a tokenizer in training mode.
    """
    if tokenizer.training:
        raise ValueError("the tokenizer is in training mode, where dropout is active; call tokenizer.eval() first")
    device = next(tokenizer.parameters()).device
    counter = TokenCounter(tokenizer.config.s1_bits, tokenizer.config.s2_bits)
    for batch in batches:
        x = batch if isinstance(batch, Tensor) else batch.x
        if x.shape[1] < lookback:
            raise ValueError(f"found windows of {x.shape[1]} bars; expected at least lookback = {lookback}")
        context = x[:, :lookback].to(device)
        counter.add(context, *tokenizer.encode(context))
    return counter.result()


def card_day(card: Mapping[str, Any], key: str) -> datetime.date | None:
    """Return a date of a card of any make, None where it has none; ValueError where it is no date."""
    try:
        return None if card.get(key) is None else read_date(card[key])
    except ValueError as error:
        raise ValueError(
            f"the checkpoint's card says {key}={card[key]!r}; expected a date such as 2014-12-31"
        ) from error


def card_spans(card: Mapping[str, Any], key: str) -> list[tuple[datetime.date, datetime.date]]:
    """Return the spans of a card of any make, none where it has none; ValueError where one is no pair of dates."""
    found = card.get(key) or []
    try:
        return [(read_date(begin), read_date(end)) for begin, end in found]
    except (ValueError, TypeError) as error:
        raise ValueError(f"the checkpoint's card says {key}={found!r}; expected pairs of dates") from error


def read_date(value: str | datetime.date) -> datetime.date:
    """Return a date, of a text its first ten characters; ValueError where it is none."""
    try:
        return value if type(value) is datetime.date else datetime.date.fromisoformat(str(value)[:10])
    except ValueError as error:
        raise ValueError(f"found the date {value!r}; expected one such as 2014-12-31") from error
