"""Batches of training windows: step i is the same batch in any process, after any restart, with any workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kronos_qlib.kronos.normalise import normalise
from kronos_qlib.training.augment import Augmentation, shifted_stamps
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.counters import permuted
from kronos_qlib.training.mixture import Mixture

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Windows of one length.

    Attributes
    ----------
    x : float32 tensor (B, L + H, 6)
        Normalised by the first L bars only, and clipped to ±5.
    stamps : int64 tensor (B, L + H, 5)
    rows : int64 array (B,)
        Corpus row of each window's last bar.
    context : int
        L: the stream's lookback, or less in a batch with a short context.
    """

    x: Tensor
    stamps: Tensor
    rows: IntArray
    context: int


class WindowStream:
    """An endless sequence of batches without a state.

    Slots of all batches are numbered: slot ``step * batch_size + place``. A pass over n windows takes n slots, in
    the order of a permutation keyed by (seed, pass), so no window comes twice in a pass. The last slots of a pass
    and the first of the next one share a batch: every batch is full.

    Parameters
    ----------
    corpus : Corpus
    ends : int64 (W,)
        From ``Corpus.ends`` with the same lookback and horizon.
    lookback, horizon : int
        Context bars, and bars to predict after them.
    batch_size : int
        Windows of a step, over all ranks.
    seed : int
        Of order and augmentation; at least 0.
    augmentation : Augmentation, optional
        Default ``Augmentation()``: volume masked in 5 % of windows. For validation: ``Augmentation.off()``.
    weights : mapping of str to float, optional
        Source name -> share of the slots. Each source then has its own passes, and small ones begin a new pass
        sooner. None: every window counts alike.

    Raises
    ------
    ValueError
        No window, windows that leave their segment, or numbers out of range.
    """

    def __init__(
        self,
        corpus: Corpus,
        ends: npt.ArrayLike,
        *,
        lookback: int,
        horizon: int,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.corpus = corpus
        self.ends: IntArray = np.ascontiguousarray(ends, dtype=np.int64)
        self.lookback, self.horizon = lookback, horizon
        self.batch_size, self.seed = batch_size, seed
        self.augmentation = Augmentation() if augmentation is None else augmentation
        if lookback < 2 or horizon < 0 or batch_size < 1 or seed < 0:
            raise ValueError(
                f"found lookback={lookback}, horizon={horizon}, batch_size={batch_size}, seed={seed}; "
                "expected at least 2, 0, 1 and 0"
            )
        if self.augmentation.short_context > 0 and self.augmentation.min_bars > lookback:
            raise ValueError(f"found min_bars={self.augmentation.min_bars} above lookback={lookback}")
        self._check_ends()
        self.mixture = Mixture.of(corpus, self.ends, weights)

    def __len__(self) -> int:
        """Windows of a pass."""
        return len(self.ends)

    @property
    def steps_per_pass(self) -> float:
        """Steps after which every window came once (without weights)."""
        return len(self.ends) / self.batch_size

    def rows(self, step: int, rank: int = 0, world: int = 1) -> IntArray:
        """Return the window ends of a batch, int64 (B,)."""
        places = self._places(step, rank, world)
        rows = np.empty(len(places), dtype=np.int64)
        for number, (chosen, turns) in self.mixture.turns(step * self.batch_size + places).items():
            windows = self.mixture.windows[number]
            for pass_ in np.unique(turns // len(windows)):
                here = turns // len(windows) == pass_
                order = permuted(turns[here] % len(windows), len(windows), self.seed, number, int(pass_))
                rows[np.flatnonzero(chosen)[here]] = windows[order]
        return rows

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """Return a step's batch, or a rank's contiguous part of it.

        A pure function of the stream's settings, ``seed`` and ``step``: no earlier batch needs to be drawn. The
        parts of ranks 0 … world - 1, put together, are the batch of one process.

        Raises
        ------
        ValueError
            A negative step, or a batch size that ``world`` does not divide.
        """
        rows = self.rows(step, rank, world)
        places = self._places(step, rank, world)
        context = self.augmentation.context(self.seed, step, self.lookback)
        index = rows[:, None] + np.arange(1 - context - self.horizon, 1)
        values = self.corpus.values[index]
        values[self.augmentation.masked(self.seed, step, places), :, 4:] = 0.0
        x, _, _ = normalise(values, context=context)
        stamps = self._stamps(index, step, places)
        return TrainingBatch(torch.from_numpy(x), torch.from_numpy(stamps), rows, context)

    def _stamps(self, index: IntArray, step: int, places: IntArray) -> IntArray:
        stamps = self.corpus.stamps[index].astype(np.int64)
        weeks = self.augmentation.shifts(self.seed, step, places)
        moved = np.flatnonzero(weeks)
        if len(moved):
            stamps[moved] = shifted_stamps(self.corpus.timestamps[index[moved]], weeks[moved])
        return stamps

    def _places(self, step: int, rank: int, world: int) -> IntArray:
        if step < 0 or not 0 <= rank < world:
            raise ValueError(f"found step={step}, rank={rank}, world={world}; expected step >= 0, 0 <= rank < world")
        if self.batch_size % world:
            raise ValueError(
                f"found batch_size={self.batch_size} for world={world} processes; expected a multiple of {world}, "
                "so that every process has an equal part"
            )
        part = self.batch_size // world
        return np.arange(rank * part, (rank + 1) * part)

    def _check_ends(self) -> None:
        ends = self.ends
        if ends.ndim != 1 or len(ends) == 0:
            raise ValueError(f"found window ends of shape {ends.shape}; expected at least one window")
        if ends.min() < 0 or ends.max() >= len(self.corpus):
            raise ValueError(f"found window ends from {ends.min()} to {ends.max()} in {len(self.corpus)} rows")
        short = ends - self.corpus.segment[ends] + 1 < self.lookback + self.horizon
        if short.any():
            raise ValueError(
                f"{int(short.sum())} of {len(ends)} windows have fewer than lookback + horizon = "
                f"{self.lookback + self.horizon} bars in their segment; take the ends from Corpus.ends with the same "
                "lookback and horizon"
            )
        # numpy's unique takes twenty seconds for five million ends, sorting them a tenth of one
        twice = int(np.count_nonzero(np.diff(np.sort(ends)) == 0))
        if twice:
            raise ValueError(f"{twice} window ends occur twice; give each once")


class _Steps(Dataset[TrainingBatch]):
    """Steps as a map-style dataset, so that any worker can be asked for any step."""

    def __init__(self, stream: WindowStream, first_step: int, last_step: int, rank: int, world: int) -> None:
        self.stream, self.first_step, self.last_step = stream, first_step, last_step
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __getitem__(self, index: int) -> TrainingBatch:
        return self.stream.batch(self.first_step + index, self.rank, self.world)


def batches(
    stream: WindowStream,
    first_step: int,
    last_step: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[TrainingBatch]:
    """Yield the batches of ``first_step`` … ``last_step - 1`` in order; the same whatever ``workers``.

    Parameters
    ----------
    first_step, last_step : int
        Half open, as ``range`` is.
    rank, world : int
        This process among all.
    workers : int
        Processes that prepare batches ahead; they map the corpus' files and share its pages. 0: in this process.
    """
    if workers < 0 or not 0 <= first_step <= last_step:
        raise ValueError(
            f"found first_step={first_step}, last_step={last_step}, workers={workers}; "
            "expected 0 <= first_step <= last_step and workers >= 0"
        )
    if workers == 0 or first_step == last_step:
        for step in range(first_step, last_step):
            yield stream.batch(step, rank, world)
        return
    # its own generator: the loader must not draw from the global one, on which a training may rely
    yield from DataLoader(
        _Steps(stream, first_step, last_step, rank, world),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        prefetch_factor=4,
    )
