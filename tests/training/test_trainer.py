"""The loop: what it keeps, when it stops, what it leaves alone, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kronos_qlib.training.objectives import Metrics
from kronos_qlib.training.optimiser import WeightAverage, learning_parameters, make_optimiser
from kronos_qlib.training.recipe import Training
from kronos_qlib.training.schedule import rate_at, step_seed
from kronos_qlib.training.stream import TrainingBatch
from kronos_qlib.training.trainer import TrainingHistory, train
from kronos_qlib.training.validation import Validation

TARGET = 3.0


class Noise:
    """A stream of random bars; the batch of a step is a function of the step."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        x = torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(step))
        return TrainingBatch(x, torch.zeros(8, 4, 5, dtype=torch.int64), np.arange(8), 3)


class Point(nn.Module):
    """A matrix that learns and a vector that may be frozen."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(6, 1))
        self.vector = nn.Parameter(torch.zeros(1), requires_grad=not frozen)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.vector


class Regression:
    """Reach the sum of the columns plus TARGET."""

    chosen_by = "error"

    def prepare(self, batch: TrainingBatch, device: torch.device) -> tuple[Tensor, ...]:
        return (batch.x,)

    def loss(self, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Metrics]:
        (x,) = inputs
        loss = ((network(x) - x.sum(dim=-1, keepdim=True) - TARGET) ** 2).mean()
        return loss, {"loss": loss.detach(), "error": loss.detach().sqrt()}


def config(**changes: object) -> Training:
    values = {"steps": 40, "batch_size": 8, "rate": 0.3, "valid_every": 10, "weight_decay": 0.0}
    return Training(**{**values, **changes})  # type: ignore[arg-type]


def run(folder: Path, network: nn.Module, settings: Training, figures: list[float] | None = None) -> TrainingHistory:
    """Train; ``figures`` replace what the validations find."""
    objective = Regression()
    held_out = Validation(objective, [Noise().batch(1_000)])
    planned = iter(figures or [])

    def validate(module: nn.Module) -> dict[str, float]:
        return held_out(module) if figures is None else {"error": next(planned)}

    return train(network, objective, Noise(), validate, settings, folder, name="point")  # type: ignore[arg-type]


def test_it_learns(tmp_path: Path) -> None:
    network = Point()
    history = run(tmp_path, network, config(steps=200))
    assert torch.allclose(network.matrix, torch.ones(6, 1), atol=0.05)
    assert network.vector.item() == pytest.approx(TARGET, abs=0.05)
    assert history.best_value < 0.1 < history.entries[0]["valid_error"]
    assert not network.training
    assert {"step", "rate", "gradient_norm", "tokens_per_second", "train_loss", "valid_loss"} <= set(history.entries[0])


def test_the_best_weights_are_kept_and_patience_ends(tmp_path: Path) -> None:
    network, seen = Point(), []
    objective = Regression()
    figures = iter([5.0, 2.0, 3.0, 2.5, 0.0])

    def validate(module: nn.Module) -> dict[str, float]:
        seen.append(module.matrix.detach().clone())
        return {"error": next(figures)}

    settings = config(steps=100, patience=2)
    history = train(network, objective, Noise(), validate, settings, tmp_path, name="point")  # type: ignore[arg-type]
    assert (history.best_step, history.best_value, history.stopped_early) == (20, 2.0, True)
    assert history.entries[-1]["step"] == 40
    assert torch.equal(network.matrix, seen[1])
    # stopped is stopped, also when asked again
    again = train(Point(), objective, Noise(), validate, settings, tmp_path, name="point")  # type: ignore[arg-type]
    assert again.stopped_early
    assert len(seen) == 4


def test_the_last_step_is_validated(tmp_path: Path) -> None:
    history = run(tmp_path, Point(), config(steps=15))
    assert [entry["step"] for entry in history.entries] == [10, 15]


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    network = Point(frozen=True)
    run(tmp_path, network, config())
    assert network.vector.item() == 0.0
    assert network.matrix.abs().sum() > 0


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no parameter of the network requires a gradient"):
        run(tmp_path, Point().requires_grad_(False), config())


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_state(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="by step 20 the loss is no number any more"):
        run(tmp_path, Point(), config(), [1.0, math.nan])
    history = run(tmp_path, Point(), config(), [3.0, 2.0, 1.0])
    assert [entry["step"] for entry in history.entries] == [10, 20, 30, 40]
    assert (history.best_step, history.best_value) == (10, 1.0)


def test_a_state_between_validations_never_holds_broken_weights(tmp_path: Path) -> None:
    class Breaks(Regression):
        def loss(self, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Metrics]:
            loss, metrics = super().loss(network, *inputs)
            self.steps = getattr(self, "steps", 0) + 1
            return (loss, metrics) if self.steps != 14 else (loss * math.nan, metrics)

    network, figures = Point(), iter([3.0, 2.0, 1.0, 0.5])
    validate = lambda _: {"error": next(figures)}  # noqa: E731
    with pytest.raises(ValueError, match="by step 15 the loss is no number any more"):
        train(network, Breaks(), Noise(), validate, config(save_every=5), tmp_path, name="x")  # type: ignore[arg-type]
    # the state of step 10 is still there and sound
    history = train(Point(), Regression(), Noise(), validate, config(save_every=5), tmp_path, name="x")  # type: ignore[arg-type]
    assert [entry["step"] for entry in history.entries] == [10, 20, 30, 40]


def test_trap_14_no_validation_windows_are_refused() -> None:
    empty = TrainingBatch(torch.zeros(0, 4, 6), torch.zeros(0, 4, 5, dtype=torch.int64), np.arange(0), 3)
    for batches in ([], [empty]):
        with pytest.raises(ValueError, match="the validation set is empty"):
            Validation(Regression(), batches)


def test_validation_weighs_windows_and_not_batches() -> None:
    whole = Noise().batch(0)
    parts = [
        TrainingBatch(whole.x[i:j], whole.stamps[i:j], whole.rows[i:j], whole.context) for i, j in ((0, 2), (2, 8))
    ]
    network = Point().train()
    together = Validation(Regression(), [whole])(network)["loss"]
    assert Validation(Regression(), parts)(network)["loss"] == pytest.approx(together, rel=1e-6)
    assert network.training


def test_the_average_is_validated_and_kept(tmp_path: Path) -> None:
    plain, averaged = Point(), Point()
    figures = [4.0, 3.0, 2.0, 1.0]
    run(tmp_path / "plain", plain, config(), figures)
    run(tmp_path / "ema", averaged, config(ema=0.9), figures)
    assert not torch.equal(plain.matrix, averaged.matrix)


def test_the_average_follows_its_formula() -> None:
    network = Point()
    average = WeightAverage(learning_parameters(network), 0.5)
    with torch.no_grad():
        network.matrix.fill_(1.0)
    average.update(1)  # young: decay 2 / 11 instead of a half
    assert torch.allclose(average.values["matrix"], torch.full((6, 1), 9 / 11))
    average.update(1_000)
    assert torch.allclose(average.values["matrix"], torch.full((6, 1), 10 / 11))
    with average.swapped_in():
        assert network.matrix[0].item() == pytest.approx(10 / 11)
    assert network.matrix[0].item() == 1.0


def test_only_matrices_are_decayed() -> None:
    network = Point()
    groups = make_optimiser(learning_parameters(network), config(weight_decay=0.1)).param_groups
    assert [(group["params"][0].ndim, group["weight_decay"]) for group in groups] == [(2, 0.1), (1, 0.0)]


def test_the_rate_warms_up_and_cools_down() -> None:
    rates = [rate_at(step, steps=10, rate=1.0, warmup=4, final_fraction=0.1) for step in range(10)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rate_at(10, steps=10, rate=1.0, warmup=4, final_fraction=0.1) == pytest.approx(0.1)
    assert rate_at(7, steps=10, rate=1.0, warmup=4, final_fraction=0.0) == pytest.approx(0.5)


def test_every_step_and_process_has_a_seed_of_its_own() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(100) for rank in range(3)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_random_state_of_the_caller_stays(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(tmp_path, Point(), config())
    assert torch.equal(torch.get_rng_state(), before)
