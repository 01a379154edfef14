"""Cumulative returns of a checkpoint's sampled paths on judged windows, as work that is kept chunk by chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kronos_qlib.comparison.bench import Bench
from kronos_qlib.forecast.reduction import CheckpointSource, load_once
from kronos_qlib.forecast.source_parts import describe_forecaster
from kronos_qlib.handler import find_calendar
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.calendars import TradingCalendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy

CHUNK_WINDOWS = 1000  # about a minute of a core with the bundled weights and 64 paths


@dataclass(frozen=True)
class Forecast:
    """How a checkpoint forecasts the windows of a bench.

    Attributes
    ----------
    source : of the networks. policy, horizon, sampling, calendar : as the forecaster takes them.
    """

    source: CheckpointSource
    policy: WindowPolicy
    horizon: int
    sampling: SamplingConfig
    calendar: TradingCalendar

    @classmethod
    def on_bench(cls, bench: Bench, source: CheckpointSource, horizon: int, sampling: SamplingConfig) -> Forecast:
        """With the bench's windows, of the checkpoint's own lookback; ValueError where it cannot forecast so."""
        forecaster = load_once(source)
        forecaster.check_request(horizon, sampling)
        lookback = forecaster.lookback
        policy = replace(bench.policy, lookback=lookback, min_bars=min(bench.policy.min_bars, lookback))
        return cls(source, policy, horizon, sampling, find_calendar(None, "day"))

    @property
    def description(self) -> dict[str, Any]:
        """Everything besides the bars that the paths depend on, plain JSON."""
        return {
            **describe_forecaster(load_once(self.source), self.policy),
            "horizon": self.horizon,
            "sampling": self.sampling.to_dict(),
            "calendar": {"name": self.calendar.name, "freq": self.calendar.freq},
        }


@dataclass(frozen=True, eq=False)
class SampledReturns:
    """Cumulative returns of paths, float32 (n, P, S), NaN where there is no window.

    A chunk holds whole dates, one after the other, until it has ``CHUNK_WINDOWS`` windows. A window's paths are the
    same in any chunk.

    Attributes
    ----------
    forecast : how. rows : int64 (n,), panel rows of the windows' last bars. origin : what determines these bars.
    """

    forecast: Forecast
    rows: NDArray[np.int64]
    origin: Mapping[str, Any]
    name: ClassVar[str] = "kronos"
    dtype: ClassVar[DTypeLike] = np.float32

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, P, S)."""
        return len(self.rows), self.forecast.sampling.n_paths, self.forecast.horizon

    @cached_property
    def note(self) -> Mapping[str, Any]:
        """See :class:`kronos_qlib.comparison.kept.WindowWork`."""
        return {
            "what": "cumulative returns of sampled paths, (window, path, step)",
            "forecast": self.forecast.description,
            "chunk_windows": CHUNK_WINDOWS,
            **self.origin,
        }

    def chunks(self, panel: BarPanel) -> Sequence[NDArray[np.int64]]:
        """Consecutive dates."""
        times = panel.timestamps[self.rows]
        order = np.argsort(times, kind="stable").astype(np.int64)
        _, firsts = np.unique(times[order], return_index=True)
        # the chunk of a date follows from the windows before it
        number = np.repeat(firsts // CHUNK_WINDOWS, np.diff([*firsts, len(order)]))
        return [part for part in np.split(order, np.flatnonzero(np.diff(number)) + 1) if len(part)]

    def compute(self, panel: BarPanel, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Sample the paths of some windows."""
        of = self.forecast
        result = np.full((len(positions), *self.shape[1:]), np.nan, dtype=np.float32)
        batches = load_once(of.source).forecast_batches(
            panel, self.rows[positions], policy=of.policy, horizon=of.horizon, sampling=of.sampling,
            calendar=of.calendar, progress=False,
        )  # fmt: skip
        for found, paths in batches:
            result[found] = paths.returns()
        return result


def describe_windows(bench: Bench, rows: NDArray[np.int64]) -> dict[str, Any]:
    """What determines the bars of some windows: the store, and a hash of their dates and instruments in this order."""
    times = bench.panel.timestamps[rows].astype("datetime64[s]")
    digest = hashlib.sha256(times.astype("<i8").tobytes())
    digest.update("\n".join(bench.panel.instrument_names(rows)).encode())
    return {"data": bench.store_fingerprint, "segment": bench.segment, "windows": len(rows),
            "windows_hash": digest.hexdigest()[:16]}  # fmt: skip
