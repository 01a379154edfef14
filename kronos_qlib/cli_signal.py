"""``kronos-qlib signal``: the scores of one day, the last one of the store included."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kronos_qlib.cli_forecast import CHECKPOINT_HELP

if TYPE_CHECKING:
    import pandas as pd


def signal(
    store: Path = typer.Option(..., envvar="KRONOS_STORE", help="Folder of a Qlib store."),
    checkpoint: str = typer.Option(..., help=CHECKPOINT_HELP),
    tokenizer: str | None = typer.Option(None, help="Tokenizer, where it does not lie with the checkpoint."),
    universe: str = typer.Option("csi300", help="Market of the store whose members of the day are scored."),
    date: str | None = typer.Option(
        None, help="Day to score (2020-12-31); the store's last one if not given."
    ),
    name: str = typer.Option("expected_return", "--signal", help="Signal, by name."),
    horizon: int = typer.Option(10, min=1, help="Bars to forecast."),
    paths: int = typer.Option(10, min=1, help="Futures to sample for each instrument."),
    lookback: int | None = typer.Option(
        None, min=2, help="Bars of context; the checkpoint's own if not given."
    ),
    seed: int = typer.Option(0, help="Seed: the same seed gives the same scores."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1 …"),
    top: int = typer.Option(10, min=0, help="How many of the best to print."),
    out: Path | None = typer.Option(None, help="CSV file for all scores."),
) -> None:
    """Score the members of one day with bars up to that day; to be traded from the next session on.

    \b
    Examples:
      kronos-qlib signal --store ~/.qlib/qlib_data/kronos_csi300 --checkpoint NeoQuasar/Kronos-small
      kronos-qlib signal --store STORE --checkpoint my_kronos --date 2020-07-31 --signal probability_up
    """
    sampling = {"n_paths": paths, "seed": seed}
    model = {
        "model": checkpoint,
        "tokenizer": tokenizer,
        "lookback": lookback,
        "horizon": horizon,
        "signal": name,
    }
    scores = score_day(store, universe, date, model={**model, "sampling": sampling, "device": device})
    day = scores.index.get_level_values("datetime")[0]
    ranked = scores.droplevel("datetime").sort_values(ascending=False).rename("score")
    known = ranked.dropna()
    typer.echo(f"{name} on {day:%Y-%m-%d}: {len(known)} of {len(ranked)} members of {universe} have a score")
    if top and len(known):
        typer.echo(known.head(top).to_string(float_format="{:+.6f}".format))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        ranked.to_frame().assign(datetime=f"{day:%Y-%m-%d}").to_csv(out, index_label="instrument")
        typer.echo(f"Wrote {out}")


def score_day(store: Path, universe: str, date: str | None, *, model: dict[str, object]) -> pd.Series:
    """Score one day by the handler, dataset and model that ``qrun`` uses; indexed (datetime, instrument)."""
    import pandas as pd
    import qlib
    from qlib.data import D

    folder = store.expanduser()
    if not (folder / "calendars").is_dir():
        raise ValueError(
            f"{folder} is no Qlib store: it has no calendars/. Write one with kronos-qlib ingest"
        )
    region = _region(folder)
    qlib.init(provider_uri=str(folder), region=region, logging_level=30)
    sessions = pd.DatetimeIndex(D.calendar(freq="day"))
    day = sessions[-1] if date is None else _parse_day(date)
    if day not in sessions:
        raise ValueError(
            f"{day:%Y-%m-%d} is no session of {folder}: its sessions run from {sessions[0]:%Y-%m-%d} to "
            f"{sessions[-1]:%Y-%m-%d}"
        )

    from kronos_qlib.dataset import KlineDataset
    from kronos_qlib.handler import KlineHandler
    from kronos_qlib.model import KronosModel

    # fewer sessions than a carried score may be old would change the answer for suspended stocks
    handler = KlineHandler(instruments=universe, start_time=day, end_time=day)
    dataset = KlineDataset(handler=handler, segments={"test": (day, day)})
    scorer = KronosModel(**{key: value for key, value in model.items() if value is not None})
    scorer.fit(dataset)
    return scorer.predict(dataset, segment="test")


def _region(folder: Path) -> str:
    from kronos_qlib.market.store import store_metadata

    return (
        str(store_metadata(folder).get("region", "cn")) if (folder / "kronos_store.json").is_file() else "cn"
    )


def _parse_day(text: str) -> pd.Timestamp:
    import pandas as pd

    try:
        return pd.Timestamp(text).normalize()
    except ValueError as error:
        raise ValueError(f"--date takes a day such as 2020-12-31; found {text!r}") from error
