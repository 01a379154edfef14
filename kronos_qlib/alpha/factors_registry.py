"""What a path factor is: a small function of one forecast, registered by name with its definition, unit and version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.alpha.signals import ForecastPaths, compute_signal
from kronos_qlib.market.fields import BAR_FIELDS

FloatArray = NDArray[np.float64]
OPEN, HIGH, LOW, CLOSE, VOLUME, AMOUNT = range(len(BAR_FIELDS))


@dataclass(frozen=True, eq=False)
class FactorInputs:
    """One forecast in the units that factors speak: returns on the last close, volumes over the window's mean.

    Attributes
    ----------
    paths : W windows, P paths of S steps.
    limit_fraction : float (W,), daily price limit as a fraction (.1 for 10 %), NaN where there is none; None where
        nobody said.
    """

    paths: ForecastPaths
    limit_fraction: FloatArray | None = None

    @cached_property
    def last_close(self) -> FloatArray:
        """Close of each window's last bar (W, 1, 1), NaN where it is no price."""
        last = np.asarray(self.paths.last_close, dtype=np.float64)[:, None, None]
        return np.where(np.isfinite(last) & (last > 0), last, np.nan)

    @cached_property
    def open(self) -> FloatArray:
        """Forecast opens over the last close, minus 1: (W, P, S)."""
        return self._price(OPEN)

    @cached_property
    def high(self) -> FloatArray:
        """Forecast highs over the last close, minus 1: (W, P, S)."""
        return self._price(HIGH)

    @cached_property
    def low(self) -> FloatArray:
        """Forecast lows over the last close, minus 1: (W, P, S)."""
        return self._price(LOW)

    @cached_property
    def close(self) -> FloatArray:
        """Forecast closes over the last close, minus 1: (W, P, S)."""
        return self._price(CLOSE)

    @cached_property
    def volume(self) -> FloatArray:
        """Forecast volumes over the window's mean volume: (W, P, S), NaN where that mean is not positive."""
        return self._over_mean(VOLUME)

    @cached_property
    def amount(self) -> FloatArray:
        """Forecast amounts over the window's mean amount: (W, P, S), NaN where that mean is not positive."""
        return self._over_mean(AMOUNT)

    @cached_property
    def step_returns(self) -> FloatArray:
        """Close over the path's close before it, minus 1: (W, P, S); NaN after a close that is no price."""
        level = 1.0 + self.close
        before = np.concatenate([np.ones_like(level[:, :, :1]), level[:, :, :-1]], axis=2)
        return level / np.where(before > 0, before, np.nan) - 1.0

    def signal(self, name: str, **options: Any) -> FloatArray:
        """Return a registered signal of these paths (:func:`kronos_qlib.alpha.signals.compute_signal`)."""
        return compute_signal(name, self.paths, **options)

    def limit(self) -> FloatArray:
        """Return the limit fractions as (W, 1, 1)."""
        if self.limit_fraction is None:
            raise ValueError(
                "found no limit_fraction; a factor about price limits needs one for each window: "
                "kronos_qlib.market.board.limit_fractions(instruments, dates)"
            )
        return np.asarray(self.limit_fraction, dtype=np.float64)[:, None, None]

    def _price(self, field: int) -> FloatArray:
        return self.paths.values[..., field].astype(np.float64) / self.last_close - 1.0

    def _over_mean(self, field: int) -> FloatArray:
        mean = np.asarray(self.paths.center, dtype=np.float64)[:, field, None, None]
        return self.paths.values[..., field].astype(np.float64) / np.where(mean > 0, mean, np.nan)


FactorFunction = Callable[[FactorInputs], FloatArray]


@dataclass(frozen=True)
class Factor:
    """A registered path factor.

    Attributes
    ----------
    name, function : float64 (W,) of :class:`FactorInputs`.
    definition : one line, the first of the function's docstring.
    unit, timing : for humans; every factor dated t uses bars up to t, ``timing`` names the steps it speaks of.
    minimum_steps, minimum_paths : the least forecast that defines it.
    needs_limit : whether it reads ``limit_fraction``.
    version : raised whenever the same forecast would give other values; part of a store's fingerprint.
    """

    name: str
    function: FactorFunction
    definition: str
    unit: str
    timing: str
    minimum_steps: int
    minimum_paths: int
    needs_limit: bool
    version: int


FACTORS: dict[str, Factor] = {}


def factor(
    name: str,
    *,
    unit: str,
    steps: int | None = None,
    minimum_steps: int = 1,
    minimum_paths: int = 1,
    needs_limit: bool = False,
    version: int = 1,
) -> Callable[[FactorFunction], FactorFunction]:
    """Register ``function(inputs)`` as a path factor; its docstring's first line is the definition.

    Parameters
    ----------
    name : the column's name; taken names are refused.
    unit : of the values.
    steps : the factor reads the steps 1 to ``steps``; None: all steps of the forecast.
    minimum_steps, minimum_paths, needs_limit, version : see :class:`Factor`.

    Raises
    ------
    ValueError : a taken name, or a function without a docstring.
    """

    def register(function: FactorFunction) -> FactorFunction:
        if name in FACTORS:
            raise ValueError(f"A factor named {name!r} exists already; choose another name.")
        definition = (function.__doc__ or "").strip().partition("\n")[0]
        if not definition:
            raise ValueError(f"The factor {name!r} has no docstring; its first line is the factor's definition.")
        spoken = "all forecast steps" if steps is None else f"steps 1 to {steps}" if steps > 1 else "step 1"
        timing = f"known at the close of t; of {spoken} after t"
        least = max(minimum_steps, steps or 1)
        FACTORS[name] = Factor(name, function, definition, unit, timing, least, minimum_paths, needs_limit, version)
        return function

    return register
