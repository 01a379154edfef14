"""The windows that a recipe asks of a corpus: those to learn from, and those to choose by."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from kronos_qlib.training.augment import Augmentation
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.objectives import Objective
from kronos_qlib.training.recipe import Training, WindowRecipe
from kronos_qlib.training.stream import TrainingBatch, WindowStream
from kronos_qlib.training.validation import Validation, held_out_batches


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
        """Held-out windows, the same ones for any batch size and seed of the training."""
        batches = self._unchanged(self.valid, config.valid_windows)
        return Validation(objective, batches, dtype=config.dtype, processes=processes)

    def counted(self, windows: int = 20_000) -> list[TrainingBatch]:
        """Training windows on which a card's tokens are counted."""
        return self._unchanged(self.train, windows)

    def _unchanged(self, ends: Any, windows: int) -> list[TrainingBatch]:
        """At most ``windows`` of some windows, without augmentation."""
        count = min(windows, len(ends))
        size = min(256, count)
        stream = WindowStream(
            self.corpus,
            ends,
            lookback=self.recipe.lookback,
            horizon=self.recipe.horizon,
            batch_size=size,
            seed=0,
            augmentation=Augmentation.off(),
        )
        return held_out_batches(stream, count, size)


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
