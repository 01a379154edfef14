"""The state of an unfinished run: one safetensors file, tensors and a JSON record, replaced whole or not at all.

A process killed at any moment leaves the state before or the state after, never half of one. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

RECORD = "record"


@dataclass
class TrainingState:
    """Tensors by name (``weights.…``, ``first_moment.…``, ``second_moment.…``, ``ema.…``, ``best.…``) and a record."""

    record: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one kind by the name of their parameter."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Add the tensors of one kind."""
        self.tensors.update({f"{name}.{key}": tensor for key, tensor in tensors.items()})


def state_path(folder: Path, name: str) -> Path:
    """Return where a run's state lies."""
    return folder / f"{name}.state.safetensors"


def save_state(path: Path, state: TrainingState) -> None:
    """Write a state beside the old one and move it into its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    save_file(tensors, part, metadata={RECORD: json.dumps(state.record)})
    # a file moved before its bytes are on the disk could be empty after a power cut
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def load_state(path: Path) -> TrainingState | None:
    """Read a state; None where there is none, ValueError where it cannot be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            record = json.loads(file.metadata()[RECORD])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no readable training state ({error}); remove it to start this part of the run anew"
        ) from error
    return TrainingState(record, tensors)
