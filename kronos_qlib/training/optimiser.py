"""AdamW on the parameters that learn, and an average of the weights along the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kronos_qlib.training.recipe import Training

MOMENTS = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}
Parameters = dict[str, nn.Parameter]


def learning_parameters(network: nn.Module) -> Parameters:
    """Return the parameters that require a gradient, by name; ValueError when all are frozen."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("no parameter of the network requires a gradient; unfreeze what is to be trained")
    return parameters


def make_optimiser(parameters: Parameters, config: Training) -> torch.optim.AdamW:
    """Return a fused AdamW; only matrices are decayed."""
    matrices = [p for p in parameters.values() if p.ndim > 1]
    vectors = [p for p in parameters.values() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def read_moments(optimiser: torch.optim.AdamW, parameters: Parameters) -> dict[str, dict[str, Tensor]]:
    """Return both moments by parameter name; empty before the first step."""
    return {
        kind: {name: optimiser.state[p][key] for name, p in parameters.items() if p in optimiser.state}
        for kind, key in MOMENTS.items()
    }


def write_moments(
    optimiser: torch.optim.AdamW, parameters: Parameters, moments: dict[str, dict[str, Tensor]], step: int
) -> None:
    """Put an optimiser into the state it had after ``step`` steps."""
    for name, parameter in parameters.items():
        optimiser.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            **{key: moments[kind][name].to(parameter.device).clone() for kind, key in MOMENTS.items()},
        }


class WeightAverage:
    """Exponential moving average of the weights; young averages forget faster, so that the start weighs nothing."""

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.values[name] for name in self.parameters], [*self.parameters.values()], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the network hold the average inside the block."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        copy_into(self.parameters, self.values)
        try:
            yield
        finally:
            copy_into(self.parameters, own)


@torch.no_grad()
def copy_into(parameters: Parameters, values: dict[str, Tensor]) -> None:
    """Overwrite parameters by name."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
