"""``kronos-qlib export`` and ``tokenizer-report``: take a checkpoint elsewhere, see what it keeps of bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kronos_qlib.cli_output import check_output_folder, whole_files

if TYPE_CHECKING:
    from kronos_qlib.market.panel import BarPanel


def export(
    checkpoint: str = typer.Argument(..., help="Folder with model/ and tokenizer/, or bundled:NAME."),
    out: Path = typer.Option(..., help="Folder to write; gets model/, tokenizer/ and card.json."),
) -> None:
    """Write a checkpoint so that the original Kronos loads it: config.json and model.safetensors, float32.

    Its card goes beside them, so that what the weights have seen is known wherever they are taken.
    A variant that only this package computes (another rotary rule in the dependency layer) is refused.

    \b
    Examples:
      kronos-qlib export my_kronos --out published
    """
    from kronos_qlib.kronos.export import export_published

    written = export_published(checkpoint, check_output_folder(out))
    for name, place in written.items():
        typer.echo(f"Wrote the {name} to {place}")
    if "card" not in written:
        typer.echo(f"{checkpoint} has no card, so none was written: nothing says which bars these weights have seen")


def tokenizer_report(
    checkpoint: str = typer.Argument(..., help="Folder with tokenizer/, a tokenizer's own, or bundled:NAME."),
    bars: list[Path] | None = typer.Option(None, help="CSV or parquet file of bars; may be given several times."),
    store: Path | None = typer.Option(None, help="Folder of a Qlib store, instead of --bars."),
    instruments: str = typer.Option("all", help="Universe of the store."),
    start: str | None = typer.Option(None, help="First day that a window may end on."),
    end: str | None = typer.Option(None, help="Last day that a window may end on."),
    windows: int = typer.Option(2_000, min=1, help="Windows to draw."),
    lookback: int | None = typer.Option(None, min=2, help="Bars of context; the card's, else 90, if not given."),
    horizon: int = typer.Option(10, min=0, help="Bars after the context, scaled by it."),
    calendar: str = typer.Option("XSHG", help="Calendar of the files' sessions (XSHG, XNYS, 24/7, …)."),
    freq: str = typer.Option("day", help="Bar length: day, 15min or 5min."),
    region: str = typer.Option("cn", help="cn, us or crypto: decides price limits and which moves cut a window."),
    instrument: str | None = typer.Option(None, help="Code of a file's bars that has no column for it."),
    seed: int = typer.Option(0, help="Seed of the drawn windows."),
    out: Path = typer.Option(Path("output/tokenizer"), help="Folder for tokenizer_report.json and coarse_tokens.png."),
) -> None:
    """Report what a tokenizer keeps of real bars: errors by column and kind of bar, codes in use, clipping.

    Errors are in z units of the window, against the clipped bars, once from the coarse half of the token alone and once
    from both halves. The figure shows the candle that each coarse token decodes to.

    \b
    Examples:
      kronos-qlib tokenizer-report my_kronos --bars bars.parquet --start 2015-01-01 --end 2016-12-31
      kronos-qlib tokenizer-report bundled:synthetic --store ~/.qlib/qlib_data/kronos_csi300 --instruments csi300
    """
    from kronos_qlib.kronos import load_card, load_tokenizer
    from kronos_qlib.market.report import write_json
    from kronos_qlib.market.windows import WindowPolicy
    from kronos_qlib.plots import plot_coarse_tokens, save_figure
    from kronos_qlib.training.report_windows import choose_ends, event_windows, read_event_panel
    from kronos_qlib.training.tokenizer_report import coarse_arrays, report_tokenizer

    if bool(bars) == (store is not None):
        raise ValueError("give either --bars (once or more) or --store, so that there are bars to report on")
    out = check_output_folder(out)
    tokenizer, card = load_tokenizer(checkpoint), load_card(checkpoint)
    lookback = lookback or int(card.get("lookback") or WindowPolicy().lookback)
    if store is not None:
        panel, region = read_store(store, instruments, freq, region)
    else:
        panel = read_event_panel(bars or [], calendar=calendar, freq=freq, region=region, instrument=instrument)
    jump = WindowPolicy().max_jump if region == "cn" else None
    policy = WindowPolicy.up_to(lookback, max_jump=jump)
    ends = choose_ends(panel, policy, horizon=horizon, start=start, end=end, n_windows=windows, seed=seed)
    report = report_tokenizer(
        tokenizer, event_windows(panel, ends, lookback=lookback, horizon=horizon), lookback=lookback
    )
    with whole_files(out) as folder:
        write_json(report, folder / "tokenizer_report.json")
        save_figure(plot_coarse_tokens(*coarse_arrays(report)), folder / "coarse_tokens.png")
    typer.echo(describe_report(report))
    typer.echo(f"Wrote tokenizer_report.json and coarse_tokens.png to {out}")


def read_store(store: Path, instruments: str, freq: str, region: str) -> tuple[BarPanel, str]:
    """Read the bars of a store with their events, and the region it names (else the given one)."""
    from kronos_qlib.market.store import METADATA_FILE, store_metadata
    from kronos_qlib.market.store_panel import read_store_panel

    folder = store.expanduser()
    known = store_metadata(folder) if (folder / METADATA_FILE).is_file() else {}
    return read_store_panel(folder, instruments, freq=freq), str(known.get("region", region))


def describe_report(report: dict[str, Any]) -> str:
    """Return the report's main figures as a few lines."""
    lines = [f"{report['windows']:,} windows, {report['bar_types']['all']['bars']:,} bars; errors in z units"]
    header = f"{'bars':<12}{'count':>10}{'MSE full':>10}{'MAE full':>10}{'MSE coarse':>12}{'clipped bars':>14}"
    lines.append(header)
    groups = {**report["bar_types"], **{f"({name})": part for name, part in report["positions"].items()}}
    for name, part in groups.items():
        if part["bars"]:
            full, coarse = part["full"], part["coarse"]
            lines.append(
                f"{name:<12}{part['bars']:>10,}{full['mse']:>10.4f}{full['mae']:>10.4f}{coarse['mse']:>12.4f}"
                f"{part['clipped_bars']:>14.2%}"
            )
    for name, use in report["codebook"].items():
        if use is not None:
            lines.append(
                f"{name}: {use['used']:,} of {use['ids']:,} ids in use ({use['share_used']:.0%}), perplexity "
                f"{use['perplexity']:.1f}"
            )
    return "\n".join(lines)
