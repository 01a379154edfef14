"""``kronos-qlib rolling``: a workflow, rolled."""

from __future__ import annotations

from pathlib import Path

import typer

from kronos_qlib.cli_output import check_output_folder, split_span


def rolling(
    config: Path = typer.Argument(..., help="Workflow YAML, as for qrun, with or without a rolling block."),
    step: int | None = typer.Option(None, min=1, help="Trading days in each roll's test segment: 63, 126, 244 …"),
    rolling_type: str | None = typer.Option(None, help="expanding or sliding training segment."),
    jobs: int | None = typer.Option(None, min=1, help="Rolls that run at once, each in a process."),
    finetune: str | None = typer.Option(None, help="base or previous: weights that each roll is fine-tuned from."),
    horizon: int | None = typer.Option(None, min=0, help="Sessions the label looks ahead; read from it if not given."),
    segment: list[str] | None = typer.Option(
        None, help="NAME=FIRST:LAST, instead of all of the workflow's segments; repeat it: train, valid, test."
    ),
    name: str | None = typer.Option(None, help="Experiment; the workflow's if not given."),
    out: Path | None = typer.Option(None, help="Folder of finished rolls; rolling/NAME here if not given."),
    plan: bool = typer.Option(False, "--plan", help="Print the dates of the rolls and stop."),
) -> None:
    """Train on the past, score the next weeks, move on; join the scores and judge them as one prediction.

    A run that was interrupted goes on at the roll it was in when it is started again.

    \b
    Examples:
      kronos-qlib rolling workflows/rolling_lightgbm_alpha158_csi300.yaml --plan
      kronos-qlib rolling workflows/lightgbm_alpha158_csi300.yaml --step 126 --jobs 2 --out my_rolls
      kronos-qlib rolling workflows/rolling_lightgbm_alpha158_csi300.yaml --segment train=2008-01-01:2012-12-31
        --segment valid=2013-01-01:2014-12-31 --segment test=2015-01-01:2016-12-31 --out rolls_on_valid
    """
    if out is not None:
        check_output_folder(out)
    from kronos_qlib.rolling import KronosRolling

    run = KronosRolling(
        config, step=step, rolling_type=rolling_type, jobs=jobs, finetune=finetune, horizon=horizon, state=out,
        experiment_name=name, segments=parse_segments(segment or []),
    )  # fmt: skip
    typer.echo(run.plan().to_string(index=False))
    if plan:
        return
    recorder = run.run()
    for key, value in sorted(recorder.list_metrics().items()):
        if "excess_return_with" in key or "IC" in key:
            typer.echo(f"{key:50} {value:+.4f}")
    typer.echo(f"{len(run.rolls)} rolls in {run.state}; recorder {recorder.id} of experiment {run.experiment_name!r}")


def parse_segments(given: list[str]) -> dict[str, tuple[str, str]]:
    """Read ``NAME=FIRST:LAST`` texts.

    Raises
    ------
    ValueError : another form, a name given twice.
    """
    segments: dict[str, tuple[str, str]] = {}
    for text in given:
        name, _, dates = text.partition("=")
        span = split_span(dates)
        if not name or span is None:
            raise ValueError(f"found --segment {text}; expected NAME=FIRST:LAST such as test=2015-01-01:2016-12-31")
        if name in segments:
            raise ValueError(f"found --segment {name} twice")
        segments[name] = span
    return segments
