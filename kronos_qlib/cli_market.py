"""Commands about market data: check a file, ingest files into a Qlib store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kronos_qlib.market.contract import ContractReport

DATA_ERRORS = 1


def check(
    files: list[Path] = typer.Argument(..., help="CSV or parquet files of bars."),
    calendar: str = typer.Option("XSHG", help="Exchange whose sessions the bars follow (XSHG, XNYS, 24/7, …)."),
    freq: str = typer.Option("day", help="Bar length: day, 15min or 5min."),
    region: str = typer.Option("cn", help="Whose rules about limits and lots apply: cn or us."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON and nothing else."),
    report: Path | None = typer.Option(None, help="Save the report as JSON here as well."),
) -> None:
    """Check bars against the data contract; exit 1 if there is an error, for a team's CI.

    \b
    Examples:
      kronos-qlib check ashare_daily.parquet
      kronos-qlib check btcusdt.csv --calendar 24/7 --freq 5min --region us
      kronos-qlib check bars.parquet --json > report.json
    """
    from kronos_qlib.market.contract import check_bars
    from kronos_qlib.market.reading import read_bars

    found = check_bars(read_bars(list(files)), freq=freq, calendar=calendar, region=region)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        found.to_json(report)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else describe_contract(found))
    if found.has_errors:
        raise typer.Exit(DATA_ERRORS)


def describe_contract(report: ContractReport) -> str:
    """Return one line a check that found something, worst first, with examples."""
    order = ("error", "warning", "info")
    noticed = [result for result in report.checks if result.count]
    lines = []
    for result in sorted(noticed, key=lambda result: order.index(result.severity)):
        lines.append(f"{result.severity:8}{result.name}: {result.count:,}  {result.message}")
        lines += [f"          for example {example}" for example in result.examples[:3]]
    clean = len(report.checks) - len(noticed)
    lines.append(f"{clean} of {len(report.checks)} checks found nothing.")
    return "\n".join(lines)


def parse_members(given: list[str]) -> dict[str, Path]:
    """Read ``NAME=FILE`` pairs; raise ValueError naming the one that is not such a pair."""
    members = {}
    for text in given:
        name, separator, file = text.partition("=")
        if not (name and separator and file):
            raise ValueError(f"--members takes NAME=FILE, such as csi300=members.txt; found {text!r}")
        members[name] = Path(file)
    return members


def ingest(
    files: list[Path] = typer.Argument(..., help="CSV or parquet files of bars."),
    out: Path = typer.Option(..., help="Folder of the store to write; replaced only when the new one is whole."),
    members: list[str] = typer.Option(
        [], help="NAME=FILE: an instruments file (code, first day, last day). May be given several times."
    ),
    calendar: str = typer.Option("XSHG", help="Exchange whose sessions the bars follow (XSHG, XNYS, 24/7, …)."),
    freq: str = typer.Option("day", help="Bar length: day, 15min or 5min."),
    region: str = typer.Option("cn", help="Whose rules about limits and lots apply: cn or us."),
    repair: str = typer.Option("default", help="Name of the repair policy."),
) -> None:
    """Check, repair and write bars as a Qlib store, with events, membership and future sessions.

    \b
    Examples:
      kronos-qlib ingest ashare_daily.parquet --members csi300=csi300_members.txt --out my_store
      kronos-qlib ingest us_daily.parquet --calendar XNYS --region us --out my_us_store
    """
    from kronos_qlib.market.ingest import ingest as run_ingest

    report = run_ingest(
        list(files),
        out,
        members=parse_members(members),
        calendar=calendar,
        freq=freq,
        region=region,
        repair=repair,
    )
    typer.echo(report)
