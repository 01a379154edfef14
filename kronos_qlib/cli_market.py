"""Commands about market data: check a file, ingest files into a Qlib store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pandas as pd

DATA_ERRORS = 1
CALENDAR_HELP = "Exchange whose sessions the bars follow: XSHG, XNYS, 24/7 and others."
FREQ_HELP = "Bar length: day, 15min, 5min and others."
REGION_HELP = "Whose rules about price limits and ticks apply: cn, us or crypto."
COLUMN_HELP = "THEIRS=OURS: what a column of the file means, such as px_last=close. May be repeated."
TIMEZONE_HELP = "Zone of the exchange, such as Asia/Shanghai; needed when the stamps name a zone."
INSTRUMENT_HELP = "Code of the bars in a file that has no column for it."


def check(
    files: list[Path] = typer.Argument(..., help="CSV or parquet files of bars."),
    calendar: str = typer.Option("XSHG", help=CALENDAR_HELP),
    freq: str = typer.Option("day", help=FREQ_HELP),
    region: str = typer.Option("cn", help=REGION_HELP),
    column: list[str] = typer.Option([], help=COLUMN_HELP),
    timezone: str | None = typer.Option(None, help=TIMEZONE_HELP),
    instrument: str | None = typer.Option(None, help=INSTRUMENT_HELP),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON and nothing else."),
    report: Path | None = typer.Option(None, help="Save the report as JSON here as well."),
) -> None:
    """Check bars against the data contract; exit 1 if there is an error, for a team's CI.

    \b
    Examples:
      kronos-qlib check ashare_daily.parquet
      kronos-qlib check btcusdt.csv --calendar 24/7 --freq 5min --region crypto --instrument BTCUSDT
      kronos-qlib check bars.parquet --json > report.json
    """
    from kronos_qlib.market.contract import check_bars
    from kronos_qlib.market.reading import read_bars

    names = parse_pairs(column, "--column", "px_last=close")
    bars = read_bars(files, columns=names, instrument=instrument, timezone=timezone)
    found = check_bars(bars, freq=freq, calendar=session_days(calendar, bars), region=region)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        found.to_json(report)
    typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False) if as_json else str(found))
    if found.has_errors:
        raise typer.Exit(DATA_ERRORS)


def session_days(calendar: str, bars: pd.DataFrame) -> pd.DatetimeIndex:
    """Return the sessions of an exchange between the first and the last bar, as days."""
    from kronos_qlib.market.calendars import get_calendar

    stamps = bars["datetime"].dropna()
    return get_calendar(calendar, freq="day").between(stamps.min().normalize(), stamps.max())


def parse_pairs(given: list[str], option: str, example: str) -> dict[str, str]:
    """Read ``NAME=VALUE`` pairs; raise ValueError naming the one that is not such a pair."""
    pairs = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise ValueError(f"{option} takes a pair such as {example}; found {text!r}")
        pairs[name] = value
    return pairs


def ingest(
    files: list[Path] = typer.Argument(..., help="CSV or parquet files of bars."),
    out: Path = typer.Option(..., help="Folder of the store; an old store is replaced when the new one is whole."),
    members: list[str] = typer.Option(
        [], help="NAME=FILE: an instruments file (code, first day, last day). May be repeated."
    ),
    append: bool = typer.Option(
        False, "--append", help="Add the days that the store does not have; refuse if the files change old ones."
    ),
    calendar: str | None = typer.Option(None, help=f"{CALENDAR_HELP} XSHG if not given."),
    freq: str | None = typer.Option(None, help=f"{FREQ_HELP} day if not given."),
    region: str | None = typer.Option(None, help=f"{REGION_HELP} cn if not given."),
    repair: str | None = typer.Option(
        None, help="Repair policy: default, forward_fill, original, or interpolate (for charts only)."
    ),
    for_charts: bool = typer.Option(
        False, "--for-charts", help="Allow repairs that read later bars; such a store is never for a backtest."
    ),
    column: list[str] = typer.Option([], help=COLUMN_HELP),
    timezone: str | None = typer.Option(None, help=TIMEZONE_HELP),
    instrument: str | None = typer.Option(None, help=INSTRUMENT_HELP),
    report: Path | None = typer.Option(None, help="Save the report as JSON here as well, also when the ingest stops."),
) -> None:
    """Check, repair and write bars as a Qlib store, with events, membership and future sessions.

    \b
    Examples:
      kronos-qlib ingest ashare_daily.parquet --members csi300=csi300_members.txt --out my_store
      kronos-qlib ingest us_daily.parquet --calendar XNYS --region us --out my_us_store
      kronos-qlib ingest ashare_daily_new.parquet --members csi300=members_new.txt --out my_store --append
    """
    from kronos_qlib.market.append import append as run_append
    from kronos_qlib.market.ingest import ingest as run_ingest

    settings = {"calendar": calendar, "freq": freq, "region": region, "repair": repair}
    options = {
        "members": parse_pairs(members, "--members", "csi300=members.txt"),
        "report": report,
        "columns": parse_pairs(column, "--column", "px_last=close"),
        "instrument": instrument,
        "timezone": timezone,
        "allow_future": for_charts,
        # a setting that is not given is the store's when appending, the function's default when ingesting
        **{name: value for name, value in settings.items() if value is not None},
    }
    typer.echo(str(run_append(files, out, **options) if append else run_ingest(files, out, **options)))  # type: ignore[arg-type]
