"""Rows of the table: one line of a CSV file a run, read and checked, written whole."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.forecast.store_lock import wait_for_lock
from kronos_qlib.market.swap import whole_file

FIGURES = (
    "ic", "icir", "ic_t", "rank_ic", "rank_icir", "rank_ic_t", "excess_return", "net_excess_return",
    "information_ratio", "max_drawdown", "turnover",
)  # fmt: skip
STATUSES = ("done", "not run")
FLAGS = ("yes", "no", "unknown")


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes
    ----------
    method, family, configuration, seed, segment : what ran. key : names its files in the state folder.
    status : ``done``, or ``not run`` with a ``reason``; then the figures are NaN.
    commit : of the code. data, checkpoint : fingerprints. trained_on_segment : whether weights saw dates of the
        segment (``unknown`` for a checkpoint without a cutoff). stopped_on_segment : whether the learner's early
        stopping, or a choice of settings, used labels of the segment.
    first, last : dates of the judged days. days, rows : judged. coverage : share of the judged rows with a score.
    ic … rank_ic_t : means over days, mean / std, and Newey–West t.
    excess_return, net_excess_return : a year over the benchmark, before and after cost. information_ratio (a year),
        max_drawdown : after cost. turnover : value traded a day over the account, both ways.
    seconds, cpu_seconds : wall time of the run; CPU time of its process and of judging it.
    """

    method: str
    family: str
    configuration: str
    seed: int
    segment: str
    key: str
    status: str
    reason: str
    commit: str
    data: str
    checkpoint: str
    trained_on_segment: str
    stopped_on_segment: str
    variants: int
    first: str
    last: str
    days: int
    rows: int
    coverage: float
    ic: float
    icir: float
    ic_t: float
    rank_ic: float
    rank_icir: float
    rank_ic_t: float
    excess_return: float
    net_excess_return: float
    information_ratio: float
    max_drawdown: float
    turnover: float
    seconds: float
    cpu_seconds: float

    def __post_init__(self) -> None:
        where = f"row {self.method} ({self.segment}, seed {self.seed})"
        if self.status not in STATUSES:
            raise ValueError(f"{where}: status {self.status!r}; expected one of {list(STATUSES)}")
        if self.trained_on_segment not in FLAGS or self.stopped_on_segment not in FLAGS:
            raise ValueError(f"{where}: a flag is none of {list(FLAGS)}")
        if self.status == "not run":
            if not self.reason:
                raise ValueError(f"{where}: not run, without a reason")
            return
        missing = [name for name in FIGURES[:6] if not math.isfinite(getattr(self, name))]
        if missing and self.family != "control":
            raise ValueError(f"{where}: no figure for {', '.join(missing)}")
        if not 0.0 <= self.coverage <= 1.0 or self.days < 1 or self.rows < 1:
            raise ValueError(f"{where}: coverage {self.coverage}, {self.days} days, {self.rows} rows cannot be")
        if abs(self.ic) > 1 or abs(self.rank_ic) > 1 or (math.isfinite(self.turnover) and self.turnover < 0):
            raise ValueError(f"{where}: an IC outside -1 to 1, or a negative turnover")
        if not self.data:
            raise ValueError(f"{where}: no fingerprint of the data")


COLUMNS = tuple(item.name for item in fields(Row))


def read_rows(path: Path) -> list[Row]:
    """Read rows; none where there is no file.

    Raises
    ------
    ValueError : other columns, a value of another type, a row that cannot be, or a run twice.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: found the columns {reader.fieldnames}; expected {list(COLUMNS)}")
        rows = [_row(line, path, number) for number, line in enumerate(reader, start=2)]
    keys = [(row.method, row.seed, row.segment) for row in rows]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{path}: a run is listed twice; remove one of its lines")
    return rows


def read_segments(results: Path, name: str) -> dict[str, pd.DataFrame]:
    """Tables of ``NAME_<segment>.csv`` in the order test, valid, as far as there are any."""
    found = {segment: results / f"{name}_{segment}.csv" for segment in ("test", "valid")}
    return {segment: pd.read_csv(path) for segment, path in found.items() if path.is_file()}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows whole or not at all, sorted by segment, family, method and seed; figures with 6 digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: (row.segment, row.family, row.method, row.seed, row.key))
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value) for name, value in asdict(row).items()} for row in ordered)


def add_row(path: Path, row: Row) -> None:
    """Add a row, in place of an earlier one of the same method, seed and segment; runs beside each other take turns."""
    mine = (row.method, row.seed, row.segment)
    with wait_for_lock(path.with_suffix(".lock")):
        kept = [other for other in read_rows(path) if (other.method, other.seed, other.segment) != mine]
        write_rows(path, [*kept, row])


def _row(line: dict[str, str], path: Path, number: int) -> Row:
    values: dict[str, Any] = {}
    for item in fields(Row):
        text = line[item.name]
        try:
            values[item.name] = _parse(str(item.type), text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {item.name} is {text!r}; expected {item.type}") from error
    return Row(**values)


def _parse(kind: str, text: str) -> int | float | str:
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text) if text else float("nan")
    return text


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)
