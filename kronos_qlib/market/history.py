"""Whether new files tell the same past as a store: no old bar may change when days are appended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.layout import BarLayout, lay_out
from kronos_qlib.market.report import format_stamp
from kronos_qlib.market.store import store_calendar
from kronos_qlib.market.store_fields import STORE_FIELDS, StoreBars
from kronos_qlib.market.store_files import is_index

CONTEXT_BARS = 30
_SHOWN = 5
# Of a file's first day these would need the day before, which the file does not have.
_FROM_BEFORE = [STORE_FIELDS.index(name) for name in ("change", "event")]
_FACTOR = STORE_FIELDS.index("factor")


class HistoryChangedError(ValueError):
    """The files say otherwise than the store about days that it has; nothing was written."""


def read_store_bars(store: Path, metadata: dict[str, Any]) -> StoreBars:
    """Return all bars of a store of ours, every bit as stored.

    Raises
    ------
    ValueError
        A file is missing or has another length than its neighbours.
    """
    freq = metadata["freq"]
    sessions = store_calendar(store, freq, future=False).to_numpy()
    names = _codes(store, metadata)
    codes, times, values = [], [], []
    for folder in sorted((store / "features").iterdir()):
        code = names.get(folder.name.removeprefix("_qlib_"), folder.name.removeprefix("_qlib_").upper())
        try:
            columns = [np.fromfile(folder / f"{field}.{freq}.bin", dtype="<f4") for field in STORE_FIELDS]
            block = np.stack(columns, axis=1)
        except (OSError, ValueError) as error:
            raise ValueError(f"the bars of {code} in {store} cannot be read: {error}; write the store anew") from error
        traded = np.flatnonzero(~np.isnan(block[1:, 3]))
        codes.append(np.full(len(traded), code, dtype=object))
        times.append(sessions[int(block[0, 0]) + traded])
        values.append(block[1 + traded])
    frame = pd.DataFrame({"instrument": np.concatenate(codes), "datetime": np.concatenate(times)})
    layout = lay_out(frame)
    return StoreBars(layout, layout.arrange(np.concatenate(values)), metadata["amounts_estimated"])  # type: ignore[arg-type]


def fresh_bars(old: StoreBars, new: StoreBars) -> npt.NDArray[np.bool_]:
    """Return which new bars a store does not have: later ones, and all of instruments that it does not know.

    Raises
    ------
    HistoryChangedError
        A bar of the time that both cover is missing, additional or different.
    ValueError
        An instrument's later bars come without enough of its stored ones to go on from.
    """
    last = old.layout.timestamps.max()
    known = np.isin(np.array(new.layout.instruments, dtype=object), np.array(old.layout.instruments, dtype=object))
    fresh = ~known[new.layout.codes] | (new.layout.timestamps > last)
    if not fresh.all():
        _refuse_changes(_aligned(old, new, ~fresh))
    _refuse_short_context(old.layout, new.layout, fresh)
    return fresh


def join_bars(old: StoreBars, new: StoreBars, fresh: npt.NDArray[np.bool_], estimated: int) -> StoreBars:
    """Return the old bars and the fresh ones of the new."""
    parts = []
    for bars, chosen in ((old, slice(None)), (new, fresh)):
        names = np.array(bars.layout.instruments, dtype=object)[bars.layout.codes[chosen]]
        parts.append(pd.DataFrame({"instrument": names, "datetime": bars.layout.timestamps[chosen]}))
    layout = lay_out(pd.concat(parts, ignore_index=True))
    values = np.concatenate([old.values, new.values[fresh]])
    return StoreBars(layout, layout.arrange(values), old.amounts_estimated + estimated)  # type: ignore[arg-type]


def membership_changes(
    old: pd.DataFrame, new: pd.DataFrame, sessions: pd.DatetimeIndex, codes: set[str]
) -> list[tuple[str, pd.Timestamp, bool]]:
    """Return (code, first session, whether it is a member now) where two universes differ on old sessions."""
    before, after = _membership(old, sessions), _membership(new, sessions)
    nobody = np.zeros(len(sessions), dtype=bool)
    changed = []
    for code in sorted((before.keys() | after.keys()) & codes):
        differs = before.get(code, nobody) != after.get(code, nobody)
        if differs.any():
            place = int(differs.argmax())
            changed.append((code, sessions[place], bool(after.get(code, nobody)[place])))
    return changed


def _codes(store: Path, metadata: dict[str, Any]) -> dict[str, str]:
    """Return the spelling of each instrument by its folder; indices are upper case."""
    names = {}
    for path in (store / "instruments").glob("*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            code = line.split("\t")[0]
            if code and not is_index(code, metadata["region"]):
                names[code.lower()] = code
    return names


def _aligned(old: StoreBars, new: StoreBars, kept: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Return bars of the time that both cover: positions in old and new (-1 for none), by instrument and time."""
    ours = _places(old.layout, np.arange(len(old.layout.timestamps)), "old")
    theirs = _places(new.layout, np.flatnonzero(kept), "new")
    first = theirs.groupby("instrument", sort=False)["datetime"].min()
    begin = ours["instrument"].map(first)
    covered = ours[ours["datetime"] >= begin]
    table = covered.merge(theirs, on=["instrument", "datetime"], how="outer")
    table[["old", "new"]] = table[["old", "new"]].fillna(-1).astype(np.int64)
    both = ((table["old"] >= 0) & (table["new"] >= 0)).to_numpy()
    mine, other = old.values[table["old"].to_numpy()], new.values[table["new"].to_numpy()]
    differs = (mine.view(np.uint32) != other.view(np.uint32)) & ~(np.isnan(mine) & np.isnan(other))
    first_day = table["datetime"].dt.normalize() == table["instrument"].map(first).dt.normalize()
    differs[np.ix_(first_day.to_numpy(), _FROM_BEFORE)] = False
    differs &= both[:, None]
    table["changed"] = differs.any(axis=1)
    table["field"] = differs.argmax(axis=1)
    at = np.arange(len(table))
    table["stored"], table["found"] = mine[at, table["field"]], other[at, table["field"]]
    table["ratio"] = np.where(both, other[:, _FACTOR] / mine[:, _FACTOR].astype(np.float64), np.nan)
    return table


def _places(layout: BarLayout, rows: npt.NDArray[np.int64], name: str) -> pd.DataFrame:
    names = np.array(layout.instruments, dtype=object)[layout.codes[rows]]
    return pd.DataFrame({"instrument": names, "datetime": layout.timestamps[rows], name: rows})


def _refuse_changes(table: pd.DataFrame) -> None:
    missing, added = table[table["new"] < 0], table[table["old"] < 0]
    changed = table[table["changed"]]
    lines = []
    if len(changed):
        shown = [
            f"{_show(row)} {STORE_FIELDS[row['field']]} {row['stored']:.9g} -> {row['found']:.9g}"
            for _, row in changed.head(_SHOWN).iterrows()
        ]
        lines.append(f"{len(changed):,} of them differ: {'; '.join(shown)}")
    for part, what in ((missing, "are missing in the files"), (added, "are in the files only")):
        if len(part):
            lines.append(f"{len(part):,} {what}: {'; '.join(_show(row) for _, row in part.head(_SHOWN).iterrows())}")
    if lines:
        raise HistoryChangedError(
            f"the files change old days of the store, {len(changed) + len(missing) + len(added):,} of "
            f"{len(table):,} bars: {'. '.join(lines)}. {_rescaling(table)}"
            "Nothing was written; ingest the whole history into a new store, or correct the files"
        )


def _rescaling(table: pd.DataFrame) -> str:
    """Say which instruments' factors are the stored ones times one number."""
    ratios = table[table["ratio"].notna()].groupby("instrument")["ratio"].agg(["min", "max", "count"])
    scaled = ratios[(ratios["max"] / ratios["min"] - 1 < 1e-5) & ((ratios["min"] - 1).abs() > 1e-5)]
    if scaled.empty:
        return ""
    shown = ", ".join(f"{code} x {row['min']:.6g}" for code, row in scaled.head(_SHOWN).iterrows())
    return (
        f"The factors of {len(scaled):,} instruments are the stored ones times a constant ({shown}): a vendor that "
        "anchors them at the last day changes every old price at each dividend; give factors anchored at the first "
        "day, which never change. "
    )


def _refuse_short_context(old: BarLayout, new: BarLayout, fresh: npt.NDArray[np.bool_]) -> None:
    """Refuse later bars whose change, events and repairs would need stored bars that the files lack."""
    place = {code: number for number, code in enumerate(old.instruments)}
    for number, code in enumerate(new.instruments):
        rows = slice(int(new.offsets[number]), int(new.offsets[number + 1]))
        if code not in place or not fresh[rows].any():
            continue
        stored = old.timestamps[old.offsets[place[code]] : old.offsets[place[code] + 1]]
        given = int(np.count_nonzero(~fresh[rows]))
        first = new.timestamps[rows][0]
        whole_day = first.astype("datetime64[D]") < stored[-1].astype("datetime64[D]")
        if given == len(stored) or (given >= CONTEXT_BARS and whole_day):
            continue
        raise ValueError(
            f"the files have later bars of {code} but only {given} of its {len(stored)} stored ones: they must reach "
            f"back by {CONTEXT_BARS} bars and the last stored day at least, or to its first bar, because changes and "
            "events depend on the bars before; give files with more history"
        )


def _membership(spans: pd.DataFrame, sessions: pd.DatetimeIndex) -> dict[str, npt.NDArray[np.bool_]]:
    days = sessions.normalize()
    member: dict[str, npt.NDArray[np.bool_]] = {}
    for code, start, end in spans[["instrument", "start", "end"]].itertuples(index=False):
        inside = member.setdefault(code, np.zeros(len(sessions), dtype=bool))
        inside[days.searchsorted(start.normalize()) : days.searchsorted(end.normalize(), side="right")] = True
    return member


def _show(row: pd.Series) -> str:
    return f"{row['instrument']} {format_stamp(row['datetime'])}"
