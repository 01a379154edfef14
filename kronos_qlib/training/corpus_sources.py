"""Where the bars of a corpus come from: panels in memory, vendor files, Qlib stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from kronos_qlib.market.adjust import adjust_bars
from kronos_qlib.market.calendars import get_calendar, parse_freq
from kronos_qlib.market.layout import plain_times
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.reading import read_bars
from kronos_qlib.market.store_files import without_indices
from kronos_qlib.market.store_panel import read_store_panel, store_fingerprint


class CorpusSource(Protocol):
    """Bars of one market and frequency."""

    def describe(self) -> dict[str, Any]:
        """Return JSON that changes whenever the panel would; cheap, so that a built corpus is reused quickly."""

    def panel(self) -> BarPanel:
        """Return the bars, adjusted, in the units of a store."""


@dataclass(frozen=True, eq=False)
class PanelSource:
    """A panel that is in memory already."""

    bars: BarPanel

    def describe(self) -> dict[str, Any]:
        """Hash of all bars and sessions."""
        return {"kind": "panel", "blake2b": _panel_hash(self.bars)}

    def panel(self) -> BarPanel:
        """The panel itself."""
        return self.bars


@dataclass(frozen=True)
class BarFiles:
    """Files in the vendor format (``market.reading.read_bars``).

    Attributes
    ----------
    paths : path or iterable of paths
    calendar : str or None
        Name of the market's calendar, which counts the sessions of a gap. None: the stamps that occur.
    freq : str
        ``"day"`` or minutes.
    region : str
        ``"cn"`` leaves out the indices (SH000xxx, SZ399xxx): they are no instrument that trades.
    columns, instrument, timezone
        See ``read_bars``.
    """

    paths: str | Path | Iterable[str | Path]
    calendar: str | None = "XSHG"
    freq: str = "day"
    region: str = "cn"
    columns: Mapping[str, str] = field(default_factory=dict)
    instrument: str | None = None
    timezone: str | None = None

    def __post_init__(self) -> None:
        listed = [self.paths] if isinstance(self.paths, str | Path) else list(self.paths)
        object.__setattr__(self, "paths", tuple(Path(path).expanduser() for path in listed))
        object.__setattr__(self, "freq", parse_freq(self.freq)[0])

    @property
    def _files(self) -> tuple[Path, ...]:
        return self.paths  # type: ignore[return-value]  # made so by __post_init__

    def describe(self) -> dict[str, Any]:
        """Names and hashes of the files, and how they are read."""
        return {
            "kind": "files",
            "files": [{"name": path.name, "blake2b": _file_hash(path)} for path in self._files],
            "calendar": self.calendar,
            "freq": self.freq,
            "region": self.region,
            "columns": dict(self.columns),
            "instrument": self.instrument,
            "timezone": self.timezone,
        }

    def panel(self) -> BarPanel:
        """Read, adjust by ``factor`` where the files have it, and leave out indices."""
        bars = read_bars(self._files, columns=self.columns, instrument=self.instrument, timezone=self.timezone)
        bars = without_indices(bars, self.region)
        # a row without a close is a suspended session, and its factor may be missing as well
        bars = bars[bars["close"].notna()]
        if bars.empty:
            names = [path.name for path in self._files]
            raise ValueError(f"{names} hold no traded bar of an instrument that is no index: nothing to train on")
        if "factor" in bars.columns:
            bars = adjust_bars(bars).drop(columns="factor")
        return BarPanel.from_frame(bars, calendar=self._sessions(bars["datetime"]))

    def _sessions(self, stamps: pd.Series) -> pd.DatetimeIndex | None:
        if self.calendar is None:
            return None
        known = get_calendar(self.calendar, self.freq).between(stamps.min(), stamps.max())
        # a bar outside the calendar (a special session) counts as a session, as it does in a store
        return pd.DatetimeIndex(np.union1d(plain_times(known), plain_times(stamps.unique())))


@dataclass(frozen=True)
class StoreSource:
    """A Qlib store, read without Qlib.

    Attributes
    ----------
    provider_uri : path
    instruments : str or tuple of str
        A universe (all codes that were ever members, with their full history) or codes.
    freq : str
    """

    provider_uri: str | Path
    instruments: str | tuple[str, ...] = "all"
    freq: str = "day"

    def describe(self) -> dict[str, Any]:
        """Fingerprint of the store, and what is read from it."""
        instruments = self.instruments if isinstance(self.instruments, str) else list(self.instruments)
        return {
            "kind": "store",
            "store": store_fingerprint(self.provider_uri, self.freq),
            "instruments": instruments,
            "freq": self.freq,
        }

    def panel(self) -> BarPanel:
        """Read the store's bars."""
        return read_store_panel(self.provider_uri, self.instruments, freq=self.freq)


def _file_hash(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a file of bars")
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _panel_hash(panel: BarPanel) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(panel.instruments).encode())
    for array in (panel.offsets, panel.timestamps, panel.values, panel.calendar.to_numpy()):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
