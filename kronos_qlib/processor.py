"""Qlib processors of ours: only what Qlib has none for.

For z-scores and ranks use Qlib's own: ``RobustZScoreNorm`` and ``ZScoreNorm`` (fitted on the training segment),
``CSZScoreNorm`` and ``CSRankNorm`` (per date), ``Fillna``, ``ProcessInf``.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import pandas as pd
from qlib.data import D
from qlib.data.dataset.processor import Processor, get_group_columns
from qlib.data.dataset.utils import fetch_df_by_index
from qlib.log import get_module_logger

from kronos_qlib.alpha.components import Components, fit_components
from kronos_qlib.alpha.factors_table import TABLE_FACTORS, compute_table_factors
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.market.calendars import on_every

logger = get_module_logger("kronos_qlib.processor")
PROCESSOR_KEYS = ("fit_start_time", "fit_end_time", "n_components", "fields_group", "pattern", "prefix")
TABLE_KEYS = ("names", "fields_group")
SESSION_KEYS = ("every", "fit_start_time", "fit_end_time")


class EmbeddingPCA(Processor):
    """Replace the embedding columns of a frame by their principal components.

    Fitted on the rows dated ``fit_start_time`` to ``fit_end_time`` alone, which Qlib's handlers fill in; other columns
    are left as they are. Components are ordered by variance, largest first; in each the largest loading is positive, so
    that a refit on the same rows gives the same columns. A row with a NaN in an embedding column has NaN components
    and is no part of the fit.

    Parameters
    ----------
    fit_start_time, fit_end_time : date-like
        The training segment, both included.
    n_components : int or None
        None: the embedding columns stay as they are.
    fields_group : str or None
        Group of the columns; None for a frame without groups.
    pattern : str
        Shell pattern of the embedding columns' names.
    prefix : str
        Of the new columns: ``emb_pca_00`` …

    Raises
    ------
    ValueError
        Unknown key, no embedding column, no or too few rows in the training segment, more components than columns.

    Notes
    -----
    Components mean something only if all rows have one basis: embeddings from cross-fitted weights have one for each
    set of weights. :class:`kronos_qlib.loader.KronosFactorLoader` therefore refuses to mix them unaligned.
    """

    def __init__(
        self,
        fit_start_time: Any = None,
        fit_end_time: Any = None,
        n_components: int | None = 16,
        fields_group: str | None = "feature",
        pattern: str = "emb_*",
        prefix: str = "emb_pca_",
        **unknown: Any,
    ) -> None:
        check_keys(unknown, PROCESSOR_KEYS, "EmbeddingPCA")
        if n_components is not None and (
            isinstance(n_components, bool) or not isinstance(n_components, int) or n_components < 1
        ):
            raise ValueError(f"EmbeddingPCA: n_components must be a whole number >= 1 or null, got {n_components!r}")
        if fit_start_time is None or fit_end_time is None:
            raise ValueError(
                "EmbeddingPCA needs fit_start_time and fit_end_time; give the handler the training segment"
            )
        self.fit_start_time, self.fit_end_time = fit_start_time, fit_end_time
        self.n_components, self.fields_group = n_components, fields_group
        self.pattern, self.prefix = pattern, prefix
        self.columns: list[str] = []
        self.components: Components | None = None

    def fit(self, df: pd.DataFrame | None = None) -> None:
        """Fit on the training segment's rows of ``df``."""
        if df is None:
            raise ValueError("EmbeddingPCA: fit needs the frame to fit on")
        chosen = self._embedding(df.columns)
        self.columns = [str(_last(column)) for column in chosen]
        if self.n_components is None:
            return
        rows = fetch_df_by_index(df, slice(self.fit_start_time, self.fit_end_time), level="datetime")
        if rows.empty:
            span = f"fit_start_time {self.fit_start_time} and fit_end_time {self.fit_end_time}"
            raise ValueError(f"EmbeddingPCA: no row between {span}")
        self.components = fit_components(rows[chosen].to_numpy(dtype=np.float32), self.n_components)
        logger.info(
            "EmbeddingPCA: %d components of %d columns hold %.1f %% of the variance of %d rows",
            self.n_components, len(chosen), 100 * self.components.explained.sum(), self.components.rows,
        )  # fmt: skip

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return a frame with the components in the embedding's place; ``df`` itself is not changed."""
        chosen = self._embedding(df.columns)
        found = [str(_last(column)) for column in chosen]
        if found != self.columns:
            raise ValueError(
                f"EmbeddingPCA was fitted on columns {self.columns[:3]} …, found {found[:3]} …; fit it first"
            )
        if self.n_components is None:
            return df
        if self.components is None:
            raise ValueError("EmbeddingPCA: not fitted yet")
        names = [f"{self.prefix}{number:02d}" for number in range(self.n_components)]
        columns: Any = names
        if df.columns.nlevels > 1:
            columns = pd.MultiIndex.from_product([[chosen[0][0]], names], names=df.columns.names)
        values = self.components.apply(df[chosen].to_numpy(dtype=np.float32))
        new = pd.DataFrame(values, index=df.index, columns=columns)
        return pd.concat([new, df.drop(columns=chosen)], axis=1).sort_index(axis=1)

    def readonly(self) -> bool:
        """Say that the given frame is not written to."""
        return True

    def _embedding(self, columns: pd.Index) -> list[Any]:
        group = self.fields_group if columns.nlevels > 1 else None
        if group is not None and group not in columns.get_level_values(0):
            raise ValueError(
                f"EmbeddingPCA: no group {group!r}; the frame has {sorted(set(columns.get_level_values(0)))}"
            )
        found = [
            column
            for column in get_group_columns(pd.DataFrame(columns=columns), group)
            if fnmatchcase(str(_last(column)), self.pattern) and not str(_last(column)).startswith(self.prefix)
        ]
        if not found:
            raise ValueError(
                f"EmbeddingPCA: no column matches {self.pattern!r}; ask the loader for them (columns: ['*']) and build "
                "them with kronos-qlib factors build --embedding last"
            )
        return sorted(found)


class TableFactors(Processor):
    """Add factors of the factors of two sessions: today's forecast minus the one of the session before.

    Put it first: its factors are made of the columns as they were built. A value dated t uses columns dated up to t;
    the first session of a handler has none.

    Parameters
    ----------
    names : list of str, optional
        Of ``kronos_qlib.alpha.factors_table.TABLE_FACTORS``; None: all whose column is there.
    fields_group : str or None
        Group of the columns; None for a frame without groups.

    Raises
    ------
    ValueError : unknown key or name, a column that a factor reads missing.

    Notes
    -----
    A suspended member keeps its last values, so its change is 0 from the second such session on. Where cross-fitted
    weights change from one session to the next, so does the level that a change is of.
    """

    def __init__(
        self, names: Sequence[str] | None = None, fields_group: str | None = "feature", **unknown: Any
    ) -> None:
        check_keys(unknown, TABLE_KEYS, "TableFactors")
        check_keys(names or [], list(TABLE_FACTORS), "TableFactors: names")
        self.names, self.fields_group = None if names is None else list(names), fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return a frame with the new columns, float32; ``df`` itself is not changed."""
        grouped = df.columns.nlevels > 1
        features = cast(pd.DataFrame, df[self.fields_group]) if grouped else df
        present = [name for name, factor in TABLE_FACTORS.items() if factor.column in features]
        names = present if self.names is None else self.names
        if not names:
            raise ValueError(f"TableFactors: the frame has none of {[f.column for f in TABLE_FACTORS.values()]}")
        read = [column for column in dict.fromkeys(TABLE_FACTORS[name].column for name in names) if column in features]
        sessions = pd.DatetimeIndex(df.index.unique("datetime"))
        new = compute_table_factors(names, features.loc[:, read], sessions).astype(np.float32)
        if grouped:
            new.columns = pd.MultiIndex.from_product([[self.fields_group], names], names=df.columns.names)
        return pd.concat([df, new], axis=1).sort_index(axis=1)

    def readonly(self) -> bool:
        """Say that the given frame is not written to."""
        return True


class EverySession(Processor):
    """Learn from every so many training sessions: daily labels that reach over the next days repeat each other.

    For ``learn_processors``. Sessions are counted on the store's calendar from its first, as ``kronos-qlib factors
    build --every`` counts them; rows outside ``fit_start_time`` to ``fit_end_time`` (those of valid) are all kept.

    Parameters
    ----------
    every : int
        Whole number of at least 1.
    fit_start_time, fit_end_time : date-like
        The training segment, both included; Qlib's handlers fill them in.

    Raises
    ------
    ValueError : unknown key, no whole number, no training segment.
    """

    def __init__(self, every: int, fit_start_time: Any = None, fit_end_time: Any = None, **unknown: Any) -> None:
        check_keys(unknown, SESSION_KEYS, "EverySession")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"EverySession: every must be a whole number of at least 1, got {every!r}")
        if fit_start_time is None or fit_end_time is None:
            raise ValueError(
                "EverySession needs fit_start_time and fit_end_time; give the handler the training segment"
            )
        self.every, self.fit_start_time, self.fit_end_time = every, fit_start_time, fit_end_time

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that are kept."""
        days = pd.DatetimeIndex(df.index.get_level_values("datetime"))
        kept = on_every(days, pd.DatetimeIndex(D.calendar(freq="day")), self.every)
        fitted = (days >= pd.Timestamp(self.fit_start_time)) & (days <= pd.Timestamp(self.fit_end_time))
        return df[~fitted | kept]

    def is_for_infer(self) -> bool:
        """Say that scores need every row."""
        return False

    def readonly(self) -> bool:
        """Say that the given frame is not written to."""
        return True


def _last(column: Any) -> Any:
    return column[-1] if isinstance(column, tuple) else column
