"""Table factors: columns made from other columns of a finished factor table, across the sessions of an instrument.

A table factor dated t uses values dated up to t, of the session before it at the earliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.kronos.config import check_keys


@dataclass(frozen=True)
class TableFactor:
    """A registered table factor: its name, the column it reads, its function, definition, unit and version."""

    name: str
    column: str
    function: Callable[[pd.DataFrame, pd.DataFrame], NDArray[np.float64]]
    definition: str
    unit: str
    version: int


def _change(column: str) -> Callable[[pd.DataFrame, pd.DataFrame], NDArray[np.float64]]:
    def function(now: pd.DataFrame, before: pd.DataFrame) -> NDArray[np.float64]:
        return now[column].to_numpy(np.float64) - before[column].to_numpy(np.float64)

    return function


def change_factor(column: str, unit: str = "return: fraction of the last close") -> TableFactor:
    """Return the table factor ``<column>_change``: the forecast minus the one made a session earlier."""
    definition = f"{column} minus the instrument's {column} of the session before; NaN where it has none there."
    return TableFactor(f"{column}_change", column, _change(column), definition, unit, 1)


TABLE_FACTORS: dict[str, TableFactor] = {
    factor.name: factor
    for factor in (
        change_factor("expected_return"),
        change_factor("expected_return_5"),
        change_factor("terminal_return_1"),
        change_factor("dispersion"),
        change_factor("probability_up", "share of paths"),
        change_factor("entropy_s1", "nats"),
    )
}


def compute_table_factors(names: Sequence[str], table: pd.DataFrame, sessions: pd.DatetimeIndex) -> pd.DataFrame:
    """Compute table factors.

    Parameters
    ----------
    names : keys of ``TABLE_FACTORS``.
    table : index (datetime, instrument), unique; the columns that the factors read. To have values on the first date
        wanted, it must hold the session before it.
    sessions : all sessions of the market, so that "the session before" never depends on which rows are in the table.

    Returns
    -------
    DataFrame float64, index of ``table``, one column a name; NaN where the instrument has no row (was suspended, or no
    member) on the session before, and on the first of all sessions.

    Raises
    ------
    ValueError : unknown names, columns missing, an index with duplicates, or a date that is no session.
    """
    check_keys(names, list(TABLE_FACTORS), "the table factors")
    chosen = [TABLE_FACTORS[name] for name in names]
    missing = sorted({factor.column for factor in chosen} - set(table.columns))
    if missing:
        raise ValueError(
            f"the factor table lacks {', '.join(missing)}, which {', '.join(names)} read; compute them too"
        )
    before = table.reindex(_session_before(table.index, sessions))
    columns = {factor.name: factor.function(table, before) for factor in chosen}
    return pd.DataFrame(columns, index=table.index, dtype=np.float64)


def _session_before(index: pd.Index, sessions: pd.DatetimeIndex) -> pd.MultiIndex:
    """Return the index with every date replaced by the session before it, NaT where there is none."""
    if list(index.names) != ["datetime", "instrument"] or not index.is_unique:
        raise ValueError(
            f"found an index of {list(index.names)}, unique: {index.is_unique}; expected unique (datetime, instrument)"
        )
    known = sessions.unique().sort_values()
    dates = pd.DatetimeIndex(index.get_level_values("datetime"))
    position = known.get_indexer(dates)
    if (position < 0).any():
        raise ValueError(f"{dates[position < 0][0]} is no session of the given calendar; give the market's sessions")
    earlier = pd.DatetimeIndex(np.append(known.to_numpy(), np.datetime64("NaT")))[position - 1]
    return pd.MultiIndex.from_arrays([earlier, index.get_level_values("instrument")], names=index.names)
