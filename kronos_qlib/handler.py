"""Qlib's handler of candlesticks: member rows for Qlib, and full-history bars of every code for windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.contrib.data.handler import check_transform_proc
from qlib.data import D
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader
from qlib.log import get_module_logger

from kronos_qlib.kronos.config import check_keys
from kronos_qlib.market.calendars import TradingCalendar, calendar_from_index, get_calendar
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.store import METADATA_FILE, store_metadata

Spans = dict[str, list[tuple[pd.Timestamp, pd.Timestamp]]]
logger = get_module_logger("kronos_qlib.handler")
BAR_EXPRESSIONS = [f"${field}" for field in BAR_FIELDS]
LABEL = (["Ref($close, -2)/Ref($close, -1) - 1"], ["LABEL0"])
HANDLER_KEYS = (
    "instruments", "start_time", "end_time", "freq", "label", "feature", "infer_processors", "learn_processors",
    "shared_processors", "process_type", "fit_start_time", "fit_end_time", "filter_pipe", "calendar", "history_start",
    "drop_raw", "init_data", "fetch_orig",
)  # fmt: skip


class KlineHandler(DataHandlerLP):
    """Candlesticks and labels of an index's members, point in time.

    What Qlib sees (``fetch``, ``.data``) has one row for every (session, member) between ``start_time`` and
    ``end_time``: also on sessions when the member did not trade (bars and label NaN), because whether Qlib's files
    hold a row for a suspended session depends on whether the stock ever trades again, which is not known on that day.
    Columns are grouped: ``feature`` (the bar: ``$open $high $low $close $volume $amount``) and ``label`` (``LABEL0``,
    the only column that looks ahead: with the default, from the next close to the one after it).

    What windows see is :attr:`panel`: all traded bars of every code that is a member at any time in the range, from
    the store's first session (or ``history_start``) on, so that a new member has its history and a re-entrant no hole.

    Parameters
    ----------
    instruments : str, dict or list of str
        A market of the store (``csi300``), Qlib's dict of a market, or codes, which then count as members always.
    start_time, end_time : date-like, optional
        Range of the member rows, both included; None: the store's.
    freq : str
        Qlib frequency of the store: ``day``, ``15min`` …
    label, feature : optional
        Qlib's ``[expressions, names]``; None: the defaults above. ``feature`` changes what ``fetch`` returns, never
        the panel.
    infer_processors, learn_processors, shared_processors, process_type, fit_start_time, fit_end_time, drop_raw
        As for Qlib's Alpha158; no processor by default.
    filter_pipe : list, optional
        Qlib's dynamic filters of the market.
    calendar : str, optional
        Exchange whose sessions follow the last bar (``XSHG``, ``XNYS``, ``24/7``). None: what the store's
        ``kronos_store.json`` names, else the store's own future calendar.
    history_start : date-like, optional
        First bar of the panel. None: the store's first.

    Raises
    ------
    ValueError : unknown key, unknown or empty market, no member session in the range.
    """

    # Names with an underscore are left out of pickles; an unpickled handler finds these and loads again.
    _panel: BarPanel | None = None
    _trading_calendar: TradingCalendar | None = None

    def __init__(
        self,
        instruments: str | dict[str, Any] | Sequence[str] = "csi300",
        start_time: Any = None,
        end_time: Any = None,
        freq: str = "day",
        label: Any = None,
        feature: Any = None,
        infer_processors: Sequence[Any] = (),
        learn_processors: Sequence[Any] = (),
        shared_processors: Sequence[Any] = (),
        process_type: str = DataHandlerLP.PTYPE_A,
        fit_start_time: Any = None,
        fit_end_time: Any = None,
        filter_pipe: list[Any] | None = None,
        calendar: str | None = None,
        history_start: Any = None,
        drop_raw: bool = False,
        init_data: bool = True,
        fetch_orig: bool = True,
        **unknown: Any,
    ) -> None:
        check_keys(unknown, HANDLER_KEYS, "KlineHandler")
        self.freq = freq
        self.calendar = calendar
        self.history_start = history_start
        self.filter_pipe = filter_pipe
        self._drop_caches()
        super().__init__(
            instruments=instruments,
            start_time=start_time,
            end_time=end_time,
            data_loader=MemberLoader(
                {"feature": feature or BAR_EXPRESSIONS, "label": label or LABEL}, filter_pipe, freq
            ),
            infer_processors=check_transform_proc(infer_processors, fit_start_time, fit_end_time),
            learn_processors=check_transform_proc(learn_processors, fit_start_time, fit_end_time),
            shared_processors=check_transform_proc(shared_processors, fit_start_time, fit_end_time),
            process_type=process_type,
            drop_raw=drop_raw,
            init_data=init_data,
            fetch_orig=fetch_orig,
        )

    def config(self, **kwargs: Any) -> None:
        """Change the range or the processors as Qlib's handlers do; bars loaded before are dropped."""
        super().config(**kwargs)
        self._drop_caches()

    def setup_data(self, **kwargs: Any) -> None:
        """Load member rows (again) and run the processors; the panel follows when it is first asked for."""
        self._drop_caches()
        super().setup_data(**kwargs)

    @property
    def data(self) -> pd.DataFrame:
        """Raw member rows (before processors), indexed (datetime, instrument)."""
        return self._get_df_by_key(self.DK_R)

    @property
    def panel(self) -> BarPanel:
        """Traded bars of every code that is ever a member; loaded when first asked for, also after unpickling."""
        if self._panel is None:
            self._panel = load_panel(sorted(self.member_spans()), self.history_start, self.end_time, self.freq)
        return self._panel

    @property
    def trading_calendar(self) -> TradingCalendar:
        """Calendar that knows the sessions after the last bar."""
        if self._trading_calendar is None:
            self._trading_calendar = find_calendar(self.calendar, self.freq)
        return self._trading_calendar

    def member_spans(self) -> Spans:
        """First and last day of every membership that touches the handler's range, by code."""
        sessions = sessions_between(self.start_time, self.end_time, self.freq)
        return member_spans(self.instruments, sessions, self.freq, self.filter_pipe)

    def members(self, start_time: Any = None, end_time: Any = None) -> pd.MultiIndex:
        """Return the member rows (datetime, instrument) of a part of the handler's range, both ends included."""
        sessions = sessions_between(self.start_time, self.end_time, self.freq)
        chosen = sessions[sessions.slice_indexer(*_bounds(start_time, end_time))]
        return member_index(member_spans(self.instruments, sessions, self.freq, self.filter_pipe), chosen)

    def _drop_caches(self) -> None:
        self._panel = None
        self._trading_calendar = None


class MemberLoader(QlibDataLoader):
    """Qlib's loader, with one row for every session of every membership.

    Expressions are evaluated on an instrument's whole history and only then cut to members, as Qlib does.
    """

    def __init__(self, config: dict[str, Any], filter_pipe: list[Any] | None = None, freq: str = "day") -> None:
        super().__init__(config=config, filter_pipe=filter_pipe, freq=freq)

    def load(self, instruments: Any = None, start_time: Any = None, end_time: Any = None) -> pd.DataFrame:
        """Return a frame (datetime, instrument) × (group, column), NaN where nothing was traded."""
        sessions = sessions_between(start_time, end_time, self.freq)
        spans = member_spans(instruments, sessions, self.freq, self.filter_pipe)
        expressions = [expression for listed, _ in self.fields.values() for expression in listed]
        columns = [(group, name) for group, (_, names) in self.fields.items() for name in names]
        distinct = list(dict.fromkeys(expressions))
        bars = D.features(sorted(spans), distinct, sessions[0], sessions[-1], freq=self.freq).set_axis(distinct, axis=1)
        if bars.empty:
            raise ValueError(
                f"The store {store_path(self.freq)} has no bars of the {len(spans)} codes of {instruments!r} between "
                f"{sessions[0]} and {sessions[-1]}; check the codes, the frequency ({self.freq}) and the range."
            )
        rows = member_index(spans, sessions)
        members = bars.swaplevel().reindex(rows)[expressions]
        return members.set_axis(pd.MultiIndex.from_tuples(columns), axis=1)


def load_panel(codes: Sequence[str], start_time: Any, end_time: Any, freq: str = "day") -> BarPanel:
    """Read all traded bars of ``codes`` from Qlib's store between two times, both included.

    Fields a store lacks (``$amount``, ``$volume``) follow :meth:`BarPanel.from_frame`'s rule.
    """
    sessions = sessions_between(start_time, end_time, freq)  # a date as the end includes the day's intraday bars
    frame = D.features(list(codes), BAR_EXPRESSIONS, sessions[0], sessions[-1], freq=freq)
    return BarPanel.from_frame(frame, calendar=pd.DatetimeIndex(D.calendar(freq=freq)))


def member_spans(
    instruments: Any, sessions: pd.DatetimeIndex, freq: str = "day", filter_pipe: list[Any] | None = None
) -> Spans:
    """Return the memberships that touch ``sessions``, by code.

    Parameters
    ----------
    instruments : str, dict or list of str
        A market, Qlib's dict of a market, or codes (members on every session).

    Raises
    ------
    ValueError : the market is not in the store, or has no member in these sessions.
    """
    if not isinstance(instruments, str | Mapping):
        return {str(code): [(sessions[0], sessions[-1])] for code in instruments}
    market = D.instruments(instruments, filter_pipe=filter_pipe) if isinstance(instruments, str) else instruments
    try:
        listed = D.list_instruments(market, freq=freq, as_list=False)
    except ValueError as error:
        raise ValueError(_no_market(market["market"], freq)) from error
    spans = {}
    for code, periods in listed.items():
        inside = [(a, _day_end(b)) for a, b in periods if _day_end(b) >= sessions[0] and a <= sessions[-1]]
        if inside:
            spans[code] = inside
    if not spans:
        raise ValueError(
            f"The market {market.get('market')!r} has no member between {sessions[0]} and {sessions[-1]}; "
            f"the store's sessions end at {D.calendar(freq=freq)[-1]}."
        )
    return spans


def member_index(spans: Spans, sessions: pd.DatetimeIndex) -> pd.MultiIndex:
    """Return the sorted (datetime, instrument) pairs with the session inside one of the instrument's spans."""
    codes = sorted(spans)
    member = np.zeros((len(sessions), len(codes)), dtype=bool)
    for column, code in enumerate(codes):
        for first, last in spans[code]:
            member[sessions.searchsorted(first) : sessions.searchsorted(last, side="right"), column] = True
    session, code_position = np.nonzero(member)
    return pd.MultiIndex.from_arrays(
        [sessions[session], pd.Index(codes)[code_position]], names=["datetime", "instrument"]
    )


def sessions_between(start_time: Any, end_time: Any, freq: str = "day") -> pd.DatetimeIndex:
    """Return the store's sessions (bar stamps) between two times, both included."""
    calendar = pd.DatetimeIndex(D.calendar(freq=freq))
    start, end = _bounds(start_time, end_time)
    sessions = calendar[calendar.slice_indexer(start, end)]
    if sessions.empty:
        raise ValueError(
            f"No session of the store {store_path(freq)} lies between {start_time} and {end_time}: its sessions run "
            f"from {calendar[0]} to {calendar[-1]}."
        )
    return sessions


def find_calendar(name: str | None, freq: str) -> TradingCalendar:
    """Return the named exchange's calendar; without a name, the store's: what it names, else the sessions it lists."""
    if name is not None:
        return get_calendar(name, freq=freq)
    store = store_path(freq)
    named = store_metadata(store).get("calendar") if (store / METADATA_FILE).exists() else None
    try:
        if named:
            return get_calendar(named, freq=freq)
    except ValueError:
        logger.info("the store's calendar %r is no exchange: its own future sessions are used", named)
    return calendar_from_index(pd.DatetimeIndex(D.calendar(freq=freq, future=True)), freq, str(store))


def store_path(freq: str = "day") -> Path:
    """Folder of the Qlib store that ``qlib.init`` was given."""
    return Path(C.dpm.get_data_uri(freq))


def _bounds(start_time: Any, end_time: Any) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
    return (
        None if start_time is None else pd.Timestamp(start_time),
        None if end_time is None else _day_end(pd.Timestamp(end_time)),
    )


def _day_end(time: pd.Timestamp) -> pd.Timestamp:
    # A date without a time names the whole day: it also includes that day's intraday bars.
    return time + pd.Timedelta(days=1) - pd.Timedelta(1, "us") if time == time.normalize() else time


def _no_market(market: str, freq: str) -> str:
    folder = store_path(freq) / "instruments"
    known = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "none"
    return f"The store has no market {market!r} in {folder}; it has {known}. kronos-qlib ingest --members writes one."


def __getattr__(name: str) -> Any:
    # KronosAlpha builds on this module, so that it can be imported only once this one is complete
    if name == "KronosAlpha":
        from kronos_qlib.kronos_alpha import KronosAlpha

        return KronosAlpha
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
