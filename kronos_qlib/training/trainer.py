"""The training loop: one for every network and objective, resumable after any step.

What a step does depends on its number, the seed and the weights alone: the batch, the rate and dropout are functions of
them. So a run that was killed and started again ends with the weights of one that was not, bit by bit on a CPU with the
same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kronos_qlib.training.distributed import Processes, shared_code_use, slice_size, spread
from kronos_qlib.training.objectives import Metrics, Objective, autocast
from kronos_qlib.training.optimiser import WeightAverage, copy_into, learning_parameters, make_optimiser
from kronos_qlib.training.progress import Progress
from kronos_qlib.training.recipe import Training
from kronos_qlib.training.run import Run
from kronos_qlib.training.schedule import rate_at, step_seed
from kronos_qlib.training.stream import TrainingBatch, WindowStream, batches

Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class TrainingHistory:
    """What happened.

    Attributes
    ----------
    entries : list of dict
        One a validation: ``step``, ``rate``, ``gradient_norm`` (mean before clipping), ``tokens_per_second``, and each
        metric of the objective as ``train_NAME`` (mean since the last validation) and ``valid_NAME``.
    best_step, best_value : int, float
        Of the weights that the network now holds.
    stopped_early : bool
        Whether patience ran out.
    """

    entries: list[dict[str, float]]
    best_step: int
    best_value: float
    stopped_early: bool

    def best(self) -> dict[str, float]:
        """Return the validation figures of the weights that were kept, and their step."""
        (entry,) = (entry for entry in self.entries if entry["step"] == self.best_step)
        return {"step": self.best_step} | {key: value for key, value in entry.items() if key.startswith("valid_")}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


class _Step(nn.Module):
    """Network and objective as one module, so that DistributedDataParallel and the compiler see the whole step."""

    def __init__(self, network: nn.Module, objective: Objective, dtype: str, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.dtype, self.device = dtype, device

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Metrics]:
        with autocast(self.dtype, self.device):
            return self.objective.loss(self.network, *inputs)


def train(
    network: nn.Module,
    objective: Objective,
    stream: WindowStream,
    validate: Validate,
    config: Training,
    folder: Path,
    *,
    name: str,
    identity: dict[str, Any] | None = None,
    on_metrics: Callable[[dict[str, float]], None] | None = None,
    distributed: Processes | None = None,
) -> TrainingHistory:
    """Train what of a network requires a gradient, or go on where an earlier process stopped.

    Parameters
    ----------
    network : module
        Holds the best weights, in evaluation mode, when this returns.
    objective : Objective
        See :mod:`kronos_qlib.training.objectives`.
    stream : WindowStream
        Anything with its ``batch(step, rank, world)``.
    validate : callable
        From the network to its figures, ``objective.chosen_by`` among them; see
        :class:`kronos_qlib.training.validation.Validation`.
    config : Training
    folder : Path
        The state lies in ``folder/NAME.state.safetensors``.
    name : str
        Names the state and the progress bar.
    identity : dict, optional
        What else must be the same to go on: data, frozen weights. JSON types.
    on_metrics : callable, optional
        Gets each history entry as it comes, in the first process alone; not again after resuming.
    distributed : Processes, optional
        From :func:`kronos_qlib.training.distributed.processes_from_environment`; alone when None.

    Raises
    ------
    ValueError : the state in the folder is of another run (the differences are named), the loss is no number any more,
        nothing is to be trained, the batch does not divide among the processes.
    """
    processes = distributed or Processes()
    network.to(processes.device)
    parameters = learning_parameters(network)
    optimiser = make_optimiser(parameters, config)
    average = None if config.ema is None else WeightAverage(parameters, config.ema)
    run = Run(folder, name, parameters, optimiser, average, processes)
    run.restore({"training": config.identity(), **(identity or {})})
    with _numerics(processes.device), shared_code_use(network, processes):
        loop = _Loop(network, objective, stream, validate, config, run, on_metrics)
        loop.go()
    copy_into(parameters, run.best)
    network.eval()
    return TrainingHistory(run.entries, run.best_step, run.best_value, run.stopped_early)


@contextmanager
def _numerics(device: torch.device) -> Iterator[None]:
    """Leave the caller's random state alone; numbers too small to matter count as zero, for they are slow."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)


class _Loop:
    """Steps and validations of one process."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        stream: WindowStream,
        validate: Validate,
        config: Training,
        run: Run,
        on_metrics: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.network, self.objective, self.stream, self.validate = network, objective, stream, validate
        self.config, self.run, self.on_metrics = config, run, on_metrics
        self.processes = run.processes
        slice_size(config.batch_size, self.processes)
        step = spread(_Step(network, objective, config.dtype, self.processes.device), self.processes)
        self.forward: Callable[..., tuple[Tensor, Metrics]] = torch.compile(step) if config.compile else step

    def go(self) -> None:
        """Run until the last step or until patience ends."""
        run, config = self.run, self.config
        if run.finished(config.steps):
            return
        coming = batches(
            self.stream,
            run.step,
            config.steps,
            rank=self.processes.rank,
            world=self.processes.world,
            workers=config.workers,
        )
        self.network.train()
        with Progress(run.name, config.steps, run.step, silent=not self.processes.first) as progress:
            for batch in coming:
                metrics = self._optimise(batch)
                run.add(metrics)
                progress.step(batch.x.shape[0] * (batch.x.shape[1] - 1) * self.processes.world)
                if run.step % config.valid_every == 0 or run.step == config.steps:
                    self._validate(progress)
                    if run.finished(config.steps):
                        break
                elif config.save_every is not None and run.step % config.save_every == 0:
                    run.save()

    def _optimise(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """One step; returns its metrics."""
        config, run = self.config, self.run
        inputs = self.objective.prepare(batch, self.processes.device)
        torch.manual_seed(step_seed(config.seed, run.step, self.processes.rank))
        loss, metrics = self.forward(*inputs)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(run.parameters.values(), config.clip)
        for group in run.optimiser.param_groups:
            group["lr"] = self._rate()
        run.optimiser.step()
        run.optimiser.zero_grad(set_to_none=True)
        run.step += 1
        if run.average is not None:
            run.average.update(run.step)
        return {**metrics, "gradient_norm": norm}

    def _rate(self) -> float:
        config = self.config
        return rate_at(
            self.run.step,
            steps=config.steps,
            rate=config.rate,
            warmup=config.warmup,
            final_fraction=config.final_fraction,
        )

    def _validate(self, progress: Progress) -> None:
        """Measure, keep the weights if they are the best, save the state."""
        run, chosen_by = self.run, self.objective.chosen_by
        with run.average.swapped_in() if run.average is not None else nullcontext():
            valid = self.validate(self.network)
            if chosen_by not in valid:
                raise ValueError(f"validate gave {', '.join(valid)}; expected {chosen_by!r} among them")
            value = valid[chosen_by]
            train = run.take_means()
            run.refuse_broken(train=train["loss"], valid=value)
            best = run.judge(value, self.config.patience)
        self.network.train()
        entry = {"step": run.step, "rate": self._rate(), "gradient_norm": train.pop("gradient_norm")}
        entry["tokens_per_second"] = round(progress.tokens_per_second, 1)
        entry |= {f"train_{key}": number for key, number in train.items()}
        entry |= {f"valid_{key}": number for key, number in valid.items()}
        run.entries.append(entry)
        run.save()
        progress.validated(train, valid, chosen_by, best)
        if self.on_metrics is not None and self.processes.first:
            self.on_metrics(entry)
