"""Which source a slot of the stream belongs to, when sources are mixed by weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from kronos_qlib.kronos.config import check_keys
from kronos_qlib.training.corpus import Corpus

IntArray = npt.NDArray[np.int64]

# shares are fractions below this, so that slot * numerator stays exact in int64 up to 2**43 slots
_FINEST = 1 << 20


@dataclass(frozen=True, eq=False)
class Mixture:
    """Windows by group, and how slots are dealt among the groups.

    Attributes
    ----------
    windows : tuple of int64 arrays
        Window ends of each group.
    shares : tuple of Fraction
        For each group but the last: its share of the slots that the groups before it leave.
    """

    windows: tuple[IntArray, ...]
    shares: tuple[Fraction, ...]

    @classmethod
    def of(cls, corpus: Corpus, ends: IntArray, weights: Mapping[str, float] | None) -> Mixture:
        """Return one group of all windows, or one for each source with a weight."""
        if weights is None:
            return cls((ends,), ())
        check_keys(weights, corpus.source_names, "weights")
        source = corpus.source[ends]
        present = {corpus.source_names[number] for number in np.unique(source)}
        named = {name for name, weight in weights.items() if weight > 0}
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()) or named != present:
            raise ValueError(
                f"found weights {dict(weights)} and windows of {sorted(present)}; expected a weight above 0 for each "
                "source that has windows, and for no other (leave it out with Corpus.ends(sources=...))"
            )
        numbers = [number for number, name in enumerate(corpus.source_names) if name in named]
        left = [sum(weights[corpus.source_names[other]] for other in numbers[i:]) for i in range(len(numbers))]
        shares = tuple(
            _share(weights[corpus.source_names[number]] / total)
            for number, total in zip(numbers[:-1], left[:-1], strict=True)
        )
        return cls(tuple(ends[source == number] for number in numbers), shares)

    def turns(self, slots: IntArray) -> dict[int, tuple[npt.NDArray[np.bool_], IntArray]]:
        """Return for each group which slots (n,) are its own, and the how-manieth of the group each of these is.

        A group's slots are spread evenly: among any n slots it has its share of n, to within one.
        """
        found = {}
        open_ = np.ones(len(slots), dtype=bool)
        position = slots.copy()
        for group, share in enumerate(self.shares):
            before = position * share.numerator // share.denominator
            taken = open_ & ((position + 1) * share.numerator // share.denominator > before)
            found[group] = (taken, before[taken])
            position -= before
            open_ &= ~taken
        found[len(self.shares)] = (open_, position[open_])
        return {group: turns for group, turns in found.items() if len(turns[1])}


def _share(value: float) -> Fraction:
    """Return the fraction nearest to a share, never none and never all."""
    smallest = Fraction(1, _FINEST)
    return min(max(Fraction(value).limit_denominator(_FINEST), smallest), 1 - smallest)
