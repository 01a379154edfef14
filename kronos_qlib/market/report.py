"""The result of checks: counts, examples and severity, printed as a table or saved as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kronos_qlib.market.swap import whole_file

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Attributes
    ----------
    name : str
        Name of the check.
    severity : {"error", "warning", "info"}
        How bad a finding is. A check that found nothing (``count == 0``) passed, whatever its severity.
    count : int
        How many bars (or gaps, or runs, as the message says) were found.
    examples : list of dict
        The most telling findings: instrument, datetime and values, JSON-ready.
    message : str
        What was found and what it means.
    """

    name: str
    severity: Severity
    count: int
    examples: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""


@dataclass(frozen=True)
class ContractReport:
    """What the contract says about a frame of bars. ``print(report)`` shows a table."""

    checks: list[CheckResult]
    rows: int
    instruments: int
    start: str | None
    end: str | None
    freq: str
    region: str
    version: str

    @property
    def has_errors(self) -> bool:
        """True when a check of severity ``error`` found something."""
        return bool(self.errors)

    @property
    def errors(self) -> list[CheckResult]:
        """The checks of severity ``error`` that found something."""
        return [check for check in self.checks if check.severity == "error" and check.count]

    @property
    def findings(self) -> list[CheckResult]:
        """The checks that found something, errors first."""
        ranks = {"error": 0, "warning": 1, "info": 2}
        found = [check for check in self.checks if check.count]
        return sorted(found, key=lambda check: ranks[check.severity])

    def __getitem__(self, name: str) -> CheckResult:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r} was run; these were: {[check.name for check in self.checks]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, JSON-ready, with ``has_errors`` added."""
        return {**asdict(self), "has_errors": self.has_errors}

    def to_json(self, path: str | Path) -> None:
        """Save as JSON; the file appears whole or not at all."""
        write_json(self.to_dict(), path)

    def __str__(self) -> str:
        head = f"{self.rows:,} bars of {self.instruments:,} instruments, {self.start} to {self.end}"
        lines = [f"{head} (freq {self.freq}, region {self.region}, contract {self.version})"]
        for check in self.findings:
            lines.append(f"{check.severity:<8}{check.name:<34}{check.count:>10,}  {check.message}")
            lines += [f"{'':<54}{format_example(example)}" for example in check.examples[:3]]
        passed = sum(not check.count for check in self.checks)
        verdict = "not usable before its errors are repaired" if self.has_errors else "no errors"
        return "\n".join([*lines, f"{passed} of {len(self.checks)} checks found nothing; {verdict}"])


def format_example(example: dict[str, Any]) -> str:
    """One line of an example: its instrument and date, then the other values."""
    keys = " ".join(str(example[key]) for key in ("instrument", "datetime") if key in example)
    rest = (f"{key}={value}" for key, value in example.items() if key not in ("instrument", "datetime"))
    return " ".join([keys, *rest]).strip()


def write_json(content: dict[str, Any], path: str | Path) -> None:
    """Write JSON beside its place and move it there, so that no half-written file is ever left."""
    with whole_file(Path(path)) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """A value of a frame as JSON knows it: 6 significant digits, ISO stamps, None for a missing one."""
    if isinstance(value, np.datetime64 | pd.Timestamp):
        return None if pd.isna(value) else format_stamp(pd.Timestamp(value))
    if isinstance(value, float | np.floating):
        number = float(value)
        if not np.isfinite(number):
            return None if np.isnan(number) else str(number)
        return float(f"{number:.6g}") if abs(number) < 1e6 else float(f"{number:.10g}")
    return value.item() if isinstance(value, np.generic) else value


def format_stamp(stamp: pd.Timestamp) -> str:
    """ISO date, with the time of day where there is one."""
    return stamp.date().isoformat() if stamp == stamp.normalize() else stamp.isoformat(sep=" ")


def plain_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Examples as JSON knows them."""
    return [{key: plain(value) for key, value in row.items()} for row in rows]
