"""The rate of a step, and the seed of a step: both pure functions, so that resuming needs no state of their own."""

from __future__ import annotations

import hashlib
import math


def rate_at(step: int, *, steps: int, rate: float, warmup: int, final_fraction: float = 0.0) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to a fraction of the peak.

    Parameters
    ----------
    step : int
        0 … steps - 1.
    steps, warmup : int
        Steps in all, and steps of the warm-up; the peak is reached on step ``warmup``.
    rate : float
        The peak.
    final_fraction : float
        What is left of the peak after the last step.
    """
    if step < warmup:
        return rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return rate * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Seed of dropout in one step of one process, 0 … 2**63 - 1."""
    digest = hashlib.blake2b(f"{seed}|{step}|{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
