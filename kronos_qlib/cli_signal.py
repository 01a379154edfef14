"""``kronos-qlib signal``: the scores of one day, the last one of the store included."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kronos_qlib.cli_forecast import CHECKPOINT_HELP
from kronos_qlib.cli_output import check_output_folder, whole_files

if TYPE_CHECKING:
    import pandas as pd

QLIB_REGIONS = {"crypto": "us"}


def signal(
    store: Path = typer.Option(..., envvar="KRONOS_STORE", help="Folder of a Qlib store."),
    checkpoint: str = typer.Option(..., help=CHECKPOINT_HELP),
    tokenizer: str | None = typer.Option(None, help="Tokenizer, where it does not lie with the checkpoint."),
    revision: str | None = typer.Option(None, help="Commit of the model, for a hub id."),
    tokenizer_revision: str | None = typer.Option(None, help="Commit of the tokenizer, for a hub id."),
    universe: str | None = typer.Option(
        None, help="Market of the store whose members of the day are scored; its only one, or all, if not given."
    ),
    date: str | None = typer.Option(None, help="Day to score (2020-12-31); the store's last one if not given."),
    name: str = typer.Option("expected_return", "--signal", help="Signal, by name."),
    horizon: int = typer.Option(10, min=1, help="Bars to forecast."),
    paths: int = typer.Option(10, min=1, help="Futures to sample for each instrument."),
    lookback: int | None = typer.Option(None, min=2, help="Bars of context; the checkpoint's own if not given."),
    seed: int = typer.Option(0, help="Seed: the same seed gives the same scores."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1 …"),
    top: int = typer.Option(10, min=0, help="How many of the best to print."),
    out: Path | None = typer.Option(None, help="CSV file for all scores."),
) -> None:
    """Score the members of one day with bars up to that day; to be traded from the next session on.

    \b
    Examples:
      kronos-qlib signal --store ~/.qlib/qlib_data/kronos_csi300 --checkpoint owner/name --revision COMMIT
      kronos-qlib signal --store STORE --checkpoint my_kronos --date 2020-07-31 --signal probability_up
      kronos-qlib signal --store my_15min_store --checkpoint my_kronos --universe all
    """
    from kronos_qlib.market.report import format_stamp

    if out is not None:
        check_output_folder(out.parent)
    model = {
        "model": checkpoint,
        "tokenizer": tokenizer,
        "revision": revision,
        "tokenizer_revision": tokenizer_revision,
        "horizon": horizon,
        "signal": name,
        "sampling": {"n_paths": paths, "seed": seed},
        "device": device,
    }
    universe = universe or only_universe(store.expanduser())
    scores = score_day(store, universe, date, lookback, model)
    day = format_stamp(scores.index.get_level_values("datetime")[0])
    ranked = scores.droplevel("datetime").sort_values(ascending=False).rename("score")
    known = ranked.dropna()
    typer.echo(f"{name} on {day}: {len(known)} of {len(ranked)} members of {universe} have a score")
    if top and len(known):
        typer.echo(known.head(top).to_string(float_format="{:+.6f}".format))
    if out is not None:
        with whole_files(out.parent) as folder:
            ranked.to_frame().assign(datetime=day).to_csv(folder / out.name, index_label="instrument")
        typer.echo(f"Wrote {out}")


def only_universe(folder: Path) -> str:
    """Return the universe of a store that has one, ``all`` for none; ValueError when there are several.

    ``csi300`` for a store that another tool wrote, which does not say.
    """
    known = _metadata(folder).get("universes")
    if known is None:
        return "csi300"
    if len(known) > 1:
        raise ValueError(f"{folder} has the universes {', '.join(sorted(known))}; name one: --universe")
    return next(iter(known), "all")


def score_day(store: Path, universe: str, date: str | None, lookback: int | None, model: dict[str, Any]) -> pd.Series:
    """Score the last bar of one day by the handler, dataset and model that ``qrun`` uses.

    Returns
    -------
    Series indexed (datetime, instrument), one row a member of that day; NaN where there is no window.
    """
    import qlib

    folder = store.expanduser()
    if not (folder / "calendars").is_dir():
        raise ValueError(f"{folder} is no Qlib store: it has no calendars/. Write one with kronos-qlib ingest")
    known = _metadata(folder)
    freq = str(known.get("freq", "day"))
    region = known.get("region", "cn")
    # Qlib has no region of its own for a market that never closes; its us has no price limit and no lots
    qlib.init(provider_uri=str(folder), region=QLIB_REGIONS.get(region, region), logging_level=logging.WARNING)
    stamp = last_bar_of_day(folder, freq, date)

    from kronos_qlib.dataset import KlineDataset
    from kronos_qlib.handler import KlineHandler
    from kronos_qlib.market.windows import WindowPolicy
    from kronos_qlib.model import KronosModel

    scorer = KronosModel(**model)
    handler = KlineHandler(instruments=universe, start_time=stamp, end_time=stamp, freq=freq)
    # outside China no price limit makes a large move impossible, so no move starts a new window
    max_jump = WindowPolicy.max_jump if region == "cn" else None
    dataset = KlineDataset(handler=handler, segments={"test": (stamp, stamp)}, lookback=lookback, max_jump=max_jump)
    scorer.fit(dataset)
    return scorer.predict(dataset, segment="test")


def last_bar_of_day(folder: Path, freq: str, date: str | None) -> pd.Timestamp:
    """Return the store's last bar stamp on ``date``, or of all when None; ValueError when the day has none."""
    import pandas as pd
    from qlib.data import D

    stamps = pd.DatetimeIndex(D.calendar(freq=freq))
    if date is None:
        return stamps[-1]
    try:
        day = pd.Timestamp(date).normalize()
    except ValueError as error:
        raise ValueError(f"--date takes a day such as 2020-12-31; found {date!r}") from error
    found = stamps[stamps.normalize() == day]
    if found.empty:
        raise ValueError(
            f"{day:%Y-%m-%d} is no session of {folder}: its sessions run from {stamps[0]:%Y-%m-%d} to "
            f"{stamps[-1]:%Y-%m-%d}"
        )
    return found[-1]


def _metadata(folder: Path) -> dict[str, Any]:
    from kronos_qlib.market.store import store_metadata

    return store_metadata(folder) if (folder / "kronos_store.json").is_file() else {}
