"""The loss on held-out windows: the same ones every time, prepared once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.objectives import Objective, autocast
from kronos_qlib.training.stream import TrainingBatch, WindowStream


class Validation:
    """Callable that measures a network; every process measures its share of the batches.

    Parameters
    ----------
    objective : Objective
        Whose metrics are averaged; its ``chosen_by`` must be among them.
    batches : sequence of TrainingBatch
        Held-out windows. None at all is a ValueError: a loss of nothing is no loss (trap 14).
    dtype : str
        The network computes in it, as in training.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Sequence[TrainingBatch],
        *,
        dtype: str = "float32",
        processes: Processes | None = None,
    ) -> None:
        if sum(len(batch.x) for batch in batches) == 0:
            raise ValueError("the validation set is empty: widen the valid span, or shorten lookback or horizon")
        self.objective = objective
        self.batches = batches
        self.dtype = dtype
        self.processes = processes or Processes()
        self._prepared: list[tuple[Tensor, ...]] = []

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Return each metric's mean over all windows, the network in evaluation mode."""
        was_training = network.training
        network.eval()
        own = range(self.processes.rank, len(self.batches), self.processes.world)
        if not self._prepared:
            self._prepared = [self.objective.prepare(self.batches[i], self.processes.device) for i in own]
        totals: dict[str, Tensor] = {}
        windows = 0
        for i, inputs in zip(own, self._prepared, strict=True):
            size = len(self.batches[i].x)
            with autocast(self.dtype, self.processes.device):
                _, metrics = self.objective.loss(network, *inputs)
            for name, value in metrics.items():
                totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu() * size
            windows += size
        network.train(was_training)
        return self._mean(totals, windows)

    def _mean(self, totals: dict[str, Tensor], windows: int) -> dict[str, float]:
        """Add up the processes; one with no batch of its own knows no names, so the first one's are shared."""
        names = self.processes.share_text("|".join(totals)).split("|")
        zero = torch.zeros((), dtype=torch.float64)
        row = [totals.get(name, zero) for name in names] + [torch.tensor(float(windows), dtype=torch.float64)]
        summed = self.processes.gather(torch.stack(row).to(self.processes.device)).sum(dim=0).tolist()
        return {name: total / summed[-1] for name, total in zip(names, summed[:-1], strict=True)}


def held_out_batches(stream: WindowStream, windows: int, batch_size: int) -> list[TrainingBatch]:
    """Return the first whole batches of a stream that never repeats a window in a pass."""
    return [stream.batch(step) for step in range(max(1, windows // batch_size))]
