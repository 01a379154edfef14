"""Which sources a forecast store has, and what each of them is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.forecast.store_files import KEY, read_rows, write_note
from kronos_qlib.forecast.store_source import FactorSource, weights_of

FORMAT = {"format": "kronos_qlib forecast store", "version": 1}


@dataclass(frozen=True)
class SavedSource:
    """What ``source.json`` says of a source; its rows are not looked at."""

    fingerprint: str
    weights: str
    columns: tuple[str, ...]
    description: dict[str, Any]


@dataclass(frozen=True)
class StoredSource:
    """One source in the store, with its extent.

    Attributes
    ----------
    fingerprint, weights : str
    columns : tuple of str
    description : dict
    rows : int
    first, last : Timestamp or None
    bytes : int, on disk
    """

    fingerprint: str
    weights: str
    columns: tuple[str, ...]
    description: dict[str, Any]
    rows: int
    first: pd.Timestamp | None
    last: pd.Timestamp | None
    bytes: int

    def __str__(self) -> str:
        span = "" if self.first is None else f" {self.first:%Y-%m-%d} to {self.last:%Y-%m-%d}"
        return (
            f"{self.fingerprint[:12]}  {self.rows:,} rows{span}, {len(self.columns)} columns, "
            f"{self.bytes / 2**20:,.1f} MB, weights {self.weights[:12]}"
        )


def source_folder(store: Path, fingerprint: str) -> Path:
    """Return the folder of a source."""
    return store / "sources" / fingerprint


def fingerprints(store: Path) -> list[str]:
    """Return the fingerprints of a store's sources, sorted."""
    return sorted(path.parent.name for path in (store / "sources").glob("[!.]*/source.json"))


def content_fingerprint(store: Path) -> str:
    """Return a hash (32 hexadecimal digits) of what a store holds: its sources, and the rows and data of each.

    Equal content gives equal hashes, in however many files and steps it was written.
    """
    digest = hashlib.blake2b(digest_size=16)
    for fingerprint in fingerprints(store):
        digest.update(fingerprint.encode())
        rows = read_rows(source_folder(store, fingerprint), [KEY])
        if rows.empty:
            continue
        names = rows["instrument"].astype("category").cat
        hashed = pd.util.hash_array(np.asarray(names.categories, dtype=object))
        digest.update(rows["datetime"].to_numpy("datetime64[ns]").tobytes())
        digest.update(hashed[names.codes.to_numpy()].tobytes())
        digest.update(rows[KEY].to_numpy(np.uint64).tobytes())
    return digest.hexdigest()


def resolve(store: Path, beginning: str) -> str:
    """Return the one fingerprint that begins so; ValueError when none or several do."""
    found = [name for name in fingerprints(store) if name.startswith(beginning)]
    if len(found) == 1 and beginning:
        return found[0]
    listed = ", ".join(name[:12] for name in fingerprints(store)) or "none"
    what = "no source" if not found else f"{len(found)} sources"
    raise ValueError(f"{store} has {what} {beginning!r}; it has {listed}")


def saved_source(store: Path, fingerprint: str) -> dict[str, Any]:
    """Return what ``source.json`` says; ValueError when it is unreadable or of another version."""
    path = source_folder(store, fingerprint) / "source.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; remove this source's folder and build again") from error
    if saved.get("version") != FORMAT["version"]:
        raise ValueError(f"{path} has version {saved.get('version')!r}, expected {FORMAT['version']}; build again")
    return saved


def known_source(store: Path, fingerprint: str) -> SavedSource:
    """Return what ``source.json`` says, as ``saved_source``."""
    saved = saved_source(store, fingerprint)
    return SavedSource(fingerprint, saved["weights"], tuple(saved["columns"]), saved["description"])


def stored_source(store: Path, fingerprint: str) -> StoredSource:
    """Return a source with its extent."""
    saved, place = saved_source(store, fingerprint), source_folder(store, fingerprint)
    times = read_rows(place, [])["datetime"]
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    first, last = (None, None) if times.empty else (times.iloc[0], times.iloc[-1])
    return StoredSource(
        fingerprint, saved["weights"], tuple(saved["columns"]), saved["description"], len(times), first, last, size
    )


def register(store: Path, fingerprint: str, source: FactorSource) -> None:
    """Note a source in the store, unless it is there."""
    path = source_folder(store, fingerprint) / "source.json"
    if path.exists():
        return
    content = {
        **FORMAT,
        "fingerprint": fingerprint,
        "weights": weights_of(source),
        "columns": list(source.columns),
        "description": source.description,
    }
    write_note(path, content)
