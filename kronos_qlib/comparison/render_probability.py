"""The README's table of probabilities and its figure, made from ``probability_<segment>.csv`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.comparison.calibrations import RAW, RECALIBRATED
from kronos_qlib.comparison.figures import percent
from kronos_qlib.comparison.probability_table import GARCH, REFERENCE
from kronos_qlib.comparison.rows import read_segments

METHODS = {
    RAW: "Kronos, paths as they are",
    RECALIBRATED: "Kronos, spread and centre learned on valid",
    GARCH: "GARCH(1,1)-t, refit monthly, filtered daily",
    REFERENCE: "random walk, volatility of 20 days",
}
HEAD = (
    "| distribution | CRPS, % | skill on the random walk [95 %] | skill on GARCH-t [95 %] | 50 % holds | 80 % | 90 % "
    "| 90 % at steps 1, 5, 10 | 90 %, conformal |",
    "|---|---|---|---|---|---|---|---|---|",
)
STEPS = (1, 5, 10)
TENTHS = [f"pit_{number}" for number in range(10)]


def read_probabilities(results: Path) -> dict[str, pd.DataFrame]:
    """Tables of ``probability_<segment>.csv``, as far as there are any."""
    return read_segments(results, "probability")


def probability_text(table: pd.DataFrame, title: str) -> str:
    """Markdown of one segment: a row a method, all steps together; of valid the half that nothing was learned on."""
    kept = _judged(table)
    lines = [f"**{title}: distributions of the next {int(kept['step'].max())} closes**", "", *HEAD]
    for method in [name for name in METHODS if name in set(kept["method"])]:
        mine = kept[(kept["method"] == method) & (kept["group"] == "all")]
        steps = {row["step"]: row for row in mine.to_dict(orient="records")}
        row = steps[0]
        at = ", ".join(percent(steps[step]["coverage_90"]) for step in STEPS if step in steps)
        cells = [
            METHODS[method], f"{100 * row['crps']:.3f}", _skill(row, "skill", method == REFERENCE),
            _skill(row, "skill_garch", method == GARCH), *(percent(row[f"coverage_{level}"]) for level in (50, 80, 90)),
            at, percent(row["recalibrated_90"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    first = kept.iloc[0]
    note = f"{int(first['windows']):,} windows on {int(first['days'])} dates, {_every(int(first['every']))}"
    if first["n_paths"]:
        note += f"; {int(first['n_paths'])} {first['scheme']} paths in {first['dtype']}"
    return "\n".join([*lines, "", f"{note}. Conformal: the 90 % interval's ends moved by what valid has taught."])


def draw_probability(path: Path, table: pd.DataFrame, title: str) -> None:
    """Draw PIT histograms (flat is right) and the coverage of the 90 % interval by step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kept = _judged(table)
    kept = kept[kept["group"] == "all"]
    names = [name for name in METHODS if name in set(kept["method"])]
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(3 * (len(names) + 1), 3), layout="constrained")
    for axis, name in zip(axes, names, strict=False):
        mine = kept[(kept["method"] == name) & (kept["step"] == 0)]
        axis.bar(range(10), 10 * mine[TENTHS].to_numpy()[0], width=1.0, edgecolor="white")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(title=METHODS[name].replace(", ", ",\n", 1), xlabel="tenth of the distribution", ylim=(0.0, 2.0))
        axis.title.set_fontsize(8)
    for name in names:
        mine = kept[(kept["method"] == name) & (kept["step"] > 0)]
        label = {RAW: "Kronos", RECALIBRATED: "Kronos, recalibrated"}.get(name, METHODS[name].split(", ")[0])
        axes[-1].plot(mine["step"], mine["coverage_90"], marker="o", markersize=3, label=label)
    axes[-1].axhline(0.9, color="black", linewidth=0.8)
    axes[-1].set(title=f"90 % interval holds, {title}", xlabel="step", ylim=(0.8, 1.0))
    axes[-1].title.set_fontsize(8)
    axes[-1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)


def _judged(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with all methods: of valid its second half, where the recalibration was learned on the first."""
    return table[table["part"] == table["part"].iloc[-1]]


def _every(step: int) -> str:
    """Which sessions were judged, in words."""
    ending = {2: "nd", 3: "rd"}.get(step, "th")
    return "every session" if step == 1 else f"every {step}{ending} session"


def _skill(row: Mapping[Any, Any], name: str, own: bool) -> str:
    if own or row[name] != row[name]:
        return "–"
    return f"{100 * row[name]:+.2f} % [{100 * row[f'{name}_lower']:+.2f}, {100 * row[f'{name}_upper']:+.2f}]"
