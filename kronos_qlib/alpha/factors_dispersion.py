"""Path factors about uncertainty: how far the paths lie apart, which way their tail points, whether they agree."""

from __future__ import annotations

import numpy as np

from kronos_qlib.alpha.factors_registry import FactorInputs, FloatArray, factor

RETURN = "return: fraction of the last close"


@factor("dispersion_1", unit=RETURN, steps=1, minimum_paths=2)
def dispersion_1(inputs: FactorInputs) -> FloatArray:
    """Standard deviation (n - 1) over paths of the first close's return on the last close."""
    return inputs.close[:, :, 0].std(axis=1, ddof=1)


@factor("dispersion_5", unit=RETURN, steps=5, minimum_paths=2)
def dispersion_5(inputs: FactorInputs) -> FloatArray:
    """Standard deviation (n - 1) over paths of the fifth close's return on the last close."""
    return inputs.close[:, :, 4].std(axis=1, ddof=1)


@factor("dispersion", unit=RETURN, minimum_paths=2)
def dispersion(inputs: FactorInputs) -> FloatArray:
    """Standard deviation (n - 1) over paths of the last step's return on the last close."""
    return inputs.close[:, :, -1].std(axis=1, ddof=1)


@factor("return_over_dispersion", unit="expected return in standard deviations of the paths", minimum_paths=2)
def return_over_dispersion(inputs: FactorInputs) -> FloatArray:
    """Expected return over the standard deviation across paths of their expected returns; NaN where all agree."""
    return inputs.signal("return_over_dispersion")


@factor("skew", unit="third standardised moment, 0 for symmetric", minimum_paths=3)
def skew(inputs: FactorInputs) -> FloatArray:
    """Skewness over paths (population moments) of the last step's return; NaN where all paths agree."""
    ends = inputs.close[:, :, -1]
    centred = ends - ends.mean(axis=1, keepdims=True)
    spread = np.where((ends == ends[:, :1]).all(axis=1), np.nan, (centred**2).mean(axis=1))
    return (centred**3).mean(axis=1) / spread**1.5


@factor("lower_tail_return", unit=RETURN, minimum_paths=2)
def lower_tail_return(inputs: FactorInputs) -> FloatArray:
    """10 % quantile over paths of the last step's return on the last close."""
    return inputs.signal("quantile_return", q=0.1)


@factor("upper_tail_return", unit=RETURN, minimum_paths=2)
def upper_tail_return(inputs: FactorInputs) -> FloatArray:
    """90 % quantile over paths of the last step's return on the last close."""
    return inputs.signal("quantile_return", q=0.9)


@factor("tail_asymmetry", unit="-1 (all spread below the median) to 1 (all above)", minimum_paths=3)
def tail_asymmetry(inputs: FactorInputs) -> FloatArray:
    """(q90 + q10 - 2 q50) / (q90 - q10) of the last step's returns over paths; NaN where q90 = q10."""
    low, middle, high = np.quantile(inputs.close[:, :, -1], [0.1, 0.5, 0.9], axis=1)
    return (high + low - 2 * middle) / np.where(high > low, high - low, np.nan)


@factor("worst_fifth_return", unit=RETURN, minimum_paths=5)
def worst_fifth_return(inputs: FactorInputs) -> FloatArray:
    """Mean of the last step's return over the worst fifth of the paths (at least one): expected shortfall."""
    ends = np.sort(inputs.close[:, :, -1], axis=1)
    return ends[:, : ends.shape[1] // 5].mean(axis=1)


@factor("path_volatility", unit="return per step", minimum_steps=2)
def path_volatility(inputs: FactorInputs) -> FloatArray:
    """Mean over paths of the root mean square of the path's one-step returns; NaN after a close <= 0."""
    return np.sqrt((inputs.step_returns**2).mean(axis=2)).mean(axis=1)


@factor("dispersion_growth", unit="1 for a random walk, below for mean reversion", minimum_steps=2, minimum_paths=2)
def dispersion_growth(inputs: FactorInputs) -> FloatArray:
    """Dispersion of the last step over that of the first and the root of the steps; NaN where the first is 0."""
    first, last = dispersion_1(inputs), dispersion(inputs)
    return last / np.where(first > 0, first, np.nan) / np.sqrt(inputs.close.shape[2])


@factor("direction_disagreement", unit="share of pairs, 0 to n / (2 n - 2)", minimum_paths=2)
def direction_disagreement(inputs: FactorInputs) -> FloatArray:
    """Share of the pairs of paths of which one ends above the last close and the other does not."""
    count = inputs.close.shape[1]
    up = (inputs.close[:, :, -1] > 0).sum(axis=1)
    return 2.0 * up * (count - up) / (count * (count - 1))


@factor("common_share", unit="share of variance, 0 to 1", minimum_steps=2, minimum_paths=2)
def common_share(inputs: FactorInputs) -> FloatArray:
    """Variance over steps of the mean path's one-step returns over that of all paths' and steps'; NaN: all agree."""
    steps = inputs.step_returns
    total = steps.var(axis=(1, 2))
    flat = (steps == steps[:, :1, :1]).all(axis=(1, 2))
    return steps.mean(axis=1).var(axis=1) / np.where(flat, np.nan, total)
