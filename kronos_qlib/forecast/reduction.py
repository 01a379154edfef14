"""Forecasts of many windows, reduced batch by batch to the figures that signals and calibration need.

A window's figures depend on its bars, the checkpoint and the sampling alone, so that any number of processes gives the
same arrays.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from kronos_qlib.alpha.signals import check_signal, compute_signal
from kronos_qlib.evaluation.probability import crps_ensemble
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.paths import KlinePaths
from kronos_qlib.forecast.pool_worker import start_worker
from kronos_qlib.kronos import Kronos, SamplingConfig
from kronos_qlib.market.calendars import TradingCalendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy

LEVELS = (0.5, 0.8, 0.9)
# signal name to (registered signal, steps used; None: all)
SIGNALS: Mapping[str, tuple[str, int | None]] = {
    "first_step": ("terminal_return", 1),
    "expected_return": ("expected_return", None),
    "execution_return": ("execution_return", None),
}


@dataclass(frozen=True)
class CheckpointSource:
    """Where networks come from, in a form that another process can load.

    ``random_seed``: keep the tokenizer, and replace the model's weights by freshly drawn ones of that seed.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    lookback: int | None = None
    max_context: int | None = None
    device: str = "auto"
    dtype: str = "float32"
    random_seed: int | None = None

    def load(self) -> KronosForecaster:
        """Load the networks; raises as :meth:`KronosForecaster.from_pretrained`."""
        options = {name: value for name, value in vars(self).items() if name != "random_seed"}
        loaded = KronosForecaster.from_pretrained(**options)
        if self.random_seed is None:
            return loaded
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_seed)
            drawn = Kronos(loaded.model.config).eval()
        return KronosForecaster(
            drawn, loaded.tokenizer, loaded.lookback, loaded.max_context, loaded.device, self.dtype, card=loaded.card
        )


@dataclass(frozen=True)
class ReductionPlan:
    """How windows are forecast and what is kept of them.

    Attributes
    ----------
    policy, horizon, sampling, calendar : as :meth:`KronosForecaster.forecast_batches` takes them.
    signals : name to (registered signal, number of steps it may use; None: all).
    levels : central intervals to keep.
    """

    policy: WindowPolicy
    horizon: int
    sampling: SamplingConfig
    calendar: TradingCalendar | str | None
    signals: Mapping[str, tuple[str, int | None]] = field(default_factory=lambda: dict(SIGNALS))
    levels: tuple[float, ...] = LEVELS

    def __post_init__(self) -> None:
        for name, steps in self.signals.values():
            check_signal(name, horizon=steps or self.horizon, n_paths=self.sampling.n_paths)
        if any(not 0.0 < level < 1.0 for level in self.levels):
            raise ValueError(f"found levels={self.levels}; expected shares between 0 and 1")


@dataclass(frozen=True, eq=False)
class ReducedForecasts:
    """Figures of n windows; NaN where a window has no forecast or a truth is missing.

    Attributes
    ----------
    signals : name to float64 (n,).
    crps : float64 (n, horizon), of the cumulative return, by the estimator of :func:`choose_estimator`; NaN throughout
        with one path.
    below, equal : float64 (n, horizon), paths below the truth, and equal to it.
    lower, upper : float64 (n, levels, horizon), ends of the central intervals of the cumulative return, quantiles at
        i / (P + 1) (numpy's ``weibull``); ``lower_linear``, ``upper_linear`` : numpy's default quantiles.
    mean : float64 (n, horizon), mean over paths of the cumulative return.
    """

    signals: dict[str, NDArray[np.float64]]
    crps: NDArray[np.float64]
    below: NDArray[np.float64]
    equal: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    lower_linear: NDArray[np.float64]
    upper_linear: NDArray[np.float64]
    mean: NDArray[np.float64]

    @classmethod
    def empty(cls, n: int, plan: ReductionPlan) -> ReducedForecasts:
        """All NaN."""
        steps, ends = (n, plan.horizon), (n, len(plan.levels), plan.horizon)
        shapes = [steps, steps, steps, ends, ends, ends, ends, steps]
        return cls({name: np.full(n, np.nan) for name in plan.signals}, *(np.full(shape, np.nan) for shape in shapes))

    def put(self, positions: NDArray[np.int64], part: ReducedForecasts) -> None:
        """Write another's figures at these positions."""
        for name, values in part.signals.items():
            self.signals[name][positions] = values
        for name, values in vars(part).items():
            if name != "signals":
                getattr(self, name)[positions] = values

    def select(self, kept: NDArray[np.bool_] | NDArray[np.int64]) -> ReducedForecasts:
        """Return the figures of some windows."""
        arrays = {name: values[kept] for name, values in vars(self).items() if name != "signals"}
        return ReducedForecasts({name: values[kept] for name, values in self.signals.items()}, **arrays)


def choose_estimator(sampling: SamplingConfig) -> str:
    """``fair`` for independent draws, ``standard`` for all others.

    The fair estimator takes the mean distance of two paths for that of two independent draws. Paths of the other
    schemes keep away from each other, so that it takes too much off: up to 1 / P of the score (1.6 % with 64 paths,
    10 % with 10) in the ensemble's favour. The standard one takes the ensemble for the whole distribution, which is
    too high by as much for independent draws and by less for spread ones: a skill that it shows is one. Where every
    per cent counts, draw independently.
    """
    return "fair" if sampling.scheme == "independent" else "standard"


def reduce_paths(paths: KlinePaths, truth: NDArray[np.float64], plan: ReductionPlan) -> ReducedForecasts:
    """Reduce one batch; truth is float64 (B, horizon) of cumulative returns (see ``realised_returns``)."""
    returns = np.asarray(paths.returns(), dtype=np.float64)
    signals = {
        name: compute_signal(registered, paths, horizon=steps) for name, (registered, steps) in plan.signals.items()
    }
    known = np.isfinite(truth) & np.isfinite(returns).all(axis=1)
    beside = truth[:, None, :]
    crps = np.full(truth.shape, np.nan)
    if returns.shape[1] > 1:
        crps = crps_ensemble(returns, truth, estimator=choose_estimator(plan.sampling))
    ends = np.array([[(1.0 - level) / 2.0, (1.0 + level) / 2.0] for level in plan.levels])
    weibull, linear = (
        np.quantile(returns, ends, axis=1, method=method).transpose(1, 2, 0, 3) for method in ("weibull", "linear")
    )
    return ReducedForecasts(
        signals=signals,
        crps=crps,
        below=np.where(known, (returns < beside).sum(axis=1), np.nan),
        equal=np.where(known, (returns == beside).sum(axis=1), np.nan),
        lower=weibull[0],
        upper=weibull[1],
        lower_linear=linear[0],
        upper_linear=linear[1],
        mean=returns.mean(axis=1),
    )


def reduce_forecasts(
    source: CheckpointSource | KronosForecaster,
    panel: BarPanel,
    rows: ArrayLike,
    truth: NDArray[np.float64],
    plan: ReductionPlan,
    *,
    jobs: int = 1,
    progress: bool = True,
) -> ReducedForecasts:
    """Forecast the windows that end at ``rows`` and reduce them.

    Parameters
    ----------
    source : a loaded forecaster works in this process only; a :class:`CheckpointSource` in any number.
    rows : (n,) panel rows; -1 has no window. truth : float64 (n, horizon).
    jobs : processes. The dates are cut into as many consecutive parts.

    Returns
    -------
    ReducedForecasts, the same whatever ``jobs``.

    Raises
    ------
    ValueError : shapes that do not fit, several jobs with a loaded forecaster.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if truth.shape != (len(rows), plan.horizon):
        raise ValueError(f"found truth of shape {truth.shape}; expected {(len(rows), plan.horizon)}")
    if jobs < 1:
        raise ValueError(f"found jobs={jobs}; expected at least 1")
    if jobs == 1 or not len(rows):
        forecaster = source.load() if isinstance(source, CheckpointSource) else source
        return _reduce(forecaster, panel, rows, truth, plan, progress)
    if not isinstance(source, CheckpointSource):
        raise ValueError("a loaded forecaster works in one process; give a CheckpointSource, or jobs=1")
    result = ReducedForecasts.empty(len(rows), plan)
    parts = _by_dates(panel, rows, jobs)
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(
        len(parts), multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(panel, threads)
    ) as pool:
        tasks = [pool.submit(_work, source, rows[part], truth[part], plan, progress) for part in parts]
        for part, task in zip(parts, tasks, strict=True):
            result.put(part, task.result())
    return result


def _reduce(
    forecaster: KronosForecaster,
    panel: BarPanel,
    rows: NDArray[np.int64],
    truth: NDArray[np.float64],
    plan: ReductionPlan,
    progress: bool,
) -> ReducedForecasts:
    result = ReducedForecasts.empty(len(rows), plan)
    batches = forecaster.forecast_batches(
        panel, rows, policy=plan.policy, horizon=plan.horizon, sampling=plan.sampling, calendar=plan.calendar,
        progress=progress,
    )  # fmt: skip
    for positions, paths in batches:
        result.put(positions, reduce_paths(paths, truth[positions], plan))
    return result


def _by_dates(panel: BarPanel, rows: NDArray[np.int64], jobs: int) -> list[NDArray[np.int64]]:
    """Cut positions into parts of consecutive dates with about the same number of rows each."""
    times = np.where(rows >= 0, panel.timestamps[np.maximum(rows, 0)], np.datetime64("NaT", "ns"))
    order = np.argsort(times, kind="stable").astype(np.int64)
    return [part for part in np.array_split(order, jobs) if len(part)]


_shared: dict[str, Any] = {}


def _start_worker(panel: BarPanel, threads: int) -> None:
    start_worker(threads)
    _shared["panel"] = panel


@lru_cache(maxsize=1)
def load_once(source: CheckpointSource) -> KronosForecaster:
    """Load the networks of a source, unless they are those that this process loaded last."""
    return source.load()


def _work(
    source: CheckpointSource, rows: NDArray[np.int64], truth: NDArray[np.float64], plan: ReductionPlan, progress: bool
) -> ReducedForecasts:
    return _reduce(load_once(source), _shared["panel"], rows, truth, plan, progress)
