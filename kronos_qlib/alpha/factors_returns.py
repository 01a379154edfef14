"""Path factors about where the price goes: expected, median, terminal and tradable returns, and their odds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.alpha.factors_registry import FactorInputs, FloatArray, factor

RETURN = "return: fraction of the last close"
SHARE = "share of paths, 0 to 1: a raw frequency, not a calibrated probability"
# A limit price is rounded to a tick, so it can lie a little inside the fraction; Qlib's backtests use the same slack.
LIMIT_SLACK = 0.005


@factor("expected_return_5", unit=RETURN, steps=5)
def expected_return_5(inputs: FactorInputs) -> FloatArray:
    """Mean over paths and the first 5 steps of the close over the last close, minus 1."""
    return inputs.signal("expected_return", horizon=5)


@factor("expected_return", unit=RETURN)
def expected_return(inputs: FactorInputs) -> FloatArray:
    """Mean over paths and steps of the close over the last close, minus 1 (the paper's signal)."""
    return inputs.signal("expected_return")


@factor("terminal_return_1", unit=RETURN, steps=1)
def terminal_return_1(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the first close over the last close, minus 1."""
    return inputs.signal("terminal_return", horizon=1)


@factor("terminal_return_2", unit=RETURN, steps=2)
def terminal_return_2(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the second close over the last close, minus 1."""
    return inputs.signal("terminal_return", horizon=2)


@factor("terminal_return_5", unit=RETURN, steps=5)
def terminal_return_5(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the fifth close over the last close, minus 1."""
    return inputs.signal("terminal_return", horizon=5)


@factor("terminal_return", unit=RETURN)
def terminal_return(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the last step's close over the last close, minus 1."""
    return inputs.signal("terminal_return")


@factor("median_return_1", unit=RETURN, steps=1)
def median_return_1(inputs: FactorInputs) -> FloatArray:
    """Median over paths of the first close over the last close, minus 1."""
    return inputs.signal("quantile_return", horizon=1, q=0.5)


@factor("median_return_5", unit=RETURN, steps=5)
def median_return_5(inputs: FactorInputs) -> FloatArray:
    """Median over paths of the fifth close over the last close, minus 1."""
    return inputs.signal("quantile_return", horizon=5, q=0.5)


@factor("median_return", unit=RETURN)
def median_return(inputs: FactorInputs) -> FloatArray:
    """Median over paths of the last step's close over the last close, minus 1."""
    return inputs.signal("quantile_return", q=0.5)


@factor("execution_return", unit="return from the next close to the one after", steps=2)
def execution_return(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the second close over the first, minus 1: Qlib's label; NaN where a first close is <= 0."""
    return inputs.signal("execution_return", holding=1)


@factor("execution_return_5", unit="return from the next close to the fifth after it", steps=6)
def execution_return_5(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the sixth close over the first, minus 1; NaN where a first close is <= 0."""
    return inputs.signal("execution_return", holding=5)


@factor("late_return", unit="return: fraction of the last close", minimum_steps=2)
def late_return(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the last step's close minus the middle step's (step H // 2), over the last close."""
    middle = inputs.close.shape[2] // 2 - 1
    return (inputs.close[:, :, -1] - inputs.close[:, :, middle]).mean(axis=1)


@factor("overnight_return", unit=RETURN, steps=1)
def overnight_return(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the first open over the last close, minus 1."""
    return inputs.open[:, :, 0].mean(axis=1)


@factor("intraday_return", unit="fraction of the last close", steps=1)
def intraday_return(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the first close minus the first open, over the last close."""
    return (inputs.close[:, :, 0] - inputs.open[:, :, 0]).mean(axis=1)


@factor("z_unit", unit="z units of the window: ranks by volatility")
def z_unit(inputs: FactorInputs) -> FloatArray:
    """Mean of the forecast closes' z minus the last bar's clipped z (the original's Qlib score)."""
    return inputs.signal("z_unit")


@factor("probability_up_1", unit=SHARE, steps=1)
def probability_up_1(inputs: FactorInputs) -> FloatArray:
    """Share of paths whose first close is above the last close."""
    return inputs.signal("probability_up", horizon=1)


@factor("probability_up_5", unit=SHARE, steps=5)
def probability_up_5(inputs: FactorInputs) -> FloatArray:
    """Share of paths whose fifth close is above the last close."""
    return inputs.signal("probability_up", horizon=5)


@factor("probability_up", unit=SHARE)
def probability_up(inputs: FactorInputs) -> FloatArray:
    """Share of paths whose last step's close is above the last close."""
    return inputs.signal("probability_up")


@factor("probability_limit_up", unit=SHARE, needs_limit=True)
def probability_limit_up(inputs: FactorInputs) -> FloatArray:
    """Share of paths on which some close rises to the daily limit (less .005) over the one before; NaN: no limit."""
    limit = inputs.limit()
    return _share(inputs.step_returns >= limit - LIMIT_SLACK, limit)


@factor("probability_limit_down", unit=SHARE, needs_limit=True)
def probability_limit_down(inputs: FactorInputs) -> FloatArray:
    """Share of paths on which some close falls to the daily limit (less .005) under the one before; NaN: no limit."""
    limit = inputs.limit()
    return _share(inputs.step_returns <= LIMIT_SLACK - limit, limit)


@factor("probability_touch_limit_up_1", unit=SHARE, steps=1, needs_limit=True)
def probability_touch_limit_up_1(inputs: FactorInputs) -> FloatArray:
    """Share of paths whose first high reaches the daily limit (less .005) over the last close; NaN: no limit."""
    limit = inputs.limit()
    return _share(inputs.high[:, :, :1] >= limit - LIMIT_SLACK, limit)


def _share(reached: NDArray[np.bool_], limit: FloatArray) -> FloatArray:
    """Share of paths on which it happened at some step (W,), NaN where there is no limit."""
    share = reached.any(axis=2).mean(axis=1)
    return np.where(np.isnan(limit[:, 0, 0]), np.nan, share)
