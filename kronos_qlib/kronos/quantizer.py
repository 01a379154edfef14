"""Binary spherical quantisation (arXiv 2406.07548): signs of a unit vector, with commitment and entropy losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BinarySphericalQuantizer(nn.Module):
    """Signs of a unit vector, scaled by ``1 / sqrt(bits)``.

    Attributes
    ----------
    average_over_processes : callable or None
        While training: from this process's mean use of each bit to that of the global batch, of the same shape.
    """

    basis: Tensor
    group_basis: Tensor

    def __init__(self, bits: int, group_size: int, beta: float, gamma0: float, gamma: float, zeta: float) -> None:
        super().__init__()
        self.bits = bits
        self.beta, self.gamma0, self.gamma, self.zeta = beta, gamma0, gamma, zeta
        self.average_over_processes: Callable[[Tensor], Tensor] | None = None
        # published checkpoints hold both bases; nothing here reads them
        self.register_buffer("basis", 2 ** torch.arange(bits - 1, -1, -1))
        self.register_buffer("group_basis", 2 ** torch.arange(group_size - 1, -1, -1))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise ``z`` (B, T, bits); returns the quantised vector (straight-through gradient) and the loss."""
        # under autocast z comes in bfloat16, in which a mean over thousands of bars would be lost
        z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1)
        signs = torch.where(z > 0, 1.0, -1.0).type_as(z)
        quantised = (z + (signs - z).detach()) * self.bits**-0.5
        commitment = self.beta * ((quantised.detach() - z) ** 2).sum(dim=-1).mean()
        return quantised, commitment + self.zeta * self.entropy_penalty(z)

    def entropy_penalty(self, z: Tensor) -> Tensor:
        """Each sample should be certain (low entropy), each bit evenly used (high entropy of its average).

        The original's codebook term is the entropy of single bits, not of groups of bits as its settings suggest;
        published weights were trained with that, so ``group_size`` has no effect here either.
        """
        positive = torch.sigmoid(-4 * z * self.bits**-0.5)
        probability = torch.stack((positive, 1 - positive), dim=-1)
        sample_entropy = entropy(probability).sum(dim=-1).mean()
        average = self.average_probability(probability)
        return self.gamma0 * sample_entropy - self.gamma * entropy(average).sum()

    def average_probability(self, probability: Tensor) -> Tensor:
        """Mean use of the two values of each bit, (bits, 2)."""
        average = probability.flatten(0, -3).mean(dim=0)
        if self.training and self.average_over_processes is not None:
            return self.average_over_processes(average)
        return average


def entropy(probability: Tensor) -> Tensor:
    """Shannon entropy along the last axis, in nats."""
    return -(probability * torch.log(probability + 1e-8)).sum(dim=-1)


def bits_to_ids(signs: Tensor) -> Tensor:
    """Signs (..., n) to ids: bit i weighs 2**i."""
    weights = 2 ** torch.arange(signs.shape[-1], device=signs.device)
    return ((signs > 0).long() * weights).sum(dim=-1)


def ids_to_bits(ids: Tensor, n_bits: int) -> Tensor:
    """Ids (...) to signs in {-1, 1}, (..., n_bits), float32."""
    weights = 2 ** torch.arange(n_bits, device=ids.device)
    return ((ids.unsqueeze(-1) & weights) != 0).float() * 2 - 1
