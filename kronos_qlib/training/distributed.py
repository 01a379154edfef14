"""Several processes on one run: ``torchrun`` starts them, gloo (CPU) or NCCL (GPU) joins them.

Each takes its slice of the global batch; gradients are averaged by DistributedDataParallel, so the run is that of one
process with the same global batch. Only the first process writes.
"""

from __future__ import annotations

import datetime
import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kronos_qlib.kronos import KronosTokenizer
from kronos_qlib.kronos.quantizer import BinarySphericalQuantizer
from kronos_qlib.training.state import TrainingState

# the others wait while the first reads millions of bars or counts a card's tokens; NCCL would give up after ten minutes
PATIENCE = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; the default is alone."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def gather(self, values: Tensor) -> Tensor:
        """Return the processes' tensors stacked by rank, the same in every process."""
        if self.alone:
            return values.unsqueeze(0)
        parts = [torch.empty_like(values) for _ in range(self.world)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    def barrier(self) -> None:
        """Wait for the others."""
        if not self.alone:
            dist.barrier()

    def share_text(self, text: str) -> str:
        """Return the first process's text."""
        if self.alone:
            return text
        encoded = text.encode()
        size = torch.tensor([len(encoded)], device=self.device)
        dist.broadcast(size, src=0)
        content = torch.zeros(int(size.item()), dtype=torch.uint8, device=self.device)
        if self.first:
            content.copy_(torch.frombuffer(bytearray(encoded), dtype=torch.uint8))
        dist.broadcast(content, src=0)
        return bytes(content.cpu().tolist()).decode()

    def share_state(self, state: TrainingState | None) -> TrainingState | None:
        """Return the first process's state: the others need not see its disk."""
        if self.alone:
            return state
        known = None if state is None else [state.record, {k: list(t.shape) for k, t in state.tensors.items()}]
        shared = json.loads(self.share_text(json.dumps(known)))
        if shared is None:
            return None
        record, shapes = shared
        tensors = {}
        for name, shape in shapes.items():
            tensor = torch.empty(shape, device=self.device)
            if self.first and state is not None:
                tensor.copy_(state.tensors[name])
            dist.broadcast(tensor, src=0)
            tensors[name] = tensor.cpu()
        return TrainingState(record, tensors)


@contextmanager
def processes_from_environment(wanted: torch.device | None = None) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started; alone where it did not start this one.

    Parameters
    ----------
    wanted : torch.device, optional
        Where a process works that is alone; None: the CPU. Of several each takes the GPU of its own number, or the CPU
        where ``wanted`` is one or there are no GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(device=wanted or torch.device("cpu"))
        return
    device = torch.device("cpu")
    if torch.cuda.is_available() and (wanted is None or wanted.type == "cuda"):
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), world, device)
        dist.barrier()  # none leaves while the first still writes
    finally:
        # DistributedDataParallel lies in reference cycles that keep the group's threads alive; a thread that lets go of
        # a tensor while Python shuts down aborts the process
        gc.collect()
        dist.destroy_process_group()


def slice_size(batch_size: int, processes: Processes) -> int:
    """Return the windows of one process; ValueError where slices would differ in size."""
    if batch_size % processes.world:
        raise ValueError(
            f"batch_size={batch_size} does not divide among {processes.world} processes; make it a multiple"
        )
    return batch_size // processes.world


def spread(step: nn.Module, processes: Processes) -> nn.Module:
    """Wrap a training step so that gradients are averaged over the processes."""
    if processes.alone:
        return step
    device_ids = [processes.device.index] if processes.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(step, device_ids=device_ids)


@contextmanager
def shared_code_use(network: nn.Module, processes: Processes) -> Iterator[None]:
    """Let a tokenizer's entropy term see the code use of the whole global batch while it trains.

    The entropy of the average is no average of entropies, so averaging gradients alone would not do. The value is
    that of all processes and the derivative runs through this process's part; since the gradients are averaged, that is
    exactly the derivative of the whole.
    """
    if processes.alone or not isinstance(network, KronosTokenizer):
        yield
        return

    def average(local: Tensor) -> Tensor:
        whole = local.detach().clone()
        dist.all_reduce(whole)
        return local + (whole / processes.world - local.detach())

    quantizer = network.tokenizer["bsq"]
    assert isinstance(quantizer, BinarySphericalQuantizer)
    quantizer.average_over_processes = average
    try:
        yield
    finally:
        quantizer.average_over_processes = None
