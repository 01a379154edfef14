"""The table of the probability rows: scores with paired skills, coverage, PIT, by horizon and by group of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.comparison.calibrations import NOMINAL
from kronos_qlib.comparison.distributions import Distribution
from kronos_qlib.evaluation.bootstrap import bootstrap_skill
from kronos_qlib.evaluation.conformal import IntervalCalibration
from kronos_qlib.evaluation.probability import interval_coverage, pit_histogram
from kronos_qlib.forecast.reduction import LEVELS

REFERENCE, GARCH = "histvol20", "garch_t"
SKILLS = {"skill": REFERENCE, "skill_garch": GARCH}  # column to the method that a row is set against
GROUPS = 3


def probability_table(
    found: Mapping[str, Distribution],
    truth: NDArray[np.float64],
    dates: pd.DatetimeIndex,
    groups: pd.DataFrame,
    intervals: Mapping[str, IntervalCalibration],
    *,
    overlap: int = 1,
) -> pd.DataFrame:
    """One row a method, group (``all``, ``size_1`` …) and step (0: all steps together; groups have only that).

    All methods are judged on the windows and steps on which every one has a CRPS. ``skill`` is ``1 - mean CRPS / mean
    CRPS of histvol20``, by date, with a 95 % block-bootstrap interval; ``skill_garch`` the same against garch_t, NaN
    without it. ``recalibrated_90`` is the coverage with ``intervals``, NaN for a method without.

    Parameters
    ----------
    found : by method, n windows. truth : float64 (n, S). dates : (n,). groups : n rows, a group a column.
    intervals : learned on other windows than these. overlap : dates over which a truth extends, the shortest block.

    Raises
    ------
    ValueError : no common window, or too few dates for an interval.
    """
    common = np.all([np.isfinite(distribution.crps) for distribution in found.values()], axis=0)
    if not common.any():
        raise ValueError("no window has a truth and a forecast of every method")
    steps = truth.shape[1]
    cuts = [("all", step, np.ones(len(truth), dtype=bool)) for step in range(steps + 1)]
    cuts += [(label, 0, member) for label, member in _members(groups)]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    for label, step, member in cuts:
        part = slice(None) if step == 0 else slice(step - 1, step)
        use = common & member[:, None]
        known = np.where(use, truth, np.nan)
        windows = int(np.isfinite(known[:, part]).any(axis=1).sum())
        daily = {name: _daily(np.where(use, d.crps, np.nan)[:, part], dates) for name, d in found.items()}
        for name, distribution in found.items():
            row = {"method": name, "group": label, "step": step, "windows": windows}
            row |= _scores(daily, name, overlap) | _shape(distribution, known, part)
            row["recalibrated_90"] = _recalibrated(distribution, known, intervals.get(name), part)
            rows[name].append(row)
    return pd.DataFrame([row for mine in rows.values() for row in mine])


def _scores(daily: Mapping[str, pd.Series], name: str, overlap: int) -> dict[str, Any]:
    row: dict[str, Any] = {"days": len(daily[name]), "crps": float(daily[name].mean())}
    for column, rival in SKILLS.items():
        figures = (0.0, 0.0, 0.0) if rival == name else (np.nan, np.nan, np.nan)
        if rival in daily and rival != name:
            found = bootstrap_skill(daily[name], daily[rival], horizon=overlap)
            figures = (found.estimate, found.lower, found.upper)
        row |= dict(zip((column, f"{column}_lower", f"{column}_upper"), figures, strict=True))
    return row


def _shape(distribution: Distribution, truth: NDArray[np.float64], steps: slice) -> dict[str, float]:
    row = {}
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
    distribution: Distribution, truth: NDArray[np.float64], calibration: IntervalCalibration | None, steps: slice
) -> float:
    if calibration is None:
        return float("nan")
    position = LEVELS.index(NOMINAL)
    low, high = calibration.apply(distribution.lower[:, position], distribution.centre, distribution.upper[:, position])
    return _share(low[:, steps], high[:, steps], truth[:, steps])[0]


def _daily(values: NDArray[np.float64], dates: pd.DatetimeIndex) -> pd.Series:
    """Mean over the windows and steps of each date; dates without any are left out."""
    flat = pd.Series(np.repeat(dates.to_numpy(), values.shape[1])).rename("datetime")
    return pd.Series(values.reshape(-1)).groupby(flat).mean().dropna()


def _members(groups: pd.DataFrame) -> list[tuple[str, NDArray[np.bool_]]]:
    return [
        (f"{name}_{number}", groups[name].to_numpy() == number) for name in groups for number in range(1, GROUPS + 1)
    ]
