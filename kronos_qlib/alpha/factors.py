"""Path factors: many numbers per window from its forecast paths, as columns for a learner.

Every factor dated t is a function of the forecast made at the close of t, so it uses bars up to and including t.
To add one, write one function in a ``factors_*`` module, register it with ``@factor``, and test it by hand.

NaN policy, the same for all: a window whose last close is not finite and positive, or with any number of its
forecast not finite, is NaN in every factor; beyond that a factor says when it is undefined. Nothing is filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.alpha import factors_dispersion, factors_range, factors_returns, factors_volume
from kronos_qlib.alpha.factors_registry import FACTORS, Factor, FactorInputs, factor
from kronos_qlib.alpha.signals import ForecastPaths
from kronos_qlib.kronos.config import check_keys

__all__ = ["FACTORS", "Factor", "FactorInputs", "check_factors", "compute_factors", "default_factors", "factor"]
# imported for what they register
DEFINED_IN = (factors_returns, factors_dispersion, factors_range, factors_volume)
# Sums are taken in an order that numpy chooses by shape: with one shape a window's values never depend on its batch.
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class _Chunk:
    values: NDArray[Any]
    last_close: NDArray[Any]
    center: NDArray[Any]
    scale: NDArray[Any]


def default_factors(horizon: int, n_paths: int, *, limits: bool = True) -> tuple[str, ...]:
    """Return the names of all factors that a forecast of these sizes defines, in order of registration."""
    return tuple(
        name
        for name, found in FACTORS.items()
        if horizon >= found.minimum_steps and n_paths >= found.minimum_paths and (limits or not found.needs_limit)
    )


def check_factors(names: Sequence[str], *, horizon: int, n_paths: int) -> list[Factor]:
    """Return the factors if ``n_paths`` paths of ``horizon`` steps are enough for them, before any is sampled.

    Raises
    ------
    ValueError : no name, an unknown one (the nearest is named), one twice, too few steps, too few paths.
    """
    check_keys(names, list(FACTORS), "the path factors")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"found the factors {list(names)}; expected at least one, each once")
    for found in (FACTORS[name] for name in names):
        if horizon < found.minimum_steps:
            raise ValueError(
                f"factor {found.name!r} needs at least {found.minimum_steps} forecast steps, got horizon {horizon}; "
                "forecast further or leave it out"
            )
        if n_paths < found.minimum_paths:
            raise ValueError(
                f"factor {found.name!r} needs at least {found.minimum_paths} paths, got {n_paths}; "
                "raise n_paths of the sampling or leave it out"
            )
    return [FACTORS[name] for name in names]


def compute_factors(
    names: Sequence[str], paths: ForecastPaths, *, limit_fraction: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Compute path factors of every window.

    Parameters
    ----------
    names : keys of ``FACTORS``, the order of the columns.
    paths : a forecast of W windows.
    limit_fraction : float (W,), daily price limit of each window's next session as a fraction, NaN where there is
        none (:func:`kronos_qlib.market.board.limit_fractions`); needed by factors with ``needs_limit`` only.

    Returns
    -------
    float64 (W, len(names)), NaN by the module's policy; a window's values are bit-identical in any batch.

    Raises
    ------
    ValueError : names as in :func:`check_factors`; limits missing or of another shape.
    """
    windows, n_paths, horizon = paths.values.shape[:3]
    chosen = check_factors(names, horizon=horizon, n_paths=n_paths)
    limits = None if limit_fraction is None else np.asarray(limit_fraction, dtype=np.float64)
    if limits is not None and limits.shape != (windows,):
        raise ValueError(f"found limit_fraction of shape {limits.shape}; expected ({windows},), one for each window")
    table = np.empty((windows, len(chosen)))
    for start in range(0, windows, _CHUNK):
        rows = np.minimum(np.arange(start, start + _CHUNK), windows - 1)
        part = _Chunk(
            *(np.asarray(given)[rows] for given in (paths.values, paths.last_close, paths.center, paths.scale))
        )
        inputs = FactorInputs(part, None if limits is None else limits[rows])
        table[start : start + _CHUNK] = _columns(chosen, inputs)[: windows - start]
    return table


def _columns(chosen: list[Factor], inputs: FactorInputs) -> NDArray[np.float64]:
    usable = np.isfinite(inputs.paths.values).all(axis=(1, 2, 3)) & np.isfinite(inputs.last_close[:, 0, 0])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        columns = [found.function(inputs) for found in chosen]
    return np.where(usable[:, None], np.stack(columns, axis=1), np.nan)
