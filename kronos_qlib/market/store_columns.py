"""Further fields of a Qlib store: columns computed from its bars, as ``$names`` that every expression can use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.market.store import METADATA_FILE, store_calendar, store_metadata, write_metadata
from kronos_qlib.market.store_fields import STORE_FIELDS
from kronos_qlib.market.store_files import feature_folder, replace_file
from kronos_qlib.market.swap import changed_folder

COLUMNS_KEY = "columns"
SPAN_FIELD = "close"


def write_columns(
    store: str | Path, frame: pd.DataFrame, *, prefix: str = "kronos_", about: Mapping[str, Any] | None = None
) -> list[str]:
    """Write columns as fields of a store, all of them or none.

    Parameters
    ----------
    store : path
        A store that ``kronos-qlib ingest`` wrote. It is replaced by one that shares all other files (hard links).
    frame : DataFrame
        Indexed (datetime, instrument), on sessions of the store; numbers. A field is NaN on every session without a
        row here, also where an earlier call had a value: these columns are replaced, not merged.
    prefix : str
        Put before each column's name; the fields are ``$<prefix><column>``, in lower case.
    about : mapping
        Noted in the store's metadata beside each field (where the values come from), with a hash of the values.

    Returns
    -------
    list of str
        Names of the fields, without ``$``.

    Raises
    ------
    ValueError
        No store of ours, names that Qlib cannot read or that are the store's own, rows off the store's sessions, a
        row that occurs twice, instruments without bars in the store.
    """
    place = Path(store).expanduser()
    metadata = store_metadata(place)
    freq = metadata["freq"]
    names = _names(frame, prefix)
    sessions = store_calendar(place, freq, future=False)
    position, codes, instruments = _places(frame, sessions)
    span = f"{SPAN_FIELD}.{freq}.bin"
    absent = [code for code in instruments if not (place / "features" / feature_folder(code) / span).is_file()]
    if absent:
        raise ValueError(f"{len(absent)} instruments have no bars in the store, first {absent[0]!r}; leave them out")
    values = frame.to_numpy(dtype=np.float32)
    order = np.lexsort((position, codes))
    bounds = np.searchsorted(codes[order], np.arange(len(instruments) + 1))
    rows = {feature_folder(code): order[bounds[i] : bounds[i + 1]] for i, code in enumerate(instruments)}
    nothing = order[:0]
    with changed_folder(place, METADATA_FILE) as folder:
        for bars in sorted((folder / "features").glob(f"*/{span}")):
            own = rows.get(bars.parent.name, nothing)
            block = _laid_out(values[own], position[own], bars)
            for name, column in zip(names, block, strict=True):
                replace_file(bars.with_name(f"{name}.{freq}.bin"), column.tobytes())
        digest = hashlib.blake2b(repr(instruments).encode(), digest_size=16)
        for part in (codes, position, values):
            digest.update(np.ascontiguousarray(part[order]).tobytes())
        note = {**dict(about or {}), "content": digest.hexdigest()}
        noted = {**metadata.get(COLUMNS_KEY, {}), **dict.fromkeys(names, note)}
        write_metadata(folder, {**metadata, COLUMNS_KEY: noted})
    return names


def _laid_out(values: np.ndarray, position: np.ndarray, bars: Path) -> np.ndarray:
    """Return one instrument's fields as their files hold them, (columns, 1 + sessions): the first session, the values.

    They span the instrument's bars also where they have no value: Qlib lays the operands of ``Corr`` and ``Cov`` side
    by side without aligning them.
    """
    held = np.fromfile(bars, dtype="<f4")
    first, last = int(held[0]), int(held[0]) + len(held) - 2
    if len(position):
        first, last = min(first, int(position.min())), max(last, int(position.max()))
    block = np.full((values.shape[1], last - first + 2), np.nan, dtype="<f4")
    block[:, 0] = first
    block[:, 1 + position - first] = values.T
    return block


def _names(frame: pd.DataFrame, prefix: str) -> list[str]:
    names = [f"{prefix}{column}".lower() for column in frame.columns]
    bad = [name for name in names if not re.fullmatch(r"[a-z_]\w*", name) or name in STORE_FIELDS]
    if bad or len(set(names)) != len(names):
        raise ValueError(f"found field names {bad or names}; expected distinct letters, digits and _, not a bar's own")
    return names


def _places(frame: pd.DataFrame, sessions: pd.DatetimeIndex) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return the session number and instrument number of each row, and the instruments."""
    if list(frame.index.names) != ["datetime", "instrument"]:
        raise ValueError(f"found a frame indexed {list(frame.index.names)}; expected (datetime, instrument)")
    if frame.index.duplicated().any():
        raise ValueError("found rows that occur twice; expected one a (datetime, instrument)")
    times = pd.DatetimeIndex(frame.index.get_level_values("datetime")).as_unit("ns")
    position = sessions.get_indexer(times)
    if (position < 0).any():
        raise ValueError(f"{times[position < 0][0]} is no session of the store; write columns of this store's bars")
    codes, instruments = pd.factorize(frame.index.get_level_values("instrument"), sort=True)
    return position, codes, [str(code) for code in instruments]
