"""Signals: one number per window, computed from its forecast paths, registered by name.

Every signal is a pure function of the forecast and of the window's last bar, so a score dated t uses bars up
to and including t and nothing later. Scores are float64, higher means a higher expected return.

NaN policy, the same for all: a window whose last close is not finite and positive, or with a non-finite
forecast close inside the horizon on any path, scores NaN. Nothing is filled, and no path is left out in
silence.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.market.fields import BAR_FIELDS

CLOSE = BAR_FIELDS.index("close")
Z_CLIP = 5.0  # the original clips the context's z-scores here, so the last bar's z is compared clipped


class ForecastPaths(Protocol):
    """What a signal needs to know of a forecast; :class:`kronos_qlib.forecast.paths.KlinePaths` has it.

    Attributes
    ----------
    values : (window, path, step, 6), in the units of the bars that came in, columns ``BAR_FIELDS``.
    last_close : (window,), close of each window's last bar, same units.
    center, scale : (window, 6), the window's mean, and the worth of one z unit (population std + 1e-5).
    """

    @property
    def values(self) -> NDArray[Any]: ...
    @property
    def last_close(self) -> NDArray[Any]: ...
    @property
    def center(self) -> NDArray[Any]: ...
    @property
    def scale(self) -> NDArray[Any]: ...


SignalFunction = Callable[..., NDArray[np.float64]]


@dataclass(frozen=True)
class Signal:
    """A registered signal: its function, its unit, and the least it needs to be defined."""

    name: str
    function: SignalFunction
    unit: str
    minimum_steps: int
    minimum_paths: int

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the keyword arguments that the signal takes."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


SIGNALS: dict[str, Signal] = {}


def signal(
    name: str, *, unit: str, minimum_steps: int = 1, minimum_paths: int = 1
) -> Callable[[SignalFunction], SignalFunction]:
    """Register ``function(paths, close, **options)`` as a signal.

    Parameters
    ----------
    name : the name in YAML and in :func:`compute_signal`; taken names are refused.
    unit : of the score, for humans.
    minimum_steps, minimum_paths : below these :func:`compute_signal` raises before calling the function.

    The function gets ``paths`` (:class:`ForecastPaths`) and ``close``, float64 (window, path, horizon), the
    forecast closes already cut to the horizon; options are keyword-only with defaults. It returns float64
    (window,).
    """

    def register(function: SignalFunction) -> SignalFunction:
        if name in SIGNALS:
            raise ValueError(f"A signal named {name!r} exists already; choose another name.")
        SIGNALS[name] = Signal(name, function, unit, minimum_steps, minimum_paths)
        return function

    return register


def find_signal(name: str) -> Signal:
    """Return the registered signal, or raise a ``ValueError`` that names the nearest one."""
    if name in SIGNALS:
        return SIGNALS[name]
    raise ValueError(
        f"Unknown signal {name!r}.{_nearest(str(name), SIGNALS)} Known signals: {', '.join(sorted(SIGNALS))}."
    )


def check_signal(name: str, *, horizon: int, n_paths: int, options: dict[str, Any] | None = None) -> Signal:
    """Return the signal if ``n_paths`` paths of ``horizon`` steps are enough for it, before any is sampled.

    Raises
    ------
    ValueError : unknown signal or option, too few steps, too few paths.
    """
    found = find_signal(name)
    known = found.options
    for key in options or {}:
        if key not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ValueError(f"Signal {name!r} has no option {key!r}.{_nearest(key, known)} Its options: {listed}.")
    if horizon < found.minimum_steps:
        raise ValueError(
            f"Signal {name!r} needs at least {found.minimum_steps} forecast steps, got horizon {horizon}; "
            "forecast further or choose another signal."
        )
    if n_paths < found.minimum_paths:
        raise ValueError(
            f"Signal {name!r} needs at least {found.minimum_paths} paths, got {n_paths}; "
            "raise n_paths of the sampling or choose another signal."
        )
    return found


def compute_signal(
    name: str, paths: ForecastPaths, *, horizon: int | None = None, **options: Any
) -> NDArray[np.float64]:
    """Score every window.

    Parameters
    ----------
    name : a key of ``SIGNALS``.
    paths : a forecast of S steps.
    horizon : use the first ``horizon`` steps, 1 to S; None uses all S.
    options : the signal's own (``q`` of ``quantile_return``, ``holding`` of ``execution_return``).

    Returns
    -------
    float64 (window,), NaN by the module's policy.

    Raises
    ------
    ValueError : unknown signal or option, horizon out of range, too few steps or paths, option out of range.
    """
    n_paths, n_steps = paths.values.shape[1:3]
    steps = n_steps if horizon is None else horizon
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= n_steps:
        raise ValueError(
            f"The horizon must be a whole number from 1 to {n_steps} (the forecast's steps), got {horizon!r}."
        )
    found = check_signal(name, horizon=int(steps), n_paths=n_paths, options=options)
    close = paths.values[:, :, :steps, CLOSE].astype(np.float64)
    last = np.asarray(paths.last_close, dtype=np.float64)
    usable = np.isfinite(close).all(axis=(1, 2)) & np.isfinite(last) & (last > 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        score = found.function(paths, close, **options)
    return np.where(usable, score, np.nan)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _last_close(paths: ForecastPaths) -> NDArray[np.float64]:
    return np.asarray(paths.last_close, dtype=np.float64)


def _require_whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}.")
    return int(value)


@signal("expected_return", unit="return: fraction of the last close, average over the horizon")
def expected_return(paths: ForecastPaths, close: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over paths and steps of the forecast close over the last close, minus 1 (paper, Eq. 13)."""
    return close.mean(axis=(1, 2)) / _last_close(paths) - 1.0


@signal("terminal_return", unit="return over the horizon: fraction of the last close")
def terminal_return(paths: ForecastPaths, close: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over paths of the close at the horizon's last step over the last close, minus 1."""
    return close[:, :, -1].mean(axis=1) / _last_close(paths) - 1.0


@signal("execution_return", unit="return from the close one can buy at to the close one sells at", minimum_steps=2)
def execution_return(paths: ForecastPaths, close: NDArray[np.float64], *, holding: int = 1) -> NDArray[np.float64]:
    """Mean over paths of ``c[1 + holding] / c[1] - 1``, with c1 the first forecast close.

    With ``holding=1`` it is the forecast of Qlib's label ``Ref($close, -2) / Ref($close, -1) - 1``: a score
    dated t is traded at t+1. The horizon only limits ``holding``. A window with a forecast c1 <= 0 on any
    path scores NaN.
    """
    sell = _require_whole(holding, "holding", 1, close.shape[2] - 1)
    buy_at = close[:, :, 0]
    score: NDArray[np.float64] = (close[:, :, sell] / buy_at - 1.0).mean(axis=1)
    return np.where((buy_at > 0).all(axis=1), score, np.nan)


@signal("probability_up", unit="share of paths, 0 to 1: a raw frequency, not a calibrated probability")
def probability_up(paths: ForecastPaths, close: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of paths whose close at the last step is above the last close; an equal close is not a rise.

    This is the raw frequency among sampled paths. Zero-shot cones are known to be too narrow, so it is good
    for ranking but is no probability until a calibration has been measured on held-out data.
    """
    up: NDArray[np.float64] = (close[:, :, -1] > _last_close(paths)[:, None]).mean(axis=1)
    return up


@signal("return_over_dispersion", unit="expected return in standard deviations of the paths", minimum_paths=2)
def return_over_dispersion(paths: ForecastPaths, close: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected return over the sample standard deviation (n - 1) across paths of their expected returns.

    A path's expected return is the mean of its closes over the last close, minus 1. NaN where all paths
    agree.
    """
    of_path = close.mean(axis=2) / _last_close(paths)[:, None] - 1.0
    spread = of_path.std(axis=1, ddof=1)
    identical = (of_path == of_path[:, :1]).all(axis=1)
    return np.where(identical, np.nan, of_path.mean(axis=1) / spread)


@signal("quantile_return", unit="return over the horizon: fraction of the last close")
def quantile_return(paths: ForecastPaths, close: NDArray[np.float64], *, q: float = 0.5) -> NDArray[np.float64]:
    """``q``-quantile across paths (interpolated) of the last step's close over the last close, minus 1."""
    if not isinstance(q, int | float | np.floating) or isinstance(q, bool) or not 0.0 <= q <= 1.0:
        raise ValueError(f"q must be a number from 0 to 1, got {q!r}.")
    return np.asarray(np.quantile(close[:, :, -1], q, axis=1) / _last_close(paths) - 1.0, dtype=np.float64)


@signal("z_unit", unit="z units of the window: not comparable across windows of different volatility")
def z_unit(paths: ForecastPaths, close: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the forecast closes' z minus the last bar's clipped z.

    The 'mean' score of the original's Qlib example, for comparison only: it divides by each window's own
    scale and so ranks by volatility.
    """
    center = np.asarray(paths.center, dtype=np.float64)[:, CLOSE]
    scale = np.asarray(paths.scale, dtype=np.float64)[:, CLOSE]
    last_z = np.clip((_last_close(paths) - center) / scale, -Z_CLIP, Z_CLIP)
    return (close.mean(axis=(1, 2)) - center) / scale - last_z
