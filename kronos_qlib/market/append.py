"""Append new days to a Qlib store; what it says of old days stays, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.calendars import parse_freq
from kronos_qlib.market.history import (
    HistoryChangedError,
    fresh_bars,
    join_bars,
    membership_changes,
    read_store_bars,
)
from kronos_qlib.market.ingest import REPORT_FILE, PreparedBars, prepare, read_spans, save_report
from kronos_qlib.market.members import read_members
from kronos_qlib.market.repair_policy import RepairPolicy, repair_policy
from kronos_qlib.market.report import format_stamp
from kronos_qlib.market.store import (
    METADATA_FILE,
    check_codes,
    describe_store,
    known_spans,
    store_calendar,
    store_metadata,
    store_sessions,
    write_metadata,
)
from kronos_qlib.market.store_fields import STORE_FIELDS, StoreBars, store_bars
from kronos_qlib.market.store_files import (
    append_features,
    replace_file,
    write_calendars,
    write_instruments,
)
from kronos_qlib.market.swap import changed_folder

Spans = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class AppendResult:
    """What an append added. ``print(result)`` shows it.

    Attributes
    ----------
    out : Path
    added, new_instruments, new_sessions : int
        Bars, instruments and sessions that the store did not have.
    kept_universes : list of str
        Universes of the store for which no new spans were given.
    prepared : PreparedBars
        The files' contract, repairs and events.
    store : dict
        The store's metadata, as it is now.
    """

    out: Path
    added: int
    new_instruments: int
    new_sessions: int
    prepared: PreparedBars
    store: dict[str, Any]
    kept_universes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.added and not self.new_sessions:
            head = f"store {self.out}: nothing to append, it ends {self.store['last']} as the files do"
        else:
            head = (
                f"store {self.out}: {self.added:,} bars appended on {self.new_sessions:,} new sessions, "
                f"{self.new_instruments:,} new instruments; it has {self.store['rows']:,} bars now, "
                f"{self.store['first']} to {self.store['last']}; old days are unchanged"
            )
        lines = [str(self.prepared.contract), str(self.prepared.repaired), head]
        if self.kept_universes:
            lines.append(f"no new spans for {', '.join(self.kept_universes)}: give --members to let them grow")
        return "\n".join(lines)


def append(
    files: str | Path | Iterable[str | Path],
    out: str | Path,
    members: Mapping[str, str | Path | pd.DataFrame] | None = None,
    calendar: str | None = None,
    freq: str | None = None,
    region: str | None = None,
    repair: str | RepairPolicy | Mapping[str, Any] | None = None,
    report: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    instrument: str | None = None,
    timezone: str | None = None,
    allow_future: bool = False,
) -> AppendResult:
    """Append the days of vendor files that a store does not have; the result is that of ingesting all at once.

    Parameters
    ----------
    files : path or iterable of paths
        The whole history again, or its end: at least 30 stored bars of each instrument with new ones.
    out : path
        A store that ``ingest`` wrote. Fields added to it later (``$kronos_...``) stay as they are.
    members : mapping, as of ``ingest``
        Universes with their new spans, the old ones included. Others stay as they are.
    calendar, freq, region, repair
        None: the store's. Anything else is refused.
    report, columns, instrument, timezone, allow_future : as of ``ingest``.

    Notes
    -----
    Factors must be anchored at the first day (backward adjustment): those of old days then never change. Factors
    rescaled by a constant are refused and named, since every old price would change with them.
    The store is replaced by one that shares the files of instruments without new bars (hard links); an interruption
    leaves the old store.

    Raises
    ------
    HistoryChangedError
        (a ``ValueError``) An old bar, session or membership differs; the message shows which.
    ValueError
        ``out`` is no store of ours, settings differ from the store's, the files are unusable or too short.
    """
    place = Path(out).expanduser()
    metadata = store_metadata(place)
    policy = _same_settings(metadata, calendar, freq, region, repair)
    spans = read_spans(members)
    reading = {"columns": columns, "instrument": instrument, "timezone": timezone}
    market = metadata["calendar"], metadata["freq"], metadata["region"]
    ready = prepare(files, *market, policy, report, reading, allow_future, lambda: None)
    old, new = read_store_bars(place, metadata), store_bars(ready.frame)
    fresh = fresh_bars(old, new)
    whole = join_bars(old, new, fresh, _estimated(ready.frame, new, fresh))
    check_codes(whole.layout.instruments)
    grown = _grow(place, metadata, ready, old, whole, spans, int(fresh.sum()))
    save_report(report, ready.report())
    return grown


def _grow(
    place: Path,
    metadata: dict[str, Any],
    ready: PreparedBars,
    old: StoreBars,
    whole: StoreBars,
    spans: Spans,
    added: int,
) -> AppendResult:
    freq = metadata["freq"]
    before = store_calendar(place, freq, future=False).to_numpy()
    sessions, future, _ = store_sessions(metadata["calendar"], freq, whole.layout)
    _refuse_other_sessions(before, sessions)
    kept = {name: read_members(_universe_file(place, name)) for name in metadata["universes"] if name not in spans}
    facts = {name: metadata["universes"][name] for name in kept}
    for name, given in list(spans.items()):
        spans[name], facts[name] = known_spans(name, given, whole.layout)
        _refuse_other_members(place, name, spans[name], pd.DatetimeIndex(before), old)
    notes = _notes(metadata["notes"], ready, added, sessions[-1])
    described = describe_store(
        whole, sessions, future, metadata["calendar"], freq, metadata["region"], {**kept, **spans}, facts, notes
    )
    extras = {key: value for key, value in metadata.items() if key not in described}
    result = AppendResult(
        place,
        added,
        len(whole.layout.instruments) - len(old.layout.instruments),
        len(sessions) - len(before),
        ready,
        {**described, **extras},
        sorted(kept),
    )
    if not added and described["fingerprint"] == metadata["fingerprint"]:
        return result
    with changed_folder(place, METADATA_FILE) as folder:
        write_calendars(folder, freq, sessions, future)
        write_instruments(folder, freq, metadata["region"], whole.layout, spans)
        append_features(folder, freq, whole, sessions, len(before))
        replace_file(folder / REPORT_FILE, ready.report_text().encode())
        write_metadata(folder, result.store)
    return result


def _same_settings(
    metadata: dict[str, Any],
    calendar: str | None,
    freq: str | None,
    region: str | None,
    repair: str | RepairPolicy | Mapping[str, Any] | None,
) -> RepairPolicy:
    """Return the store's repair policy; ValueError for a setting that is not the store's."""
    if tuple(metadata["fields"]) != STORE_FIELDS:
        raise ValueError(f"the store has the fields {metadata['fields']}, this release {STORE_FIELDS}; write it anew")
    asked = {"calendar": calendar, "freq": None if freq is None else parse_freq(freq)[0], "region": region}
    for name, value in asked.items():
        if value is not None and value != metadata[name]:
            raise ValueError(f"the store has {name} {metadata[name]!r}, found {value!r}: leave it out, or ingest anew")
    used = metadata["notes"].get("repair")
    if used is None:
        raise ValueError("the store does not say how its bars were repaired (ingest did not write it); ingest anew")
    stored = repair_policy({key: value for key, value in used.items() if key != "uses_future"})
    if repair is not None and repair_policy(repair).to_dict() != used:
        raise ValueError(f"the store was repaired by {stored.name!r}, found {repair!r}: leave it out, or ingest anew")
    return stored


def _refuse_other_sessions(before: npt.NDArray[np.datetime64], sessions: npt.NDArray[np.datetime64]) -> None:
    same = sessions[: len(before)]
    if len(same) < len(before) or (same != before).any():
        extra = np.setdiff1d(sessions[sessions <= before[-1]], before)
        gone = np.setdiff1d(before, sessions)
        first = pd.Timestamp((extra if len(extra) else gone)[0])
        raise HistoryChangedError(
            f"the store's {len(before):,} sessions would change: {len(extra)} more and {len(gone)} fewer before its "
            f"last, first {format_stamp(first)}; nothing was written; ingest the whole history anew"
        )


def _refuse_other_members(
    place: Path, name: str, spans: pd.DataFrame, sessions: pd.DatetimeIndex, old: StoreBars
) -> None:
    path = _universe_file(place, name)
    if not path.exists():
        return
    changed = membership_changes(read_members(path), spans, sessions, set(old.layout.instruments))
    if changed:
        shown = "; ".join(f"{code} {'in' if now else 'out'} from {format_stamp(day)}" for code, day, now in changed[:5])
        raise HistoryChangedError(
            f"the membership of {len(changed)} codes in {name!r} changes on old sessions: {shown}. Nothing was "
            "written; give spans that agree with the store's on old days, or ingest anew"
        )


def _universe_file(place: Path, name: str) -> Path:
    return place / "instruments" / f"{name.lower()}.txt"


def _estimated(frame: pd.DataFrame, new: StoreBars, fresh: npt.NDArray[np.bool_]) -> int:
    """Count the fresh bars whose amount was estimated from volume and prices."""
    frame = frame[frame["close"].notna()]
    if "volume" not in frame:
        return 0
    missing = frame["volume"].notna().to_numpy()
    if "amount" in frame:
        missing = missing & frame["amount"].isna().to_numpy()
    return int(np.count_nonzero(np.asarray(new.layout.arrange(missing))[fresh]))


def _notes(old: Mapping[str, Any], ready: PreparedBars, added: int, last: np.datetime64) -> dict[str, Any]:
    """Return the store's notes with a line for this append; files, repairs and events stay those of the ingest."""
    line = {"bars": added, "until": str(pd.Timestamp(last)), **ready.notes()}
    return {**old, "appended": [*old.get("appended", []), line]}
