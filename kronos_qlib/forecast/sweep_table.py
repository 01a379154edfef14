"""Results of a sweep as one table, a row a setting and signal, with every variant counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kronos_qlib.evaluation.multiplicity import romano_wolf
from kronos_qlib.evaluation.null_maximum import expected_null_maximum, null_maximum_quantile
from kronos_qlib.forecast.grid import GRID_KEYS

STEPS = (1, 5, 10)
FEWEST_DAYS = 30  # fewer days carry no bootstrap worth its name
BACKTEST = ("net_excess_return", "net_excess_error", "excess_return", "information_ratio", "max_drawdown", "turnover")


def sweep_table(
    results: Sequence[dict[str, Any]], label: str, span: int = 1, n_tried: int | None = None
) -> pd.DataFrame:
    """Lay results out, in their order.

    Parameters
    ----------
    results : what :func:`kronos_qlib.sweep.run_sweep` returns. label : whose Rank IC is compared.
    span : sessions that the label extends over. n_tried : variants (setting and signal) tried in all; None: these.

    Returns
    -------
    DataFrame: ``signal``, the grid's keys, ``rank_ic``, ``rank_ic_error``, ``rank_ic_t``, ``adjusted_p`` (Romano–Wolf
    over all rows, two-sided, of a Rank IC of 0; missing with fewer than 30 days), ``ic``, ``after_reversal``,
    ``after_reversal_t``, Rank ICs of the other labels, the backtest's figures where one was run, coverage, CRPS and PIT
    deviation by step, seconds and windows a second.
    """
    rows = [_row(result, signal, label) for result in results for signal in result["daily_rank_ic"]]
    table = pd.DataFrame(rows)
    table.insert(list(table.columns).index("rank_ic_t") + 1, "adjusted_p", _adjusted(results, span, n_tried))
    return table


def multiplicity_note(table: pd.DataFrame, n_tried: int) -> str:
    """Say what the best of so many worthless variants would look like, and what was found."""
    note = (
        f"{n_tried} variants tried (settings x signals, earlier ones in this folder included). "
        f"Of {n_tried} independent variants worth nothing, the best has an expected t of "
        f"{expected_null_maximum(n_tried):.2f}, and stays under {null_maximum_quantile(n_tried):.2f} in 95 of 100 "
        "sweeps; variants that resemble each other stay lower."
    )
    known = table[table["rank_ic_t"].notna()]
    if known.empty:
        return note
    best = max(known.to_dict(orient="records"), key=lambda row: float(row["rank_ic_t"]))
    error, p = float(best["rank_ic_error"]), best["adjusted_p"]
    adjusted = "" if p is None or p != p else f", adjusted p {p:.4f}"
    return (
        f"{note} The highest t here is {best['rank_ic_t']:.2f} ({best['signal']}, Rank IC {best['rank_ic']:+.4f} ± "
        f"{error:.4f}{adjusted}): choosing the best of {n_tried} by chance alone would add about "
        f"{expected_null_maximum(n_tried) * error:.4f} to it."
    )


def to_markdown(table: pd.DataFrame, note: str) -> str:
    """Return a markdown table of the columns that vary or matter, with the note under it."""
    varied = [key for key in GRID_KEYS if table[key].astype(str).nunique() > 1]
    figures = [column for column in table.columns if column not in ("signal", *GRID_KEYS)]
    shown = table[["signal", *varied, *(column for column in figures if table[column].notna().any())]]
    fixed = ", ".join(f"{key} {table[key].iloc[0]}" for key in GRID_KEYS if key not in varied)
    lines = [
        "| " + " | ".join(map(str, shown.columns)) + " |",
        "|" + "---|" * shown.shape[1],
        *("| " + " | ".join(_cell(value) for value in row) + " |" for row in shown.itertuples(index=False)),
    ]
    return "\n".join([f"All settings: {fixed}.", "", *lines, "", note, ""])


def _row(result: dict[str, Any], signal: str, label: str) -> dict[str, Any]:
    by_label = {row["label"]: row for row in result["signals"] if row["signal"] == signal}
    own = by_label[label]
    row: dict[str, Any] = {"signal": signal, **{key: result["setting"][key] for key in GRID_KEYS}}
    row |= {name: own[name] for name in ("rank_ic", "rank_ic_error", "rank_ic_t", "ic", "after_reversal")}
    row["after_reversal_t"] = own["after_reversal_t"]
    row |= {f"rank_ic_{other}": found["rank_ic"] for other, found in by_label.items() if other != label}
    row |= {name: result["backtest"].get(signal, {}).get(name) for name in BACKTEST}
    calibration = {found["step"]: found for found in result["calibration"]}
    calibrated = result["calibrated_coverage"]
    for step in STEPS:
        found = calibration.get(step, {})
        row |= {f"cover_{level}_{step}": found.get(f"cover_{level}") for level in calibrated}
        row |= {f"crps_{step}": found.get("crps"), f"pit_{step}": found.get("pit_deviation")}
    row |= {f"calibrated_{level}": share for level, share in calibrated.items()}
    return row | {name: result["cost"][name] for name in ("seconds", "windows_per_second")}


def _adjusted(results: Sequence[dict[str, Any]], span: int, n_tried: int | None) -> list[float | None]:
    daily = {
        (position, signal): pd.Series(values, dtype=float)
        for position, result in enumerate(results)
        for signal, values in result["daily_rank_ic"].items()
    }
    frame = pd.DataFrame(daily).sort_index().dropna()
    if len(frame) < FEWEST_DAYS:
        return [None] * len(daily)
    frame.columns = pd.Index(range(frame.shape[1]))
    return list(romano_wolf(frame, horizon=span, n_tried=n_tried).table["adjusted_p_value"])


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
