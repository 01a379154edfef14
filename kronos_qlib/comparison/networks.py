"""Qlib's networks that need a word before they run on a current torch."""

from __future__ import annotations

from functools import partial
from typing import Any

from qlib.contrib.model.pytorch_nn import DNNModelPytorch
from torch.optim.lr_scheduler import ReduceLROnPlateau


def build_mlp(**settings: Any) -> DNNModelPytorch:
    """Qlib's MLP with its own default scheduler.

    Qlib 0.9.7 compares torch's version as text, takes 2.13 for older than 2.6, and hands the scheduler an argument that
    torch has removed; the one given here is the same without it.
    """
    plateau = partial(
        ReduceLROnPlateau, mode="min", factor=0.5, patience=10, threshold=1e-4, threshold_mode="rel", cooldown=0,
        min_lr=1e-5, eps=1e-8,
    )  # fmt: skip
    return DNNModelPytorch(scheduler=plateau, **settings)
