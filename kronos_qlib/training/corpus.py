"""The bars that networks are trained on: memory-mapped arrays of one or several markets in a folder."""

from __future__ import annotations

import hashlib
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

from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import STAMP_FIELDS, time_stamps
from kronos_qlib.market.swap import refuse_foreign, whole_folder
from kronos_qlib.market.windows import WindowPolicy, segment_starts
from kronos_qlib.training.corpus_sources import BarFiles, CorpusSource, PanelSource, StoreSource
from kronos_qlib.training.selection import Dates, Selection, select_ends
from kronos_qlib.training.stagnant import StretchFilter

logger = logging.getLogger(__name__)

META_FILE = "meta.json"
CORPUS_VERSION = 1
# file name -> (type, columns); None for a plain vector
_ARRAYS: dict[str, tuple[str, int | None]] = {
    "values": ("<f4", len(BAR_FIELDS)),
    "stamps": ("<i2", len(STAMP_FIELDS)),
    "segment": ("<i8", None),
    "timestamps": ("<M8[ns]", None),
    "code": ("<i4", None),
    "source": ("<i2", None),
}


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
        policy: WindowPolicy | Mapping[str, WindowPolicy] | None = None,
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
        folder = Path(folder).expanduser()
        refuse_foreign(folder, META_FILE)
        policies = _policies(sources, policy)
        described = {
            name: {**source.describe(), "max_gap": policies[name].max_gap, "max_jump": policies[name].max_jump}
            for name, source in sources.items()
        }
        fingerprint = _fingerprint(described, policies)
        if _holds(folder, fingerprint):
            logger.info("corpus %s is up to date and is used as it is", folder)
            return cls.open(folder)
        parts: list[dict[str, npt.NDArray[Any]]] = []
        facts: list[dict[str, Any]] = []
        for number, (name, source) in enumerate(sources.items()):
            panel = source.panel()
            begin = sum(len(part["code"]) for part in parts)
            first_code = sum(len(fact["instruments"]) for fact in facts)
            parts.append(_arrays(panel, policies[name], number, begin, first_code))
            facts.append(_facts(name, panel, begin, described[name]))
        meta = {
            "format": "kronos_qlib corpus",
            "version": CORPUS_VERSION,
            "fingerprint": fingerprint,
            "window_policy": next(iter(policies.values())).version,
            "rows": sum(len(part["code"]) for part in parts),
            "sources": facts,
        }
        with whole_folder(folder, META_FILE) as target:
            for array in _ARRAYS:
                np.save(target / f"{array}.npy", np.concatenate([part.pop(array) for part in parts]))
            (target / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        return cls.open(folder)

    @classmethod
    def from_panels(
        cls,
        folder: str | Path,
        panels: Mapping[str, BarPanel],
        policy: WindowPolicy | Mapping[str, WindowPolicy] | None = None,
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
        arrays = {name: _map(folder / f"{name}.npy", meta["rows"], *_ARRAYS[name]) for name in _ARRAYS}
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


def _policies(
    sources: Mapping[str, CorpusSource], policy: WindowPolicy | Mapping[str, WindowPolicy] | None
) -> dict[str, WindowPolicy]:
    if not sources:
        raise ValueError("no source was given; a corpus needs at least one, such as {'daily': panel}")
    if policy is None or isinstance(policy, WindowPolicy):
        return dict.fromkeys(sources, policy or WindowPolicy())
    if set(policy) != set(sources):
        raise ValueError(f"policies are given for {sorted(policy)}; expected one for each of {sorted(sources)}")
    return {name: policy[name] for name in sources}


def _fingerprint(described: Mapping[str, Any], policies: Mapping[str, WindowPolicy]) -> str:
    content = {
        "version": CORPUS_VERSION,
        "policy_versions": {name: policy.version for name, policy in policies.items()},
        "sources": list(described.items()),
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _arrays(
    panel: BarPanel, policy: WindowPolicy, number: int, begin: int, first_code: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of one source whose first row and code are these."""
    calendar_stamps = time_stamps(panel.calendar).astype("<i2")
    return {
        "values": panel.values.astype("<f4", copy=False),
        "stamps": calendar_stamps[panel.session],
        "segment": segment_starts(panel, policy) + begin,
        "timestamps": panel.timestamps.astype("<M8[ns]", copy=False),
        "code": (panel.codes + first_code).astype("<i4"),
        "source": np.full(len(panel), number, dtype="<i2"),
    }


def _facts(name: str, panel: BarPanel, begin: int, description: dict[str, Any]) -> dict[str, Any]:
    if len(panel) == 0:
        raise ValueError(f"source {name!r} holds no bar: nothing to train on")
    return {
        "name": name,
        "rows": [begin, begin + len(panel)],
        "first": str(pd.Timestamp(panel.timestamps.min())),
        "last": str(pd.Timestamp(panel.timestamps.max())),
        "has_volume": bool((panel.values[:, 4] > 0).any()),
        "description": description,
        "instruments": list(panel.instruments),
    }


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
