"""The windows that a recipe asks of a corpus: those to learn from, and those to choose by."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, Protocol

from kronos_qlib.training.augment import Augmentation
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.objectives import Objective
from kronos_qlib.training.recipe import Span, Training
from kronos_qlib.training.stagnant import StretchFilter
from kronos_qlib.training.stream import TrainingBatch, WindowStream
from kronos_qlib.training.validation import Validation, held_out_batches


class WindowRecipe(Protocol):
    """What a recipe says of windows: :class:`PretrainRecipe` and :class:`FinetuneRecipe` do."""

    @property
    def lookback(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def train(self) -> Span: ...
    @property
    def valid(self) -> Span: ...
    @property
    def isolated(self) -> bool: ...
    @property
    def valid_source(self) -> str | None: ...
    @property
    def max_gap(self) -> int | None: ...
    @property
    def max_jump(self) -> float | None: ...
    @property
    def augmentation(self) -> Augmentation: ...
    @property
    def filters(self) -> StretchFilter: ...
    @property
    def mixture(self) -> dict[str, float] | None: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Windows:
    """Ends of the windows to learn from and of those to choose by, and the recipe that cuts them."""

    recipe: WindowRecipe
    corpus: Corpus
    train: Any
    valid: Any

    @classmethod
    def of(cls, recipe: WindowRecipe, corpus: Corpus) -> Windows:
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

    def first_day(self) -> datetime.date:
        """Day of the first bar of any training window; contexts that reach back before the train span count too."""
        firsts = self.train - (self.recipe.lookback + self.recipe.horizon - 1)
        return datetime.date.fromisoformat(str(self.corpus.timestamps[firsts].min())[:10])

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

    def counted(self, windows: int = 20_000) -> list[TrainingBatch]:
        """Training windows, unchanged, on which a card's tokens are counted."""
        size = min(256, len(self.train))
        stream = WindowStream(
            self.corpus,
            self.train,
            lookback=self.recipe.lookback,
            horizon=self.recipe.horizon,
            batch_size=size,
            seed=0,
            augmentation=Augmentation.off(),
        )
        return held_out_batches(stream, min(windows, len(self.train)), size)


def source_names(recipe: WindowRecipe, corpus: Corpus, part: str) -> list[str] | None:
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


def check_policy(recipe: WindowRecipe, corpus: Corpus) -> None:
    """Raise a ValueError unless the corpus was cut into segments by the recipe's rule."""
    wanted = {"max_gap": recipe.max_gap, "max_jump": recipe.max_jump}
    for fact in corpus.meta["sources"]:
        found = {key: fact["description"][key] for key in wanted}
        if found != wanted:
            raise ValueError(f"source {fact['name']!r} was cut with {found}, the recipe says {wanted}; build it anew")
