"""The README's tables of paired differences, made from ``comparisons_<segment>.csv`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pandas as pd

from kronos_qlib.comparison.figures import number, percent
from kronos_qlib.comparison.methods import Method, title_of
from kronos_qlib.comparison.rows import read_segments

MEASURES = {"rank_ic": "Rank IC", "net": "net excess return a year"}
LEVEL = 0.05


def read_pairs(results: Path) -> dict[str, pd.DataFrame]:
    """Tables of ``comparisons_<segment>.csv``, as far as there are any."""
    return read_segments(results, "comparisons")


def pairs_text(pairs: pd.DataFrame, methods: Mapping[str, Method]) -> str:
    """Differences of the named methods (columns, by letter) to all others (rows), the strongest rivals first."""
    named = dict(zip(dict.fromkeys(pairs["method"]), ascii_uppercase, strict=False))
    tried = int(pairs["variants_tried"].iloc[0])
    legend = "; ".join(f"{letter}: {title_of(name, methods)}" for name, letter in named.items())
    lines = [
        "What a named method is above its rival, on common rows, with 95 % intervals by stationary block bootstrap; "
        f"bold where p < {number(LEVEL, 2)} after Romano–Wolf for all pairs and {tried} variants tried on valid. "
        f"{legend}."
    ]
    for measure in [name for name in MEASURES if name in set(pairs["measure"])]:
        lines += ["", *_matrix(pairs[pairs["measure"] == measure], named, methods, measure)]
    return "\n".join(lines)


def _matrix(pairs: pd.DataFrame, named: Mapping[str, str], methods: Mapping[str, Method], measure: str) -> list[str]:
    found = {(row["method"], row["rival"]): row for row in pairs.to_dict(orient="records")}
    rivals = pairs.groupby("rival")["difference"].mean().sort_values(kind="stable").index
    lines = [f"| {MEASURES[measure]} above | {' | '.join(named.values())} |", "|---" * (len(named) + 1) + "|"]
    for rival in rivals:
        cells = [_cell(found.get((name, rival)), measure) for name in named]
        lines.append("| " + " | ".join([title_of(str(rival), methods), *cells]) + " |")
    return lines


def _cell(row: Mapping[Any, Any] | None, measure: str) -> str:
    """A difference and its interval; nothing where a method would meet itself or the pair was not compared."""
    if row is None:
        return ""
    value, low, high = (_figure(float(row[name]), measure) for name in ("difference", "lower", "upper"))
    text = f"{value} [{low}, {high}]"
    return f"**{text}**" if float(row["adjusted_p_value"]) < LEVEL else text


def _figure(value: float, measure: str) -> str:
    return percent(value) if measure == "net" else number(value, 4)
