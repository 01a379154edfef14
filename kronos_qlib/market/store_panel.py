"""Read the bars of a Qlib store as a panel, straight from its files: no Qlib, no expression engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.calendars import parse_freq
from kronos_qlib.market.fields import BAR_FIELDS, PRICE_FIELDS
from kronos_qlib.market.members import read_members
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.store import METADATA_FILE, store_calendar, store_metadata
from kronos_qlib.market.store_files import feature_folder

_FIELDS = (*BAR_FIELDS, "event")


def read_store_panel(
    provider_uri: str | Path, instruments: str | Iterable[str] = "all", *, freq: str = "day"
) -> BarPanel:
    """Return the traded bars of a store, in its adjusted units.

    Parameters
    ----------
    provider_uri : path
        Any Qlib store with local binary files, whoever wrote it.
    instruments : str or iterable of str
        A universe of the store: every code that was ever a member, with its full history, not the days of its
        membership only. Or the codes themselves.
    freq : str
        ``"day"`` or minutes.

    Returns
    -------
    BarPanel
        Sessions are the store's calendar. A session with a NaN close is a suspension and has no row. A missing
        volume or amount follows the rule of ``BarPanel.from_frame``.

    Raises
    ------
    ValueError
        No such store, universe, frequency or code, or a file that does not fit the calendar.
    """
    root = Path(provider_uri).expanduser()
    freq = parse_freq(freq)[0]
    calendar = store_calendar(root, freq, future=False)
    codes = _codes(root, instruments)
    parts = [_read_instrument(root, code, freq, len(calendar)) for code in codes]
    counts = [len(positions) for positions, _ in parts]
    if sum(counts) == 0:
        raise ValueError(f"{root} holds no traded {freq} bar of {len(codes)} instruments: nothing to read")
    session = np.concatenate([positions for positions, _ in parts])
    frame = pd.DataFrame(np.concatenate([values for _, values in parts]), columns=list(_FIELDS))
    frame["instrument"] = pd.Categorical.from_codes(
        np.repeat(np.arange(len(codes)), counts), categories=pd.Index(codes)
    )
    frame["datetime"] = calendar.to_numpy()[session]
    return BarPanel.from_frame(frame, calendar=calendar)


def store_fingerprint(provider_uri: str | Path, freq: str = "day") -> str:
    """Return a hash that changes with the store: of ours its recorded one, else of its file names, sizes and times."""
    root = Path(provider_uri).expanduser()
    freq = parse_freq(freq)[0]
    if (root / METADATA_FILE).is_file():
        return str(store_metadata(root)["fingerprint"])
    digest = hashlib.blake2b(digest_size=16)
    files = sorted([*root.glob("calendars/*"), *root.glob("instruments/*"), *root.glob(f"features/*/*.{freq}.bin")])
    if not files:
        raise ValueError(f"{root} is no Qlib store: it has no calendars, instruments and features")
    for file in files:
        facts = file.stat()
        digest.update(f"{file.relative_to(root)}|{facts.st_size}|{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _codes(root: Path, instruments: str | Iterable[str]) -> list[str]:
    """Return sorted codes; those of a universe that have no features are left out, those given by name are not."""
    if not isinstance(instruments, str):
        codes = sorted(set(instruments))
        absent = [code for code in codes if not _folder(root, code).is_dir()]
        if absent or not codes:
            raise ValueError(f"{root} has no bars of {absent[:5] or 'an empty list of codes'}")
        return codes
    file = root / "instruments" / f"{instruments.lower()}.txt"
    if not file.is_file():
        known = sorted(path.stem for path in (root / "instruments").glob("*.txt"))
        raise ValueError(f"{root} has no universe {instruments!r}: found {known or 'no instruments'}")
    listed = sorted(set(read_members(file)["instrument"]))
    codes = [code for code in listed if _folder(root, code).is_dir()]
    if not codes:
        raise ValueError(f"{root} has no bars of the {len(listed)} codes of universe {instruments!r}")
    return codes


def _folder(root: Path, code: str) -> Path:
    return root / "features" / feature_folder(code)


def _read_instrument(
    root: Path, code: str, freq: str, n_sessions: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return sessions (n,) with a close, and their fields (n, 7)."""
    folder = _folder(root, code)
    fields = {name: _read_field(folder / f"{name}.{freq}.bin", n_sessions) for name in _FIELDS}
    absent = [name for name in PRICE_FIELDS if fields[name] is None]
    if absent:
        raise ValueError(f"{folder} has no {freq} bars of the fields {absent}")
    first, close = fields["close"]  # type: ignore[misc]  # checked above
    values = np.full((len(close), len(_FIELDS)), np.nan, dtype=np.float32)
    for column, name in enumerate(_FIELDS):
        if (found := fields[name]) is not None:
            start, numbers = found
            low, high = max(first, start), min(first + len(close), start + len(numbers))
            values[low - first : high - first, column] = numbers[low - start : high - start]
    traded = np.flatnonzero(~np.isnan(close))
    return first + traded, values[traded]


def _read_field(file: Path, n_sessions: int) -> tuple[int, npt.NDArray[np.float32]] | None:
    """Return the first session and the values of a binary file; None where there is no file."""
    if not file.is_file():
        return None
    data = np.fromfile(file, dtype="<f4")
    first = int(data[0]) if len(data) and np.isfinite(data[0]) else -1
    if first < 0 or first + len(data) - 1 > n_sessions:
        raise ValueError(
            f"{file} starts at session {first} with {max(len(data) - 1, 0)} values, which does not fit a calendar of "
            f"{n_sessions} sessions: the store is damaged; write it anew"
        )
    return first, data[1:]
