"""Many sampling settings of one checkpoint on the same rows: signals, net return, calibration, cost; resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.alpha.signals import find_signal
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.evaluation.ic import daily_rank_ic
from kronos_qlib.evaluation.outcomes import LABELS, label_returns, realised_returns
from kronos_qlib.evaluation.references import reference_columns
from kronos_qlib.examine import LONGEST_LABEL, SPANS, calibrated_coverage, open_store, plain, records
from kronos_qlib.forecast.figures import calibration_table, signal_table
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.grid import Setting
from kronos_qlib.forecast.pretrained import warn_of_default_lookback
from kronos_qlib.forecast.reduction import (
    LEVELS,
    SIGNALS,
    CheckpointSource,
    ReducedForecasts,
    ReductionPlan,
    reduce_forecasts,
)
from kronos_qlib.handler import KlineHandler, sessions_between
from kronos_qlib.kronos import check_keys
from kronos_qlib.market.swap import whole_file
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.sweep_backtest import BacktestConfig, Backtester

FORMAT = 1  # raised when the same settings would give other figures
SEGMENTS = {
    "train": ("2008-01-01", "2014-12-31"),
    "valid": ("2015-01-01", "2016-12-31"),
    "test": ("2017-01-01", "2020-08-01"),
}


@dataclass(frozen=True)
class SweepConfig:
    """What stays the same over all settings.

    Attributes
    ----------
    source, store, universe : checkpoint, Qlib store, and whose members are scored.
    start, end : first and last date. every : use every so many sessions; backtests run only at 1.
    signals : names of :data:`kronos_qlib.forecast.reduction.SIGNALS` or registered signals.
    label : the label whose Rank IC is compared over settings, one of :data:`kronos_qlib.evaluation.outcomes.LABELS`.
    carry : sessions that a suspended member keeps its score.
    backtest : portfolio and costs; None: no backtests.
    """

    source: CheckpointSource
    store: Path
    universe: str = "csi300"
    start: str = SEGMENTS["valid"][0]
    end: str = SEGMENTS["valid"][1]
    every: int = 1
    signals: tuple[str, ...] = ("expected_return",)
    label: str = "one_day"
    carry: int = 20
    backtest: BacktestConfig | None = None

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"found every={self.every!r}; expected a whole number of at least 1")
        if self.label not in LABELS:
            raise ValueError(f"found label={self.label!r}; expected one of {sorted(LABELS)}")
        if not self.signals:
            raise ValueError("no signal; name at least one, such as expected_return")
        self.registered()

    def registered(self) -> dict[str, tuple[str, int | None]]:
        """Signals as a :class:`ReductionPlan` takes them; ValueError for an unknown one."""
        return {name: SIGNALS[name] if name in SIGNALS else (find_signal(name).name, None) for name in self.signals}


class SweepBench:
    """The rows that every setting is judged on, with what happened after them.

    Attributes
    ----------
    index : (datetime, instrument) of every member on every date used, as ``qrun`` scores them.
    rows : unique panel rows to forecast from; ``inverse`` leads from ``index`` to them, -1 where there is no window.
    """

    def __init__(self, config: SweepConfig, forecaster: KronosForecaster) -> None:
        self.config, self.forecaster = config, forecaster
        warn_of_default_lookback(config.source.model, forecaster.card, config.source.lookback)
        known = open_store(config.store)
        self.store_fingerprint = str(known.get("fingerprint", ""))
        freq = str(known["freq"])
        sessions = sessions_between(config.start, config.end, freq)
        last = sessions_between(sessions[-1], None, freq)[: LONGEST_LABEL + 1][-1]
        jump = WindowPolicy.max_jump if known["region"] == "cn" else None
        handler = KlineHandler(config.universe, config.start, last, freq, init_data=False)
        self.dataset = KlineDataset(
            handler, {"swept": (config.start, config.end)}, max_jump=jump, carry=config.carry,
            min_bars=min(WindowPolicy.min_bars, forecaster.lookback),
        )  # fmt: skip
        self.policy = self.dataset.window_policy(forecaster.lookback)
        self.panel, self.calendar = handler.panel, handler.trading_calendar
        table = self.dataset.rows("swept")
        table = table[table.index.get_level_values("datetime").isin(sessions[:: config.every])]
        levels = [table.index.get_level_values(name) for name in ("datetime", "instrument")]
        self.index = pd.MultiIndex.from_arrays(levels, names=["datetime", "instrument"])
        self.age = table["age"].to_numpy()
        unique, inverse = np.unique(table["row"].to_numpy(), return_inverse=True)
        missing = int((unique < 0).sum())
        self.rows, self.inverse = unique[missing:], inverse - missing
        if not len(self.rows):
            raise ValueError(f"no member of {config.universe} has a window between {config.start} and {config.end}")
        if config.backtest is not None and (config.every != 1 or freq != "day"):
            raise ValueError("a backtest trades every day: give every=1 and a daily store, or leave the backtest out")

    @cached_property
    def labels(self) -> pd.DataFrame:
        """Labels of every entry of ``index``."""
        return label_returns(self.panel, self.index)

    @cached_property
    def references(self) -> pd.DataFrame:
        """Reference columns of every entry of ``index``, of the bar that it is scored from."""
        by_row = reference_columns(self.panel, policy=self.policy).reindex(self.of_rows)
        values = np.where(self.inverse[:, None] >= 0, by_row.to_numpy()[self.inverse.clip(0)], np.nan)
        return pd.DataFrame(values, index=self.index, columns=by_row.columns)

    @property
    def of_rows(self) -> pd.MultiIndex:
        """(datetime, instrument) of the bars in ``rows``."""
        return pd.MultiIndex.from_arrays(
            [pd.DatetimeIndex(self.panel.timestamps[self.rows]), self.panel.instrument_names(self.rows)],
            names=["datetime", "instrument"],
        )

    @cached_property
    def judged(self) -> npt.NDArray[np.bool_]:
        """Which of ``rows`` are bars of the span itself: those whose distributions are judged (no carried ones)."""
        fresh = np.zeros(len(self.rows), dtype=bool)
        fresh[self.inverse[self.age == 0]] = True
        return fresh

    @cached_property
    def backtester(self) -> Backtester:
        """Exchange of the span, loaded at the first backtest."""
        assert self.config.backtest is not None
        return Backtester(self.config.backtest, self.panel.instruments, self.config.start, self.config.end)

    def spread(self, values: npt.NDArray[np.float64]) -> pd.Series:
        """Lay values of ``rows`` out on ``index``, NaN where there is no window."""
        laid = np.where(self.inverse >= 0, values[self.inverse.clip(0)], np.nan)
        return pd.Series(laid, index=self.index, name="score")

    def context(self) -> dict[str, Any]:
        """Everything but the setting that the figures depend on; JSON."""
        config = self.config
        return {
            "format": FORMAT,
            "checkpoint": self.forecaster.fingerprint,
            "random_seed": config.source.random_seed,
            "dtype": config.source.dtype,
            "max_context": self.forecaster.max_context,
            "store": self.store_fingerprint or str(config.store),
            "universe": config.universe,
            "start": config.start,
            "end": config.end,
            "every": config.every,
            "carry": config.carry,
            "window_policy": self.policy.to_dict(),
            "signals": list(config.signals),
            "label": config.label,
            "backtest": None if config.backtest is None else config.backtest.to_dict(),
        }


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """Hash of a JSON mapping, 16 hex digits; key order does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def run_sweep(
    bench: SweepBench,
    settings: Sequence[Setting],
    folder: Path,
    *,
    jobs: int = 1,
    progress: bool = True,
    report: Callable[[int, dict[str, Any], bool], None] | None = None,
) -> list[dict[str, Any]]:
    """Run every setting that has no result in ``folder`` yet.

    Parameters
    ----------
    bench : the rows. settings : points of the grid. folder : ``settings/<fingerprint>.json`` go here, each written
        whole when its setting is done, so that an interrupted sweep goes on where it was.
    report : called after each setting with its position, result, and whether it was found finished.

    Returns
    -------
    list of results in the order of ``settings``.
    """
    check_settings(bench.config, settings)
    results = []
    for position, setting in enumerate(settings):
        content = {"context": bench.context(), "setting": setting.to_dict()}
        path = folder / "settings" / f"{fingerprint_of(content)}.json"
        finished = path.is_file()
        result = json.loads(path.read_text(encoding="utf-8")) if finished else None
        if result is None:
            result = {**content, **run_setting(bench, setting, jobs=jobs, progress=progress)}
            write_json(path, result)
        if report is not None:
            report(position, result, finished)
        results.append(result)
    return results


def check_settings(config: SweepConfig, settings: Sequence[Setting]) -> None:
    """Refuse a setting that some signal cannot be computed with, before any is run; ValueError."""
    for setting in settings:
        ReductionPlan(WindowPolicy(), setting.horizon, setting.sampling, None, config.registered())


def count_variants(folder: Path) -> int:
    """Count the variants (setting and signal) that ``folder`` has results of, other spans and checkpoints included."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "settings").glob("*.json")))
    return sum(len(result["daily_rank_ic"]) for result in found)


def find_segment(name: str) -> tuple[str, str]:
    """Return first and last date of a segment; ValueError, naming the nearest, for an unknown one."""
    check_keys([name], SEGMENTS, "segment")
    return SEGMENTS[name]


def run_setting(bench: SweepBench, setting: Setting, *, jobs: int = 1, progress: bool = True) -> dict[str, Any]:
    """Forecast all rows with one setting and measure it."""
    config = bench.config
    plan = ReductionPlan(bench.policy, setting.horizon, setting.sampling, bench.calendar, config.registered())
    truth = realised_returns(bench.panel, bench.rows, setting.horizon)
    source = config.source if jobs > 1 else bench.forecaster
    began = time.perf_counter()
    reduced = reduce_forecasts(source, bench.panel, bench.rows, truth, plan, jobs=jobs, progress=progress)
    seconds = time.perf_counter() - began
    scores = pd.DataFrame({name: bench.spread(values) for name, values in reduced.signals.items()})
    table = signal_table(scores, bench.labels, SPANS, every=config.every, references=bench.references)
    daily = {name: daily_rank_ic(scores[name], bench.labels[config.label]) for name in scores}
    backtests = {name: bench.backtester.run(scores[name]) for name in scores} if config.backtest is not None else {}
    return plain(
        {
            "signals": records(table),
            "daily_rank_ic": {
                name: {f"{day:%Y-%m-%d %H:%M}": value for day, value in series.items()}
                for name, series in daily.items()
            },
            "backtest": backtests,
            "calibration": _calibration(bench, reduced, truth, setting),
            "calibrated_coverage": calibrated_coverage(setting.sampling.n_paths),
            "cost": {
                "seconds": seconds,
                "windows": len(bench.rows),
                "windows_per_second": len(bench.rows) / seconds,
                "jobs": jobs,
                "device": str(bench.forecaster.device),
            },
        }
    )


def _calibration(
    bench: SweepBench, reduced: ReducedForecasts, truth: npt.NDArray[np.float64], setting: Setting
) -> list[dict[str, Any]]:
    kept = bench.judged
    dates = pd.DatetimeIndex(bench.panel.timestamps[bench.rows[kept]])
    table = calibration_table(
        reduced.select(kept), truth[kept], dates, levels=LEVELS, n_paths=setting.sampling.n_paths,
        every=bench.config.every,
    )  # fmt: skip
    return records(table)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(json.dumps(plain(content), indent=1, allow_nan=False), encoding="utf-8")
