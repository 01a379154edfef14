"""What the best of several worthless variants looks like."""

from __future__ import annotations

import numpy as np
from scipy import stats

_GRID = np.linspace(-9.0, 9.0, 20_001)


def expected_null_maximum(n_variants: int) -> float:
    """Expected largest t of ``n_variants`` independent variants that are all worth nothing (standard normal t).

    Dependent variants have a smaller one, so this is an upper bound for a sweep whose settings resemble each other.

    Raises
    ------
    ValueError : ``n_variants`` below 1.
    """
    _check(n_variants)
    log_below = (n_variants - 1) * stats.norm.logcdf(_GRID)
    return float(np.trapezoid(_GRID * n_variants * np.exp(log_below + stats.norm.logpdf(_GRID)), _GRID))


def null_maximum_quantile(n_variants: int, level: float = 0.95) -> float:
    """t that the best of ``n_variants`` independent worthless variants stays under with probability ``level``.

    Raises
    ------
    ValueError : ``n_variants`` below 1, ``level`` outside (0, 1).
    """
    _check(n_variants)
    if not 0.0 < level < 1.0:
        raise ValueError(f"found level={level}; expected a probability between 0 and 1")
    return float(stats.norm.ppf(level ** (1.0 / n_variants)))


def _check(n_variants: int) -> None:
    if n_variants < 1:
        raise ValueError(f"found n_variants={n_variants}; expected at least 1")
