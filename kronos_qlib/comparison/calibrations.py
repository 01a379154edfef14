"""Recalibrations of the probability rows: learned on valid, kept in the state folder, read for test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.comparison.distributions import Distribution, Ensemble
from kronos_qlib.evaluation.conformal import IntervalCalibration, calibrate_intervals
from kronos_qlib.evaluation.spread_calibration import SpreadCalibration
from kronos_qlib.forecast.reduction import LEVELS
from kronos_qlib.market.swap import whole_file

CALIBRATION = "calibration.json"
NOMINAL = 0.9
RAW, RECALIBRATED = "kronos", "kronos_recalibrated"


@dataclass(frozen=True, eq=False)
class Calibrations:
    """What some windows have taught.

    Attributes
    ----------
    intervals : by method, of its 90 % interval. spread : of the checkpoint's paths; None without a checkpoint.
    """

    intervals: Mapping[str, IntervalCalibration] = field(default_factory=dict)
    spread: SpreadCalibration | None = None

    @classmethod
    def learn(
        cls, found: Mapping[str, Distribution], ensemble: Ensemble | None, truth: NDArray[np.float64],
        used: NDArray[np.bool_],
    ) -> Self:  # fmt: skip
        """Learn from the windows in ``used``, bool (n,); ValueError where they are too few."""
        methods, spread = {name: part.select(used) for name, part in found.items()}, None
        if ensemble is not None:
            own = ensemble.select(used)
            spread = own.learn(truth[used])
            methods[RECALIBRATED] = own.recalibrated(truth[used], spread)
        return cls({name: _intervals(part, truth[used]) for name, part in methods.items()}, spread)

    def complete(
        self, found: Mapping[str, Distribution], ensemble: Ensemble | None, truth: NDArray[np.float64]
    ) -> dict[str, Distribution]:
        """The distributions, and the recalibrated one of the checkpoint beside them."""
        if ensemble is None or self.spread is None:
            return dict(found)
        return {**found, RECALIBRATED: ensemble.recalibrated(truth, self.spread)}

    def keep(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write them with the settings that they hold for."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "settings": settings,
            "intervals": {name: found.to_dict() for name, found in self.intervals.items()},
            "spread": None if self.spread is None else self.spread.to_dict(),
        }
        with whole_file(folder / CALIBRATION) as partial:
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, settings: Mapping[str, Any]) -> Self:
        """Read what :meth:`keep` wrote; ValueError where there is none, or one of other settings."""
        path = folder / CALIBRATION
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if content.get("settings") != json.loads(json.dumps(settings)) or "spread" not in content:
            raise ValueError(
                f"{path} has no recalibration learned on valid with {dict(settings)}; run `benchmark probability "
                "--segment valid` with the same options first"
            )
        intervals = {name: IntervalCalibration.from_dict(found) for name, found in content["intervals"].items()}
        return cls(intervals, content["spread"] and SpreadCalibration.from_dict(content["spread"]))

    def describe(self) -> list[str]:
        """The numbers of the spread, a line a step."""
        if self.spread is None:
            return []
        numbers = zip(
            self.spread.log_factor, self.spread.shrinkage, self.spread.centre, self.spread.counts, strict=True
        )
        return [
            f"{RECALIBRATED}, step {step}: spread x {np.exp(a):.3f} x (histvol20 / spread)^{b:.3f}, median x {c:.3f} "
            f"(learned from {count} windows)"
            for step, (a, b, c, count) in enumerate(numbers, start=1)
        ]


def _intervals(distribution: Distribution, truth: NDArray[np.float64]) -> IntervalCalibration:
    position = LEVELS.index(NOMINAL)
    return calibrate_intervals(
        distribution.lower[:, position], distribution.centre, distribution.upper[:, position], truth, level=NOMINAL
    )
