"""Qlib's data loader of Kronos factors, from a forecast store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from qlib.data.dataset.loader import DataLoader
from qlib.log import get_module_logger

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.crossfit import LABEL_REACH, row_spans
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.forecast.store_columns import BUILD, ColumnGroup, find_groups
from kronos_qlib.forecast.store_table import ALIGNMENTS, AskedRows, GroupValues, ReadRules, read_group
from kronos_qlib.handler import KlineHandler, store_path
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.market.windows import WindowPolicy

logger = get_module_logger("kronos_qlib.loader")
LOADER_KEYS = (
    "factors", "columns", "group", "sources", "fit_end_time", "allow_in_sample", "align", "may_miss", "carry",
    "horizon", "freq", "filter_pipe",
)  # fmt: skip
MAY_MISS = ("nothing", "rows", "dates")
HORIZON = 10  # of a build, where no source names one
WEAK_ALIGNMENT = 0.5


class KronosFactorLoader(DataLoader):
    """Columns of a forecast store for the members of a market, from weights that may answer for each row.

    One row for every (session, member), as :class:`kronos_qlib.handler.KlineHandler` has them. A row holds the values
    of the member's last traded bar, at most ``carry`` trading days old, so it uses bars up to its own date. Works
    inside ``NestedDataLoader``; every error is a ``ValueError``, since that class answers a ``KeyError`` by loading
    everything.

    Parameters
    ----------
    factors : path
        Folder that ``kronos-qlib factors build`` wrote.
    columns : list of str, optional
        Names, or shell patterns (``terminal_return_*``). None: all factors, without the embeddings ``emb_*``.
    group : str or None
        First level of the columns; None: no levels.
    sources : list of str, optional
        Fingerprints (or their beginnings, as ``kronos-qlib factors ls`` shows them) of the sources to use. Needed where
        the store has a column with several settings. Where sources of the same weights and settings differ in their
        columns alone, a column is read from the one with most of the rows; if they rest on different bars, an error.
    fit_end_time : date-like, optional
        Last date of the rows that a learner is fitted on, the end of the training segment. Rows up to it must come from
        weights that saw nothing from the first bar of their window to the last of their label, later rows from weights
        whose cutoff lies before them (``kronos_qlib.forecast.crossfit``). None: the second rule for all rows.
    allow_in_sample : bool
        Accept rows from weights that have seen them, for a control.
    align : None or "procrustes"
        What to do where embeddings of several sets of weights meet, whose components are not comparable. None: refuse.
        ``procrustes``: turn those of earlier weights into the basis of the latest by a similarity fitted on rows up to
        ``fit_end_time`` that both have scored. No label is used, but the latest weights have seen those bars, so the
        training rows are expressed in a basis that knows them; and two networks agree only in part
        (``alignment[...]["explained"]``; a warning below 0.5).
    may_miss : "nothing", "rows" or "dates"
        What the store may lack: no row that has a window; some rows of a date; whole dates. Missing values are NaN and
        counted in ``coverage``; with ``dates`` so are rows that every stored version leaks into, else an error. That it
        has none of the asked rows is an error always.
    carry : int
        As in :class:`kronos_qlib.dataset.KlineDataset`. A bar's values are not carried on to a day where they leak: its
        window is older than that day, its label is not. Such rows are NaN and count as missing.
    horizon : int, optional
        Bars after a row that its label reaches. The loader does not know the label: say it here where that is more than
        the forecast horizon (``KronosAlpha`` reads it from the label). None: the longest forecast horizon of the
        sources, 10 where none has one, as in the build; never below 2, the reach of Qlib's default label.
    freq, filter_pipe
        As in Qlib's loaders.

    Attributes
    ----------
    coverage : dict
        Of the last ``load``: ``rows``, ``no_window``, ``missing``, ``in_sample``, ``weights`` (rows by fingerprint).
    alignment : dict
        Of the last ``load``, by fingerprint: ``rows`` fitted on and share ``explained``.

    Raises
    ------
    ValueError : a bad setting here; in ``load`` what the store lacks, and rows that leak.
    """

    def __init__(
        self,
        factors: str | Path = "",
        columns: Sequence[str] | None = None,
        group: str | None = "feature",
        sources: Sequence[str] | None = None,
        fit_end_time: Any = None,
        allow_in_sample: bool = False,
        align: str | None = None,
        may_miss: str = "rows",
        carry: int = 20,
        horizon: int | None = None,
        freq: str = "day",
        filter_pipe: list[Any] | None = None,
        **unknown: Any,
    ) -> None:
        check_keys(unknown, LOADER_KEYS, "KronosFactorLoader")
        if not str(factors):
            raise ValueError(
                "KronosFactorLoader: factors names no folder; give the one that kronos-qlib factors build wrote with "
                "--out (in the workflows: set KRONOS_FACTORS)"
            )
        if may_miss not in MAY_MISS:
            check_keys([may_miss], MAY_MISS, "KronosFactorLoader: may_miss")
        if horizon is not None and horizon < 1:
            raise ValueError(f"KronosFactorLoader: found horizon={horizon}; expected at least 1 bar, the label's reach")
        if align is not None:
            check_keys([align], ALIGNMENTS, "KronosFactorLoader: align")
        self.factors = str(Path(factors).expanduser())
        self.columns = None if columns is None else _listed("columns", columns)
        self.sources = None if sources is None else _listed("sources", sources)
        self.group, self.freq, self.filter_pipe = group, freq, filter_pipe
        self.fit_end_time, self.allow_in_sample, self.align = fit_end_time, bool(allow_in_sample), align
        self.may_miss, self.carry, self.horizon = may_miss, carry, horizon
        self.coverage: dict[str, Any] = {}
        self.alignment: dict[str, dict[str, float]] = {}

    def load(self, instruments: Any = None, start_time: Any = None, end_time: Any = None) -> pd.DataFrame:
        """Return the columns, float32, indexed (datetime, instrument).

        Parameters
        ----------
        instruments : a market's name, Qlib's dict of one, or codes, which count as members always; None: ``all``.
        start_time, end_time : both included; None: the store of bars' own.
        """
        frame, _ = self._load(instruments, start_time, end_time)
        return frame

    def notes(self, instruments: Any = None, start_time: Any = None, end_time: Any = None) -> pd.DataFrame:
        """Say of each row of ``load`` where its values are from.

        Returns
        -------
        DataFrame
            ``age`` (bars of the calendar since the bar they are from, -1 without one), ``in_sample``, and for each
            group of columns ``weights_<first column>``: the fingerprint of the weights, empty where there are none.
        """
        return self._load(instruments, start_time, end_time)[1]

    def _load(self, instruments: Any, start_time: Any, end_time: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        try:
            return self._read("all" if instruments is None else instruments, start_time, end_time)
        except KeyError as error:  # NestedDataLoader would answer it by loading every instrument
            raise ValueError(f"KronosFactorLoader: {error.args[0] if error.args else error!r} was not found") from error

    def _read(self, instruments: Any, start: Any, end: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        folder = Path(self.factors)
        groups = find_groups(folder, self.columns, self.sources)
        policy = _policy(groups)
        handler = KlineHandler(
            instruments, start, end, self.freq, init_data=False, filter_pipe=self.filter_pipe
        )  # fmt: skip
        dataset = KlineDataset(
            handler, {"all": (start, end)}, min_bars=policy.min_bars, max_gap=policy.max_gap, max_jump=policy.max_jump,
            carry=self.carry,
        )  # fmt: skip
        members, panel = dataset.rows("all"), dataset.panel
        windows = (members["row"] >= 0).to_numpy()
        bars = members["row"].to_numpy()[windows]  # one for each row that has a window, so some repeat
        if not len(bars):
            raise ValueError(
                f"no member of {instruments!r} has a window between {start} and {end}; see the store of bars"
            )
        index = pd.MultiIndex.from_arrays([pd.DatetimeIndex(panel.timestamps[bars]), panel.instrument_names(bars)])
        days = members.index.get_level_values("datetime").to_numpy().astype(panel.timestamps.dtype)
        spans = row_spans(
            panel, bars, policy=policy, horizon=_horizon(groups) if self.horizon is None else self.horizon,
            calendar=handler.trading_calendar, block=_block(groups), used=days[windows],
        )  # fmt: skip
        asked = AskedRows(index, spans, (members["age"] > 0).to_numpy()[windows])
        rules = ReadRules(self.fit_end_time, self.allow_in_sample, self.align, leave_out=self.may_miss == "dates")
        parts = [read_group(ForecastStore(folder), group, asked, rules) for group in groups]
        place = np.where(windows, np.cumsum(windows) - 1, len(bars))
        self._tell(parts, members, place, instruments)
        return self._frame(parts, members, place), _notes(parts, members, place)

    def _frame(self, parts: list[GroupValues], members: pd.DataFrame, place: NDArray[np.int64]) -> pd.DataFrame:
        values = np.concatenate([part.values for part in parts], axis=1)
        values = np.concatenate([values, np.full((1, values.shape[1]), np.nan, dtype=np.float32)])  # of no bar
        names = [name for part in parts for name in part.columns]
        columns = names if self.group is None else pd.MultiIndex.from_product([[self.group], names])
        return pd.DataFrame(values[place], index=members.index, columns=columns)

    def _tell(
        self, parts: list[GroupValues], members: pd.DataFrame, place: NDArray[np.int64], instruments: Any
    ) -> None:
        """Count what was found, and refuse what ``may_miss`` does not allow."""
        window = (members["row"] >= 0).to_numpy()
        lacks = np.append(np.any([part.weights == "" for part in parts], axis=0), False)[place]
        in_sample = np.append(np.any([part.in_sample for part in parts], axis=0), False)[place]
        answered = np.append(parts[0].weights, "")[place]
        names, counts = np.unique(answered[answered != ""].astype(str), return_counts=True)
        self.coverage = {
            "rows": len(members),
            "no_window": int((~window).sum()),
            "missing": int(lacks.sum()),
            "in_sample": int(in_sample.sum()),
            "weights": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        }
        self.alignment = {
            name: {"rows": fit.rows, "explained": round(fit.explained, 4)}
            for part in parts
            for name, fit in part.alignments.items()
        }
        self._refuse(parts, lacks, (members["age"] == 0).to_numpy(), members.index, instruments)
        logger.info("factors of %s: %s", self.factors, self.coverage)
        if self.coverage["in_sample"]:
            logger.warning("%d of %d rows are in-sample", self.coverage["in_sample"], len(members))
        for name, figures in self.alignment.items():
            level = logger.warning if figures["explained"] < WEAK_ALIGNMENT else logger.info
            level("embeddings of %s turned into the latest basis: %s", name, figures)

    def _refuse(
        self,
        parts: list[GroupValues],
        lacks: NDArray[np.bool_],
        traded: NDArray[np.bool_],
        index: pd.Index,
        instruments: Any,
    ) -> None:
        days = pd.DatetimeIndex(index.get_level_values("datetime"))
        missing = lacks & traded  # a row that carries a value on is missing where its bar's own row is
        table = pd.DataFrame({"missing": missing, "traded": traded}).groupby(days).sum()
        empty = table.index[(table["traded"] > 0) & (table["missing"] == table["traded"])]
        none_at_all = next((part for part in parts if not (part.weights != "").any()), None)
        if none_at_all is not None:
            what, first, last = f"no {none_at_all.columns[0]!r} for any of these rows", days[0], days[-1]
        elif self.may_miss == "nothing" and missing.any():
            what, first, last = f"{int(missing.sum()):,} rows missing", days[missing][0], days[missing][-1]
        elif self.may_miss != "dates" and len(empty):
            what, first, last = f"{len(empty):,} whole dates missing", empty[0], empty[-1]
        else:
            if lacks.any():
                logger.warning("%s lacks %d of %d rows: NaN", self.factors, int(lacks.sum()), len(index))
            return
        universe = instruments if isinstance(instruments, str) else "UNIVERSE"
        fit_end = "" if self.fit_end_time is None else f" --fit-end {pd.Timestamp(self.fit_end_time):%Y-%m-%d}"
        raise ValueError(
            f"{self.factors} has {what}, {first:%Y-%m-%d} to {last:%Y-%m-%d}; build them: {BUILD} --store "
            f"{store_path(self.freq)} --out {self.factors} --universe {universe} --start {first:%Y-%m-%d} --end "
            f"{last:%Y-%m-%d}{fit_end} --checkpoint … (and the build's other options as before); or allow it with "
            "may_miss"
        )


def _listed(name: str, given: Sequence[str]) -> list[str]:
    if isinstance(given, str) or not all(isinstance(one, str) for one in given) or not given:
        raise ValueError(f"KronosFactorLoader: {name} must be a list of names, or null; got {given!r}")
    return list(given)


def _policy(groups: list[ColumnGroup]) -> WindowPolicy:
    """Return the policy that reaches back furthest."""
    policies = [WindowPolicy(**source.description["window_policy"]) for group in groups for source in group.sources]
    rest = {(policy.min_bars, policy.max_gap, policy.max_jump) for policy in policies}
    if len(rest) > 1:
        raise ValueError(
            f"the sources cut windows by different rules (min_bars, max_gap, max_jump): {sorted(map(str, rest))}"
        )
    return max(policies, key=lambda policy: policy.lookback)


def _horizon(groups: list[ColumnGroup]) -> int:
    named = [source.description.get("horizon") for group in groups for source in group.sources]
    return max(LABEL_REACH, max((int(horizon) for horizon in named if horizon), default=HORIZON))


def _block(groups: list[ColumnGroup]) -> int:
    return max(int(source.description.get("block", 1)) for group in groups for source in group.sources)


def _notes(parts: list[GroupValues], members: pd.DataFrame, place: NDArray[np.int64]) -> pd.DataFrame:
    in_sample = np.append(np.any([part.in_sample for part in parts], axis=0), False)[place]
    found: dict[str, Any] = {"age": members["age"], "in_sample": in_sample}
    for part in parts:
        found[f"weights_{part.columns[0]}"] = np.append(part.weights, "")[place]
    return pd.DataFrame(found, index=members.index)
