"""All traded bars of many instruments in contiguous arrays, from which windows are cut by index."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.fields import BAR_FIELDS, PRICE_FIELDS
from kronos_qlib.market.layout import BarLayout, lay_out, plain_times

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BarPanel:
    """Traded bars, sorted by instrument and time. A suspended session has no row.

    Attributes
    ----------
    instruments : tuple of str, length I, sorted
    offsets : int64 (I + 1,)
        Rows of instrument i are ``offsets[i]`` to ``offsets[i + 1] - 1``.
    timestamps : datetime64[ns] (R,)
        Bar stamps, wall clock of the market.
    values : float32 (R, 6)
        ``BAR_FIELDS`` in the units of the source, normally the store's adjusted ones. Finite.
    session : int64 (R,)
        Position of the bar's stamp in ``calendar``; differences count sessions (slots for intraday bars).
    calendar : DatetimeIndex (S,)
    events : int64 (R,)
        Bit field of ``market.events.Event``; 0 where unknown.
    """

    instruments: tuple[str, ...]
    offsets: npt.NDArray[np.int64]
    timestamps: npt.NDArray[np.datetime64]
    values: npt.NDArray[np.float32]
    session: npt.NDArray[np.int64]
    calendar: pd.DatetimeIndex
    events: npt.NDArray[np.int64]

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, calendar: pd.DatetimeIndex | None = None) -> BarPanel:
        """Build a panel from a frame of bars.

        Parameters
        ----------
        frame : DataFrame
            ``instrument`` and ``datetime`` as columns or as index levels, by name, in any order; the fields
            by their name, with or without Qlib's ``$``: the prices; volume, amount and event if there.
        calendar : DatetimeIndex, optional
            All sessions of the market. Without it, the stamps that occur in ``frame``: the distance between
            two bars then depends on which instruments are present.

        Notes
        -----
        Rows whose close is NaN are suspended sessions and are left out. A missing volume is 0. A missing
        amount is volume x mean(open, high, low, close), the original Kronos' rule; in adjusted units this
        product is the raw amount. Both are logged with their count. A rule reads the bar itself only.

        Raises
        ------
        ValueError
            A price column or key is missing, values are no finite numbers, a bar occurs twice, or a bar's
            stamp is not in ``calendar``.
        """
        prices = [_column(frame, field) for field in PRICE_FIELDS]
        traded = ~np.isnan(prices[3])
        if not traded.all():
            frame = frame.loc[traded]
            prices = [column[traded] for column in prices]
        layout = lay_out(frame)
        values = _bar_values(frame, prices, layout)
        events = _events(frame, layout)
        sessions, calendar = _sessions(layout, calendar)
        return cls(layout.instruments, layout.offsets, layout.timestamps, values, sessions, calendar, events)

    def __len__(self) -> int:
        return len(self.timestamps)

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """Position of each row's instrument in ``instruments``, int64 (R,)."""
        return np.repeat(np.arange(len(self.instruments)), np.diff(self.offsets))

    @cached_property
    def calendar_day(self) -> npt.NDArray[np.int64]:
        """Trading day of each session of ``calendar``, counted from its first, int64 (S,); daily: 0, 1, 2 ..."""
        days = self.calendar.to_numpy().astype("datetime64[D]")
        return np.cumsum(np.diff(days, prepend=days[:1]) != np.timedelta64(0)).astype(np.int64)

    @cached_property
    def day(self) -> npt.NDArray[np.int64]:
        """Trading day of each row, int64 (R,); differences count trading days, also between intraday bars."""
        return self.calendar_day[self.session]

    @cached_property
    def _names(self) -> npt.NDArray[np.object_]:
        return np.array(self.instruments, dtype=object)

    @cached_property
    def _keys(self) -> npt.NDArray[np.int64]:
        return self.codes * len(self.calendar) + self.session

    def instrument_names(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the instrument of each row."""
        return list(self._names[self.codes[rows]])

    def rows_at(self, instrument: object, timestamps: object) -> npt.NDArray[np.int64]:
        """Return, for each time, the row of the last bar at or before it.

        Parameters
        ----------
        instrument : str, or sequence of str of length n
            One instrument for all times, or one for each.
        timestamps : datetime-like, shape (n,)

        Returns
        -------
        int64 (n,)
            -1 where the instrument is unknown or has no bar yet.
        """
        times = _times(timestamps)
        codes = self._codes_of(instrument, len(times))
        if len(self) == 0:
            return np.full(len(times), -1, dtype=np.int64)
        position = np.searchsorted(self.calendar.to_numpy(), times, side="right") - 1
        rows = np.searchsorted(self._keys, codes * len(self.calendar) + position, side="right") - 1
        known = (codes >= 0) & (rows >= self.offsets[np.maximum(codes, 0)])
        return np.where(known, rows, -1).astype(np.int64)

    def locate(self, instrument: object, timestamps: object) -> npt.NDArray[np.int64]:
        """Return the row of the bar with exactly this stamp, -1 where there is none (see ``rows_at``)."""
        times = _times(timestamps)
        rows = self.rows_at(instrument, times)
        if len(self) == 0:
            return rows
        return np.where((rows >= 0) & (self.timestamps[rows] == times), rows, -1).astype(np.int64)

    def _codes_of(self, instrument: object, count: int) -> npt.NDArray[np.int64]:
        if isinstance(instrument, str):
            return np.full(count, pd.Index(self._names).get_indexer(pd.Index([instrument], dtype=object))[0])
        wanted, names = pd.factorize(pd.Index(instrument))  # type: ignore[call-overload]
        if len(wanted) != count:
            raise ValueError(f"{len(wanted)} instruments for {count} times: give one, or one for each time")
        found = pd.Index(self._names).get_indexer(pd.Index(names).astype(object))
        return np.asarray(found, dtype=np.int64)[wanted]


def _times(timestamps: object) -> npt.NDArray[np.datetime64]:
    one = isinstance(timestamps, str | np.datetime64 | pd.Timestamp)
    return plain_times([timestamps] if one else timestamps)


def _column(frame: pd.DataFrame, field: str) -> npt.NDArray[np.floating]:
    name = field if field in frame.columns else f"${field}"
    if name not in frame.columns:
        raise ValueError(
            f"the bars frame has no column {field!r} (or '${field}'): found {list(map(str, frame.columns))[:12]}"
        )
    try:
        column = frame[name].to_numpy(dtype=np.float64 if frame[name].dtype == object else None)
        return column if column.dtype in (np.float32, np.float64) else column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {name!r} holds values that are no numbers: {error}") from error


def _optional(frame: pd.DataFrame, field: str) -> npt.NDArray[np.floating] | None:
    present = field in frame.columns or f"${field}" in frame.columns
    return _column(frame, field) if present else None


def _bar_values(
    frame: pd.DataFrame, prices: list[npt.NDArray[np.floating]], layout: BarLayout
) -> npt.NDArray[np.float32]:
    volume, amount = _optional(frame, "volume"), _optional(frame, "amount")
    values = np.empty((len(frame), len(BAR_FIELDS)), dtype=np.float32)
    for position, column in enumerate([*prices, volume, amount]):
        values[:, position] = np.nan if column is None else layout.arrange(column)
    _refuse_bad_numbers(values, layout)
    _fill("volume", values[:, 4], np.zeros(len(values), dtype=np.float32))
    # float64, so that the product of float32 columns is rounded once.
    typical = values[:, :4].mean(axis=1, dtype=np.float64)
    _fill("amount", values[:, 5], (typical * values[:, 4]).astype(np.float32))
    return values


def _fill(field: str, column: npt.NDArray[np.float32], fallback: npt.NDArray[np.float32]) -> None:
    missing = np.isnan(column)
    if missing.any():
        level = logging.INFO if missing.all() else logging.WARNING
        message = "%s is missing in %d of %d bars and follows the documented rule"
        logger.log(level, message, field, missing.sum(), len(column))
        column[missing] = fallback[missing]


def _refuse_bad_numbers(values: npt.NDArray[np.float32], layout: BarLayout) -> None:
    bad = np.isinf(values).any(axis=1) | np.isnan(values[:, :4]).any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        bar = dict(zip(BAR_FIELDS, values[row].tolist(), strict=True))
        raise ValueError(
            f"{int(bad.sum())} bars have a close but another price missing, or an infinite value, first "
            f"{layout.instrument_of(row)} at {pd.Timestamp(layout.timestamps[row])}: {bar}; "
            "repair them (kronos_qlib.market.repair) or set their close to NaN"
        )


def _events(frame: pd.DataFrame, layout: BarLayout) -> npt.NDArray[np.int64]:
    column = _optional(frame, "event")
    if column is None:
        return np.zeros(len(frame), dtype=np.int64)
    return np.nan_to_num(layout.arrange(column), nan=0.0).astype(np.int64)


def _sessions(layout: BarLayout, calendar: pd.DatetimeIndex | None) -> tuple[npt.NDArray[np.int64], pd.DatetimeIndex]:
    if calendar is None:
        days, position = np.unique(layout.timestamps, return_inverse=True)
        return position.astype(np.int64), pd.DatetimeIndex(days)
    sessions = np.unique(plain_times(calendar))
    position = np.searchsorted(sessions, layout.timestamps)
    if len(sessions) == 0:
        known = np.zeros(len(position), dtype=bool)
    else:
        known = sessions[np.minimum(position, len(sessions) - 1)] == layout.timestamps
    if not known.all():
        first = pd.Timestamp(layout.timestamps[~known].min())
        raise ValueError(
            f"{int((~known).sum())} bars have stamps outside the calendar of {len(sessions)} sessions, "
            f"first {first}: give the calendar of this market and frequency"
        )
    return position.astype(np.int64), pd.DatetimeIndex(sessions)
