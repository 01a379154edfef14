"""Qlib's dataset of candlesticks: segments of member rows, and the window that each row is scored from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config

from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, window_lengths

DATASET_KEYS = ("handler", "segments", "lookback", "min_bars", "max_gap", "max_jump", "carry", "fetch_kwargs")
DEFAULT = WindowPolicy()


class KlineDataset(DatasetH):
    """Segments of a :class:`KlineHandler`'s member rows, and the windows that belong to them.

    ``prepare`` is Qlib's own (member rows, labels). :meth:`rows` is for Kronos: which panel row, hence which window,
    a member row is scored from.

    Parameters
    ----------
    handler : KlineHandler or its configuration
    segments : dict of (first day, last day), both included; None leaves an end open.
    lookback : int, optional
        Most bars in a window. None: what the model asks for, or its checkpoint's card.
    min_bars, max_gap, max_jump : see :class:`kronos_qlib.market.windows.WindowPolicy`
    carry : int
        Trading days, whatever the frequency, that a suspended member keeps the score of its last traded bar; 0: no
        longer than the day of that bar.
    fetch_kwargs : dict, optional
        Passed on to the handler's ``fetch``, as in Qlib.

    Raises
    ------
    ValueError : unknown key, a handler of another kind, a malformed segment, a policy out of range.
    """

    def __init__(
        self,
        handler: KlineHandler | dict[str, Any] | None = None,
        segments: Mapping[str, Any] | None = None,
        lookback: int | None = None,
        min_bars: int = DEFAULT.min_bars,
        max_gap: int | None = DEFAULT.max_gap,
        max_jump: float | None = DEFAULT.max_jump,
        carry: int = 20,
        fetch_kwargs: dict[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        check_keys(unknown, DATASET_KEYS, "KlineDataset")
        self.lookback = None if lookback is None else _whole("lookback", lookback, 1)
        self.min_bars = _whole("min_bars", min_bars, 1)
        self.max_gap, self.max_jump = max_gap, max_jump
        self.carry = _whole("carry", carry, 0)
        self.window_policy(max(DEFAULT.lookback, self.min_bars))  # a bad setting is refused before bars are loaded
        _check_segments(segments)
        super().__init__(
            handler=_kline_handler(handler), segments=dict(segments or {}), fetch_kwargs=fetch_kwargs or {}
        )

    @property
    def panel(self) -> BarPanel:
        """The handler's bars."""
        return self.handler.panel

    def window_policy(self, lookback: int) -> WindowPolicy:
        """Return the dataset's policy; ``lookback`` counts only where the dataset sets none."""
        return WindowPolicy(
            lookback=self.lookback or lookback, min_bars=self.min_bars, max_gap=self.max_gap, max_jump=self.max_jump
        )

    def members(self, segment: str | slice = "test") -> pd.MultiIndex:
        """Return the member rows (datetime, instrument) of a segment, given by name or as a slice of dates."""
        start, end = self._bounds(segment)
        rows = self.handler.members(start, end)
        if rows.empty:
            raise ValueError(
                f"Segment {segment!r} ({start} to {end}) holds no member row: the handler covers "
                f"{self.handler.start_time} to {self.handler.end_time}; move one of them."
            )
        return rows

    def rows(self, segment: str | slice = "test") -> pd.DataFrame:
        """Say from which panel row each member row of a segment is scored.

        Parameters
        ----------
        segment : a name of ``segments``, or a slice of dates.

        Returns
        -------
        DataFrame indexed (datetime, instrument), sorted, one row for every member row
            ``row`` int64: the panel row of the last traded bar at or before the date, so nothing after it is used; -1
            where there is none within ``carry`` trading days, or its window has fewer than ``min_bars`` bars.
            ``age`` int64: bars of the calendar from that bar to the date (sessions, for daily bars), 0 when it traded;
            -1 where ``row`` is -1.
        """
        index, panel = self.members(segment), self.panel
        dates = pd.DatetimeIndex(index.get_level_values("datetime"))
        row = panel.rows_at(index.get_level_values("instrument"), dates)
        session = panel.calendar.get_indexer(dates.as_unit("ns"))
        age, days = session - panel.session[row], panel.calendar_day[session] - panel.day[row]
        # lookback cuts long windows only, so any that admits min_bars tells which windows exist
        policy = self.window_policy(max(DEFAULT.lookback, self.min_bars))
        usable = (row >= 0) & (days <= self.carry) & (window_lengths(panel, row, policy) > 0)
        columns = {"row": np.where(usable, row, -1), "age": np.where(usable, age, -1)}
        return pd.DataFrame(columns, index=index, dtype=np.int64)

    def _bounds(self, segment: str | slice) -> tuple[Any, Any]:
        if isinstance(segment, slice):
            return segment.start, segment.stop
        check_keys([str(segment)], self.segments, "KlineDataset: segments")
        chosen = self.segments[segment]
        return (chosen.start, chosen.stop) if isinstance(chosen, slice) else (chosen[0], chosen[1])


def _kline_handler(given: Any) -> KlineHandler:
    if given is None:
        raise ValueError("KlineDataset: no handler; give a KlineHandler or its configuration")
    handler = init_instance_by_config(given, accept_types=KlineHandler)
    if not isinstance(handler, KlineHandler):
        raise ValueError(
            f"KlineDataset needs a KlineHandler (bars outside the index live there), got {type(handler).__name__}; "
            "set class: KlineHandler, module_path: kronos_qlib.handler"
        )
    return handler


def _check_segments(segments: Any) -> None:
    if not isinstance(segments, Mapping) or not segments:
        raise ValueError(
            f"KlineDataset: segments must be a mapping such as test: [2017-01-01, 2020-08-01], got {segments!r}"
        )
    for name, bounds in segments.items():
        ends = [bounds.start, bounds.stop] if isinstance(bounds, slice) else bounds
        if not isinstance(ends, list | tuple) or len(ends) != 2:
            raise ValueError(f"KlineDataset: segment {name!r} must be [first day, last day], got {bounds!r}")
        try:
            start, end = (None if day is None else pd.Timestamp(day) for day in ends)
        except (TypeError, ValueError) as error:
            raise ValueError(f"KlineDataset: segment {name!r} holds something that is no date: {bounds!r}") from error
        if start is not None and end is not None and start > end:
            raise ValueError(f"KlineDataset: segment {name!r} ends ({end}) before it starts ({start})")


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"KlineDataset: {name} must be a whole number >= {least}, got {value!r}")
    return value
