"""``kronos-qlib factors``: build, verify, list and remove the factors of a universe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kronos_qlib.cli_forecast import CHECKPOINT_HELP
from kronos_qlib.cli_output import check_output_folder
from kronos_qlib.cli_signal import QLIB_REGIONS, only_universe

if TYPE_CHECKING:
    from kronos_qlib.factors import FactorTable

WRONG_VALUES = 1

app = typer.Typer(
    help="Factors of a universe, computed once: build, verify, ls, rm.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StoreOption = Annotated[Path, typer.Option(envvar="KRONOS_STORE", help="Folder of a Qlib store.")]
OutOption = Annotated[Path, typer.Option(help="Folder of the forecast store, which keeps the factors.")]
CheckpointOption = Annotated[
    list[str],
    typer.Option(help=f"{CHECKPOINT_HELP} May be repeated: each row then gets weights that have not seen it."),
]
UniverseOption = Annotated[
    str | None, typer.Option(help="Market of the store whose members get factors; its only one, or all.")
]
StartOption = Annotated[str | None, typer.Option(help="First day; the store's first if not given.")]
EndOption = Annotated[str | None, typer.Option(help="Last day; the store's last if not given.")]
FactorsOption = Annotated[
    str, typer.Option(help="default (all path and token factors), none, or names separated by commas.")
]
EmbeddingOption = Annotated[
    list[str], typer.Option(help="Hidden states to keep as well: last, mean or code. May be repeated.")
]
PathsOption = Annotated[int, typer.Option("--n-paths", min=1, help="Futures to sample for each row.")]
HorizonOption = Annotated[int, typer.Option(min=1, help="Bars to forecast.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the sampling.")]
BlockOption = Annotated[
    int, typer.Option(min=1, help="Days of token factors and embeddings from one forward pass; 1: exact.")
]
LookbackOption = Annotated[int | None, typer.Option(min=2, help="Bars of context; the checkpoint's own if not given.")]
FitEndOption = Annotated[
    str | None,
    typer.Option(help="Last day a learner will be fitted on: rows up to it get weights that never saw them."),
]
LabelHorizonOption = Annotated[
    int | None, typer.Option(min=1, help="With --fit-end: bars its label reaches ahead, if more than --horizon.")
]
InSampleOption = Annotated[
    bool,
    typer.Option("--allow-in-sample", help="Also rows that every checkpoint has seen (as fields, too), for a control."),
]
LeaveOutOption = Annotated[
    bool, typer.Option("--leave-out", help="Leave out rows that every checkpoint has seen, instead of an error.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
DtypeOption = Annotated[
    str, typer.Option(help="float32, or bfloat16: faster on most machines, other last digits, so another source.")
]
EveryOption = Annotated[
    int, typer.Option(min=1, help="Only every so many sessions of the store's calendar: for a first look.")
]


@app.command()
def build(
    store: StoreOption,
    out: OutOption,
    checkpoint: CheckpointOption,
    universe: UniverseOption = None,
    start: StartOption = None,
    end: EndOption = None,
    factors: FactorsOption = "default",
    embedding: EmbeddingOption = [],  # noqa: B006
    n_paths: PathsOption = 10,
    horizon: HorizonOption = 10,
    seed: SeedOption = 0,
    block: BlockOption = 10,
    lookback: LookbackOption = None,
    fit_end: FitEndOption = None,
    label_horizon: LabelHorizonOption = None,
    allow_in_sample: InSampleOption = False,
    leave_out: LeaveOutOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    every: EveryOption = 1,
    jobs: int = typer.Option(1, min=1, help="Processes; the values do not depend on it."),
    fields: bool = typer.Option(
        False, "--fields", help="Write them into the Qlib store too, as $kronos_<name>; unseen rows only."
    ),
) -> None:
    """Compute the factors that are missing or rest on changed bars; a killed run goes on where it was.

    Factors that the folder has already, among others of the same settings, are used from there: after a build of all,
    --factors with a few of them, or without --embedding, computes nothing and --fields writes them in seconds.

    \b
    Examples:
      kronos-qlib factors build --store STORE --out factors --checkpoint bundled:synthetic --start 2017-01-01
      kronos-qlib factors build --store STORE --out factors --checkpoint late --checkpoint early --fit-end 2014-12-31
      kronos-qlib factors build --store STORE --out factors --checkpoint my_kronos --jobs 2 --fields
      kronos-qlib factors build --store STORE --out factors --checkpoint my_kronos --jobs 2 --dtype bfloat16 --every 5
    """
    from kronos_qlib.forecast.store import ForecastStore
    from kronos_qlib.market.store_columns import write_columns

    target = ForecastStore(check_output_folder(out))
    table = _table(
        store, checkpoint, universe, (start, end), lookback, (device, dtype),
        factors=_names(factors), embedding=tuple(embedding), horizon=horizon, n_paths=n_paths, seed=seed, block=block,
        fit_end=fit_end, label_horizon=label_horizon, allow_in_sample=allow_in_sample, leave_out=leave_out,
        every=every,
    )  # fmt: skip
    if fields:
        table.refuse_mixed_embeddings()
        if not allow_in_sample:
            table.refuse_in_sample()
    table.note_cards(target)
    for group in table.groups:
        plans = target.plan(group, table.panel)
        for plan in plans:
            typer.echo(str(plan))
        report = target.build(group, table.panel, jobs=jobs, plans=plans)
        typer.echo(str(report).rpartition("\n")[2])
    if fields:
        written = write_columns(store, table.read(target), about={"sources": table.served_by(target)})
        typer.echo(f"Wrote {len(written)} fields into {store}: ${written[0]} … ${written[-1]}")


@app.command()
def verify(
    store: StoreOption,
    out: OutOption,
    checkpoint: CheckpointOption,
    universe: UniverseOption = None,
    start: StartOption = None,
    end: EndOption = None,
    factors: FactorsOption = "default",
    embedding: EmbeddingOption = [],  # noqa: B006
    n_paths: PathsOption = 10,
    horizon: HorizonOption = 10,
    seed: SeedOption = 0,
    block: BlockOption = 10,
    lookback: LookbackOption = None,
    fit_end: FitEndOption = None,
    label_horizon: LabelHorizonOption = None,
    allow_in_sample: InSampleOption = False,
    leave_out: LeaveOutOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    every: EveryOption = 1,
    sample: int = typer.Option(200, min=1, help="Rows of each source to compute again."),
    sample_seed: int = typer.Option(0, help="Seed of the choice of rows."),
) -> None:
    """Compute a random sample again and compare bit for bit; exit 1 if a value differs.

    \b
    Example:
      kronos-qlib factors verify --store STORE --out factors --checkpoint my_kronos --sample 500
    """
    from kronos_qlib.forecast.store import ForecastStore

    table = _table(
        store, checkpoint, universe, (start, end), lookback, (device, dtype),
        factors=_names(factors), embedding=tuple(embedding), horizon=horizon, n_paths=n_paths, seed=seed, block=block,
        fit_end=fit_end, label_horizon=label_horizon, allow_in_sample=allow_in_sample, leave_out=leave_out,
        every=every,
    )  # fmt: skip
    report = table.verify(ForecastStore(out), sample=sample, seed=sample_seed)
    typer.echo(str(report))
    if not report.checked:
        raise ValueError(f"{out} has none of these rows to verify; build them first, with the same options")
    if not report.ok:
        raise typer.Exit(WRONG_VALUES)


@app.command()
def ls(folder: Path = typer.Argument(..., help="Folder of a forecast store.")) -> None:
    """List the sources of a forecast store: rows, dates, columns, size and weights.

    \b
    Example:
      kronos-qlib factors ls factors
    """
    from kronos_qlib.forecast.store import ForecastStore

    found = ForecastStore(folder).ls()
    for source in found:
        typer.echo(str(source))
        typer.echo(f"              {', '.join(source.columns[:6])}{' …' if len(source.columns) > 6 else ''}")
    if not found:
        typer.echo(f"{folder} has no factors")


@app.command()
def rm(
    folder: Path = typer.Argument(..., help="Folder of a forecast store."),
    source: list[str] = typer.Argument(..., help="Fingerprints, or their beginnings, as ls shows them."),
) -> None:
    """Delete sources from a forecast store.

    \b
    Example:
      kronos-qlib factors rm factors 3f2a91
    """
    from kronos_qlib.forecast.store import ForecastStore

    for name in source:
        typer.echo(f"Removed {ForecastStore(folder).rm(name)}")


def _names(factors: str) -> tuple[str, ...] | None:
    if factors == "default":
        return None
    return () if factors == "none" else tuple(name.strip() for name in factors.split(",") if name.strip())


def _table(
    store: Path,
    checkpoints: list[str],
    universe: str | None,
    days: tuple[str | None, str | None],
    lookback: int | None,
    where: tuple[str, str],
    **settings: Any,
) -> FactorTable:
    """Point Qlib at the store and say which rows, weights and factors are meant."""
    import qlib

    from kronos_qlib.market.store import store_metadata

    folder = store.expanduser()
    known = store_metadata(folder)
    region = known["region"]
    qlib.init(provider_uri=str(folder), region=QLIB_REGIONS.get(region, region), logging_level=logging.WARNING)

    from kronos_qlib.dataset import KlineDataset
    from kronos_qlib.factors import FactorSettings, FactorTable
    from kronos_qlib.forecast.forecaster import KronosForecaster
    from kronos_qlib.handler import KlineHandler
    from kronos_qlib.market.windows import WindowPolicy

    chosen = FactorSettings(**settings)
    handler = KlineHandler(universe or only_universe(folder), days[0], days[1], known["freq"], init_data=False)
    # outside China no price limit makes a large move impossible, so no move starts a new window
    max_jump = WindowPolicy.max_jump if region == "cn" else None
    dataset = KlineDataset(handler, segments={"all": days}, lookback=lookback, max_jump=max_jump)
    device, dtype = where
    forecasters = [
        KronosForecaster.from_pretrained(name, lookback=lookback, device=device, dtype=dtype) for name in checkpoints
    ]
    return FactorTable(dataset, "all", forecasters, chosen)
