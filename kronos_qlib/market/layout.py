"""The order of bars in memory: by instrument, then by time, each instrument one contiguous block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd


@dataclass(frozen=True)
class BarLayout:
    """Where the bars of a frame lie once sorted by (instrument, time).

    Attributes
    ----------
    instruments : tuple of str, length I, sorted
    offsets : int64 (I + 1,)
        Bars of instrument i are rows ``offsets[i]`` to ``offsets[i + 1] - 1``.
    timestamps : datetime64[ns] (R,)
        Wall clock, sorted inside each instrument.
    order : int64 (R,) or None
        Positions in the source frame; None when the source is already in this order.
    """

    instruments: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.datetime64]
    order: npt.NDArray[np.int64] | None

    def arrange(self, column: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return a source column (R,) in this order."""
        return column if self.order is None else column[self.order]

    def instrument_of(self, row: int) -> str:
        """Return the instrument of one row."""
        return self.instruments[int(np.searchsorted(self.offsets, row, side="right")) - 1]

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """Position of each row's instrument, int64 (R,)."""
        return np.repeat(np.arange(len(self.instruments)), np.diff(self.offsets))


def lay_out(frame: pd.DataFrame) -> BarLayout:
    """Find the (instrument, time) order of a bars frame.

    Parameters
    ----------
    frame : DataFrame
        ``instrument`` and ``datetime`` as columns, or as levels of a MultiIndex in either order.

    Raises
    ------
    ValueError
        A key column is missing, a key is missing in a row, or a bar occurs twice.
    """
    codes, names = _instrument_codes(frame)
    timestamps = _timestamps(frame)
    same = codes[1:] == codes[:-1]
    in_order = bool(np.all((codes[1:] > codes[:-1]) | (same & (timestamps[1:] >= timestamps[:-1]))))
    order = None
    if not in_order:
        order = np.lexsort((timestamps, codes))
        codes, timestamps = codes[order], timestamps[order]
    _refuse_duplicates(codes, timestamps, names)
    present, counts = np.unique(codes, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return BarLayout(tuple(str(names[i]) for i in present), offsets, timestamps, order)


def plain_times(values: object, missing: bool = False) -> npt.NDArray[np.datetime64]:
    """Return bar times as datetime64[ns] on their own wall clock (a zone is dropped, not converted).

    A missing time (NaT) is a ValueError unless ``missing`` allows it.
    """
    try:
        index = pd.DatetimeIndex(values)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"bar times cannot be read as datetimes of one zone: {error}") from error
    if index.hasnans and not missing:
        count = int(np.asarray(index.isna()).sum())
        raise ValueError(f"{count} of {len(index)} bars have no time (NaT): drop or repair them first")
    return index.tz_localize(None).as_unit("ns").to_numpy()


def _key(frame: pd.DataFrame, name: str) -> pd.Index | pd.Series:
    if name in frame.columns:
        return frame[name]
    if name in frame.index.names and frame.index.nlevels == 1:
        return frame.index
    raise ValueError(
        f"the bars frame has no {name!r}: found columns {list(map(str, frame.columns))[:12]} and "
        f"index levels {list(frame.index.names)}; name a column or an index level {name!r}"
    )


def _level(frame: pd.DataFrame, name: str) -> tuple[npt.NDArray[np.int64], pd.Index] | None:
    index = frame.index
    if name in frame.columns or not isinstance(index, pd.MultiIndex) or name not in index.names:
        return None
    level = list(index.names).index(name)
    codes = np.asarray(index.codes[level], dtype=np.int64)
    if np.any(codes < 0):
        raise ValueError(f"{int(np.sum(codes < 0))} bars have no {name}: drop them first")
    return codes, index.levels[level]


def _instrument_codes(frame: pd.DataFrame) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.object_]]:
    """Return codes (R,) into a sorted list of names."""
    level = _level(frame, "instrument")
    if level is not None:
        codes, categories = level
    else:
        column = pd.Series(_key(frame, "instrument"))
        if isinstance(column.dtype, pd.CategoricalDtype):
            codes, categories = np.asarray(column.cat.codes, dtype=np.int64), column.cat.categories
        else:
            codes, categories = pd.factorize(column)
        if np.any(codes < 0):
            raise ValueError(f"{int(np.sum(codes < 0))} bars have no instrument: drop them first")
    names = np.array([str(name) for name in categories], dtype=object)
    # Names may repeat once they are strings (1 and "1"); unique() then merges them.
    ordered, rank = np.unique(names, return_inverse=True)
    return rank.astype(np.int64)[codes], ordered


def _timestamps(frame: pd.DataFrame) -> npt.NDArray[np.datetime64]:
    level = _level(frame, "datetime")
    if level is not None:
        codes, categories = level
        return plain_times(categories)[codes]
    return plain_times(_key(frame, "datetime"))


def _refuse_duplicates(
    codes: npt.NDArray[np.int64], timestamps: npt.NDArray[np.datetime64], names: npt.NDArray[np.object_]
) -> None:
    twice = np.flatnonzero((codes[1:] == codes[:-1]) & (timestamps[1:] == timestamps[:-1]))
    if len(twice):
        name, time = names[codes[twice[0]]], pd.Timestamp(timestamps[twice[0]])
        raise ValueError(
            f"{len(twice)} bars occur twice, first {name} at {time}: keep one for each instrument and time"
        )
