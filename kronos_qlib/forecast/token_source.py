"""Token factors and embeddings of any rows of a panel, one row at a time (exact) or block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kronos_qlib.forecast.blocks import BLOCK_RULE, BlockPlan, plan_blocks
from kronos_qlib.forecast.calendar_choice import choose_calendar
from kronos_qlib.forecast.data_keys import BarHasher
from kronos_qlib.forecast.forecaster import KronosForecaster, plain_calendar
from kronos_qlib.forecast.source_parts import describe_forecaster, window_policy
from kronos_qlib.forecast.token_factors import (
    EMBEDDING_MEAN,
    EMBEDDINGS,
    TOKEN_FACTORS,
    TokenReading,
    check_token_factors,
)
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.kronos.engine import ModelEngine, TokenizerEngine
from kronos_qlib.kronos.generate import DTYPES
from kronos_qlib.kronos.normalise import normalise
from kronos_qlib.kronos.plan import check_memory, chunk_bytes, windows_per_chunk
from kronos_qlib.kronos.quantizer import ids_to_bits
from kronos_qlib.kronos.readout import Readout, read, token_closes
from kronos_qlib.kronos.threads import map_side_by_side, one_thread_kernels
from kronos_qlib.market.calendars import TradingCalendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.windows import WindowPolicy

EXACT = 1
_LEAST_BARS = 2  # below, nothing is predicted


class TokenFactorSource:
    """Token factors, embeddings, or both; nothing is sampled.

    Parameters
    ----------
    forecaster, panel, policy, calendar : as in :class:`kronos_qlib.forecast.sources.PathFactorSource`.
    factors : keys of ``TOKEN_FACTORS``; None: all; empty: embeddings only.
    embedding : kinds of ``EMBEDDINGS`` (``"last"``, ``"mean"``, ``"code"``), whose columns ``emb_000`` … stand one
        after the other in the given order.
    block : bars answered for by one forward pass; 1: exact, a window for every row.

    Raises
    ------
    ValueError
        Unknown factors or kinds, nothing asked for, windows shorter than 2 bars, a block that with its window exceeds
        ``max_context``, no calendar.

    Notes
    -----
    In block mode a bar stands 0 to ``block`` - 1 places behind the window that normalises it, so its values differ a
    little from the exact ones, and its context is longer by as many bars.
    """

    def __init__(
        self,
        forecaster: KronosForecaster,
        panel: BarPanel,
        *,
        policy: WindowPolicy | None = None,
        factors: Sequence[str] | None = None,
        embedding: Sequence[str] | str = (),
        block: int = EXACT,
        calendar: TradingCalendar | str | None = None,
    ) -> None:
        self.forecaster, self.panel = forecaster, panel
        self.policy = window_policy(forecaster, policy)
        self.calendar = choose_calendar(calendar, plain_calendar(panel), list(panel.instruments))
        kinds = (embedding,) if isinstance(embedding, str) else tuple(embedding)
        self._choose(tuple(TOKEN_FACTORS) if factors is None else factors, kinds)
        self._plan: BlockPlan = plan_blocks(panel, self.policy, block, self.calendar)
        self._refuse_lengths()

    @property
    def block(self) -> int:
        """Bars answered for by one forward pass."""
        return self._plan.size

    @property
    def description(self) -> dict[str, Any]:
        """Everything besides the bars that the values depend on; plain JSON."""
        found: dict[str, Any] = {
            "kind": "token factors",
            **describe_forecaster(self.forecaster, self.policy),
            "factors": {factor.name: {"version": factor.version} for factor in self._factors},
            "embedding": [{"kind": kind, "version": EMBEDDINGS[kind][1]} for kind in self.embedding],
            "block": self.block,
        }
        if self.block != EXACT:
            found["block_rule"] = {"version": BLOCK_RULE, "calendar": self.calendar.name, "freq": self.calendar.freq}
        return found

    def widened(self, columns: Sequence[str], description: Mapping[str, Any]) -> TokenFactorSource:
        """Return the source of the same forward passes with other columns; see ``forecast.store_source.Widens``."""
        other = copy(self)
        named = [name for name in columns if name in description.get("factors", {})]
        other._choose(named, tuple(one["kind"] for one in description["embedding"]))
        return other

    def data_keys(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Hash each row's bars, from the first of its block's window to itself, uint64 (n,); 0 without a window."""
        rows = np.asarray(rows, dtype=np.int64)
        anchors, lengths = self._windows(rows)
        first = np.where(anchors >= 0, anchors - lengths + 1, rows + 1)
        prefixes = [b"%d|" % behind for behind in np.where(anchors >= 0, rows - anchors, 0).tolist()]
        return self._hasher.keys(first, rows, prefixes)

    def compute(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the columns of each row, float32 (n, F).

        NaN where there is no window, and in a factor that averages over more bars than the window predicts.
        """
        rows = np.asarray(rows, dtype=np.int64)
        table = np.full((len(rows), len(self.columns)), np.nan, dtype=np.float32)
        anchors, lengths = self._windows(rows)
        with torch.inference_mode(), one_thread_kernels(self.forecaster.device) as threads:
            networks = _ForwardPass(self, threads)
            for length in np.unique(lengths[lengths > 0])[::-1]:
                wanted = np.flatnonzero(lengths == length)
                wanted = wanted[np.argsort(anchors[wanted], kind="stable")]
                blocks, where = np.unique(anchors[wanted], return_inverse=True)

                def keep(first: int, values: NDArray[np.float32], wanted: Any = wanted, where: Any = where) -> None:
                    begin, end = np.searchsorted(where, [first, first + len(values)])
                    chosen = wanted[begin:end]
                    table[chosen] = values[where[begin:end] - first, rows[chosen] - anchors[chosen]]

                networks.run(blocks, int(length), keep)
        return table

    def _choose(self, factors: Sequence[str], embedding: tuple[str, ...]) -> None:
        self._factors, self.embedding = check_token_factors(factors), embedding
        check_keys(embedding, list(EMBEDDINGS), "the kinds of embedding")
        if not self._factors and not embedding:
            raise ValueError("found neither token factors nor an embedding; ask for at least one column")
        names = [found.name for found in self._factors]
        self.columns = (*names, *(f"emb_{i:03d}" for i in range(self._width())))

    def _windows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Anchor and window length of each row; -1 and 0 where there is none."""
        if rows.ndim != 1 or (len(rows) and (rows.min() < -1 or rows.max() >= len(self.panel))):
            raise ValueError(f"found rows outside the panel; expected one dimension, -1 to {len(self.panel) - 1}")
        known = rows >= 0
        anchors = np.where(known, self._plan.anchors[rows], -1)
        return anchors, np.where(known, self._plan.lengths[rows], 0)

    @cached_property
    def _hasher(self) -> BarHasher:
        return BarHasher(self.panel)

    def _width(self) -> int:
        model = self.forecaster.model.config
        widths = {"last": model.d_model, "mean": model.d_model, "code": model.s1_bits + model.s2_bits}
        return sum(widths[kind] for kind in self.embedding)

    def _refuse_lengths(self) -> None:
        if self.policy.min_bars < _LEAST_BARS:
            raise ValueError(f"found min_bars={self.policy.min_bars}; token factors need at least {_LEAST_BARS}")
        longest = self.policy.lookback + self.block - 1
        if self.block != EXACT and longest > self.forecaster.max_context:
            raise ValueError(
                f"found lookback {self.policy.lookback} and block {self.block}: sequences of {longest} bars, "
                f"expected at most max_context={self.forecaster.max_context}; take a shorter lookback or block=1"
            )


class _ForwardPass:
    """Runs chunks of sequences; every chunk has the same number of them, so that no value depends on its batch."""

    def __init__(self, source: TokenFactorSource, threads: int) -> None:
        forecaster = source.forecaster
        dtype = DTYPES[forecaster.dtype]
        self.source, self.threads, self.device = source, threads, forecaster.device
        self.model, self.coder = ModelEngine(forecaster.model, dtype), TokenizerEngine(forecaster.tokenizer, dtype)
        self.token_close = _wide(token_closes(self.coder))
        self.stamps = time_stamps(source.panel.calendar)
        # of all factors, not of those asked for: a column's bits shall not depend on the columns beside it
        self.before = max([factor.bars for factor in TOKEN_FACTORS.values()] + [EMBEDDING_MEAN]) - 1

    def run(self, anchors: NDArray[np.int64], length: int, keep: Callable[[int, NDArray[np.float32]], None]) -> None:
        """Call ``keep(position of the first block, values (B, K, F))`` until all blocks, of one length, are done."""
        forecaster, total = self.source.forecaster, length + self.source.block - 1
        config = forecaster.model.config
        size = windows_per_chunk(config, total, 1, 1, self.device.type)
        workers = min(self.threads, -(-len(anchors) // size))
        check_memory(workers * chunk_bytes(config, forecaster.tokenizer.config, size, total, 1, 1), self.device)

        def one(start: int) -> None:
            # padded with the last block, so that kernel shapes stay fixed
            padded = np.minimum(np.arange(start, start + size), len(anchors) - 1)
            with torch.inference_mode():
                keep(start, self._values(anchors[padded], length)[: len(anchors) - start])

        map_side_by_side(one, range(0, len(anchors), size), workers)

    def _values(self, anchors: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """Values (B, K, F) of one chunk."""
        panel, days = self.source.panel, self.source.block
        index = self.source._plan.sequence(anchors, length)
        # statistics from the window alone, which ends at the block's first bar (trap 5)
        x, _, _ = normalise(panel.values[index], context=length)
        reading = self._read(x, self.stamps[panel.session[index]], days)
        with np.errstate(invalid="ignore"):
            columns: list[NDArray[np.floating]] = [f.function(reading)[..., None] for f in self.source._factors]
        columns += [EMBEDDINGS[kind][0](reading) for kind in self.source.embedding]
        return np.concatenate(columns, axis=-1, dtype=np.float32, casting="same_kind")

    def _read(self, x: NDArray[np.float32], stamps: NDArray[np.int64], days: int) -> TokenReading:
        context = min(x.shape[1], self.source.forecaster.max_context)
        last = min(days + self.before, context)
        found = read(
            self.model,
            self.coder,
            torch.from_numpy(x).to(self.device),
            torch.from_numpy(stamps).to(self.device),
            self.source.forecaster.max_context,
            last,
            days,
        )
        return self._reading(found, x[:, -days:], days)

    def _reading(self, found: Readout, bars: NDArray[np.float32], days: int) -> TokenReading:
        config = self.source.forecaster.tokenizer.config
        s1, s2 = found.s1[:, -days:], found.s2[:, -days:]
        code = torch.cat((ids_to_bits(s1, config.s1_bits), ids_to_bits(s2, config.s2_bits)), dim=-1)
        return TokenReading(
            days=days,
            surprise_s1=self._full(found.surprise_s1, days),
            surprise_s2=self._full(found.surprise_s2, days),
            entropy_s1=self._full(found.entropy_s1, days),
            entropy_s2=self._full(found.entropy_s2, days),
            probability_s1=_wide(found.probability_s1[:, -days:]),
            s1=s1.cpu().numpy(),
            token_close=self.token_close,
            hidden=self._full(found.hidden, days).astype(np.float32),
            bars=bars.astype(np.float64),
            full=_wide(found.full),
            coarse=_wide(found.coarse),
            code=code.float().cpu().numpy(),
        )

    def _full(self, values: Tensor, days: int) -> NDArray[np.float64]:
        """Float64, with NaN in front for the bars that a short sequence lacks."""
        array = _wide(values)
        missing = days + self.before - array.shape[1]
        return np.pad(array, [(0, 0), (missing, 0)] + [(0, 0)] * (array.ndim - 2), constant_values=np.nan)


def _wide(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()
