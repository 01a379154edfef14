"""From vendor files to a Qlib store: read, check, repair, check again, find events, write."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kronos_qlib.market.calendars import TradingCalendar, get_calendar, parse_freq
from kronos_qlib.market.contract import check_bars
from kronos_qlib.market.events import Event, event_bits
from kronos_qlib.market.members import read_members
from kronos_qlib.market.reading import read_bars
from kronos_qlib.market.repair import RepairReport, repair_bars, repair_policy
from kronos_qlib.market.repair_policy import RepairPolicy
from kronos_qlib.market.report import ContractReport, write_json
from kronos_qlib.market.store import METADATA_FILE, write_store
from kronos_qlib.market.swap import refuse_foreign

logger = logging.getLogger(__name__)

REPORT_FILE = "ingest_report.json"
_STEPS = ("read", "check", "repair", "events", "write")


class IngestError(ValueError):
    """The bars break the contract in a way that the repair policy does not mend; nothing was written."""


@dataclass(frozen=True)
class IngestResult:
    """What an ingest found, changed and wrote. ``print(result)`` shows it.

    Attributes
    ----------
    out : Path
        The store.
    files : list of dict
        Name, size and blake2b hash of each file read.
    contract : ContractReport
        The bars as they came.
    repair : RepairReport
    contract_after : ContractReport or None
        The bars as they were stored; None when no repair was made, so that ``contract`` says it.
    events : dict of int
        Bars with each event of ``market.events.Event``.
    store : dict
        The store's metadata.
    """

    out: Path
    files: list[dict[str, Any]]
    contract: ContractReport
    repair: RepairReport
    contract_after: ContractReport | None
    events: dict[str, int]
    store: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, JSON-ready: the saved report, and the store's metadata."""
        report = _report(self.files, self.contract, self.repair, self.contract_after, self.events)
        return {**report, "store": self.store}

    def __str__(self) -> str:
        lines = [str(self.contract), str(self.repair)]
        if self.contract_after is not None:
            lines += ["after repair:", str(self.contract_after)]
        lines.append("events: " + ", ".join(f"{name} {count:,}" for name, count in self.events.items()))
        for name, facts in self.store["universes"].items():
            lines.append(
                f"universe {name}: {facts['codes']:,} codes in {facts['spans']:,} spans; "
                f"{facts['codes_without_bars']:,} codes without bars were left out"
            )
        lines.append(
            f"store {self.out}: {self.store['rows']:,} bars of {self.store['instruments']:,} instruments on "
            f"{self.store['sessions']:,} sessions, {self.store['first']} to {self.store['last']}, "
            f"calendar known until {self.store['future_until']}"
        )
        return "\n".join(lines)


def ingest(
    files: str | Path | Iterable[str | Path],
    out: str | Path,
    members: Mapping[str, str | Path | pd.DataFrame] | None = None,
    calendar: str | TradingCalendar | None = "XSHG",
    freq: str = "day",
    region: str = "cn",
    repair: str | RepairPolicy | Mapping[str, Any] = "default",
    report: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    instrument: str | None = None,
    timezone: str | None = None,
    allow_future: bool = False,
) -> IngestResult:
    """Turn vendor files into a Qlib store.

    Parameters
    ----------
    files : path or iterable of paths
        CSV or parquet, see ``reading.read_bars``; ``columns``, ``instrument`` and ``timezone`` go there.
    out : path
        Folder of the store, see ``store.write_store``.
    members : mapping of str to path or DataFrame
        Universe name -> instruments file (or its spans).
    calendar, freq, region
        The market: see ``store.write_store`` and ``contract.check_bars``.
    repair : str, RepairPolicy or mapping
        What may be repaired, see ``repair.repair_bars``. Repaired bars carry ``Event.REPAIRED``.
    report : path, optional
        Save the report (JSON) here as well, also when the ingest stops. It is always in the store, as
        ``ingest_report.json``.
    allow_future : bool
        Allow a policy whose repairs read later bars. Such a store is for charts, never for a backtest.

    Raises
    ------
    IngestError
        (a ``ValueError``) After the repairs, a check of severity ``error`` still finds something.
    ValueError
        Files, members, calendar, policy or place are unusable.
    """
    freq = parse_freq(freq)[0]
    policy = repair_policy(repair)
    refuse_foreign(Path(out).expanduser(), METADATA_FILE)
    spans = read_spans(members)
    with tqdm(total=len(_STEPS), desc="ingest", unit="step", disable=None, leave=False) as progress:
        reading = {"columns": columns, "instrument": instrument, "timezone": timezone}
        ready = prepare(files, calendar, freq, region, policy, report, reading, allow_future, progress.update)
        metadata = write_store(
            ready.frame,
            out,
            members=spans,
            calendar=calendar,
            freq=freq,
            region=region,
            extra={REPORT_FILE: ready.report_text()},
            notes=ready.notes(),
        )
        save_report(report, ready.report())
        progress.update()
    return IngestResult(Path(out), ready.files, ready.contract, ready.repaired, ready.after, ready.events, metadata)


@dataclass(frozen=True)
class PreparedBars:
    """Bars that are ready to be stored, and what was found and changed on the way."""

    frame: pd.DataFrame
    files: list[dict[str, Any]]
    contract: ContractReport
    repaired: RepairReport
    after: ContractReport | None
    events: dict[str, int]

    def report(self) -> dict[str, Any]:
        """Return the report, JSON-ready."""
        return _report(self.files, self.contract, self.repaired, self.after, self.events)

    def report_text(self) -> str:
        """Return the report as the store keeps it."""
        return json.dumps(self.report(), indent=2, ensure_ascii=False) + "\n"

    def notes(self) -> dict[str, Any]:
        """Return the facts for the store's metadata."""
        repaired = self.repaired
        return {"repair": repaired.policy, "repairs": repaired.counts, "events": self.events, "files": self.files}


def prepare(
    files: str | Path | Iterable[str | Path],
    calendar: str | TradingCalendar | None,
    freq: str,
    region: str,
    policy: RepairPolicy,
    report: str | Path | None,
    reading: Mapping[str, Any],
    allow_future: bool,
    step: Callable[[], Any],
) -> PreparedBars:
    """Read, check, repair, check again and find events; arguments as of ``ingest``; ``step`` after each."""
    listed = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    frame = read_bars(listed, **reading)
    sources = [_fingerprint(path) for path in listed]
    sessions = _session_days(calendar, freq, frame)
    step()
    contract = check_bars(frame, freq=freq, calendar=sessions, region=region)
    save_report(report, {"files": sources, "contract": contract.to_dict()})
    step()
    frame, repaired = repair_bars(frame, policy, for_inference=not allow_future)
    after = check_bars(frame, freq=freq, calendar=sessions, region=region) if repaired.total else None
    save_report(report, _report(sources, contract, repaired, after, {}))
    _stop_on_errors(after or contract, policy)
    step()
    frame["event"] = event_bits(frame, calendar=sessions, region=region)
    events = _event_counts(frame["event"].to_numpy())
    step()
    return PreparedBars(frame, sources, contract, repaired, after, events)


def read_spans(members: Mapping[str, str | Path | pd.DataFrame] | None) -> dict[str, pd.DataFrame]:
    """Return the spans of each universe, read from its file where a path is given."""
    return {
        name: given if isinstance(given, pd.DataFrame) else read_members(given)
        for name, given in (members or {}).items()
    }


def _session_days(calendar: str | TradingCalendar | None, freq: str, frame: pd.DataFrame) -> pd.DatetimeIndex | None:
    """Return the sessions between the first and the last bar, as days."""
    stamps = frame["datetime"].dropna()
    if calendar is None or stamps.empty:
        return None
    market = get_calendar(calendar, "day") if isinstance(calendar, str) else calendar
    days = market.between(stamps.min().normalize(), stamps.max().normalize() + pd.Timedelta("23:59:59"))
    return days.normalize().unique()


def _stop_on_errors(contract: ContractReport, policy: RepairPolicy) -> None:
    if contract.has_errors:
        found = "; ".join(f"{check.name}: {check.count} ({check.message})" for check in contract.errors)
        raise IngestError(
            f"the bars break the contract and repair policy {policy.name!r} does not mend it: {found}. Correct the "
            "file, or choose a policy that does (kronos_qlib.market.repair.POLICIES); nothing was written"
        )


def _event_counts(bits: np.ndarray) -> dict[str, int]:
    return {str(event.name): int(np.count_nonzero(bits & int(event))) for event in Event}


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return {"name": path.name, "bytes": path.stat().st_size, "blake2b": digest.hexdigest()}


def _report(
    files: list[dict[str, Any]],
    contract: ContractReport,
    repair: RepairReport,
    after: ContractReport | None,
    events: dict[str, int],
) -> dict[str, Any]:
    return {
        "files": files,
        "contract": contract.to_dict(),
        "repair": repair.to_dict(),
        "contract_after_repair": None if after is None else after.to_dict(),
        "events": events,
    }


def save_report(report: str | Path | None, content: dict[str, Any]) -> None:
    if report is None:
        return
    target = Path(report).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(content, target)
    except OSError as error:
        raise ValueError(f"the report {target} cannot be written: {error}; choose another place") from error
