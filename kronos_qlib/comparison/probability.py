"""Probability rows: CRPS, coverage by horizon and PIT of a checkpoint beside the naive distributions."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.comparison.bench import Bench
from kronos_qlib.comparison.checkpoints import find_weights
from kronos_qlib.comparison.distributions import (
    Distribution,
    forecast_distribution,
    garch_distribution,
    histvol_distribution,
)
from kronos_qlib.comparison.run import RunConfig, current_commit
from kronos_qlib.comparison.statistics import write_table
from kronos_qlib.evaluation.bootstrap import bootstrap_skill
from kronos_qlib.evaluation.conformal import IntervalCalibration, calibrate_intervals
from kronos_qlib.evaluation.outcomes import realised_returns
from kronos_qlib.evaluation.probability import interval_coverage, pit_histogram
from kronos_qlib.forecast.reduction import LEVELS, CheckpointSource, ReductionPlan, reduce_forecasts
from kronos_qlib.handler import find_calendar
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.swap import whole_file

HORIZON, N_PATHS = 10, 64
REFERENCE = "histvol20"
GROUPS = 3
CALIBRATION = "calibration.json"
NOMINAL = 0.9


def judge_probability(
    config: RunConfig, segment: str, *, every: int = 1, n_paths: int = N_PATHS, horizon: int = HORIZON
) -> list[str]:
    """Judge HistVol20, GARCH-t and the checkpoint of ``config.given["CHECKPOINT"]`` (if any) on the same windows.

    Writes ``probability_<segment>.csv`` beside the rows. On valid, the recalibration measured there is learned on its
    first half and judged on its second; the one learned on all of valid is kept in the state folder for test.

    Returns
    -------
    Lines to print.

    Raises
    ------
    ValueError : test without a calibration of this checkpoint, this ``every`` and sampling, learned on valid.
    """
    bench = Bench(config.protocol, config.store, segment)
    location = config.given.get("CHECKPOINT")
    weights = find_weights([str(location)] if location else [])
    settings = {"checkpoint": weights.fingerprint, "data": bench.store_fingerprint, "n_paths": n_paths,
                "horizon": horizon, "every": every}  # fmt: skip
    calibrations = _read_calibrations(config.state, settings) if segment == "test" else {}
    rows, index = judged_windows(bench, every)
    truth = realised_returns(bench.panel, rows, horizon)
    lines, found = [], {}
    for name, make in _makers(bench, rows, truth, location, n_paths, horizon).items():
        began = time.perf_counter()
        found[name] = make()
        lines.append(f"{name}: {len(rows)} windows, {time.perf_counter() - began:.0f} s")
    dates = pd.DatetimeIndex(index.get_level_values("datetime"))
    used, judged = calibrations, np.ones(len(rows), dtype=bool)
    if segment == "valid":
        calibrations = {name: _learn(d, truth, _early(dates, horizon)) for name, d in found.items()}
        used = {name: _learn(d, truth, _early(dates, horizon, half=True)) for name, d in found.items()}
        judged = ~_early(dates, 0, half=True)
    table = probability_table(found, truth, dates, _group_columns(bench, rows), used, judged, horizon)
    stamps: dict[str, Any] = {"segment": segment, "commit": current_commit(), "data": bench.store_fingerprint,
              "every": every, "n_paths": n_paths if location else 0, "checkpoint": weights.fingerprint,
              "trained_on_segment": weights.seen(bench.start)}  # fmt: skip
    for position, (name, value) in enumerate(stamps.items()):
        table.insert(position, name, value)
    write_table(config.results.with_name(f"probability_{segment}.csv"), table)
    if segment == "valid":
        _keep_calibrations(config.state, settings, calibrations)
    whole = table[(table["step"] == 0) & (table["group"] == "all")]
    return lines + [
        f"{row.method}: CRPS {row.crps:.5f}, skill {row.skill:+.2%} [{row.skill_lower:+.2%}, {row.skill_upper:+.2%}], "
        f"90 % interval holds {row.coverage_90:.1%}, recalibrated {row.recalibrated_90:.1%}"
        for row in whole.itertuples()
    ]  # fmt: skip


def judged_windows(bench: Bench, every: int) -> tuple[NDArray[np.int64], pd.MultiIndex]:
    """Panel rows of the members that traded, on every so many sessions, with their (datetime, instrument)."""
    chosen = set(bench.sessions[::every])
    dates = bench.age.index.get_level_values("datetime")
    kept = (bench.age.to_numpy() == 0) & np.array([date in chosen for date in dates])
    index = bench.age.index[kept]
    assert isinstance(index, pd.MultiIndex)
    return bench.row.to_numpy()[kept], index


def probability_table(
    found: Mapping[str, Distribution],
    truth: NDArray[np.float64],
    dates: pd.DatetimeIndex,
    groups: pd.DataFrame,
    calibrations: Mapping[str, IntervalCalibration],
    judged: NDArray[np.bool_],
    horizon: int,
) -> pd.DataFrame:
    """One row a method, group (``all``, ``size_1`` …) and step (0: all steps together; groups have only that).

    All methods are judged on the windows and steps on which every one has a CRPS. ``skill`` is ``1 - mean CRPS / mean
    CRPS of histvol20``, by date, with a 95 % block-bootstrap interval. ``recalibrated_90`` is measured on ``judged``.
    """
    common = np.all([np.isfinite(distribution.crps) for distribution in found.values()], axis=0)
    if not common.any():
        raise ValueError("no window has a truth and a forecast of every method")
    losses = {name: np.where(common, d.crps, np.nan) for name, d in found.items()}
    rows = []
    for name, distribution in found.items():
        known = np.where(common, truth, np.nan)
        for step in range(horizon + 1):
            steps = slice(None) if step == 0 else slice(step - 1, step)
            row = _row(distribution, known, losses, name, dates, steps, horizon)
            row["recalibrated_90"] = _recalibrated(distribution, known, calibrations.get(name), judged, steps)
            rows.append({"method": name, "group": "all", "step": step} | row)
        for label, member in _members(groups):
            inside = np.where(member[:, None], known, np.nan)
            own = {other: np.where(member[:, None], loss, np.nan) for other, loss in losses.items()}
            row = _row(distribution, inside, own, name, dates, slice(None), horizon)
            row["recalibrated_90"] = _recalibrated(distribution, inside, calibrations.get(name), judged, slice(None))
            rows.append({"method": name, "group": label, "step": 0} | row)
    return pd.DataFrame(rows)


def _row(
    distribution: Distribution, truth: NDArray[np.float64], losses: Mapping[str, NDArray[np.float64]], name: str,
    dates: pd.DatetimeIndex, steps: slice, horizon: int,
) -> dict[str, Any]:  # fmt: skip
    daily, reference = (_daily(losses[key][:, steps], dates) for key in (name, REFERENCE))
    row: dict[str, Any] = {"windows": int(np.isfinite(truth[:, steps]).any(axis=1).sum()), "days": len(daily)}
    row["crps"] = float(daily.mean())
    skill = bootstrap_skill(daily, reference, horizon=horizon) if name != REFERENCE else None
    row["skill"] = skill.estimate if skill else 0.0
    row["skill_lower"], row["skill_upper"] = (skill.lower, skill.upper) if skill else (0.0, 0.0)
    for position, level in enumerate(LEVELS):
        low, high = distribution.lower[:, position, steps], distribution.upper[:, position, steps]
        row[f"coverage_{100 * level:g}"], row[f"width_{100 * level:g}"] = _share(low, high, truth[:, steps])
    pit = np.where(np.isfinite(truth[:, steps]), distribution.pit[:, steps], np.nan).reshape(-1, 1)
    shares = pit_histogram(pit).to_numpy()[0]
    return row | {f"pit_{number}": float(share) for number, share in enumerate(shares)}


def _share(low: NDArray[np.float64], high: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """Share of truths inside, and mean width, over windows and steps together."""
    table = interval_coverage(low.reshape(-1, 1), high.reshape(-1, 1), truth.reshape(-1, 1))
    return float(table["coverage"].iloc[0]), float(table["width"].iloc[0])


def _recalibrated(
    distribution: Distribution, truth: NDArray[np.float64], calibration: IntervalCalibration | None,
    judged: NDArray[np.bool_], steps: slice,
) -> float:  # fmt: skip
    if calibration is None:
        return float("nan")
    position = LEVELS.index(NOMINAL)
    low, high = calibration.apply(distribution.lower[:, position], distribution.centre, distribution.upper[:, position])
    return _share(low[judged][:, steps], high[judged][:, steps], truth[judged][:, steps])[0]


def _learn(distribution: Distribution, truth: NDArray[np.float64], used: NDArray[np.bool_]) -> IntervalCalibration:
    position = LEVELS.index(NOMINAL)
    return calibrate_intervals(
        distribution.lower[used, position], distribution.centre[used], distribution.upper[used, position], truth[used],
        level=NOMINAL,
    )  # fmt: skip


def _early(dates: pd.DatetimeIndex, purged: int, *, half: bool = False) -> NDArray[np.bool_]:
    """Windows of all dates (or of the first half) but the last ``purged``: their truths are known when it ends.

    ``purged`` counts the dates in use; with every k-th session that leaves out more than needed, never less.
    """
    days = dates.unique().sort_values()
    end = len(days) // 2 if half else len(days)
    kept = days[: max(end - purged, 0)]
    return np.asarray(dates.isin(kept))


def _daily(values: NDArray[np.float64], dates: pd.DatetimeIndex) -> pd.Series:
    """Mean over the windows and steps of each date; dates without any are left out."""
    flat = pd.Series(np.repeat(dates.to_numpy(), values.shape[1])).rename("datetime")
    return pd.Series(values.reshape(-1)).groupby(flat).mean().dropna()


def _members(groups: pd.DataFrame) -> list[tuple[str, NDArray[np.bool_]]]:
    return [
        (f"{name}_{number}", groups[name].to_numpy() == number) for name in groups for number in range(1, GROUPS + 1)
    ]


def _group_columns(bench: Bench, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Group (1: lowest) of each window by size and volatility within its date, 0 where unknown."""
    kept = bench.row.isin(rows) & (bench.age == 0)
    known = bench.columns.loc[kept.to_numpy(), ["size", "volatility"]]
    ranked = known.groupby(level="datetime").rank(pct=True)
    groups = (ranked * GROUPS).map(np.ceil).fillna(0).astype(np.int64)
    order = pd.Series(np.arange(len(groups)), index=bench.row[kept.to_numpy()].to_numpy()).reindex(rows)
    return groups.iloc[order.to_numpy()].reset_index(drop=True)


def _makers(
    bench: Bench, rows: NDArray[np.int64], truth: NDArray[np.float64], location: Any, n_paths: int, horizon: int
) -> dict[str, Any]:
    makers: dict[str, Any] = {
        REFERENCE: lambda: histvol_distribution(bench.panel, rows, truth),
        "garch_t": lambda: garch_distribution(bench.panel, rows, truth),
    }
    if location:

        def kronos() -> Distribution:
            forecaster = CheckpointSource(str(location)).load()
            policy = bench.policy if forecaster.lookback == bench.policy.lookback else None
            plan = ReductionPlan(
                policy or _policy(bench, forecaster.lookback), horizon,
                SamplingConfig(n_paths=n_paths, temperature=1.0, top_p=1.0), find_calendar(None, "day"),
                {"expected_return": ("expected_return", None)},
            )  # fmt: skip
            return forecast_distribution(reduce_forecasts(forecaster, bench.panel, rows, truth, plan), n_paths)

        makers["kronos"] = kronos
    return makers


def _policy(bench: Bench, lookback: int) -> Any:
    from dataclasses import replace

    return replace(bench.policy, lookback=lookback, min_bars=min(bench.policy.min_bars, lookback))


def _keep_calibrations(
    folder: Path, settings: Mapping[str, Any], calibrations: Mapping[str, IntervalCalibration]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "intervals": {name: found.to_dict() for name, found in calibrations.items()}}
    with whole_file(folder / CALIBRATION) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read_calibrations(folder: Path, settings: Mapping[str, Any]) -> dict[str, IntervalCalibration]:
    path = folder / CALIBRATION
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if content.get("settings") != settings:
        raise ValueError(
            f"{path} has no recalibration learned on valid with {dict(settings)}; run `benchmark probability --segment "
            "valid` with the same options first"
        )
    return {name: IntervalCalibration.from_dict(found) for name, found in content["intervals"].items()}
