"""Factors of a universe: which rows, which weights, and the way from the forecast store to Qlib's rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.alpha.factors import FACTORS
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.crossfit import LABEL_REACH
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.row_weights import RowWeights, WeightRules, weigh_rows
from kronos_qlib.forecast.sources import PathFactorSource, TokenFactorSource
from kronos_qlib.forecast.store import BuildReport, ForecastStore, Task
from kronos_qlib.forecast.store_cards import save_card
from kronos_qlib.forecast.store_columns import EMBEDDING_PATTERN
from kronos_qlib.forecast.store_source import FactorSource, source_fingerprint, weights_of
from kronos_qlib.forecast.store_verify import VerifyReport
from kronos_qlib.forecast.token_factors import TOKEN_FACTORS
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.market.calendars import on_every

Rows = npt.NDArray[np.int64]
logger = logging.getLogger(__name__)

# Draws spread evenly over the closes they decode to, none cut off: chosen on 2015-2016, see benchmarks/LOG.md.
SAMPLING: dict[str, Any] = {"top_p": 1.0, "scheme": "stratified", "order": "close"}


@dataclass(frozen=True)
class FactorSettings:
    """Which factors are computed, and how.

    Attributes
    ----------
    factors : tuple of str or None
        Keys of ``alpha.factors.FACTORS`` and ``forecast.token_factors.TOKEN_FACTORS``; None: all of both.
    embedding : tuple of str
        Kinds of ``forecast.token_factors.EMBEDDINGS``.
    horizon, n_paths, seed : int
        Of the sampled forecasts.
    block : int
        Days that the token factors and embeddings of one forward pass answer for; 1: exact.
    fit_end : date-like, optional
        Last date that a learner will be fitted on: rows up to it get weights that never saw their bars, see
        ``forecast.crossfit``. None: weights are chosen by their cutoff alone, as in live use.
    label_horizon : int, optional
        Bars after a row that the learner's label reaches, by which rows are purged where that is more than ``horizon``;
        None: 2, the reach of Qlib's default label.
    allow_in_sample : bool
        Give rows that every checkpoint has seen to the latest one, instead of an error.
    leave_out : bool
        Leave such rows out instead: they stay NaN.
    every : int
        Rows of every so many sessions of the store's calendar alone, counted from its first: for a first look. No
        value depends on it.
    """

    factors: tuple[str, ...] | None = None
    embedding: tuple[str, ...] = ()
    horizon: int = 10
    n_paths: int = 10
    seed: int = 0
    block: int = 10
    fit_end: Any = None
    label_horizon: int | None = None
    allow_in_sample: bool = False
    leave_out: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"found every={self.every}; expected a whole number of at least 1")
        if self.factors is not None:
            check_keys(self.factors, [*FACTORS, *TOKEN_FACTORS], "factors")

    def path_factors(self) -> tuple[str, ...] | None:
        """Return the path factors asked for; None: all that the forecast defines."""
        return None if self.factors is None else tuple(name for name in self.factors if name in FACTORS)

    def token_factors(self) -> tuple[str, ...]:
        """Return the token factors asked for."""
        wanted = TOKEN_FACTORS if self.factors is None else self.factors
        return tuple(name for name in wanted if name in TOKEN_FACTORS)


class FactorTable:
    """Factors of the member rows of a dataset, kept in a forecast store.

    A member row gets the values of its last traded bar, at most ``dataset.carry`` trading days old, as scores do. With
    ``fit_end`` a row without a bar of its own stays NaN where its label reaches what the bar's weights have seen.

    Parameters
    ----------
    dataset : KlineDataset
    segment : name or slice of dates
    forecasters : one, or several from which each row gets weights that have not seen it.
    settings : FactorSettings

    Raises
    ------
    ValueError : unknown factors, no row with a window, rows that every checkpoint has seen.
    """

    def __init__(
        self,
        dataset: KlineDataset,
        segment: str | slice,
        forecasters: Sequence[KronosForecaster],
        settings: FactorSettings,
    ) -> None:
        self.forecasters = tuple(forecasters)
        self.panel = dataset.panel
        members = dataset.rows(segment)
        self.members = members[
            on_every(members.index.get_level_values("datetime"), self.panel.calendar, settings.every)
        ]
        self.rows: Rows = np.unique(self.members["row"].to_numpy())
        self.rows = self.rows[self.rows >= 0]
        if not len(self.rows):
            raise ValueError(f"no member row of {segment} has a window; check the dates and the store's history")
        self.calendar = dataset.handler.trading_calendar
        self.weights = self._choose(dataset, forecasters, settings)
        self.groups: list[list[Task]] = [[], []]
        for number, forecaster in enumerate(forecasters):
            rows = self.rows[self.weights.chosen == number]
            if len(rows):
                for group, source in zip(self.groups, self._sources(dataset, forecaster, settings), strict=True):
                    group += [] if source is None else [(source, rows)]
        self.groups = [group for group in self.groups if group]
        if not self.groups:
            raise ValueError("found no factor and no embedding to compute; ask for at least one")

    @property
    def columns(self) -> list[str]:
        """All columns, in the order of ``read``."""
        return [name for group in self.groups for name in group[0][0].columns]

    @property
    def fingerprints(self) -> list[str]:
        """Fingerprints of sources with exactly these columns; ``served_by`` names those that a store reads."""
        return [source_fingerprint(source) for group in self.groups for source, _ in group]

    def served_by(self, store: ForecastStore) -> list[str]:
        """Return the fingerprints of the stored sources that answer, in the order of ``fingerprints``."""
        return [store.serving(source, self.panel, rows) for group in self.groups for source, rows in group]

    def refuse_mixed_embeddings(self) -> None:
        """Raise ``ValueError`` where embeddings come from several weights: fields cannot tell their bases."""
        for group in self.groups:
            if len(group) > 1 and any(fnmatchcase(name, EMBEDDING_PATTERN) for name in group[0][0].columns):
                names = ", ".join(weights_of(source) for source, _ in group)
                raise ValueError(
                    f"the rows have embeddings from {len(group)} sets of weights ({names}), and as fields nothing "
                    "would tell them apart: leave --embedding out, give one checkpoint, or read them through "
                    "KronosFactorLoader with align: procrustes"
                )

    def refuse_in_sample(self) -> None:
        """Raise ``ValueError`` where weights have seen their rows: fields cannot tell these from others."""
        self.weights.refuse_in_sample(pd.DatetimeIndex(self.panel.timestamps[self.rows]))

    def build(self, store: ForecastStore, *, jobs: int = 1, progress: bool = True) -> list[BuildReport]:
        """Compute what the store does not have; one report for the path factors, one for the token factors.

        Columns that a stored source has by the same settings and definitions, among others, are not computed again;
        rows that it lacks are added to it (``forecast.store_cover``).
        The cards of the weights are noted too: by them a reader of the store knows which rows its weights have seen.
        """
        self.note_cards(store)
        reports = []
        for group in self.groups:
            plans = store.plan(group, self.panel)
            for plan in plans:
                logger.info("%s", plan)
            reports.append(store.build(group, self.panel, jobs=jobs, progress=progress, plans=plans))
        return reports

    def note_cards(self, store: ForecastStore) -> None:
        """Write the weights' cards into the store."""
        for forecaster in self.forecasters:
            save_card(store.folder, forecaster.fingerprint, forecaster.card)

    def verify(self, store: ForecastStore, *, sample: int = 200, seed: int = 0) -> VerifyReport:
        """Recompute a random sample of each source's rows and compare bit for bit."""
        total = VerifyReport()
        for group in self.groups:
            total.add(store.verify(group, self.panel, sample=sample, seed=seed))
        return total

    def read(self, store: ForecastStore, columns: Sequence[str] | None = None, *, notes: bool = False) -> pd.DataFrame:
        """Return the member rows' factors, float32, indexed (datetime, instrument).

        Parameters
        ----------
        columns : None: all.
        notes : add ``weights`` (fingerprint of the weights of each row, empty without values) and ``age`` (bars of
            the calendar since the bar that the values are from; -1 without).

        Raises
        ------
        ValueError : unknown column, rows that the store does not have (build first).
        """
        wanted = self.columns if columns is None else list(columns)
        check_keys(wanted, self.columns, "columns of factors")
        values = np.full((len(self.rows) + 1, len(wanted)), np.nan, dtype=np.float32)  # the last row is no bar
        weights = np.full(len(self.rows) + 1, "", dtype=object)
        for group in self.groups:
            names = [name for name in group[0][0].columns if name in wanted]
            where = np.array([wanted.index(name) for name in names], dtype=np.int64)
            for source, rows in group:
                place = np.searchsorted(self.rows, rows)
                weights[place] = weights_of(source)
                if names:
                    values[np.ix_(place, where)] = self._stored(store, source, rows, names)
        row = self.members["row"].to_numpy()
        there = (row >= 0) & ~self.weights.left_out
        at = np.where(there, np.searchsorted(self.rows, row), len(self.rows))
        frame = pd.DataFrame(values[at], index=self.members.index, columns=wanted)
        return frame.assign(weights=weights[at], age=self.members["age"]) if notes else frame

    def _stored(self, store: ForecastStore, source: FactorSource, rows: Rows, names: list[str]) -> npt.NDArray[Any]:
        times = pd.DatetimeIndex(self.panel.timestamps[rows])
        codes = self.panel.instrument_names(rows)
        serving = store.serving(source, self.panel, rows)
        found = store.read(names, times.min(), times.max(), sorted(set(codes)), sources=serving)
        place = found.index.get_indexer(pd.MultiIndex.from_arrays([times, codes]))
        if (place < 0).any():
            raise ValueError(
                f"{int((place < 0).sum()):,} of {len(rows):,} rows are not in {store.folder}; build them first"
            )
        return found.to_numpy(dtype=np.float32)[place]

    def _choose(
        self, dataset: KlineDataset, forecasters: Sequence[KronosForecaster], settings: FactorSettings
    ) -> RowWeights:
        rules = WeightRules(
            settings.fit_end, max(settings.horizon, settings.label_horizon or LABEL_REACH), settings.block,
            settings.allow_in_sample, settings.leave_out,
        )  # fmt: skip
        policy = dataset.window_policy(max(forecaster.lookback for forecaster in forecasters))
        return weigh_rows(
            forecasters, self.panel, self.rows, self.members, policy=policy, calendar=self.calendar, rules=rules
        )

    def _sources(
        self, dataset: KlineDataset, forecaster: KronosForecaster, settings: FactorSettings
    ) -> tuple[FactorSource | None, FactorSource | None]:
        policy = dataset.window_policy(forecaster.lookback)
        paths: FactorSource | None = None
        tokens: FactorSource | None = None
        if settings.path_factors() != ():
            paths = PathFactorSource(
                forecaster,
                self.panel,
                policy=policy,
                horizon=settings.horizon,
                sampling={**SAMPLING, "n_paths": settings.n_paths, "seed": settings.seed},
                factors=settings.path_factors(),
                calendar=self.calendar,
            )
        if settings.token_factors() or settings.embedding:
            tokens = TokenFactorSource(
                forecaster,
                self.panel,
                policy=policy,
                factors=settings.token_factors(),
                embedding=settings.embedding,
                block=settings.block,
                calendar=self.calendar,
            )
        return paths, tokens
