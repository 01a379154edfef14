"""A row of the table that can be, one that was not run, and a registry of methods in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kronos_qlib.comparison.rows import Row

ROW = Row(
    method="linear", family="baseline", configuration="c", seed=0, segment="valid", key="k", status="done", reason="",
    commit="abc", data="d", checkpoint="", trained_on_segment="no", stopped_on_segment="no", variants=1,
    first="2015-01-05", last="2016-12-30", days=488, rows=100_000, coverage=1.0, ic=0.04, icir=0.3, ic_t=4.0,
    rank_ic=0.05, rank_icir=0.35, rank_ic_t=4.5, excess_return=0.1, net_excess_return=0.07, information_ratio=1.0,
    max_drawdown=-0.1, turnover=0.19, seconds=10.0, cpu_seconds=9.0,
)  # fmt: skip
NOT_RUN = replace(ROW, method="slow", key="s", status="not run", reason="too slow", ic=float("nan"))


def write_registry(folder: Path, text: str) -> Path:
    """Write a registry of methods."""
    path = folder / "methods.yaml"
    path.write_text(text, encoding="utf-8")
    return path
