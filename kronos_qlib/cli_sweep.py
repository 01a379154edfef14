"""``kronos-qlib sweep``: sampling settings of one checkpoint, compared on the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kronos_qlib.cli_examine import number
from kronos_qlib.cli_forecast import CHECKPOINT_HELP
from kronos_qlib.cli_output import check_output_folder, whole_files

if TYPE_CHECKING:
    from kronos_qlib.forecast.grid import Setting
    from kronos_qlib.sweep import SweepConfig


def sweep(
    checkpoint: str = typer.Argument(..., help=CHECKPOINT_HELP),
    store: Path = typer.Option(..., envvar="KRONOS_STORE", help="Folder of a Qlib store."),
    out: Path = typer.Option(..., help="Folder of the results; an interrupted sweep goes on from it."),
    grid: Path | None = typer.Option(None, help="YAML file: keys to lists of values, or a list of such mappings."),
    setting: list[str] = typer.Option(
        [], "--set", help="A key and its values, such as temperature=0.8,1.0; may be repeated, instead of --grid."
    ),
    segment: str = typer.Option("valid", help="train, valid or test of the CSI300 split."),
    start: str | None = typer.Option(None, help="First date, instead of the segment's."),
    end: str | None = typer.Option(None, help="Last date, instead of the segment's."),
    every: int = typer.Option(1, min=1, help="Score every so many sessions; backtests run only at 1."),
    signal: list[str] = typer.Option(["expected_return"], help="Signal, by name; may be repeated."),
    label: str = typer.Option("one_day", help="Label whose Rank IC is compared."),
    universe: str = typer.Option("csi300", help="Market of the store whose members are scored."),
    backtest: bool = typer.Option(True, "--backtest/--no-backtest", help="TopkDropout with the project's costs."),
    topk: int | None = typer.Option(None, min=1, help="Names held; csi300_base.yaml's if not given."),
    n_drop: int | None = typer.Option(None, min=1, help="Names exchanged a day; csi300_base.yaml's if not given."),
    benchmark: str | None = typer.Option(None, help="Index of the store; csi300_base.yaml's if not given."),
    lookback: int | None = typer.Option(None, min=2, help="Bars of context; the checkpoint's own if not given."),
    tokenizer: str | None = typer.Option(None, help="Tokenizer, where it does not lie with the checkpoint."),
    revision: str | None = typer.Option(None, help="Commit of the model, for a hub id."),
    tokenizer_revision: str | None = typer.Option(None, help="Commit of the tokenizer, for a hub id."),
    jobs: int = typer.Option(1, min=1, help="Processes; the figures do not depend on it."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1 …"),
    dtype: str = typer.Option("float32", help="float32 or bfloat16."),
) -> None:
    """Compare sampling settings: signal, net return, turnover, calibration and cost of each, on the same rows.

    \b
    A grid's keys: horizon, temperature, top_p, top_k, s2_temperature, s2_top_p, s2_top_k, n_paths, scheme, order, seed
    Examples:
      kronos-qlib sweep my_kronos --store STORE --out sweeps/first --set temperature=0.8,1.0,1.2 --set top_p=0.9,1.0
      kronos-qlib sweep my_kronos --store STORE --out sweeps/first --grid grid.yaml --every 5 --jobs 2
    """
    from kronos_qlib.forecast.reduction import CheckpointSource
    from kronos_qlib.sweep import SweepBench, SweepConfig, check_settings, find_segment, run_sweep

    out = check_output_folder(out)
    settings = choose_settings(grid, setting)
    first, last = find_segment(segment)
    source = CheckpointSource(checkpoint, tokenizer, revision, tokenizer_revision, lookback, None, device, dtype)
    trades = portfolio(topk, n_drop, benchmark) if backtest and every == 1 else None
    config = SweepConfig(
        source, store, universe, start or first, end or last, every, tuple(signal), label, backtest=trades
    )
    check_settings(config, settings)
    if backtest and every > 1:
        typer.echo(f"no backtest: it trades every day, and only every {every}th session is scored")
    if segment == "test" and start is None and end is None:
        typer.echo("note: choose on valid; test is read once for each reported result")
    bench = SweepBench(config, source.load())
    typer.echo(
        f"{len(settings)} settings x {len(bench.rows)} windows of {config.universe} {config.start} to {config.end}"
    )
    results = run_sweep(bench, settings, out, jobs=jobs, report=_reporter(settings))
    write_tables(config, bench.context(), results, out)


def choose_settings(grid: Path | None, assignments: list[str]) -> list[Setting]:
    """Read the grid from a file or from texts; ValueError for both or neither."""
    from kronos_qlib.forecast.grid import expand_grid, parse_assignments, read_grid

    if (grid is None) == (not assignments):
        raise ValueError("give the settings either by --grid FILE or by --set KEY=VALUES")
    return read_grid(grid.expanduser()) if grid is not None else expand_grid(parse_assignments(assignments), "--set")


def portfolio(topk: int | None, n_drop: int | None, benchmark: str | None) -> Any:
    """The base workflow's portfolio with these changes."""
    from kronos_qlib.sweep_backtest import BacktestConfig

    return BacktestConfig.of_workflow(topk=topk, n_drop=n_drop, benchmark=benchmark)


def _reporter(settings: list[Setting]) -> Any:
    from kronos_qlib.forecast.grid import describe_differences

    names = describe_differences(settings)

    def report(position: int, result: dict[str, Any], finished: bool) -> None:
        typer.echo(f"{position + 1}/{len(names)}  {names[position]}: {_summary(result)}{'  (done before)' * finished}")

    return report


def _summary(result: dict[str, Any]) -> str:
    label = result["context"]["label"]
    parts = []
    for row in result["signals"]:
        if row["label"] == label:
            text = f"{row['signal']} Rank IC {number(row['rank_ic'])} (t {number(row['rank_ic_t'], '+.1f')})"
            trades = result["backtest"].get(row["signal"])
            if trades:
                text += f", net {trades['net_excess_return']:+.1%}, turnover {trades['turnover']:.1%}"
            parts.append(text)
    return "; ".join([*parts, f"{result['cost']['seconds']:.0f} s"])


def write_tables(config: SweepConfig, context: dict[str, Any], results: list[dict[str, Any]], out: Path) -> None:
    """Write sweep.csv, sweep.md and sweep.json, and print the note on multiplicity."""
    from kronos_qlib.examine import SPANS
    from kronos_qlib.forecast.sweep_table import multiplicity_note, sweep_table, to_markdown
    from kronos_qlib.sweep import count_variants, write_json

    tried = count_variants(out)
    table = sweep_table(results, config.label, SPANS[config.label], tried)
    note = multiplicity_note(table, tried)
    with whole_files(out) as folder:
        table.to_csv(folder / "sweep.csv", index=False)
        (folder / "sweep.md").write_text(to_markdown(table, note), encoding="utf-8")
        write_json(folder / "sweep.json", {"context": context, "variants_tried": tried, "note": note})
    typer.echo(f"\n{note}\nWrote sweep.csv and sweep.md to {out}")
