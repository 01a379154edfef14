"""``kronos-qlib forecast``: the futures of one instrument from a file of its bars."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kronos_qlib.cli_output import check_output_folder, whole_files

if TYPE_CHECKING:
    import pandas as pd

    from kronos_qlib.forecast.paths import KlinePaths
    from kronos_qlib.market.calendars import TradingCalendar

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CHECKPOINT_HELP = "Folder, hub id such as owner/name with --revision, or bundled:synthetic (made-up market only)."


def forecast(
    file: Path = typer.Argument(..., help="CSV or parquet file of bars."),
    checkpoint: str = typer.Option(..., help=CHECKPOINT_HELP),
    tokenizer: str | None = typer.Option(None, help="Tokenizer, where it does not lie with the checkpoint."),
    revision: str | None = typer.Option(None, help="Commit of the model, for a hub id."),
    tokenizer_revision: str | None = typer.Option(None, help="Commit of the tokenizer, for a hub id."),
    instrument: str | None = typer.Option(None, help="Which instrument of the file; not needed if it holds one."),
    horizon: int = typer.Option(10, min=1, help="Bars to forecast."),
    paths: int = typer.Option(30, min=1, help="Futures to sample."),
    until: str | None = typer.Option(
        None, help="Forecast from the last bar up to this time; what really followed is drawn as well."
    ),
    lookback: int | None = typer.Option(None, min=2, help="Bars of context; the checkpoint's own if not given."),
    calendar: str = typer.Option("XSHG", help="Exchange whose sessions come next (XSHG, XNYS, 24/7, …)."),
    freq: str = typer.Option("day", help="Bar length: day, 15min or 5min."),
    temperature: float = typer.Option(1.0, help="Sampling temperature; 0 takes the likeliest token."),
    top_p: float = typer.Option(0.9, help="Sample from the likeliest tokens that hold this probability."),
    seed: int = typer.Option(0, help="Seed: the same seed gives the same futures."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1 …"),
    out: Path = typer.Option(Path("output/forecast"), help="Folder for paths, quantiles and plot."),
) -> None:
    """Sample futures of one instrument: paths.parquet, quantiles.csv and forecast.png.

    With a column factor, prices are adjusted to the last bar, whose price stays as traded. Bars before the last
    suspension of more than 60 trading days (on XSHG also before the last move of more than 30 % between bars, which
    no price limit allows) are left out, by the rule that cuts every window.

    \b
    Examples:
      kronos-qlib forecast sh600977.csv --checkpoint my_kronos --freq 5min
      kronos-qlib forecast bars.parquet --instrument SH600519 --checkpoint my_kronos --horizon 20 --paths 100
      kronos-qlib forecast btc.csv --calendar 24/7 --freq 5min --until 2026-01-15 --checkpoint my_kronos
    """
    from kronos_qlib import KronosForecaster, SamplingConfig
    from kronos_qlib.forecast.cutoff import before_cutoff, card_date
    from kronos_qlib.forecast.pretrained import warn_of_default_lookback
    from kronos_qlib.market.adjust import adjust_bars
    from kronos_qlib.market.calendars import get_calendar
    from kronos_qlib.market.report import format_stamp
    from kronos_qlib.plots import plot_forecast, save_figure

    out = check_output_folder(out)
    sampling = SamplingConfig(temperature=temperature, top_p=top_p, n_paths=paths, seed=seed)
    sessions = get_calendar(calendar, freq=freq)
    name, bars = read_instrument(file, instrument)
    history, followed = split_at(bars, until)
    if "factor" in bars:
        factor = float(history["factor"].iloc[-1])
        history, followed = adjust_bars(history, factor), adjust_bars(followed, factor)
    history = after_break(history, sessions)
    forecaster = KronosForecaster.from_pretrained(
        model=checkpoint,
        tokenizer=tokenizer,
        revision=revision,
        tokenizer_revision=tokenizer_revision,
        lookback=lookback,
        device=device,
    )
    warn_of_default_lookback(checkpoint, forecaster.card, lookback)
    futures = forecaster.forecast_frame(history, horizon=horizon, sampling=sampling, calendar=sessions, instrument=name)
    quantiles = quantile_table(futures)
    with whole_files(out) as folder:
        futures.to_frame().to_parquet(folder / "paths.parquet")
        quantiles.to_csv(folder / "quantiles.csv", index=False)
        save_figure(plot_forecast(history, futures, actual=followed), folder / "forecast.png")
    last = f"{format_stamp(history.index[-1])}, close {history['close'].iloc[-1]:g}"
    typer.echo(f"{name}: {paths} futures of {horizon} bars after {last}")
    typer.echo(
        quantiles[quantiles["field"] == "close"]
        .drop(columns="field")
        .to_string(index=False, float_format="{:g}".format)
    )
    cutoff = card_date(forecaster.card, "cutoff")
    if cutoff is not None and before_cutoff(history.index[-1:], cutoff).any():
        typer.echo(f"The checkpoint's training data end on {cutoff:%Y-%m-%d}: it may have seen what it forecasts here.")
    typer.echo("Quantiles are those of the sampled paths; no calibration has been measured on this instrument.")
    typer.echo(f"Wrote paths.parquet, quantiles.csv and forecast.png to {out}")


def read_instrument(file: Path, instrument: str | None) -> tuple[str, pd.DataFrame]:
    """Read the bars of one instrument, indexed by time and sorted.

    Raises
    ------
    ValueError : the file holds several instruments and none was named, or not the one that was; a bar is dated later
        than now.
    """
    import pandas as pd

    from kronos_qlib.market.checks_time import latest_stamp
    from kronos_qlib.market.reading import read_bars

    # a file of one instrument often has no column for it: then its name is what the caller or the file says
    frame = read_bars([file], instrument=instrument or file.stem)
    codes = sorted(frame["instrument"].astype(str).unique())
    if instrument is None and len(codes) > 1:
        raise ValueError(f"{file} holds {len(codes)} instruments; name one: --instrument {codes[0]}")
    chosen = instrument or codes[0]
    if chosen not in codes:
        raise ValueError(f"{file} has no instrument {chosen!r}; it has {_some(codes)}")
    frame = frame[frame["instrument"].astype(str) == chosen].drop(columns="instrument")
    late = frame["datetime"][frame["datetime"] > latest_stamp()]
    if len(late):
        raise ValueError(f"{file}: {len(late)} bars of {chosen} lie in the future, first {late.min()}; remove them")
    return chosen, frame.set_index(pd.DatetimeIndex(frame["datetime"])).drop(columns="datetime").sort_index()


def after_break(history: pd.DataFrame, sessions: TradingCalendar) -> pd.DataFrame:
    """Leave out the bars that no window ending at the last one may hold, and say so.

    A history that no window can be cut from (prices or times that are impossible) is returned as it is; the forecaster
    says what is wrong with it.
    """
    import numpy as np
    import pandas as pd

    from kronos_qlib.forecast.frames import complete_bars
    from kronos_qlib.market.panel import BarPanel
    from kronos_qlib.market.windows import WindowPolicy, segment_starts

    index = pd.DatetimeIndex(history.index)
    bars = complete_bars(history)
    if not index.is_monotonic_increasing or index.has_duplicates or not np.isfinite(bars.to_numpy()).all():
        return history
    stamps = sessions.between(index[0], index[-1]).union(index.as_unit("ns"))
    panel = BarPanel.from_frame(bars.assign(instrument="", datetime=index), calendar=stamps)
    policy = WindowPolicy() if sessions.name == "XSHG" else WindowPolicy(max_jump=None)
    start = int(segment_starts(panel, policy)[-1])
    if start:
        typer.echo(
            f"{start} bars before {index[start]} are left out: a suspension of more than {policy.max_gap} trading "
            "days, or a move that no price limit allows, lies between"
        )
    return history.iloc[start:]


def _some(names: list[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def split_at(bars: pd.DataFrame, until: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut bars into those up to ``until`` (a date without a time is the whole day) and those after it."""
    import pandas as pd

    if until is None:
        return bars, bars.iloc[:0]
    try:
        limit = pd.Timestamp(until)
    except ValueError as error:
        raise ValueError(f"--until takes a date or a time such as 2026-01-15; found {until!r}") from error
    if limit == limit.normalize():
        limit += pd.Timedelta(days=1) - pd.Timedelta(1, "ns")
    history = bars[bars.index <= limit]
    if history.empty:
        raise ValueError(f"no bar up to {until}: the file's first bar is {bars.index[0]}")
    return history, bars[bars.index > limit]


def quantile_table(futures: KlinePaths) -> pd.DataFrame:
    """Return quantiles of the first window's paths, a row for every field and step, in the file's units."""
    import pandas as pd

    from kronos_qlib.market.fields import BAR_FIELDS

    tables = []
    for field in BAR_FIELDS:
        columns = {f"q{round(q * 100):02d}": futures.quantile(q, field)[0] for q in QUANTILES}
        tables.append(pd.DataFrame({"datetime": futures.timestamps[0], "field": field, **columns}))
    return pd.concat(tables, ignore_index=True)
