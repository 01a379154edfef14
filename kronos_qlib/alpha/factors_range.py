"""Path factors about the way there: extremes, drawdown and range, from each path's own highs and lows."""

from __future__ import annotations

import numpy as np

from kronos_qlib.alpha.factors_registry import FactorInputs, FloatArray, factor

RETURN = "return: fraction of the last close"
SHARE = "share of paths, 0 to 1: a raw frequency, not a calibrated probability"


@factor("expected_maximum", unit=RETURN)
def expected_maximum(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the highest high over the last close, minus 1."""
    return inputs.high.max(axis=2).mean(axis=1)


@factor("expected_minimum", unit=RETURN)
def expected_minimum(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the lowest low over the last close, minus 1."""
    return inputs.low.min(axis=2).mean(axis=1)


@factor("expected_range", unit=RETURN)
def expected_range(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the highest high minus the lowest low, over the last close."""
    return (inputs.high.max(axis=2) - inputs.low.min(axis=2)).mean(axis=1)


@factor("range_asymmetry", unit="-1 (only room below) to 1 (only room above) where 0 lies inside the range")
def range_asymmetry(inputs: FactorInputs) -> FloatArray:
    """(expected maximum + expected minimum) / (expected maximum - expected minimum); NaN where they are equal."""
    high, low = expected_maximum(inputs), expected_minimum(inputs)
    return (high + low) / np.where(high > low, high - low, np.nan)


@factor("expected_drawdown", unit="loss: fraction of the high before it, 0 and more")
def expected_drawdown(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the largest fall of a low from the highest high of earlier bars (the last close included)."""
    peak = np.maximum.accumulate(_before(1.0 + inputs.high), axis=2)
    return np.maximum(1.0 - (1.0 + inputs.low) / peak, 0.0).max(axis=2).mean(axis=1)


@factor("expected_runup", unit="gain: fraction of the low before it, 0 and more")
def expected_runup(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the largest rise of a high from the lowest low of earlier bars; NaN after a low <= 0."""
    trough = np.minimum.accumulate(_before(1.0 + inputs.low), axis=2)
    rise = (1.0 + inputs.high) / np.where(trough > 0, trough, np.nan) - 1.0
    return np.maximum(rise, 0.0).max(axis=2).mean(axis=1)


@factor("bar_range", unit="fraction of the last close, per bar")
def bar_range(inputs: FactorInputs) -> FloatArray:
    """Mean over paths and steps of the high minus the low, over the last close."""
    return (inputs.high - inputs.low).mean(axis=(1, 2))


@factor("bar_range_1", unit="fraction of the last close", steps=1)
def bar_range_1(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the first bar's high minus its low, over the last close."""
    return (inputs.high[:, :, 0] - inputs.low[:, :, 0]).mean(axis=1)


@factor("time_of_maximum", unit="share of the horizon, above 0 to 1")
def time_of_maximum(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the step with the highest high (the first of equals), over the number of steps."""
    return (inputs.high.argmax(axis=2) + 1.0).mean(axis=1) / inputs.high.shape[2]


@factor("probability_rise_5pct", unit=SHARE)
def probability_rise_5pct(inputs: FactorInputs) -> FloatArray:
    """Share of paths on which some high stands 5 % or more above the last close."""
    return (inputs.high.max(axis=2) >= 0.05).mean(axis=1)


@factor("probability_fall_5pct", unit=SHARE)
def probability_fall_5pct(inputs: FactorInputs) -> FloatArray:
    """Share of paths on which some low stands 5 % or more below the last close."""
    return (inputs.low.min(axis=2) <= -0.05).mean(axis=1)


@factor("impossible_share", unit="share of bars, 0 to 1: how far the model is from the market's rules")
def impossible_share(inputs: FactorInputs) -> FloatArray:
    """Share of forecast bars whose high is below, or whose low is above, their open or close."""
    body_top = np.maximum(inputs.open, inputs.close)
    body_bottom = np.minimum(inputs.open, inputs.close)
    return ((inputs.high < body_top) | (inputs.low > body_bottom)).mean(axis=(1, 2))


def _before(levels: FloatArray) -> FloatArray:
    """Shift by one step; before the first stands the last close, whose level is 1."""
    return np.concatenate([np.ones_like(levels[:, :, :1]), levels[:, :, :-1]], axis=2)
