"""``kronos-qlib pretrain``: a checkpoint from bars, by one recipe file."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kronos_qlib.cli_output import check_output_folder

if TYPE_CHECKING:
    from kronos_qlib.training.corpus import Corpus
    from kronos_qlib.training.distributed import Processes
    from kronos_qlib.training.finetune_recipe import FinetuneRecipe
    from kronos_qlib.training.recipe import PretrainRecipe


def pretrain(
    recipe: Path = typer.Argument(..., help="YAML file: spans, shapes of both networks, how they are trained."),
    bars: list[Path] = typer.Option([], help="CSV or parquet file of bars. May be repeated."),
    valid_bars: list[Path] = typer.Option(
        [], help="Files that serve validation alone: the source 'valid', named by valid_source in the recipe."
    ),
    store: Path | None = typer.Option(None, help="Folder of a Qlib store, instead of files."),
    universe: str = typer.Option("all", help="Universe of the store; full history of every code ever in it."),
    out: Path = typer.Option(..., help="Folder of the checkpoint; one that holds a part of this run goes on."),
    corpus: Path | None = typer.Option(
        None, help="Folder for the bars as mapped arrays, kept for the next run; OUT/corpus if not given."
    ),
    calendar: str = typer.Option("XSHG", help="Exchange of the files' sessions, or 24/7."),
    freq: str = typer.Option("day", help="day, or minutes: 15min."),
    region: str = typer.Option("cn", help="cn leaves out the indices."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, …; with torchrun each process has a GPU of its own."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all if not given. They fix the last bits."),
) -> None:
    """Train a tokenizer and a predictor on bars, and write them with their card and curves.

    Killed at any moment, the same command goes on where it stopped. Start it with torchrun for several processes.

    \b
    Examples:
      kronos-qlib pretrain recipe.yaml --bars ashare_pretrain.parquet --out my_kronos
      kronos-qlib pretrain recipe.yaml --store my_store --universe csi300 --out my_kronos --threads 2
      torchrun --nproc-per-node 2 -m kronos_qlib.cli pretrain recipe.yaml --store my_store --out my_kronos
    """
    import torch

    from kronos_qlib.forecast.devices import pick_device
    from kronos_qlib.training.distributed import processes_from_environment
    from kronos_qlib.training.pretrain import pretrain as run_pretrain
    from kronos_qlib.training.pretrain import run_identity
    from kronos_qlib.training.recipe import load_recipe
    from kronos_qlib.training.run_folder import refuse_other_run

    out = check_output_folder(out)
    settings = load_recipe(recipe)
    if threads is not None:
        torch.set_num_threads(threads)
    with processes_from_environment(pick_device(device)) as processes:
        show_log(processes.first)
        found = open_corpus(
            settings, bars, valid_bars, store, universe, corpus or out / "corpus", calendar, freq, region, processes,
            check=lambda fingerprint: refuse_other_run(out, run_identity(settings, fingerprint)),
        )  # fmt: skip
        card = run_pretrain(settings, found, out, command=command_line(), processes=processes)
    if processes.first:
        for name, figures in card["valid_figures"].items():
            typer.echo(f"{name}: " + ", ".join(f"{key} {value:.6g}" for key, value in figures.items()))
        typer.echo(f"Wrote {out} and {write_picture(out)}")


def open_corpus(
    recipe: PretrainRecipe | FinetuneRecipe,
    bars: list[Path],
    valid_bars: list[Path],
    store: Path | None,
    universe: str,
    folder: Path,
    calendar: str,
    freq: str,
    region: str,
    processes: Processes,
    *,
    check: Callable[[str], None],
) -> Corpus:
    """Build the corpus in the first process, or open what is there; ValueError when no bars or two kinds are named.

    ``check`` gets the fingerprint of a corpus before any bar is read: what it refuses costs nothing, and a corpus that
    serves another run is not replaced.
    """
    from kronos_qlib.training.corpus import Corpus
    from kronos_qlib.training.corpus_build import CorpusPlan
    from kronos_qlib.training.corpus_sources import BarFiles, CorpusSource, StoreSource

    if valid_bars and not bars:
        raise ValueError("--valid-bars FILE goes with --bars FILE")
    if bars and store is not None:
        raise ValueError("give --bars or --store, not both")
    if processes.first:
        named: dict[str, CorpusSource] = {}
        if bars:
            files = {"bars": bars, "valid": valid_bars} if valid_bars else {"bars": bars}
            named = {name: BarFiles(paths, calendar, freq, region) for name, paths in files.items()}
        elif store is not None:
            named = {"store": StoreSource(store, universe, freq)}
        elif not folder.is_dir():
            raise ValueError("no bars: give --bars FILE, --store FOLDER, or --corpus of an earlier run")
        if named:
            plan = CorpusPlan.of(named, recipe.policy())
            check(plan.fingerprint)
            Corpus.of_plan(folder, plan)
    processes.barrier()
    return Corpus.open(folder)


def write_picture(out: Path) -> Path:
    """Draw a checkpoint folder's ``curves.json`` as ``curves.png`` beside it."""
    from kronos_qlib.plots import plot_curves, save_figure

    curves = json.loads((out / "curves.json").read_text(encoding="utf-8"))
    return save_figure(plot_curves(curves), out / "curves.png")


def command_line() -> str:
    """Return the command as it was given, files and folders by their names alone: a card travels, folders do not."""
    program, *given = sys.argv
    return shlex.join([Path(program).name, *map(_without_folders, given)])


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + Path(value).name if "/" in value else word


def show_log(first: bool) -> None:
    """Let the first process say what it does on stderr, unless the program that it runs in keeps a log of its own."""
    logger = logging.getLogger("kronos_qlib.training")
    logger.setLevel(logging.INFO if first else logging.WARNING)
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
