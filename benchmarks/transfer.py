"""Does a checkpoint learn a new market in minutes? Loss and signal on held-out dates, before and after fine-tuning.

    python benchmarks/transfer.py bundled:ashare --store store_us --out transfer_us \
        --recipe workflows/recipes/finetune_us_daily.yaml --start 2017-01-03 --end 2017-08-15 --every 2
    python benchmarks/transfer.py bundled:ashare --store store_15min --out transfer_15min \
        --recipe workflows/recipes/finetune_ashare_15min.yaml --start 2025-12-01 --end 2026-03-27 --every 40

Writes ``OUT/checkpoint`` (which goes on where it stopped), ``OUT/transfer.json`` and prints the table. Zero-shot
weights, tuned weights and the reference columns are judged on the same rows.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import typer

from kronos_qlib.examine import ExamineConfig, examine, open_store, plain
from kronos_qlib.forecast.devices import pick_device
from kronos_qlib.forecast.reduction import CheckpointSource
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.finetune import Start, finetune
from kronos_qlib.training.finetune_recipe import FinetuneRecipe
from kronos_qlib.training.recipe import read_settings

TOKENS = ("bits_per_bar_after", "s1_after", "s2_after", "mse")


def tune(checkpoint: CheckpointSource, store: Path, recipe: Path, universe: str, out: Path) -> dict[str, Any]:
    """Fine-tune on a store by a recipe; returns the card and how long it took."""
    loaded = checkpoint.load()
    lengths = {**loaded.card, "lookback": loaded.lookback, "max_context": loaded.max_context}
    settings = FinetuneRecipe.for_card(lengths, **read_settings(recipe, "fine-tuning"))
    freq = str(open_store(store)["freq"])
    corpus = Corpus.from_store(out / "corpus", store, universe, freq=freq, policy=settings.policy())
    began = time.perf_counter()
    card = finetune(
        Start(loaded.model, loaded.tokenizer, loaded.card), corpus, settings, out, command="benchmarks/transfer.py",
        processes=Processes(device=pick_device(checkpoint.device)),
    )  # fmt: skip
    return {"card": card, "seconds": time.perf_counter() - began}


def table(found: dict[str, Any]) -> str:
    """Loss and Rank IC of each label, zero-shot beside tuned, and what the references have."""
    lines = []
    for name in TOKENS:
        cells = [found[part]["tokens"][name] for part in ("before", "after")]
        lines.append(f"{name:<34} " + "  ".join(f"{c['mean']:9.4f} ± {c['standard_error']:.4f}" for c in cells))
    rows = [{(row["label"], row["signal"]): row for row in found[part]["signals"]} for part in ("before", "after")]
    for key in rows[0]:
        cells = [part[key] for part in rows]
        shown = "  ".join(f"{_number(c['rank_ic'])} (t {_number(c['rank_ic_t'])})" for c in cells)
        lines.append(f"{key[0] + ' ' + key[1]:<34} {shown}")
    return "\n".join([f"{'':<34} zero-shot, then tuned", *lines])


def _number(value: float | None) -> str:
    return "      -" if value is None else f"{value:+7.4f}"


def main(
    checkpoint: str = typer.Argument(...),
    store: Path = typer.Option(...),
    recipe: Path = typer.Option(...),
    start: str = typer.Option(..., help="First held-out date."),
    end: str = typer.Option(..., help="Last held-out date."),
    out: Path = typer.Option(...),
    universe: str = typer.Option("all"),
    every: int = typer.Option(5, help="Score every so many bars of the calendar."),
    horizon: int = typer.Option(10),
    paths: int = typer.Option(10),
    windows: int = typer.Option(768, help="Random windows for loss and reconstruction."),
    device: str = typer.Option("auto"),
    threads: int | None = typer.Option(None),
    jobs: int = typer.Option(1),
) -> None:
    """Fine-tune, examine before and after on held-out dates, print and save."""
    if threads is not None:
        torch.set_num_threads(threads)
    before = CheckpointSource(checkpoint, device=device)
    tuned = tune(before, store, recipe, universe, out / "checkpoint")
    if tuned["card"]["valid_end"] >= start or tuned["card"]["cutoff"] >= start:
        raise ValueError(
            f"the held-out dates begin on {start}, but the weights learned up to {tuned['card']['cutoff']} and were "
            f"chosen on bars up to {tuned['card']['valid_end']}; choose a later start"
        )
    after = CheckpointSource(str(out / "checkpoint"), device=device, lookback=tuned["card"]["lookback"])
    found: dict[str, Any] = {"finetune_seconds": tuned["seconds"], "valid": tuned["card"]["valid_figures"]}
    for name, source in (("before", before), ("after", after)):
        config = ExamineConfig(
            source, store, universe, start, end, every, horizon, SamplingConfig(n_paths=paths),
            token_windows=windows, reconstruction_windows=windows,
        )  # fmt: skip
        found[name] = examine(config, jobs=jobs)
    (out / "transfer.json").write_text(json.dumps(plain(found), indent=1) + "\n", encoding="utf-8")
    typer.echo(f"fine-tuned in {tuned['seconds']:.0f} s; held out {start} to {end}")
    typer.echo(table(found))


if __name__ == "__main__":
    typer.run(main)
