"""Variants of a pretraining recipe: settings that differ from a base, and the hash of what they come to."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kronos_qlib.forecast.grid import parse_assignments
from kronos_qlib.kronos import check_keys, fingerprint, load_tokenizer
from kronos_qlib.sweep import SEGMENTS, fingerprint_of
from kronos_qlib.training.pretrain import learned_days, run_identity
from kronos_qlib.training.recipe import WITHOUT_RESULT, PretrainRecipe

TEST_BEGINS = SEGMENTS["test"][0]
BITS = ("s1_bits", "s2_bits")
OWN = ("tokenizer", "tokenizer_training")
FIXED = ("valid", "valid_source", "name")  # the same for all rows


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the base, by dotted name."""

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """A variant and what it comes to. ``key``: of recipe and bars. ``folder``: where it is trained."""

    variant: Variant
    recipe: PretrainRecipe
    key: str
    folder: Path


def read_variants(sets: Iterable[str], texts: Iterable[str]) -> list[Variant]:
    """The base, one variant for each value of ``KEY=VALUE,VALUE`` texts, and those of ``NAME: KEY=VALUE, KEY=VALUE``.

    Raises
    ------
    ValueError : a text that reads otherwise, or two variants of one name.
    """
    variants = [Variant("base", {})]
    for key, values in parse_assignments(sets).items():
        variants += [Variant(re.sub(r"[^\w.+=-]+", "_", f"{key}={value}"), {key: value}) for value in values]
    variants += map(read_variant, texts)
    names = [variant.name for variant in variants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the variants {', '.join(twice)} are given twice; give each a name of its own")
    return variants


def read_variant(text: str) -> Variant:
    """Read ``NAME: KEY=VALUE, KEY=VALUE``; a comma inside a value ends it only where another KEY= follows."""
    name, colon, settings = text.partition(":")
    name = name.strip()
    changes: dict[str, Any] = {}
    for part in re.split(r",\s*(?=[\w.]+\s*=)", settings):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not colon or not re.fullmatch(r"\w[\w.+=-]*", name) or not key or not equals or not value or key in changes:
            raise ValueError(f"found {text!r}; expected a name and settings, such as 'wide: model.d_model=192'")
        changes[key] = yaml.safe_load(value)
    return Variant(name, changes)


def shorten(recipe: PretrainRecipe, steps: int | None, tokenizer_steps: int | None) -> PretrainRecipe:
    """The recipe with fewer steps; a warm-up takes a quarter of them at most."""
    values = recipe.to_dict()
    for part, count in (("predictor_training", steps), ("tokenizer_training", tokenizer_steps)):
        if count is not None and values[part] is not None:
            values[part] |= {
                "steps": count,
                "warmup": min(values[part]["warmup"], count // 4),
                "valid_every": min(values[part]["valid_every"], count),
            }
    return PretrainRecipe(**values)


def changed(base: PretrainRecipe, changes: Mapping[str, Any], tokenizer_from: str | None = None) -> PretrainRecipe:
    """The base with some settings changed, on a given tokenizer unless it changes its own.

    Raises
    ------
    ValueError : a setting that no recipe has, or that all rows must share; values that do not go together.
    """
    both = dict(changes)
    for key, value in changes.items():
        part, _, half = key.partition(".")
        if half in BITS and part in ("tokenizer", "model"):
            both.setdefault(f"{'model' if part == 'tokenizer' else 'tokenizer'}.{half}", value)
    parts = {key.partition(".")[0] for key in both}
    if fixed := sorted(parts & set(FIXED)):
        raise ValueError(
            f"a variant changes {', '.join(fixed)}; all rows must be judged on the same dates: leave it out"
        )
    values = copy.deepcopy(base.to_dict())
    if tokenizer_from is not None and not parts & set(OWN):
        values |= {**dict.fromkeys(OWN), "tokenizer_from": tokenizer_from}
    for key, value in both.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            check_keys([part], place, key)
            if not isinstance(place[part], dict):
                raise ValueError(f"{key}: the base has no settings {part!r} to change; its value is {place[part]!r}")
            place = place[part]
        check_keys([last], place, key)
        place[last] = value
    return PretrainRecipe(**values)


def run_key(recipe: PretrainRecipe, corpus_fingerprint: str) -> str:
    """Hash of what decides the weights; a given tokenizer counts by its content, not by its place."""
    content = run_identity(recipe, corpus_fingerprint)
    settings = content["recipe"]
    for part in ("tokenizer_training", "predictor_training"):
        if settings[part] is not None:
            settings[part] = {key: value for key, value in settings[part].items() if key not in WITHOUT_RESULT}
    if recipe.tokenizer_from is not None:
        settings["tokenizer_from"] = fingerprint(load_tokenizer(recipe.tokenizer_from))
    return fingerprint_of(content)


def plan_trials(
    base: PretrainRecipe, variants: Iterable[Variant], corpus_fingerprint: str, out: Path, tokenizer_from: str | None
) -> list[Trial]:
    """Every variant with its recipe, before any is trained.

    Raises
    ------
    ValueError : a variant is no recipe; valid reaches into test; a given tokenizer has learned bars of valid.
    """
    if str(base.valid.end) >= TEST_BEGINS:
        raise ValueError(
            f"the recipe's valid ends on {base.valid.end}; test begins on {TEST_BEGINS}, and is never read"
        )
    trials = []
    for variant in variants:
        try:
            recipe = changed(base, variant.changes, tokenizer_from)
            learned = learned_days(recipe)[1]
            if learned >= recipe.valid.start:
                raise ValueError(
                    f"tokenizer_from has learned bars up to {learned}, valid begins on {recipe.valid.start}"
                )
        except ValueError as error:
            raise ValueError(f"{variant.name}: {error}") from error
        key = run_key(recipe, corpus_fingerprint)
        trials.append(Trial(variant, recipe, key, out / f"{variant.name}-{key[:8]}"))
    return trials
