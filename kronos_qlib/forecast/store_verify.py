"""Recompute a sample of stored rows and compare bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.forecast.store_build import compute_checked
from kronos_qlib.forecast.store_files import read_rows
from kronos_qlib.forecast.store_plan import CHANGED, MISSING, PRESENT, row_states
from kronos_qlib.forecast.store_source import FactorSource, WantedRows

_SHOWN = 10


@dataclass
class VerifyReport:
    """What a verification found.

    Attributes
    ----------
    checked : rows recomputed.
    missing, changed : wanted rows that are not in the store, or rest on data that has changed since; a build's work.
    wrong : up to ten values (instrument, datetime, column, stored, computed) that differ.
    wrong_rows : rows with such a value.
    """

    checked: int = 0
    missing: int = 0
    changed: int = 0
    wrong_rows: int = 0
    wrong: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every value checked was the stored one."""
        return self.wrong_rows == 0

    def add(self, other: VerifyReport) -> None:
        """Add what was found of another source."""
        self.checked += other.checked
        self.missing += other.missing
        self.changed += other.changed
        self.wrong_rows += other.wrong_rows
        self.wrong = (self.wrong + other.wrong)[:_SHOWN]

    def __str__(self) -> str:
        lines = [f"{self.checked:,} rows recomputed: {self.wrong_rows:,} differ from the store"]
        lines += [
            f"  {entry['instrument']} {entry['datetime']} {entry['column']}: stored {entry['stored']!r}, "
            f"computed {entry['computed']!r}"
            for entry in self.wrong
        ]
        if self.missing or self.changed:
            lines.append(f"{self.missing:,} rows are missing, {self.changed:,} rest on changed data: run a build")
        if not self.ok:
            lines.append("remove the source (kronos-qlib factors rm) and build it again")
        return "\n".join(lines)


def verify_source(folder: Path, source: FactorSource, wanted: WantedRows, sample: int, seed: int) -> VerifyReport:
    """Recompute ``sample`` rows drawn with ``seed`` from the stored ones; NaN equals NaN, else every bit counts."""
    state = row_states(folder, wanted)
    report = VerifyReport(
        missing=int(np.count_nonzero(state == MISSING)), changed=int(np.count_nonzero(state == CHANGED))
    )
    present = np.flatnonzero(state == PRESENT)
    chosen = np.sort(np.random.default_rng(seed).permutation(present)[:sample])
    if not len(chosen):
        return report
    rows = wanted.take(chosen)
    stored = _stored(folder, source, rows)
    computed = compute_checked(source, rows)
    wrong = ~((np.isnan(stored) & np.isnan(computed)) | (stored.view(np.uint32) == computed.view(np.uint32)))
    report.checked, report.wrong_rows = len(rows), int(wrong.any(axis=1).sum())
    names = rows.names()
    for row, column in np.argwhere(wrong)[:_SHOWN]:
        report.wrong.append(
            {
                "instrument": names[row],
                "datetime": str(pd.Timestamp(rows.timestamps[row])),
                "column": source.columns[column],
                "stored": float(stored[row, column]),
                "computed": float(computed[row, column]),
            }
        )
    return report


def _stored(folder: Path, source: FactorSource, rows: WantedRows) -> npt.NDArray[np.float32]:
    first, last = pd.Timestamp(rows.timestamps.min()), pd.Timestamp(rows.timestamps.max())
    names = rows.names()
    found = read_rows(folder, source.columns, first, last, instruments=sorted(set(names)))
    index = pd.MultiIndex.from_arrays([found.pop("datetime"), found.pop("instrument").astype(str)])
    place = index.get_indexer(pd.MultiIndex.from_arrays([rows.timestamps, names]))
    return np.ascontiguousarray(found.to_numpy(dtype=np.float32)[place])
