"""The README's table and figures, made from the rows alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kronos_qlib.comparison.figures import number, percent
from kronos_qlib.comparison.methods import Method, title_of
from kronos_qlib.comparison.render_pairs import pairs_text, read_pairs
from kronos_qlib.comparison.render_probability import draw_probability, probability_text, read_probabilities
from kronos_qlib.comparison.rows import Row, read_rows

START, END = "<!-- alpha-table:start -->", "<!-- alpha-table:end -->"
TITLES = {"baseline": "Qlib's learners", "kronos": "Kronos", "reference": "Simple rules", "control": "Controls"}
ORDER = ("kronos", "baseline", "reference", "control")
HEAD = (
    "| method | Rank IC [95 %] | IC | Rank ICIR | net excess a year | IR | max drawdown | turnover a day | seeds |",
    "|---|---|---|---|---|---|---|---|---|",
)
NORMAL_95 = 1.96
NAMES = {"valid": "valid, 2015–2016", "test": "test, 2017–2020"}


def render(results: Path, readme: Path, methods: Mapping[str, Method]) -> list[Path]:
    """Write the tables between the markers of ``readme``, and ``figures/*_<segment>.png`` beside the rows.

    Returns
    -------
    Files written.

    Raises
    ------
    ValueError : no rows, or no markers.
    """
    rows = read_rows(results / "alpha.csv")
    if not rows:
        raise ValueError(f"{results / 'alpha.csv'} has no rows; run methods first")
    text = readme.read_text(encoding="utf-8")
    probabilities = read_probabilities(results)
    table = table_text(rows, methods, read_pairs(results), probabilities)
    readme.write_text(replace_table(text, table, readme), encoding="utf-8")
    written = [readme]
    for segment, found in probabilities.items():
        written.append(results / "figures" / f"probability_{segment}.png")
        draw_probability(written[-1], found, NAMES[segment])
    for segment in dict.fromkeys(row.segment for row in rows):
        path = results / "figures" / f"alpha_{segment}.png"
        draw(path, [row for row in rows if row.segment == segment and row.status == "done"], methods, segment)
        written.append(path)
    return written


def replace_table(text: str, table: str, place: Path) -> str:
    """Put a table between the markers."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"{place} needs the markers {START} and {END}, each once and in this order")
    before, rest = text.split(START)
    return f"{before}{START}\n{table.rstrip()}\n{END}{rest.split(END)[1]}"


def table_in(text: str) -> str:
    """What stands between the markers; empty without them."""
    found = re.search(re.escape(START) + r"\n(.*?)\n" + re.escape(END), text, re.DOTALL)
    return found.group(1) if found else ""


def table_text(
    rows: Sequence[Row], methods: Mapping[str, Method], pairs: Mapping[str, pd.DataFrame] | None = None,
    probabilities: Mapping[str, pd.DataFrame] | None = None,
) -> str:  # fmt: skip
    """Markdown of all segments, test first: methods with Newey–West intervals, probabilities, the named pairs.

    A method with seeds has the mean over them; ``±`` in the column of seeds is the standard deviation of Rank IC.
    What is long and not the answer is folded.
    """
    parts = []
    for segment in ("test", "valid"):
        mine = [row for row in rows if row.segment == segment]
        if not mine:
            continue
        found = [_segment_text(mine, methods, segment)]
        if probabilities and segment in probabilities:
            found.append(probability_text(probabilities[segment], NAMES[segment]))
        if pairs and segment in pairs:
            found.append(_folded(f"{NAMES[segment]}: paired differences", pairs_text(pairs[segment], methods)))
        parts += found if segment == "test" else [_folded(f"{NAMES[segment]}: the same table", "\n\n".join(found))]
    having = {row.method for row in rows}
    absent = [
        f"{method.title} ({method.no_row})" if method.no_row else method.title
        for name, method in methods.items()
        if name not in having
    ]
    if absent:
        parts.append(f"No row yet: {'; '.join(absent)}.")
    return "\n\n".join(parts)


def _folded(title: str, text: str) -> str:
    """A part of the page that opens on a click."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _segment_text(rows: Sequence[Row], methods: Mapping[str, Method], segment: str) -> str:
    done = [row for row in rows if row.status == "done"]
    lines = [f"**{NAMES[segment]}**", "", *HEAD]
    for family in ORDER:
        groups = _by_method([row for row in done if row.family == family])
        if groups:
            lines.append(f"| *{TITLES[family]}* | | | | | | | | |")
        ordered = sorted(groups.items(), key=lambda item: -_mean([row.rank_ic for row in item[1]]))
        lines += [_line(_title(name, group, methods), group) for name, group in ordered]
    notes = _notes(done)
    if notes:
        lines += ["", notes]
    for name, group in _by_method([row for row in rows if row.status == "not run"]).items():
        lines += ["", f"Not run: {title_of(name, methods)} ({group[0].reason})."]
    return "\n".join(lines)


def _line(title: str, rows: Sequence[Row]) -> str:
    mean, error = _mean([row.rank_ic for row in rows]), NORMAL_95 * _error(rows)
    interval = f"{number(mean, 4)} [{number(mean - error, 4)}, {number(mean + error, 4)}]"
    cells = [
        title, interval,
        number(_mean([row.ic for row in rows]), 4), number(_mean([row.rank_icir for row in rows]), 3),
        percent(_mean([row.net_excess_return for row in rows])),
        number(_mean([row.information_ratio for row in rows]), 2),
        percent(_mean([row.max_drawdown for row in rows])), percent(_mean([row.turnover for row in rows])),
        _seeds(rows),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _title(name: str, rows: Sequence[Row], methods: Mapping[str, Method]) -> str:
    title = title_of(name, methods)
    seen = {row.trained_on_segment for row in rows}
    if "yes" in seen:
        title += " †"
    elif "unknown" in seen:
        title += " ‡"
    return title + " §" * any(row.stopped_on_segment == "yes" for row in rows)


def _notes(rows: Sequence[Row]) -> str:
    notes = []
    if any(row.trained_on_segment == "yes" for row in rows):
        notes.append("† weights were trained on dates of this segment.")
    if any(row.trained_on_segment == "unknown" for row in rows):
        notes.append("‡ it is not known which dates the weights were trained on.")
    if any(row.stopped_on_segment == "yes" for row in rows):
        notes.append("§ training was stopped by this segment's labels, which flatters the figures.")
    return " ".join(notes)


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    return groups


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _error(rows: Sequence[Row]) -> float:
    """Newey–West standard error of the mean Rank IC, averaged over seeds."""
    return _mean([abs(row.rank_ic / row.rank_ic_t) for row in rows])


def _seeds(rows: Sequence[Row]) -> str:
    """How many seeds, and the standard deviation of Rank IC over them."""
    spread = f" (± {number(float(np.std([row.rank_ic for row in rows], ddof=1)), 4)})" if len(rows) > 1 else ""
    return f"{len(rows)}{spread}"


def draw(path: Path, rows: Sequence[Row], methods: Mapping[str, Method], segment: str) -> None:
    """Draw Rank IC with 95 % Newey–West intervals (mean over seeds), best first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = sorted(_by_method(rows).items(), key=lambda item: _mean([row.rank_ic for row in item[1]]))
    colours = {"kronos": "tab:red", "baseline": "tab:blue", "reference": "tab:gray", "control": "tab:olive"}
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.3 * len(groups)), layout="constrained")
    for family in [name for name in ORDER if any(group[0].family == name for _, group in groups)]:
        mine = [(height, group) for height, (_, group) in enumerate(groups) if group[0].family == family]
        means = [_mean([row.rank_ic for row in group]) for _, group in mine]
        errors = [NORMAL_95 * _error(group) for _, group in mine]
        axes.errorbar(
            means, [height for height, _ in mine], xerr=errors, fmt="o", color=colours[family], capsize=3,
            label=TITLES[family],
        )  # fmt: skip
    axes.set_yticks(range(len(groups)), [_title(name, group, methods) for name, group in groups])
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.legend(loc="lower right")
    axes.set_ylim(-1, len(groups))
    axes.set_xlabel("mean Rank IC, 95 % (Newey–West)")
    axes.set_title(f"CSI300, {NAMES[segment]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)
