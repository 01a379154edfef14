"""``kronos-qlib examine``: the figures of one checkpoint that another one has to beat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from kronos_qlib.cli_forecast import CHECKPOINT_HELP
from kronos_qlib.cli_output import check_output_folder, whole_files

SHOWN_LABELS = ("one_day", "five_day", "ten_day", "ten_day_traded")
NOT_INDEPENDENT = (
    "  these paths are no independent draws: the CRPS takes them as the whole distribution, too strict at few\n"
    "  of them; to compare distributions, draw independently (--scheme independent)"
)
SHOWN_STEPS = (1, 5, 10)


def examine(
    checkpoint: str = typer.Argument(..., help=CHECKPOINT_HELP),
    store: Path = typer.Option(..., envvar="KRONOS_STORE", help="Folder of a Qlib store."),
    universe: str = typer.Option("csi300", help="Market of the store whose members are scored."),
    start: str = typer.Option("2015-01-01", help="First date of rows and of token windows."),
    end: str = typer.Option("2016-12-31", help="Last date of rows and of token windows."),
    every: int = typer.Option(5, min=1, help="Score every so many sessions; 1: all."),
    n_paths: int = typer.Option(10, min=1, help="Futures to sample for each window."),
    horizon: int = typer.Option(10, min=2, help="Bars to forecast."),
    temperature: float = typer.Option(1.0, min=0.0, help="Sampling temperature."),
    top_p: float = typer.Option(0.9, min=0.0, max=1.0, help="Nucleus of the sampling."),
    scheme: str = typer.Option("independent", help="independent, antithetic, stratified or sobol."),
    order: str = typer.Option("token", help="token or close."),
    seed: int = typer.Option(0, help="Seed of the paths."),
    lookback: int | None = typer.Option(None, min=2, help="Bars of context; the checkpoint's own if not given."),
    tokenizer: str | None = typer.Option(None, help="Tokenizer, where it does not lie with the checkpoint."),
    revision: str | None = typer.Option(None, help="Commit of the model, for a hub id."),
    tokenizer_revision: str | None = typer.Option(None, help="Commit of the tokenizer, for a hub id."),
    random_weights: bool = typer.Option(
        False, "--random-weights", help="Examine random weights with this tokenizer instead: the reference row."
    ),
    token_windows: int = typer.Option(768, min=1, help="Random windows for the cross-entropies."),
    token_seed: int = typer.Option(0, min=0, help="Seed of their draw."),
    jobs: int = typer.Option(1, min=1, help="Processes; the figures do not depend on it."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1 …"),
    dtype: str = typer.Option("float32", help="float32 or bfloat16."),
    out: Path | None = typer.Option(None, help="JSON file for all figures."),
) -> None:
    """Measure a checkpoint: token losses, reconstruction, signals beside the reference rows, calibration.

    \b
    Examples:
      kronos-qlib examine my_kronos --store STORE --out examination.json
      kronos-qlib examine my_kronos --store STORE --every 1 --jobs 2
      kronos-qlib examine my_kronos --store STORE --random-weights
    """
    from kronos_qlib import examine as examination
    from kronos_qlib.forecast.reduction import CheckpointSource
    from kronos_qlib.kronos import SamplingConfig

    if out is not None:
        check_output_folder(out.parent)
    source = CheckpointSource(
        checkpoint,
        tokenizer,
        revision,
        tokenizer_revision,
        lookback,
        None,
        device,
        dtype,
        0 if random_weights else None,
    )
    sampling = SamplingConfig(
        temperature=temperature, top_p=top_p, n_paths=n_paths, seed=seed,
        scheme=scheme, order=order,
    )  # fmt: skip
    config = examination.ExamineConfig(
        source,
        store,
        universe,
        start,
        end,
        every,
        horizon,
        sampling,
        token_windows,
        min(512, token_windows),
        token_seed,
    )
    found = examination.examine(config, jobs=jobs)
    typer.echo(describe(found))
    if out is not None:
        with whole_files(out.parent) as folder:
            (folder / out.name).write_text(
                json.dumps(examination.plain(found), indent=1, allow_nan=False), encoding="utf-8"
            )
        typer.echo(f"Wrote {out}")


def describe(found: dict[str, Any]) -> str:
    """The figures as text."""
    parts = [_header(found), _tokens(found["tokens"]), _signals(found), _calibration(found), _cost(found["cost"])]
    return "\n\n".join(parts)


def _header(found: dict[str, Any]) -> str:
    of, settings = found["checkpoint"], found["settings"]
    sampling = settings["sampling"]
    weights = "random weights, tokenizer of " if of["random_seed"] is not None else ""
    return (
        f"{weights}{of['model']} ({of['fingerprint'][:12]}…), {of['parameters']['model'] / 1e6:.2f} M + "
        f"{of['parameters']['tokenizer'] / 1e6:.2f} M parameters, {of['bits'][0]} + {of['bits'][1]} bits\n"
        f"{settings['universe']} {settings['start']} to {settings['end']}, every {settings['every']} sessions: "
        f"{settings['n_dates']} dates, {settings['n_windows']} windows; lookback {of['lookback']}, horizon "
        f"{settings['horizon']}, N {sampling['n_paths']}, T {sampling['temperature']}, top_p {sampling['top_p']}"
    )


def _tokens(tokens: dict[str, Any]) -> str:
    def shown(name: str, digits: int = 4) -> str:
        return f"{tokens[name]['mean']:.{digits}f} ± {tokens[name]['standard_error']:.{digits}f}"

    return "\n".join(
        [
            f"cross-entropy (nats), {tokens['n_windows']} windows, all positions: s1 {shown('s1')}, s2 {shown('s2')}; "
            f"{shown('bits_per_bar', 3)} bits per bar",
            f"  after the context: s1 {shown('s1_after')}, s2 {shown('s2_after')}; "
            f"{shown('bits_per_bar_after', 3)} bits per bar",
            f"reconstruction, {tokens['n_reconstructed']} windows, {tokens['n_bars']} bars: MSE {shown('mse', 5)}, "
            f"MAE {shown('mae')}; from s1 alone {shown('coarse_mse', 5)}, {shown('coarse_mae')}",
            f"codes in use: s1 {tokens['s1_codes']} (perplexity {tokens['s1_perplexity']:.1f}), "
            f"s2 {tokens['s2_codes']} (perplexity {tokens['s2_perplexity']:.1f}); "
            f"values clipped {tokens['clipped_share']:.3%}",
        ]
    )


def _signals(found: dict[str, Any]) -> str:
    names = found["settings"]["labels"]
    lines = ["Rank IC (Newey-West t); after reversal: without 5-, 20-day and lookback-mean; after all: all references"]
    for label in SHOWN_LABELS:
        lines.append(f"{label}: {names[label]}")
        for row in found["signals"]:
            if row["label"] == label:
                lines.append(_signal_line(row, found["correlation_with_mean_reversion"].get(row["signal"])))
    return "\n".join(lines)


def _signal_line(row: dict[str, Any], correlation: float | None) -> str:
    line = (
        f"  {row['signal']:<17} {number(row['rank_ic'])} ± {number(row['rank_ic_error'], '.4f')} "
        f"(t {number(row['rank_ic_t'], '+.1f')})  IC {number(row['ic'])} (t {number(row['ic_t'], '+.1f')})"
    )
    if row.get("after_all") is not None:
        line += (
            f"  after reversal {number(row['after_reversal'])} (t {number(row['after_reversal_t'], '+.1f')}), "
            f"after all {number(row['after_all'])} (t {number(row['after_all_t'], '+.1f')})"
        )
    return line + (f"  corr. with mean reversion {correlation:+.2f}" if correlation is not None else "")


def _calibration(found: dict[str, Any]) -> str:
    from kronos_qlib.forecast.reduction import choose_estimator
    from kronos_qlib.kronos import SamplingConfig

    expected = ", ".join(f"{level} %: {covered:.1%}" for level, covered in found["calibrated_coverage"].items())
    lines = [f"coverage of central intervals of the close (a calibrated ensemble of so many paths covers {expected})"]
    for row in found["calibration"]:
        if row["step"] in SHOWN_STEPS:
            lines.append(
                f"  step {row['step']:>2}: 50 % {share(row['cover_50'])}, 80 % {share(row['cover_80'])}, "
                f"90 % {share(row['cover_90'])} ± {share(row['cover_90_error'])} (default quantiles "
                f"{share(row['cover_90_linear'])}); CRPS {number(row['crps'], '.5f')} ± "
                f"{number(row['crps_error'], '.5f')}, "
                f"skill on a normal of 20-day volatility {number(row['crps_skill'], '+.3f')}; "
                f"PIT off by {number(row['pit_deviation'], '.3f')}"
            )
    if choose_estimator(SamplingConfig(**found["settings"]["sampling"])) == "standard":
        lines.append(NOT_INDEPENDENT)
    return "\n".join(lines)


def _cost(cost: dict[str, Any]) -> str:
    return f"{cost['windows']} windows in {cost['seconds']:.0f} s, {cost['windows_per_second']:.1f} windows/s"


def number(value: float | None, form: str = "+.4f") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or value != value else format(value, form)


def share(value: float | None) -> str:
    """A share in per cent, or a dash."""
    return number(value, ".1%")
