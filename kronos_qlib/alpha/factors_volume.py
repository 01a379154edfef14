"""Path factors about trading: volume and amount to come, and how they move with the price."""

from __future__ import annotations

import numpy as np

from kronos_qlib.alpha.factors_registry import FactorInputs, FloatArray, factor

CHANGE = "fraction of the window's mean"


@factor("volume_change", unit=CHANGE)
def volume_change(inputs: FactorInputs) -> FloatArray:
    """Mean over paths and steps of the volume over the window's mean volume, minus 1; NaN where that is 0."""
    return inputs.volume.mean(axis=(1, 2)) - 1.0


@factor("volume_change_1", unit=CHANGE, steps=1)
def volume_change_1(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the first volume over the window's mean volume, minus 1; NaN where that is 0."""
    return inputs.volume[:, :, 0].mean(axis=1) - 1.0


@factor("amount_change", unit=CHANGE)
def amount_change(inputs: FactorInputs) -> FloatArray:
    """Mean over paths and steps of the amount over the window's mean amount, minus 1; NaN where that is 0."""
    return inputs.amount.mean(axis=(1, 2)) - 1.0


@factor("volume_trend", unit=CHANGE, minimum_steps=2)
def volume_trend(inputs: FactorInputs) -> FloatArray:
    """Mean volume of the later half of the steps minus that of the first H // 2, over the window's mean volume."""
    half = inputs.volume.shape[2] // 2
    return inputs.volume[:, :, half:].mean(axis=(1, 2)) - inputs.volume[:, :, :half].mean(axis=(1, 2))


@factor("volume_dispersion", unit=CHANGE, minimum_paths=2)
def volume_dispersion(inputs: FactorInputs) -> FloatArray:
    """Standard deviation (n - 1) over paths of the path's mean volume over the window's mean volume."""
    return inputs.volume.mean(axis=2).std(axis=1, ddof=1)


@factor("price_volume_across_paths", unit="correlation, -1 to 1", minimum_paths=3)
def price_volume_across_paths(inputs: FactorInputs) -> FloatArray:
    """Correlation over paths of the last step's return with the path's mean volume; NaN where either is constant."""
    return _correlation(inputs.close[:, :, -1], inputs.volume.mean(axis=2))


@factor("price_volume_along_paths", unit="correlation, -1 to 1", minimum_steps=3)
def price_volume_along_paths(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the correlation over steps of one-step returns with volumes, 0 for a constant path."""
    found = _correlation(inputs.step_returns, inputs.volume)
    defined = np.isfinite(inputs.step_returns).all(axis=(1, 2)) & np.isfinite(inputs.volume).all(axis=(1, 2))
    return np.where(defined, np.nan_to_num(found).mean(axis=1), np.nan)


@factor("move_volume_across_paths", unit="correlation, -1 to 1", minimum_paths=3)
def move_volume_across_paths(inputs: FactorInputs) -> FloatArray:
    """Correlation over paths of the last step's absolute return with the path's mean volume; NaN: either constant."""
    return _correlation(np.abs(inputs.close[:, :, -1]), inputs.volume.mean(axis=2))


def _correlation(left: FloatArray, right: FloatArray) -> FloatArray:
    """Pearson correlation along the last axis, NaN where either is constant."""
    constant = (left == left[..., :1]).all(axis=-1) | (right == right[..., :1]).all(axis=-1)
    left = left - left.mean(axis=-1, keepdims=True)
    right = right - right.mean(axis=-1, keepdims=True)
    scale = np.sqrt((left**2).sum(axis=-1) * (right**2).sum(axis=-1))
    return (left * right).sum(axis=-1) / np.where(constant, np.nan, scale)
