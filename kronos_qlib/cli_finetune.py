"""``kronos-qlib finetune``: let a checkpoint go on learning on other bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from kronos_qlib.cli_output import check_output_folder, split_span
from kronos_qlib.cli_train import command_line, open_corpus, show_log, write_picture


def finetune(
    checkpoint: str = typer.Argument(..., help="Folder with model/ and tokenizer/, bundled:NAME, or a hub id."),
    recipe: Path | None = typer.Option(None, help="YAML file of settings; the options below come before it."),
    bars: list[Path] = typer.Option([], help="CSV or parquet file of bars. May be repeated."),
    valid_bars: list[Path] = typer.Option(
        [], help="Files that serve validation alone: the source 'valid', named by valid_source in the recipe."
    ),
    store: Path | None = typer.Option(None, help="Folder of a Qlib store, instead of files."),
    universe: str = typer.Option("all", help="Universe of the store; full history of every code ever in it."),
    out: Path = typer.Option(..., help="Folder of the new checkpoint; one that holds a part of this run goes on."),
    train: str | None = typer.Option(None, metavar="START:END", help="Dates to learn, both included."),
    valid: str | None = typer.Option(None, metavar="START:END", help="Dates to choose the best step by, after train."),
    name: str | None = typer.Option(None, help="Of the new checkpoint, for its card."),
    steps: int | None = typer.Option(None, min=1, help="Optimiser steps; or give --epochs."),
    epochs: float | None = typer.Option(None, min=0.0, help="Passes over the training windows."),
    rate: float | None = typer.Option(None, help="Learning rate."),
    batch_size: int | None = typer.Option(None, min=1, help="Windows a step."),
    freeze_blocks: int | None = typer.Option(None, min=0, help="First blocks that keep their weights."),
    freeze_embeddings: bool = typer.Option(False, help="Embeddings keep their weights."),
    lora_rank: int | None = typer.Option(None, min=1, help="Train LoRA adapters of this rank (needs peft)."),
    tune_tokenizer: bool = typer.Option(False, help="Tune the tokenizer too, before the predictor, likewise."),
    dtype: str | None = typer.Option(None, help="float32 or bfloat16."),
    parent_cutoff: str | None = typer.Option(None, help="Last date the weights have seen, if no card says so."),
    tokenizer: str | None = typer.Option(None, help="Tokenizer, where it is not beside the model."),
    revision: str | None = typer.Option(None, help="Commit of a hub id."),
    tokenizer_revision: str | None = typer.Option(None, help="Commit of the tokenizer's hub id."),
    corpus: Path | None = typer.Option(None, help="Folder for the bars as mapped arrays; OUT/corpus if not given."),
    calendar: str = typer.Option("XSHG", help="Exchange of the files' sessions, or 24/7."),
    freq: str = typer.Option("day", help="day, or minutes: 15min."),
    region: str = typer.Option("cn", help="cn leaves out the indices."),
    device: str = typer.Option("auto", help="auto, cpu, cuda, …; with torchrun each process has a GPU of its own."),
    threads: int | None = typer.Option(None, min=1, help="CPU threads; all if not given."),
) -> None:
    """Fine-tune a checkpoint on bars, and write the result as a checkpoint with its card and curves.

    Killed at any moment, the same command goes on where it stopped. Start it with torchrun for several processes.

    \b
    Examples:
      kronos-qlib finetune bundled:synthetic --store my_store --train 2015-01-01:2018-12-31 \\
        --valid 2019-01-01:2019-12-31 --epochs 1 --freeze-blocks 1 --out tuned
      kronos-qlib finetune my_kronos --store my_store --recipe workflows/finetune_us_daily.yaml --out tuned
    """
    import torch

    from kronos_qlib.forecast.devices import pick_device
    from kronos_qlib.forecast.pretrained import load_pretrained
    from kronos_qlib.training.distributed import processes_from_environment
    from kronos_qlib.training.finetune import Start, run_identity
    from kronos_qlib.training.finetune import finetune as run_finetune
    from kronos_qlib.training.finetune_recipe import FinetuneRecipe
    from kronos_qlib.training.recipe import read_settings
    from kronos_qlib.training.run_folder import refuse_other_run

    out = check_output_folder(out)
    found = load_pretrained(checkpoint, tokenizer, revision, tokenizer_revision)
    content = read_settings(recipe, "fine-tuning") if recipe is not None else {}
    content = override(content, name=name, parent_cutoff=parent_cutoff, train=_span("train", train),
                       valid=_span("valid", valid))  # fmt: skip
    place = corpus or out / "corpus"
    named = ", ".join(path.name for path in bars) or place.name
    content.setdefault("universe", universe if store is not None else named)
    tuning = {
        "steps": steps, "epochs": epochs, "rate": rate, "batch_size": batch_size, "freeze_blocks": freeze_blocks,
        "freeze_embeddings": freeze_embeddings or None, "dtype": dtype,
        "lora": None if lora_rank is None else {"rank": lora_rank},
    }  # fmt: skip
    for network in ("tokenizer", "predictor") if tune_tokenizer or content.get("tokenizer") else ("predictor",):
        content[network] = merged(content.get(network) or {}, tuning)
    settings = FinetuneRecipe.for_card(
        {"lookback": found.lookback, "max_context": found.max_context, "horizon": found.card.get("horizon")}, **content
    )
    if threads is not None:
        torch.set_num_threads(threads)
    with processes_from_environment(pick_device(device)) as processes:
        show_log(processes.first)
        start = Start(found.model, found.tokenizer, found.card)
        opened = open_corpus(
            settings, bars, valid_bars, store, universe, place, calendar, freq, region, processes,
            check=lambda fingerprint: refuse_other_run(out, run_identity(start, settings, fingerprint)),
        )  # fmt: skip
        card = run_finetune(start, opened, settings, out, command=command_line(), processes=processes)
    if processes.first:
        for network, figures in card["valid_figures"].items():
            before = figures.pop("before")
            typer.echo(f"{network}: before " + _listed(before))
            typer.echo(f"{network}: after " + _listed(figures))
        typer.echo(f"Wrote {out} and {write_picture(out)}")


def override(content: dict[str, Any], **given: Any) -> dict[str, Any]:
    """Return settings with what was given in their place."""
    return {**content, **{key: value for key, value in given.items() if value is not None}}


def merged(content: dict[str, Any], tuning: dict[str, Any]) -> dict[str, Any]:
    """Return one network's settings; a length that was given replaces the other kind of length too."""
    if tuning["steps"] is not None or tuning["epochs"] is not None:
        content = {key: value for key, value in content.items() if key not in ("steps", "epochs")}
    return override(content, **tuning)


def _span(name: str, text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    span = split_span(text)
    if span is None:
        raise ValueError(f"found --{name} {text!r}; expected --{name} START:END such as 2015-01-01:2018-12-31")
    return {"start": span[0], "end": span[1]}


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.6g}" for key, value in figures.items())
