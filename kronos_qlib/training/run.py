"""What a run has come to: its step, sums, history and best weights, read from and written to a state."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.optimiser import MOMENTS, Parameters, WeightAverage, copy_into, read_moments, write_moments
from kronos_qlib.training.recipe import differences
from kronos_qlib.training.state import TrainingState, load_state, save_state, state_path


class Run:
    """The mutable part of one training run.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    entries : list of dict
        The history.
    best : dict of tensors
        Learning parameters at the best validation.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        parameters: Parameters,
        optimiser: torch.optim.AdamW,
        average: WeightAverage | None,
        processes: Processes,
    ) -> None:
        self.path, self.name = state_path(Path(folder), name), name
        self.parameters, self.optimiser, self.average, self.processes = parameters, optimiser, average, processes
        self.identity: dict[str, Any] = {}
        self.step = 0
        self.entries: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self.best_step, self.best_value, self.without_better = 0, math.inf, 0
        self.stopped_early = False
        self._sums: dict[str, Tensor] = {}
        self._summed = 0

    def finished(self, steps: int) -> bool:
        """Return whether nothing is left to do."""
        return self.step >= steps or self.stopped_early

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one step's metrics to the sums since the last validation."""
        for name, value in metrics.items():
            wide = value.detach().double()
            self._sums[name] = self._sums[name] + wide if name in self._sums else wide
        self._summed += 1

    def take_means(self) -> dict[str, float]:
        """Return the means since the last call, over all processes."""
        stacked = torch.stack(list(self._sums.values())) / self._summed
        means = self.processes.gather(stacked).mean(dim=0).tolist()
        named = dict(zip(self._sums, means, strict=True))
        self._sums, self._summed = {}, 0
        return named

    def judge(self, value: float, patience: int | None) -> bool:
        """Keep the weights if they are the best so far; count the validations without a better one if not."""
        if value < self.best_value:
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
            self.best_step, self.best_value, self.without_better = self.step, value, 0
            return True
        self.without_better += 1
        self.stopped_early = patience is not None and self.without_better >= patience
        return False

    def save(self) -> None:
        """Write the state, in the first process alone; ValueError where the loss since the last validation is broken.

        A state with broken weights would end every run that goes on from it, so the one before is kept.
        """
        # every process takes part in the gathering, so that all of them refuse together
        sums = {name: self.processes.gather(value).mean(dim=0).item() for name, value in self._sums.items()}
        self.refuse_broken(**{name: sums[name] for name in ("loss", "gradient_norm") if name in sums})
        if not self.processes.first:
            return
        state = TrainingState(
            {
                "identity": self.identity,
                "shapes": self._shapes(),
                "step": self.step,
                "entries": self.entries,
                "best_step": self.best_step,
                # JSON has no infinity
                "best_value": self.best_value if math.isfinite(self.best_value) else None,
                "without_better": self.without_better,
                "stopped_early": self.stopped_early,
                "sums": sums,
                "summed": self._summed,
            }
        )
        state.put("weights", dict(self.parameters))
        for kind, moments in read_moments(self.optimiser, self.parameters).items():
            state.put(kind, moments)
        if self.average is not None:
            state.put("ema", self.average.values)
        state.put("best", self.best)
        save_state(self.path, state)

    def refuse_broken(self, **figures: float) -> None:
        """Raise a ValueError unless all these figures are numbers."""
        if not all(math.isfinite(value) for value in figures.values()):
            found = ", ".join(f"{name} {value}" for name, value in figures.items())
            raise ValueError(
                f"{self.name}: by step {self.step} the loss is no number any more ({found}); the state before is kept. "
                "Lower the rate, lengthen the warm-up or clip harder"
            )

    def restore(self, identity: dict[str, Any]) -> None:
        """Go on from the saved state where there is one; ValueError where it is another run's."""
        # as JSON gives it back, so that tuples and lists compare equal
        self.identity = json.loads(json.dumps(identity))
        state = self.processes.share_state(load_state(self.path) if self.processes.first else None)
        if state is None:
            return
        record = state.record
        wanted = {"identity": self.identity, "shapes": self._shapes()}
        changed = differences({key: record[key] for key in wanted}, wanted)
        if changed:
            raise ValueError(
                f"{self.path} is the state of another run; go on with its settings or take another folder. "
                f"Differences (there -> here): {'; '.join(line.removeprefix('identity.') for line in changed)}"
            )
        copy_into(self.parameters, state.group("weights"))
        write_moments(self.optimiser, self.parameters, {kind: state.group(kind) for kind in MOMENTS}, record["step"])
        if self.average is not None:
            self.average.values = {k: t.to(self.processes.device) for k, t in state.group("ema").items()}
        self.best = state.group("best")
        self.step, self.entries = record["step"], record["entries"]
        self.best_step, self.without_better = record["best_step"], record["without_better"]
        self.best_value = math.inf if record["best_value"] is None else record["best_value"]
        self.stopped_early = record["stopped_early"]
        self._sums = {
            k: torch.tensor(v, dtype=torch.float64, device=self.processes.device) for k, v in record["sums"].items()
        }
        self._summed = record["summed"]

    def _shapes(self) -> dict[str, Any]:
        return {name: list(p.shape) for name, p in self.parameters.items()}
