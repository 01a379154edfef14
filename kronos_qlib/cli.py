"""The command line ``kronos-qlib``: one command a step of the way from a data file to a score.

Each command says what it found and where it wrote. A mistake of the user ends with a message on stderr and
exit code 2, without a traceback (set ``KRONOS_TRACEBACK=1`` to see one); ``check`` ends with 1 when the data
has errors. Heavy imports (torch, Qlib, pandas) wait inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from kronos_qlib import (
    __version__,
    cli_benchmark,
    cli_checkpoint,
    cli_doctor,
    cli_examine,
    cli_factors,
    cli_finetune,
    cli_forecast,
    cli_market,
    cli_output,
    cli_quickstart,
    cli_rolling,
    cli_signal,
    cli_sweep,
    cli_train,
)

USER_ERROR = 2

app = typer.Typer(
    name="kronos-qlib",
    help="Kronos, the foundation model of candlesticks, inside Qlib.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(cli_quickstart.quickstart)
app.command()(cli_market.check)
app.command()(cli_market.ingest)
app.command()(cli_forecast.forecast)
app.command()(cli_signal.signal)
app.command()(cli_examine.examine)
app.command()(cli_sweep.sweep)
app.command()(cli_rolling.rolling)
app.command()(cli_benchmark.benchmark)
app.add_typer(cli_factors.app, name="factors")
app.command()(cli_train.pretrain)
app.command()(cli_finetune.finetune)
app.command()(cli_checkpoint.tokenizer_report)
app.command()(cli_checkpoint.export)
app.command()(cli_doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kronos-qlib {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
    ),
) -> None:
    """Kronos, the foundation model of candlesticks, inside Qlib.

    \b
    Examples:
      kronos-qlib quickstart
      kronos-qlib check bars.parquet
      kronos-qlib COMMAND --help
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; ``arguments`` are those of the process when None."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="kronos-qlib")
    except (ValueError, OSError) as error:
        if os.environ.get("KRONOS_TRACEBACK"):
            raise
        print(f"error: {cli_output.describe_error(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
