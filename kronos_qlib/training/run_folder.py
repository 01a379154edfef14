"""The folder of a training run: whose it is, its curves, and what its card says of the bars."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kronos_qlib.kronos.checkpoint import write_whole
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.recipe import differences
from kronos_qlib.training.trainer import TrainingHistory

RUN_FILE, CURVES_FILE = "run.json", "curves.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def refuse_other_run(out: Path, wanted: dict[str, Any]) -> None:
    """Raise a ValueError, with the differences, where a folder belongs to another run; nothing is written.

    For a command to call before it does any work: the corpus of the run that is there may lie in the same folder.
    """
    path = out / RUN_FILE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if changed := differences(found, wanted):
            raise ValueError(
                f"{out} holds another run; take another --out, or its own recipe to go on. "
                f"Differences (there -> here): {'; '.join(line.removeprefix('recipe.') for line in changed)}"
            )
    elif any((out / name).exists() for name in ("tokenizer", "model", "card.json")):
        raise ValueError(f"{out} holds a checkpoint but no {RUN_FILE}; take another --out")


def claim_folder(out: Path, wanted: dict[str, Any], processes: Processes) -> None:
    """Write what this run is, or check that the folder belongs to it; ValueError with the differences where not."""
    path = out / RUN_FILE
    refuse_other_run(out, wanted)
    processes.barrier()
    if processes.first and not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: part.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8"))
    processes.barrier()


def write_curves(out: Path, histories: dict[str, TrainingHistory]) -> None:
    """Write the histories as JSON."""
    curves = {name: history.to_dict() for name, history in histories.items()}
    write_whole(out / CURVES_FILE, lambda part: part.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8"))


def sources(corpus: Corpus) -> list[dict[str, Any]]:
    """Return the corpus' sources as a card lists them, each with the fingerprint of its own content."""
    return [
        {
            "name": fact["name"],
            "fingerprint": source_fingerprint(fact["description"]),
            "bars": fact["rows"][1] - fact["rows"][0],
            "details": {"instruments": len(fact["instruments"]), "first": fact["first"], "last": fact["last"]},
        }
        for fact in corpus.meta["sources"]
    ]


def source_fingerprint(description: Mapping[str, Any]) -> str:
    """Hash what a source says of its content (hashes of files, of a panel, of a store), 32 hex digits.

    The segment rule beside it is the corpus', and stands on the card as its window policy.
    """
    own = {key: value for key, value in description.items() if key not in ("max_gap", "max_jump")}
    return hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=16).hexdigest()
