"""Repairs of bars by a named policy. Every value that changes is counted, and its bar is marked as repaired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.market import repair_fill
from kronos_qlib.market.checks_structure import REQUIRED_COLUMNS, form_checks, missing_keys
from kronos_qlib.market.columns import BarColumns
from kronos_qlib.market.fields import BAR_FIELDS, PRICE_FIELDS
from kronos_qlib.market.repair_policy import POLICIES, RepairPolicy, repair_policy
from kronos_qlib.market.report import format_example, plain_rows, write_json
from kronos_qlib.market.rules import bad_prices, bad_quantities, bad_ranges, empty_bars

__all__ = ["POLICIES", "RepairPolicy", "RepairReport", "repair_bars", "repair_policy"]

MAX_EXAMPLES = 10


@dataclass
class RepairReport:
    """What a repair did.

    Attributes
    ----------
    policy : dict
        The policy, see ``RepairPolicy.to_dict``.
    rows_in, rows_out : int
        Bars before and after.
    counts : dict of int
        How often each repair was made: values for fills, bars for drops and sorting. No key means never.
    examples : dict of list
        Up to ten repaired places for each count.
    """

    policy: dict[str, Any]
    rows_in: int = 0
    rows_out: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of repairs; 0 when the frame came back as it was."""
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        return asdict(self)

    def to_json(self, path: str | Path) -> None:
        """Save as JSON; the file appears whole or not at all."""
        write_json(self.to_dict(), path)

    def __str__(self) -> str:
        head = f"repair policy {self.policy['name']} (version {self.policy['version']})"
        lines = [f"{head}: {self.rows_in:,} bars in, {self.rows_out:,} out, {self.total:,} repairs"]
        for name, count in self.counts.items():
            first = format_example(self.examples[name][0]) if self.examples[name] else ""
            lines.append(f"  {name:<32}{count:>10,}  {f'first {first}' if first else ''}".rstrip())
        return "\n".join(lines)

    def note(self, name: str, columns: BarColumns, mask: np.ndarray) -> None:
        """Count the bars of a mask (R,) under a name, with examples."""
        rows = np.flatnonzero(mask)
        if not len(rows):
            return
        self.counts[name] = self.counts.get(name, 0) + len(rows)
        places = [
            {"instrument": columns.names[columns.code[row]], "datetime": columns.stamps[row]}
            for row in rows[:MAX_EXAMPLES]
        ]
        self.examples[name] = (self.examples.get(name, []) + plain_rows(places))[:MAX_EXAMPLES]


def repair_bars(
    frame: pd.DataFrame,
    policy: str | RepairPolicy | Mapping[str, Any] = "default",
    *,
    for_inference: bool = False,
) -> tuple[pd.DataFrame, RepairReport]:
    """Repair a frame of bars, and say what was done.

    Parameters
    ----------
    frame : DataFrame
        Bars in the vendor format; ``volume``, ``amount`` and ``factor`` are optional. It is not changed.
    policy : str, RepairPolicy or mapping
        A name in ``POLICIES``, a policy, or its fields.
    for_inference : bool
        True refuses a policy whose values may depend on later bars (``price="interpolate"``).

    Returns
    -------
    frame : DataFrame
        Sorted by instrument and datetime, fresh index, dtypes as given, and a boolean column ``repaired``: True where
        a value of the bar was changed (now or, if the column was there, before). No price is bad, no volume or amount
        missing or negative, no bar empty or doubled. Repairing it again changes nothing.
    report : RepairReport
        Counts and examples of every repair.

    Raises
    ------
    ValueError
        Wrong columns, dtypes or a time zone; duplicates under a policy that refuses them; an unknown policy;
        a policy that uses the future when ``for_inference``.

    Notes
    -----
    Bars without a key are dropped; empty bars (no price, nothing traded) are suspended days and dropped. With every
    policy but ``interpolate`` a repaired bar dated t depends on bars up to t only.
    """
    policy = repair_policy(policy)
    if for_inference and policy.uses_future:
        raise ValueError(
            f"repair policy {policy.name!r} interpolates prices from later bars and cannot feed inference or a"
            " backtest; choose price='ffill' or price='drop'"
        )
    _require_form(frame)
    report = RepairReport(policy.to_dict(), rows_in=len(frame))
    keyed = _drop_keyless(frame, report)
    columns = BarColumns.from_frame(keyed, (*BAR_FIELDS, "factor"))
    _note_order(columns, report)
    columns = _one_bar_a_stamp(columns, policy, report)
    columns = _without_empty(columns, report)
    columns, changed = _repair_prices(columns, policy, report, _dtypes(frame))
    changed = _repair_quantities(columns, policy, report, changed)
    result = _rebuild(keyed, columns, changed)
    report.rows_out = len(result)
    return result, report


def _require_form(frame: pd.DataFrame) -> None:
    faults = [check for check in form_checks(frame) if check.severity == "error" and check.count]
    if faults:
        details = "; ".join(f"{check.name}: {check.message} {check.examples or ''}".strip() for check in faults)
        raise ValueError(f"bars of this form cannot be repaired. {details}. Expected {', '.join(REQUIRED_COLUMNS)}")


def _dtypes(frame: pd.DataFrame) -> dict[str, np.dtype[Any]]:
    """Type of each numeric column after repair; integers become float64, which holds fills."""
    kinds = {name: frame[name].to_numpy().dtype for name in (*BAR_FIELDS, "factor") if name in frame}
    return {name: kind if kind.kind == "f" else np.dtype(np.float64) for name, kind in kinds.items()}


def _drop_keyless(frame: pd.DataFrame, report: RepairReport) -> pd.DataFrame:
    keyless = missing_keys(frame)
    if not keyless.any():
        return frame
    report.counts["keyless_dropped"] = int(keyless.sum())
    report.examples["keyless_dropped"] = [{"row": int(row)} for row in np.flatnonzero(keyless)[:MAX_EXAMPLES]]
    return frame[~keyless]


def _note_order(columns: BarColumns, report: RepairReport) -> None:
    moved = np.zeros(len(columns), dtype=bool)
    moved[1:] = columns.order[1:] < columns.order[:-1]
    report.note("unsorted_sorted", columns, moved)


def _one_bar_a_stamp(columns: BarColumns, policy: RepairPolicy, report: RepairReport) -> BarColumns:
    followed = np.zeros(len(columns), dtype=bool)
    followed[:-1] = (columns.code[1:] == columns.code[:-1]) & (columns.stamps[1:] == columns.stamps[:-1])
    if followed.any() and policy.duplicates == "error":
        row = int(followed.argmax())
        raise ValueError(
            f"{int(followed.sum())} bars occur more than once, first {columns.names[columns.code[row]]} at"
            f" {pd.Timestamp(columns.stamps[row])}; remove them, or choose duplicates='keep_last'"
        )
    report.note("duplicates_dropped", columns, followed)
    return columns.keep(~followed)


def _without_empty(columns: BarColumns, report: RepairReport) -> BarColumns:
    empty = empty_bars(columns.values)
    report.note("empty_bars_dropped", columns, empty)
    return columns.keep(~empty)


def _repair_prices(
    columns: BarColumns, policy: RepairPolicy, report: RepairReport, dtypes: dict[str, np.dtype[Any]]
) -> tuple[BarColumns, np.ndarray]:
    values, factor = columns.values, columns.factor
    bad_factor = bad_prices(factor)
    bad = {name: bad_prices(values[name]) for name in PRICE_FIELDS}
    faulty = np.logical_or.reduce(list(bad.values())) | bad_ranges(values) | bad_factor
    if policy.price == "drop":
        report.note("bad_bars_dropped", columns, faulty)
        kept = columns.keep(~faulty)
        return kept, np.zeros(len(kept), dtype=bool)
    if not faulty.any():
        return columns, faulty
    factor = repair_fill.fill_last(np.where(bad_factor, np.nan, factor), columns.code)
    fill = repair_fill.forward_filled_prices if policy.price == "ffill" else repair_fill.interpolated_prices
    filled = {name: array.astype(dtypes[name]).astype(float) for name, array in fill(columns, factor).items()}
    prices = {name: np.where(bad[name], filled[name], values[name]) for name in filled}
    prices |= _widened(prices, values, bad, faulty)
    lost = np.logical_or.reduce([bad_prices(array) for array in prices.values()]) | np.isnan(factor)
    for name in PRICE_FIELDS:
        report.note(f"{name}_filled", columns, bad[name] & ~lost)
        report.note(f"{name}_widened", columns, (prices[name] != values[name]) & ~bad[name] & ~lost)
    report.note("factor_filled", columns, bad_factor & ~lost)
    report.note("dropped_without_past", columns, lost)
    replaced = dict(values) | prices | ({"factor": factor} if "factor" in values else {})
    whole = BarColumns(
        columns.names, columns.code, columns.stamps, columns.days, columns.first, columns.order, replaced
    )
    return whole.keep(~lost), faulty[~lost]


def _widened(
    prices: dict[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    bad: dict[str, np.ndarray],
    faulty: np.ndarray,
) -> dict[str, np.ndarray]:
    """High and low of faulty bars that hold open, close and each other; a bad one comes from the other prices."""
    high, low = (np.where(bad[name], np.nan, values[name]) for name in ("high", "low"))
    top = np.fmax(np.fmax(high, low), np.fmax(prices["open"], prices["close"]))
    bottom = np.fmin(np.fmin(high, low), np.fmin(prices["open"], prices["close"]))
    return {"high": np.where(faulty, top, values["high"]), "low": np.where(faulty, bottom, values["low"])}


def _repair_quantities(
    columns: BarColumns, policy: RepairPolicy, report: RepairReport, changed: np.ndarray
) -> np.ndarray:
    """Fill bad volumes and amounts in place of ``columns.values``' arrays; return the bars changed so far."""
    fills = {}
    for name in ("volume", "amount"):
        if name not in columns.values:
            continue
        bad = bad_quantities(columns.values[name])
        rows = np.flatnonzero(bad)
        if not len(rows):
            continue
        fills[name] = (rows, _fill_quantity(columns, name, rows, policy, report))
        changed = changed | bad
    for name, (rows, new) in fills.items():
        columns.values[name][rows] = new
    return changed


def _fill_quantity(
    columns: BarColumns, name: str, rows: np.ndarray, policy: RepairPolicy, report: RepairReport
) -> np.ndarray:
    if policy.volume == "zero":
        new = np.zeros(len(rows))
    elif policy.volume == "instrument_median":
        new = repair_fill.past_medians(columns, name, rows, policy.median_bars)
    else:
        new = repair_fill.cross_section_medians(columns, name, rows)
    found = np.zeros(len(columns), dtype=bool)
    found[rows[~np.isnan(new)]] = True
    alone = np.zeros(len(columns), dtype=bool)
    alone[rows[np.isnan(new)]] = True
    report.note(f"{name}_{policy.volume}", columns, found)
    report.note(f"{name}_zero_for_want_of_values", columns, alone)
    return np.nan_to_num(new, nan=0.0)


def _rebuild(keyed: pd.DataFrame, columns: BarColumns, changed: np.ndarray) -> pd.DataFrame:
    """The frame's rows in the order of the columns, with repaired values and the mark."""
    result = keyed.iloc[columns.order].reset_index(drop=True)
    dtypes = _dtypes(keyed)
    for name, array in columns.values.items():
        result[name] = array.astype(dtypes[name])
    before = result["repaired"].fillna(False).to_numpy(dtype=bool) if "repaired" in result else False
    result["repaired"] = changed | before
    return result
