"""The bars that networks are trained on: memory-mapped arrays of one or several markets in a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.swap import refuse_foreign
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.corpus_build import ARRAYS, CORPUS_VERSION, META_FILE, CorpusPlan, Policies
from kronos_qlib.training.corpus_sources import BarFiles, CorpusSource, PanelSource, StoreSource
from kronos_qlib.training.selection import Dates, Selection, select_ends
from kronos_qlib.training.stagnant import StretchFilter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Traded bars, source after source, each sorted by instrument and time. The arrays are read-only maps of files.

    Attributes
    ----------
    folder : Path
    meta : dict
        What ``meta.json`` says: ``fingerprint``, ``rows``, ``sources`` (name, rows, instruments, first, last, …).
    values : float32 (R, 6)
        ``BAR_FIELDS`` in adjusted store units.
    stamps : int16 (R, 5)
        Minute, hour, weekday, day, month.
    segment : int64 (R,)
        First row that a window ending at this row may reach back to (``market.windows.segment_starts``).
    timestamps : datetime64[ns] (R,)
    code : int32 (R,)
        Position in ``instruments``. An instrument of two sources has two positions.
    source : int16 (R,)
        Position in ``meta["sources"]``.
    """

    folder: Path
    meta: dict[str, Any]
    values: npt.NDArray[np.float32]
    stamps: npt.NDArray[np.int16]
    segment: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.datetime64]
    code: npt.NDArray[np.int32]
    source: npt.NDArray[np.int16]

    @classmethod
    def build(
        cls,
        folder: str | Path,
        sources: Mapping[str, CorpusSource],
        policy: Policies = None,
    ) -> Corpus:
        """Write the corpus of some sources, or open it if the folder holds just that already.

        Parameters
        ----------
        folder : path
            Written whole or not at all. An earlier corpus of ours is replaced; anything else is refused.
        sources : mapping of str to CorpusSource
            Daily and intraday ones alike.
        policy : WindowPolicy or mapping of str to WindowPolicy
            Says where segments begin (``max_gap``, ``max_jump``), for all sources or for each. A market without
            price limits wants ``max_jump=None``.

        Raises
        ------
        ValueError
            No source, no bars, or a folder that is something else.
        """
        return cls.of_plan(folder, CorpusPlan.of(sources, policy))

    @classmethod
    def of_plan(cls, folder: str | Path, plan: CorpusPlan) -> Corpus:
        """Write what is planned, or open the folder if it holds just that already; see ``build``."""
        folder = Path(folder).expanduser()
        refuse_foreign(folder, META_FILE)
        if _holds(folder, plan.fingerprint):
            logger.info("corpus %s is up to date and is used as it is", folder)
        else:
            plan.write(folder)
        return cls.open(folder)

    @classmethod
    def from_panels(
        cls,
        folder: str | Path,
        panels: Mapping[str, BarPanel],
        policy: Policies = None,
    ) -> Corpus:
        """Write panels that are in memory; see ``build``. Their values are taken as they are: adjusted."""
        return cls.build(folder, {name: PanelSource(panel) for name, panel in panels.items()}, policy)

    @classmethod
    def from_bars(
        cls,
        folder: str | Path,
        paths: str | Path | Iterable[str | Path],
        *,
        calendar: str | None = "XSHG",
        freq: str = "day",
        region: str = "cn",
        name: str = "bars",
        policy: WindowPolicy | None = None,
        **reading: Any,
    ) -> Corpus:
        """Write vendor files, adjusted by their ``factor`` and without indices; see ``build`` and ``BarFiles``."""
        source = BarFiles(paths, calendar=calendar, freq=freq, region=region, **reading)
        return cls.build(folder, {name: source}, policy)

    @classmethod
    def from_store(
        cls,
        folder: str | Path,
        provider_uri: str | Path,
        instruments: str | Iterable[str] = "all",
        *,
        freq: str = "day",
        name: str = "store",
        policy: WindowPolicy | None = None,
    ) -> Corpus:
        """Write bars of a Qlib store, full history of every code that was ever in the universe; see ``build``."""
        chosen = instruments if isinstance(instruments, str) else tuple(instruments)
        return cls.build(folder, {name: StoreSource(provider_uri, chosen, freq)}, policy)

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Map the arrays of a folder.

        Raises
        ------
        ValueError
            There is no whole corpus of this version.
        """
        folder = Path(folder).expanduser()
        meta = _read_meta(folder)
        arrays = {name: _map(folder / f"{name}.npy", meta["rows"], *ARRAYS[name]) for name in ARRAYS}
        return cls(folder, meta, **arrays)

    def __len__(self) -> int:
        return len(self.values)

    def __reduce__(self) -> tuple[Any, ...]:
        # a worker process maps the same files again instead of receiving gigabytes
        return Corpus.open, (self.folder.absolute(),)

    @property
    def fingerprint(self) -> str:
        """Hash of the sources, their content and the segment rule."""
        return str(self.meta["fingerprint"])

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, in the order of their rows."""
        return tuple(fact["name"] for fact in self.meta["sources"])

    @cached_property
    def instruments(self) -> tuple[str, ...]:
        """Instrument of each code; a name occurs once for each source that has it."""
        return tuple(name for fact in self.meta["sources"] for name in fact["instruments"])

    def ends(
        self,
        lookback: int,
        horizon: int,
        start: str | pd.Timestamp | None = None,
        end: str | pd.Timestamp | None = None,
        *,
        codes: Iterable[str] | None = None,
        sources: Iterable[str] | None = None,
        filters: StretchFilter | None = None,
        earliest: str | pd.Timestamp | None = None,
    ) -> npt.NDArray[np.int64]:
        """Return the rows at which training windows end; see ``select``, which also says what was left out."""
        return self.select(
            lookback, horizon, start, end, codes=codes, sources=sources, filters=filters, earliest=earliest
        ).ends

    def select(
        self,
        lookback: int,
        horizon: int,
        start: str | pd.Timestamp | None = None,
        end: str | pd.Timestamp | None = None,
        *,
        codes: Iterable[str] | None = None,
        sources: Iterable[str] | None = None,
        filters: StretchFilter | None = None,
        earliest: str | pd.Timestamp | None = None,
    ) -> Selection:
        """Choose windows of ``lookback + horizon`` bars.

        Parameters
        ----------
        lookback, horizon : int
            Context bars, and bars to predict after them; all of one segment.
        start, end : date-like, optional
            All bars to predict are stamped from ``start`` to ``end``, both included; a day without a time means
            all of it. The context may begin earlier; no bar of a window is later than ``end``.
        codes : iterable of str, optional
            Instruments to take, by name. None: all.
        sources : iterable of str, optional
            Sources to take, by name. None: all.
        filters : StretchFilter, optional
            Default: ``StretchFilter()``, illiquid and stagnant stretches left out.
        earliest : date-like, optional
            No bar of a window, context included, is earlier: for weights that must never have seen what came
            before (cross-fitting). None: the context reaches back as far as it needs.

        Returns
        -------
        Selection
            ``ends`` int64 (W,), ascending, and ``counts``: windows that each rule removed.

        Raises
        ------
        ValueError
            Unknown names, unreadable or reversed dates, or no window that is left.
        """
        dates = Dates.of(start, end, earliest)
        return select_ends(self, lookback, horizon, dates, codes, sources, filters or StretchFilter())


def _holds(folder: Path, fingerprint: str) -> bool:
    """Return whether the folder holds this corpus whole."""
    if not (folder / META_FILE).is_file():
        return False
    try:
        return Corpus.open(folder).fingerprint == fingerprint
    except ValueError as error:
        logger.warning("%s; it is built anew", error)
        return False


def _read_meta(folder: Path) -> dict[str, Any]:
    file = folder / META_FILE
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no corpus: {error}; build it with Corpus.build") from error
    if not isinstance(meta, dict) or meta.get("version") != CORPUS_VERSION:
        found = meta.get("version") if isinstance(meta, dict) else meta
        raise ValueError(f"{file} has version {found!r}; expected {CORPUS_VERSION}; build the corpus anew")
    return meta


def _map(file: Path, rows: int, kind: str, columns: int | None) -> npt.NDArray[Any]:
    shape = (rows,) if columns is None else (rows, columns)
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no whole array of a corpus: {error}; build the corpus anew") from error
    if array.shape != shape or array.dtype != np.dtype(kind):
        raise ValueError(
            f"{file} holds {array.dtype} {array.shape}; expected {np.dtype(kind)} {shape}; build the corpus anew"
        )
    return array
