"""What LightGBM's kept fits split on: gain and splits by column and by group of columns, over the seeds of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.contrib.data.loader import Alpha158DL

from kronos_qlib.alpha.factors import FACTORS
from kronos_qlib.alpha.factors_table import TABLE_FACTORS
from kronos_qlib.comparison.methods import Method
from kronos_qlib.comparison.rows import Row, read_rows
from kronos_qlib.comparison.state import FIT, State, read_fit, read_fit_columns
from kronos_qlib.comparison.statistics import write_table
from kronos_qlib.comparison.task import Protocol, Task
from kronos_qlib.forecast.store_columns import EMBEDDING_PATTERN
from kronos_qlib.forecast.token_factors import TOKEN_FACTORS

ALPHA158, PATH, TOKEN = "Alpha158", "Kronos path factors", "Kronos token factors"
CHANGES, EMBEDDING, OTHER = "Kronos table factors", "Kronos embedding components", "other"
GROUPS = (ALPHA158, PATH, TOKEN, CHANGES, EMBEDDING, OTHER)
FILE = "importance.csv"
COLUMNS = ("method", "seed", "feature", "group", "gain_share", "splits")
FIRST = 10  # columns that are printed


def importance(
    results: Path, state_folder: Path, segment: str, methods: Mapping[str, Method], named: Sequence[str] = (),
    protocol: Protocol | None = None,
) -> list[str]:  # fmt: skip
    """Read the gain of the fits behind a segment's finished rows, and write ``importance.csv``.

    One line a (method, seed, column): ``gain_share``, of the fit's whole gain (0 to 1), and ``splits``, up to the tree
    that early stopping chose; sorted by method, seed, and gain, largest first. Gain is what splits took off the loss of
    the training rows, so it says what the learner used, not what that was worth: ``compare`` says that.

    Parameters
    ----------
    results : folder with ``alpha.csv``. state_folder : where its runs were made; fits are unpickled, so yours alone.
    segment : whose rows name the fits; valid and test share them. methods : the registry.
    named : methods to read; empty: all that have a gain and a row. protocol : the rows'; None: the default.

    Returns
    -------
    Lines to print: of each method, means over its seeds by group beside the group's share of the columns, with the
    least and largest seed, and the first ten columns.

    Raises
    ------
    ValueError : a named method without gain or without a row, no row at all, a row of another configuration, a fit
        that is not there, whose columns nobody noted, or without any split.
    """
    with_gain = [name for name, method in methods.items() if method.has_gain]
    if without := [name for name in named if name not in with_gain]:
        raise ValueError(f"{', '.join(without)}: no gain, which LightGBM's fits have: {', '.join(with_gain) or 'none'}")
    done = [row for row in read_rows(results / "alpha.csv") if row.segment == segment and row.status == "done"]
    found = {name: [row for row in done if row.method == name] for name in named or with_gain}
    absent = [name for name in named if not found[name]]
    if absent or not any(found.values()):
        what = ", ".join(absent) or "LightGBM"
        raise ValueError(f"{results / 'alpha.csv'} has no finished run on {segment} of {what}; run it first")
    state, shared = State(state_folder), protocol or Protocol()
    tables = {name: _method_table(methods[name], rows, state, shared) for name, rows in found.items() if rows}
    order = {"method": True, "seed": True, "gain_share": False, "feature": True}
    whole = pd.concat(tables.values()).sort_values(list(order), ascending=list(order.values()))
    write_table(results / FILE, whole)
    lines = [line for name, table in tables.items() for line in describe(methods[name].title, table)]
    return [*lines, f"wrote {results / FILE}"]


def gain_table(booster: Any, columns: Sequence[str]) -> pd.DataFrame:
    """Gain and splits of one LightGBM booster.

    Returns
    -------
    DataFrame, one row a column of the fit, in its order: ``feature``, ``group`` (of :data:`GROUPS`), ``gain_share``
    (sums to 1), ``splits``.

    Raises
    ------
    ValueError : another number of columns than the booster's, or a booster that never split.
    """
    if booster.num_feature() != len(columns):
        found = booster.num_feature()
        raise ValueError(f"found the names of {len(columns)} columns for a fit on {found}; fit it again")
    gain = np.asarray(booster.feature_importance("gain"), dtype=np.float64)
    if not gain.sum() > 0:
        raise ValueError("its trees never split: there is no gain to share out")
    groups = registered_groups()
    return pd.DataFrame({
        "feature": list(columns),
        "group": [group_of(column, groups) for column in columns],
        "gain_share": gain / gain.sum(),
        "splits": booster.feature_importance("split"),
    })  # fmt: skip


def registered_groups() -> dict[str, str]:
    """Group of every column that has a registry: Alpha158's and our factors'."""
    alpha158 = Alpha158DL.get_feature_config()[1]
    registries = {ALPHA158: alpha158, PATH: FACTORS, TOKEN: TOKEN_FACTORS, CHANGES: TABLE_FACTORS}
    return {name: group for group, names in registries.items() for name in names}


def group_of(column: str, registered: Mapping[str, str]) -> str:
    """Group of a column: its registry's, or the embeddings' (as stored, or ``EmbeddingPCA``'s), else ``other``."""
    return registered.get(column) or (EMBEDDING if fnmatchcase(column, EMBEDDING_PATTERN) else OTHER)


def describe(title: str, table: pd.DataFrame) -> list[str]:
    """Lines about one method's table of all seeds."""
    seeds = sorted(table["seed"].unique())
    by_seed = table.pivot_table(index="seed", columns="group", values="gain_share", aggfunc="sum")
    columns = table[table["seed"] == seeds[0]]["group"].value_counts()
    lines = [
        f"{title}: shares of the gain, {int(columns.sum())} columns, seed {', '.join(map(str, seeds))}",
        f"  {'group':28} {'columns':>7} {'of all':>8} {'gain':>8}" + "   by seed" * (len(seeds) > 1),
    ]
    for group in [name for name in GROUPS if name in columns]:
        gain, count = by_seed[group], int(columns[group])
        spread = f"   {gain.min():.1%} to {gain.max():.1%}" if len(seeds) > 1 else ""
        lines.append(f"  {group:28} {count:7} {count / columns.sum():8.1%} {gain.mean():8.1%}{spread}")
    mean = table.groupby(["feature", "group"], as_index=False)[["gain_share", "splits"]].mean()
    mean = mean.sort_values(["gain_share", "feature"], ascending=[False, True])
    lines.append(f"  {'first columns':28} {'splits':>7} {'':8} {'gain':>8}   group")
    for row in mean.head(FIRST).itertuples():
        lines.append(f"  {row.feature:28} {row.splits:7.0f} {'':8} {row.gain_share:8.1%}   {row.group}")
    return lines


def _method_table(method: Method, rows: Sequence[Row], state: State, protocol: Protocol) -> pd.DataFrame:
    if len({(row.data, row.checkpoint) for row in rows}) > 1:
        raise ValueError(f"{method.name}: its seeds were run on different stores or factors; run them on one")
    places = [_fit_folder(method, row, state, protocol) for row in rows]
    columns = _columns(method, rows, places)
    tables = []
    for row, place in zip(rows, places, strict=True):
        try:
            table = gain_table(read_fit(place).model, columns)
        except ValueError as error:
            raise ValueError(f"{method.name} (seed {row.seed}): {error}") from error
        tables.append(table.assign(method=method.name, seed=row.seed)[list(COLUMNS)])
    return pd.concat(tables)


def _columns(method: Method, rows: Sequence[Row], places: Sequence[Path]) -> Sequence[str]:
    """Names noted beside any of the fits: seeds of one configuration, store and checkpoint read the same columns."""
    noted = {tuple(names) for place in places if (names := read_fit_columns(place)) is not None}
    if len(noted) == 1:
        return noted.pop()
    if noted:
        raise ValueError(f"{method.name}: the columns noted beside the fits of its seeds differ; fit them again")
    raise ValueError(
        f"{method.name}: its columns were not noted when it was fitted; score one kept fit again, which notes them: "
        f"kronos-qlib benchmark run --methods {method.name} --seeds {rows[0].seed} --segment valid --results "
        "ANOTHER_FOLDER, the other options as before"
    )


def _fit_folder(method: Method, row: Row, state: State, protocol: Protocol) -> Path:
    # the row has the fingerprints of store and factors, so neither need be here
    task = Task(method, row.seed, row.segment, protocol, Path(), row.data, row.checkpoint)
    if row.key != task.key:
        raise ValueError(
            f"the row of {method.name} (seed {row.seed}) is of another configuration or protocol than the registry has "
            "now; run it again"
        )
    place = state.fit(task.fit_key)
    if not (place / FIT).is_file():
        raise ValueError(
            f"{state.folder} has no fit of {method.name} (seed {row.seed}); take the state folder that its row was "
            "made with, or remove the row and run it again"
        )
    return place
