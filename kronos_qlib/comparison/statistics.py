"""What may be said of the rows: differences with intervals, counted variants, costs, years, groups of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kronos_qlib.comparison.methods import Method
from kronos_qlib.comparison.rows import Row, read_rows
from kronos_qlib.comparison.state import State
from kronos_qlib.evaluation.bootstrap import paired_bootstrap
from kronos_qlib.evaluation.breakdown import YEAR, by_year, cost_sensitivity
from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic
from kronos_qlib.evaluation.multiplicity import romano_wolf
from kronos_qlib.market.swap import whole_file

MEASURES = ("rank_ic", "ic", "net")
HORIZON = 2  # the label reaches two sessions past its date


@dataclass(frozen=True, eq=False)
class Compared:
    """Daily series of methods, on the same rows and days.

    Attributes
    ----------
    daily : measure (``rank_ic``, ``ic``, ``net``, ``gross``, ``traded``) to days by methods; a method with several
        seeds is the mean of its seeds' daily values.
    rows : judged rows that all methods have a score on. share : of the largest method's.
    """

    daily: Mapping[str, pd.DataFrame]
    rows: int
    share: float

    @cached_property
    def methods(self) -> list[str]:
        """Names, in the order given."""
        return [str(name) for name in self.daily["rank_ic"].columns]


def collect(rows: Sequence[Row], state: State, label: pd.Series) -> Compared:
    """Recompute daily figures on the rows that all runs have a score on.

    Parameters
    ----------
    rows : finished rows of one segment. state : where their scores are. label : float Series on judged rows; NaN
        elsewhere.

    Notes
    -----
    A row (date, instrument) counts when its label and the score of every run are finite. Portfolios are each method's
    own, on its own scores: an intersection of portfolios would be nobody's.
    """
    table = pd.DataFrame({(row.method, row.seed): state.scores(row.key) for row in rows})
    known = np.isfinite(table.to_numpy(dtype=np.float64))
    judged = np.isfinite(label.reindex(table.index).to_numpy(dtype=np.float64))
    common = table[known.all(axis=1) & judged]
    if common.empty:
        raise ValueError("no row has a score of every method and a label; compare fewer methods")
    target = label.reindex(common.index)
    parts: dict[str, dict[tuple[str, int], pd.Series]] = {
        "ic": {name: daily_ic(common[name], target) for name in common},
        "rank_ic": {name: daily_rank_ic(common[name], target) for name in common},
        "net": {}, "gross": {}, "traded": {},
    }  # fmt: skip
    for row in rows:
        kept = state.daily(row.key)
        for measure in ("net", "gross", "traded"):
            parts[measure][row.method, row.seed] = kept[measure].dropna() if measure in kept else pd.Series(dtype=float)
    largest = int((known & judged[:, None]).sum(axis=0).max())
    return Compared(
        {measure: _over_seeds(series) for measure, series in parts.items()}, len(common), len(common) / largest
    )


def compare_pairs(compared: Compared, named: Sequence[str], rivals: Sequence[str], n_tried: int) -> pd.DataFrame:
    """Set every named method against every rival.

    Returns
    -------
    DataFrame, one row a (measure, method, rival): ``difference`` a day, ``lower``, ``upper`` (95 %), ``p_value``,
    ``adjusted_p_value`` (Romano–Wolf over all pairs of the measure, times the variants tried over the named),
    ``block_length``, ``n_days``; for ``net`` the difference and its ends are a year.
    """
    tables = []
    for measure in MEASURES:
        daily = compared.daily[measure]
        pairs = [(one, other) for one in named for other in rivals if one != other and {one, other} <= set(daily)]
        if not pairs:
            continue
        differences = pd.DataFrame({f"{one}|{other}": daily[one] - daily[other] for one, other in pairs})
        # variants of a named method multiply its pairs with every rival
        factor = max(n_tried, len(named)) / len(named)
        tested = romano_wolf(differences, horizon=HORIZON, n_tried=int(np.ceil(len(pairs) * factor)))
        adjusted = tested.table["adjusted_p_value"].to_numpy()
        scale = float(YEAR) if measure == "net" else 1.0
        for (one, other), after in zip(pairs, adjusted, strict=True):
            found = paired_bootstrap(daily[one], daily[other], horizon=HORIZON)
            tables.append({
                "measure": measure, "method": one, "rival": other, "difference": found.estimate * scale,
                "lower": found.lower * scale, "upper": found.upper * scale, "p_value": found.p_value,
                "adjusted_p_value": float(after),
                "block_length": found.block_length, "n_days": found.n_days,
            })  # fmt: skip
    return pd.DataFrame(tables)


def breakdowns(compared: Compared) -> dict[str, pd.DataFrame]:
    """``costs`` (by method and basis points of each side) and ``years`` (by method and year)."""
    costs, years = {}, {}
    for name in compared.methods:
        series = pd.DataFrame({measure: compared.daily[measure].get(name) for measure in ("gross", "traded")}).dropna()
        if len(series):
            costs[name] = cost_sensitivity(series["gross"], series["traded"])
        daily = pd.DataFrame({m: compared.daily[m][name] for m in MEASURES if name in compared.daily[m]}).sort_index()
        table = by_year(daily)
        years[name] = table.set_axis(["_".join(map(str, column)) for column in table.columns], axis=1)
    return {
        "costs": pd.concat(costs, names=["method"]).reset_index() if costs else pd.DataFrame(),
        "years": pd.concat(years, names=["method"]).reset_index(),
    }


def compare(
    results: Path, state_folder: Path, segment: str, chosen: Sequence[Method], named: Sequence[str],
    *, n_tried: int | None = None,
) -> list[str]:  # fmt: skip
    """Compare the finished runs of a segment, write ``comparisons_<segment>.csv``, ``costs_…`` and ``years_…``.

    Parameters
    ----------
    named : methods to set against all others; none: only costs and years are written. n_tried : see
        :func:`compare_pairs`; None: the sum of the named methods' ``variants``.

    Returns
    -------
    Lines to print.
    """
    names = {method.name: method for method in chosen}
    rows = [
        row
        for row in read_rows(results / "alpha.csv")
        if row.segment == segment and row.status == "done" and row.method in names and row.family != "control"
    ]
    present = list(dict.fromkeys(row.method for row in rows))
    absent = [name for name in named if name not in present]
    if absent or not rows:
        raise ValueError(f"no finished run on {segment} of {', '.join(absent) or 'any method'}; run it first")
    state = State(state_folder)
    compared = collect(rows, state, state.label(segment))
    tried = sum(names[name].variants for name in named) if n_tried is None else n_tried
    rivals = [name for name in present if name not in named]
    lines = [f"{len(present)} methods on {compared.rows} common rows ({compared.share:.1%} of the largest method's)"]
    if named and rivals:
        pairs = compare_pairs(compared, named, rivals, tried)
        pairs.insert(0, "variants_tried", tried)
        write_table(results / f"comparisons_{segment}.csv", pairs)
        for pair in pairs[pairs["measure"] == "rank_ic"].itertuples():
            lines.append(
                f"Rank IC {pair.method} - {pair.rival}: {pair.difference:+.4f} [{pair.lower:+.4f}, {pair.upper:+.4f}], "
                f"adjusted p {pair.adjusted_p_value:.3f}"
            )
    for name, table in breakdowns(compared).items():
        write_table(results / f"{name}_{segment}.csv", table)
    write_table(results / f"groups_{segment}.csv", _groups(rows, state, segment))
    return [*lines, f"wrote the tables of {segment} to {results}"]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV whole, 6 digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")


def _groups(rows: Sequence[Row], state: State, segment: str) -> pd.DataFrame:
    from kronos_qlib.evaluation.breakdown import by_group

    known, label = state.groups(segment), state.label(segment)
    parts = {}
    for row in rows:
        if (row.method, "size") in parts:  # the first seed stands for a method
            continue
        score = state.scores(row.key)
        for column in known:
            parts[row.method, str(column)] = by_group(score, label, known[column])
    return pd.concat(parts, names=["method", "column"]).reset_index()


def _over_seeds(series: Mapping[tuple[str, int], pd.Series]) -> pd.DataFrame:
    """Mean over seeds, days by methods; methods without any value are left out."""
    by_method: dict[str, list[pd.Series]] = {}
    for (method, _), values in series.items():
        if len(values):
            by_method.setdefault(method, []).append(values)
    columns = {name: pd.concat(parts, axis=1).mean(axis=1, skipna=False) for name, parts in by_method.items()}
    return pd.DataFrame(columns).sort_index()
