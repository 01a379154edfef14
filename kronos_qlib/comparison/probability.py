"""Probability rows: CRPS, coverage by horizon and PIT of a checkpoint, raw and recalibrated, beside naive ones."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.comparison.bench import Bench
from kronos_qlib.comparison.calibrations import RAW, Calibrations
from kronos_qlib.comparison.checkpoints import find_weights
from kronos_qlib.comparison.distributions import (
    Distribution,
    Ensemble,
    GarchFigures,
    histvol_distribution,
    recent_volatility,
)
from kronos_qlib.comparison.kept import kept_array
from kronos_qlib.comparison.probability_table import GARCH, GROUPS, REFERENCE, SKILLS, probability_table
from kronos_qlib.comparison.run import RunConfig, current_commit
from kronos_qlib.comparison.sampled import Forecast, SampledReturns, describe_windows
from kronos_qlib.comparison.statistics import write_table
from kronos_qlib.evaluation.outcomes import realised_returns
from kronos_qlib.forecast.reduction import CheckpointSource, choose_estimator
from kronos_qlib.kronos import SamplingConfig

HORIZON, N_PATHS = 10, 64
# the model's own distribution, drawn independently, as the fair CRPS supposes
SAMPLING = SamplingConfig(n_paths=N_PATHS, temperature=1.0, top_p=1.0)
ARRAYS = "probability"
WHOLE, SECOND_HALF = "all", "second_half"


def judge_probability(
    config: RunConfig, segment: str, *, every: int = 1, sampling: SamplingConfig = SAMPLING, horizon: int = HORIZON,
    dtype: str = "float32", jobs: int = 1, progress: bool = True,
) -> list[str]:  # fmt: skip
    """Judge HistVol20, GARCH-t and the checkpoint of ``config.given["CHECKPOINT"]`` (if any) on the same windows.

    Writes ``probability_<segment>.csv`` beside the rows. The checkpoint has two rows: ``kronos``, its paths as they
    are, and ``kronos_recalibrated``, scaled around their median (see ``evaluation.spread_calibration``). What is
    recalibrated is learned on valid: for test on all of it but the last ``horizon`` dates in use; for valid's own rows
    on its first half, and these are judged on the second (``part`` is ``second_half``; all methods are shown there, and
    those that learn nothing on the whole segment as well).

    Sampled paths and GARCH-t's figures are kept in ``probability/`` of the state folder, chunk by chunk, so that a
    killed run goes on where it was; other weights, sampling, dtype, windows or data begin anew in another folder.

    Parameters
    ----------
    every : use every so many sessions. sampling : of the checkpoint; the CRPS of draws that are not independent is the
        ensemble's own, which is a little too high (:func:`kronos_qlib.forecast.reduction.choose_estimator`).
    dtype : of the networks. jobs : processes; no figure depends on it.

    Returns
    -------
    Lines to print.

    Raises
    ------
    ValueError : test without a calibration of this checkpoint, this ``every``, sampling and dtype, learned on valid;
        a checkpoint with fewer than 4 paths.
    """
    bench = Bench(config.protocol, config.store, segment)
    location = str(config.given.get("CHECKPOINT") or "")
    weights = find_weights([location] if location else [])
    forecast = _forecast(bench, location, sampling, horizon, dtype)
    settings = {"data": bench.store_fingerprint, "horizon": horizon, "every": every,
                "forecast": forecast.description if forecast else None}  # fmt: skip
    learned = Calibrations.read(config.state, settings) if segment == "test" else None
    windows = _Windows.of(bench, every, horizon)
    arrays = _Arrays(bench, windows, config.state / ARRAYS, jobs, progress)
    found, ensemble = arrays.distributions(forecast)
    if learned is None:
        learned = Calibrations.learn(found, ensemble, windows.truth, early_dates(windows.dates, horizon))
        learned.keep(config.state, settings)
        table = _valid_table(windows, found, ensemble)
    else:
        table = windows.table(learned.complete(found, ensemble, windows.truth), learned, WHOLE)
    stamps: dict[str, Any] = {
        "segment": segment, "commit": current_commit(), "data": bench.store_fingerprint, "every": every,
        "n_paths": sampling.n_paths if location else 0, "scheme": sampling.scheme if location else "",
        "order": sampling.order if location else "", "dtype": dtype if location else "",
        "estimator": choose_estimator(sampling) if location else "",
        "checkpoint": weights.fingerprint, "trained_on_segment": weights.seen(bench.start),
    }  # fmt: skip
    for position, (name, value) in enumerate(stamps.items()):
        table.insert(position, name, value)
    write_table(config.results.with_name(f"probability_{segment}.csv"), table)
    return [*arrays.lines, *learned.describe(), *_describe(table)]


def judged_windows(bench: Bench, every: int) -> tuple[NDArray[np.int64], pd.MultiIndex]:
    """Panel rows of the members that traded, on every so many sessions, with their (datetime, instrument)."""
    chosen = set(bench.sessions[::every])
    dates = bench.age.index.get_level_values("datetime")
    kept = (bench.age.to_numpy() == 0) & np.array([date in chosen for date in dates])
    index = bench.age.index[kept]
    assert isinstance(index, pd.MultiIndex)
    return bench.row.to_numpy()[kept], index


def early_dates(dates: pd.DatetimeIndex, purged: int, *, half: bool = False) -> NDArray[np.bool_]:
    """Windows of all dates (or of the first half) but the last ``purged``: their truths are known when it ends.

    ``purged`` counts the dates in use; with every k-th session that leaves out more than needed, never less.
    """
    days = dates.unique().sort_values()
    end = len(days) // 2 if half else len(days)
    kept = days[: max(end - purged, 0)]
    return np.asarray(dates.isin(kept))


@dataclass(frozen=True, eq=False)
class _Windows:
    """Judged windows: panel rows, dates, truths and groups; every so many sessions."""

    rows: NDArray[np.int64]
    dates: pd.DatetimeIndex
    truth: NDArray[np.float64]
    groups: pd.DataFrame
    every: int

    @classmethod
    def of(cls, bench: Bench, every: int, horizon: int) -> _Windows:
        rows, index = judged_windows(bench, every)
        dates = pd.DatetimeIndex(index.get_level_values("datetime"))
        return cls(rows, dates, realised_returns(bench.panel, rows, horizon), _group_columns(bench, rows), every)

    def table(
        self, found: Mapping[str, Distribution], learned: Calibrations, part: str,
        kept: NDArray[np.bool_] | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Rows on all windows, or on those in ``kept``."""
        used = np.ones(len(self.rows), dtype=bool) if kept is None else kept
        table = probability_table(
            {name: distribution.select(used) for name, distribution in found.items()}, self.truth[used],
            self.dates[used], self.groups[used].reset_index(drop=True), learned.intervals,
            overlap=-(-self.truth.shape[1] // self.every),
        )  # fmt: skip
        table.insert(0, "part", part)
        return table


class _Arrays:
    """The distributions of all methods, as far as they are kept, computed otherwise; ``lines`` say how long it took."""

    def __init__(self, bench: Bench, windows: _Windows, folder: Path, jobs: int, progress: bool) -> None:
        self.bench, self.windows, self.folder, self.jobs, self.progress = bench, windows, folder, jobs, progress
        self.origin = describe_windows(bench, windows.rows)
        self.lines: list[str] = []

    def distributions(self, forecast: Forecast | None) -> tuple[dict[str, Distribution], Ensemble | None]:
        """By method, as they are, and the paths of the checkpoint."""
        panel, rows, truth = self.bench.panel, self.windows.rows, self.windows.truth
        spread = recent_volatility(panel, rows)
        found = {
            REFERENCE: histvol_distribution(spread, truth),
            GARCH: GarchFigures.read(self._kept(GarchFigures(rows, truth, self.origin))),
        }
        if forecast is None:
            return found, None
        paths = self._kept(SampledReturns(forecast, rows, self.origin))
        reference = spread[:, None] * np.sqrt(np.arange(1, truth.shape[1] + 1))
        ensemble = Ensemble(paths, reference, choose_estimator(forecast.sampling))
        return {**found, RAW: ensemble.distribution(truth)}, ensemble

    def _kept(self, work: GarchFigures | SampledReturns) -> NDArray[Any]:
        began = time.perf_counter()
        values = kept_array(self.folder, work, self.bench.panel, jobs=self.jobs, progress=self.progress)
        self.lines.append(f"{work.name}: {len(values)} windows, {time.perf_counter() - began:.0f} s")
        return values


def _forecast(bench: Bench, location: str, sampling: SamplingConfig, horizon: int, dtype: str) -> Forecast | None:
    if not location:
        return None
    if sampling.n_paths < 4:
        raise ValueError(f"found {sampling.n_paths} paths; a recalibration needs at least 4")
    return Forecast.on_bench(bench, CheckpointSource(location, dtype=dtype), horizon, sampling)


def _valid_table(windows: _Windows, found: Mapping[str, Distribution], ensemble: Ensemble | None) -> pd.DataFrame:
    dates, truth = windows.dates, windows.truth
    half = Calibrations.learn(found, ensemble, truth, early_dates(dates, truth.shape[1], half=True))
    judged = ~early_dates(dates, 0, half=True)
    parts = [
        windows.table(found, Calibrations(), WHOLE),
        windows.table(half.complete(found, ensemble, truth), half, SECOND_HALF, judged),
    ]
    return pd.concat(parts, ignore_index=True)


def _group_columns(bench: Bench, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Group (1: lowest) of each window by size and volatility within its date, 0 where unknown."""
    kept = bench.row.isin(rows) & (bench.age == 0)
    known = bench.columns.loc[kept.to_numpy(), ["size", "volatility"]]
    ranked = known.groupby(level="datetime").rank(pct=True)
    groups = (ranked * GROUPS).map(np.ceil).fillna(0).astype(np.int64)
    order = pd.Series(np.arange(len(groups)), index=bench.row[kept.to_numpy()].to_numpy()).reindex(rows)
    return groups.iloc[order.to_numpy()].reset_index(drop=True)


def _describe(table: pd.DataFrame) -> list[str]:
    lines = []
    for row in table[(table["step"] == 0) & (table["group"] == "all")].to_dict(orient="records"):
        skills = [
            f"{rival} {row[column]:+.2%} [{row[f'{column}_lower']:+.2%}, {row[f'{column}_upper']:+.2%}]"
            for column, rival in SKILLS.items()
            if rival != row["method"]
        ]
        conformal = f", conformal {row['recalibrated_90']:.1%}" if np.isfinite(row["recalibrated_90"]) else ""
        part = "" if row["part"] == WHOLE else " (second half)"
        lines.append(
            f"{row['method']}{part}: CRPS {row['crps']:.5f}, skill against {' and '.join(skills)}, 90 % interval holds "
            f"{row['coverage_90']:.1%}{conformal}"
        )
    return lines
