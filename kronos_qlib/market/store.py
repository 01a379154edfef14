"""Write bars, factors and membership as a Qlib store that plain ``qlib.init(provider_uri=...)`` reads."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib import __version__
from kronos_qlib.market.calendars import TradingCalendar, calendar_from_index, get_calendar, parse_freq
from kronos_qlib.market.layout import BarLayout, plain_times
from kronos_qlib.market.members import check_spans
from kronos_qlib.market.store_fields import STORE_FIELDS, StoreBars, store_bars
from kronos_qlib.market.store_files import is_index, write_calendars, write_features, write_instruments
from kronos_qlib.market.swap import left_aside, refuse_foreign, whole_folder

logger = logging.getLogger(__name__)

METADATA_FILE = "kronos_store.json"
STORE_VERSION = 1


def write_store(
    frame: pd.DataFrame,
    out: str | Path,
    *,
    members: Mapping[str, pd.DataFrame] | None = None,
    calendar: str | TradingCalendar | None = "XSHG",
    freq: str = "day",
    region: str = "cn",
    extra: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a Qlib store; an interrupted run leaves the old store or none.

    Parameters
    ----------
    frame : DataFrame
        Bars in the vendor format, see ``store_fields.store_bars``.
    out : path
        Folder to write. An earlier store of ours is replaced once the new one is whole; any other folder that
        is not empty is refused.
    members : mapping of str to DataFrame
        Universe name -> spans (instrument, start, end; both days included). Spans are kept as given, for the
        codes that have bars; the others are counted in the metadata and logged.
    calendar : str, TradingCalendar or None
        Sessions are those of the calendar between the first and the last bar, and any other stamp that has a
        bar. None: the stamps that have bars. ``<freq>_future.txt`` reaches a year further.
    freq : str
        ``"day"`` or minutes (``"15min"``).
    region : str
        ``"cn"`` keeps Chinese indices out of ``instruments/all.txt``; noted in the metadata.
    extra : mapping of str to str
        File name -> text, saved beside the metadata (the ingest's report).
    notes : mapping
        Further facts for the metadata (where the bars come from, how they were repaired).

    Returns
    -------
    dict
        The metadata, as saved in ``kronos_store.json``.

    Raises
    ------
    ValueError
        Bars, members, calendar or place are unusable; the message says what to do. Nothing is left behind.
    """
    freq = parse_freq(freq)[0]
    refuse_foreign(Path(out).expanduser(), METADATA_FILE)
    bars = store_bars(frame)
    check_codes(bars.layout.instruments)
    sessions, future, calendar_name = store_sessions(calendar, freq, bars.layout)
    spans: dict[str, pd.DataFrame] = {}
    facts: dict[str, dict[str, Any]] = {}
    for name, given in (members or {}).items():
        spans[name], facts[name] = known_spans(name, given, bars.layout)
    metadata = describe_store(bars, sessions, future, calendar_name, freq, region, spans, facts, notes or {})
    with whole_folder(Path(out), METADATA_FILE) as folder:
        write_calendars(folder, freq, sessions, future)
        write_instruments(folder, freq, region, bars.layout, spans)
        write_features(folder, freq, bars, sessions)
        for name, text in (extra or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        write_metadata(folder, metadata)
    return metadata


def describe_store(
    bars: StoreBars,
    sessions: npt.NDArray[np.datetime64],
    future: npt.NDArray[np.datetime64],
    calendar: str | None,
    freq: str,
    region: str,
    spans: Mapping[str, pd.DataFrame],
    facts: Mapping[str, dict[str, Any]],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the metadata of a store with these bars, sessions and universes."""
    return {
        "format": "kronos_qlib store",
        "version": STORE_VERSION,
        "kronos_qlib": __version__,
        "calendar": calendar,
        "freq": freq,
        "region": region,
        "fields": list(STORE_FIELDS),
        "rows": len(bars.values),
        "instruments": len(bars.layout.instruments),
        "indices": sum(is_index(code, region) for code in bars.layout.instruments),
        "sessions": len(sessions),
        "first": str(pd.Timestamp(sessions[0])),
        "last": str(pd.Timestamp(sessions[-1])),
        "future_until": str(pd.Timestamp(future[-1])),
        "amounts_estimated": bars.amounts_estimated,
        "universes": dict(facts),
        "fingerprint": _fingerprint(bars, sessions, spans),
        "notes": dict(notes),
    }


def write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write ``kronos_store.json``, whole or not at all."""
    temporary = folder / f".{METADATA_FILE}.tmp"
    temporary.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / METADATA_FILE)


def store_metadata(path: str | Path) -> dict[str, Any]:
    """Return what ``kronos_store.json`` of a store says.

    Raises
    ------
    ValueError
        There is no store of ours at ``path``, or its metadata cannot be read.
    """
    file = Path(path).expanduser() / METADATA_FILE
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} holds no {METADATA_FILE}: expected a store written by kronos_qlib; "
            + (left_aside(Path(path)) or "write one with `kronos-qlib ingest FILE --out STORE`")
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; write the store anew") from error
    if not isinstance(metadata, dict) or metadata.get("version") != STORE_VERSION:
        found = metadata.get("version") if isinstance(metadata, dict) else metadata
        raise ValueError(f"{file} has version {found!r}: expected {STORE_VERSION}; write the store anew")
    return metadata


def store_calendar(path: str | Path, freq: str = "day", future: bool = True) -> pd.DatetimeIndex:
    """Return a store's sessions (any Qlib store), with the known future ones if ``future``.

    Raises
    ------
    ValueError
        The store has no such calendar.
    """
    freq = parse_freq(freq)[0]
    file = Path(path).expanduser() / "calendars" / f"{freq}{'_future' if future else ''}.txt"
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"the store has no calendar {file}: {error}") from error
    return pd.DatetimeIndex(pd.to_datetime([line.strip() for line in lines if line.strip()])).as_unit("ns")


def check_codes(codes: tuple[str, ...]) -> None:
    """Refuse codes that cannot name a folder, or that share one: Qlib's folders are in lower case."""
    bad = [code for code in codes if not re.fullmatch(r"[\w.^=\-]*\w[\w.^=\-]*", code) or code.startswith(".")]
    if bad:
        raise ValueError(
            f"{len(bad)} instruments have names that cannot name a folder, first {bad[0]!r}: "
            "expected letters, digits and . _ - ^ ="
        )
    lower: dict[str, str] = {}
    for code in codes:
        other = lower.setdefault(code.lower(), code)
        if other != code:
            raise ValueError(f"instruments {other!r} and {code!r} differ only by case: Qlib keeps one folder for both")


def store_sessions(
    calendar: str | TradingCalendar | None, freq: str, layout: BarLayout
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.datetime64], str | None]:
    """Return the store's sessions, the sessions of a year or more after them, and the calendar's name."""
    stamps = np.unique(layout.timestamps)
    if calendar is None:
        market: TradingCalendar = calendar_from_index(pd.DatetimeIndex(stamps), freq, "the bars' own stamps")
    else:
        market = get_calendar(calendar, freq) if isinstance(calendar, str) else calendar
    if market.freq != freq:
        raise ValueError(f"the calendar {market.name!r} has freq {market.freq!r}: expected {freq!r}")
    last = pd.Timestamp(stamps[-1])
    sessions = np.union1d(plain_times(market.between(pd.Timestamp(stamps[0]), last)), stamps)
    after = plain_times(market.between(last, last + pd.DateOffset(years=1, days=15)))
    return sessions, after[after > stamps[-1]], None if calendar is None else market.name


def known_spans(name: str, spans: pd.DataFrame, layout: BarLayout) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the spans of codes that have bars, and what was left out."""
    if not re.fullmatch(r"[\w.\-]+", name) or name.lower() == "all":
        raise ValueError(f"found universe name {name!r}: expected letters, digits and . _ -, and not 'all'")
    spans = check_spans(spans, f"universe {name!r}")
    known = spans["instrument"].isin(layout.instruments)
    absent = sorted(set(spans.loc[~known, "instrument"]))
    if not known.any():
        raise ValueError(
            f"no code of universe {name!r} has bars: it has codes like {absent[:3]}, the bars like "
            f"{list(layout.instruments[:3])}; bring them to one spelling"
        )
    if absent:
        logger.warning("universe %s: %d codes have no bars and are left out: %s ...", name, len(absent), absent[:5])
    kept = spans[known].reset_index(drop=True)
    facts = {
        "codes": int(kept["instrument"].nunique()),
        "spans": len(kept),
        "codes_without_bars": len(absent),
        "spans_without_bars": int((~known).sum()),
        "examples_without_bars": absent[:5],
    }
    return kept, facts


def _fingerprint(bars: StoreBars, sessions: npt.NDArray[np.datetime64], spans: Mapping[str, pd.DataFrame]) -> str:
    """Return a hash of all that the store says: bars, sessions and membership."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(bars.layout.instruments).encode())
    for array in (bars.layout.offsets, bars.layout.timestamps, bars.values, sessions):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    for name in sorted(spans):
        digest.update(name.encode() + spans[name].to_csv(index=False).encode())
    return digest.hexdigest()
