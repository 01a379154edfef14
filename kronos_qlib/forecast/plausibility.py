"""Bars that no market can print: how many a forecast holds, and a repair that counts what it changes.

A sampled path is decoded number by number, so nothing stops it from a high below its low (trap 15).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.market.fields import BAR_FIELDS

OPEN, HIGH, LOW, CLOSE, VOLUME, AMOUNT = range(len(BAR_FIELDS))
# A limit is compared with this relative slack: float32 rounding must not count as a move beyond it.
LIMIT_SLACK = 1e-6


@dataclass(frozen=True)
class ImpossibleBars:
    """Counts of impossible bars among all paths and steps of a forecast; a bar may count under several names.

    Attributes
    ----------
    n_bars : bars looked at.
    impossible : bars with at least one fault below.
    high_below_body : high < max(open, close).
    low_above_body : low > min(open, close).
    non_positive_price : a price <= 0.
    negative_volume, negative_amount : below zero.
    beyond_limit : a price outside previous close × (1 ± limit); 0 when no limit was given.
    not_finite : NaN or infinity in any field; no repair changes these.
    """

    n_bars: int
    impossible: int
    high_below_body: int
    low_above_body: int
    non_positive_price: int
    negative_volume: int
    negative_amount: int
    beyond_limit: int
    not_finite: int

    def to_dict(self) -> dict[str, int]:
        """Return the counts, for JSON or a recorder."""
        return asdict(self)


def count_impossible(
    values: NDArray[np.floating],
    last_close: NDArray[np.floating],
    limit: float | NDArray[np.floating] | None = None,
) -> ImpossibleBars:
    """Count impossible bars.

    Parameters
    ----------
    values : (window, path, step, 6), columns ``BAR_FIELDS``.
    last_close : (window,), same units; the reference of the first step.
    limit : largest move as a fraction of the previous close (.1 for 10 %), one for all or (window,).
        The exchange's rounding to its tick is not applied, since adjusted prices hide it.

    Raises
    ------
    ValueError : a limit that is not positive, or of another shape.
    """
    bars = values.astype(np.float64)
    body_top = np.maximum(bars[..., OPEN], bars[..., CLOSE])
    body_bottom = np.minimum(bars[..., OPEN], bars[..., CLOSE])
    with np.errstate(invalid="ignore"):
        faults = {
            "high_below_body": bars[..., HIGH] < body_top,
            "low_above_body": bars[..., LOW] > body_bottom,
            "non_positive_price": (bars[..., :VOLUME] <= 0).any(axis=-1),
            "negative_volume": bars[..., VOLUME] < 0,
            "negative_amount": bars[..., AMOUNT] < 0,
            "beyond_limit": _beyond_limit(bars, last_close, limit),
            "not_finite": ~np.isfinite(bars).all(axis=-1),
        }
    counts = {name: int(fault.sum()) for name, fault in faults.items()}
    any_fault = np.logical_or.reduce(list(faults.values()))
    return ImpossibleBars(n_bars=int(any_fault.size), impossible=int(any_fault.sum()), **counts)


def repair_paths(
    values: NDArray[np.floating],
    last_close: NDArray[np.floating],
    limit: float | NDArray[np.floating] | None = None,
) -> NDArray[np.floating]:
    """Return a copy in which every finite bar is possible.

    Step by step along each path, each against the *repaired* close before it: an open or close <= 0 becomes
    that close; with a limit, prices are clipped into previous close × (1 ± limit); then the high is raised
    and the low lowered to hold open and close, a high or low <= 0 becoming the body's edge. Negative volume
    and amount become 0. Possible bars stay as they are, unless a limit moved the close before them.

    Parameters and errors as :func:`count_impossible`; also ``ValueError`` where a last close is no price.
    """
    last = np.asarray(last_close, dtype=np.float64)
    if not (np.isfinite(last) & (last > 0)).all():
        where = int(np.flatnonzero(~(np.isfinite(last) & (last > 0)))[0])
        raise ValueError(
            f"window {where} has the last close {last[where]}; a repair needs a positive one: leave it out"
        )
    band = _limits(limit, len(last))
    repaired = values.copy()
    previous = np.broadcast_to(last[:, None], values.shape[:2])
    for step in range(values.shape[2]):
        _repair_step(repaired[:, :, step], previous, band)
        close = repaired[:, :, step, CLOSE].astype(np.float64)
        previous = np.where(np.isfinite(close), close, previous)
    return repaired


def _repair_step(bars: NDArray[np.floating], previous: NDArray[np.float64], band: NDArray[np.float64] | None) -> None:
    """Repair the bars (window, path, 6) of one step in place; a bar that is not finite stays as it is."""
    given, finite = bars.copy(), np.isfinite(bars).all(axis=-1, keepdims=True)
    for column in (OPEN, CLOSE):
        bars[..., column] = np.where(bars[..., column] <= 0, previous, bars[..., column])
    body = bars[..., [OPEN, CLOSE]]
    for column, edge in ((HIGH, body.max(axis=-1)), (LOW, body.min(axis=-1))):
        bars[..., column] = np.where(bars[..., column] <= 0, edge, bars[..., column])
    if band is not None:
        floor = (previous * (1 - band))[..., None].astype(bars.dtype)
        ceiling = (previous * (1 + band))[..., None].astype(bars.dtype)
        bars[..., :VOLUME] = np.clip(bars[..., :VOLUME], floor, ceiling)
    body = bars[..., [OPEN, CLOSE]]
    bars[..., HIGH] = np.maximum(bars[..., HIGH], body.max(axis=-1))
    bars[..., LOW] = np.minimum(bars[..., LOW], body.min(axis=-1))
    for column in (VOLUME, AMOUNT):
        bars[..., column] = np.where(bars[..., column] < 0, 0, bars[..., column])
    bars[...] = np.where(finite, bars, given)


def _beyond_limit(
    bars: NDArray[np.float64], last_close: NDArray[np.floating], limit: float | NDArray[np.floating] | None
) -> NDArray[np.bool_]:
    band = _limits(limit, len(bars))
    if band is None:
        return np.zeros(bars.shape[:-1], dtype=bool)
    reference = np.empty(bars.shape[:-1])
    reference[..., 0] = np.asarray(last_close, dtype=np.float64)[:, None]
    reference[..., 1:] = bars[..., :-1, CLOSE]
    slack = LIMIT_SLACK * np.abs(reference)
    above = bars[..., :VOLUME].max(axis=-1) > reference * (1 + band[..., None]) + slack
    below = bars[..., :VOLUME].min(axis=-1) < reference * (1 - band[..., None]) - slack
    return above | below


def _limits(limit: float | NDArray[np.floating] | None, n_windows: int) -> NDArray[np.float64] | None:
    """The limit as (window, 1), or None."""
    if limit is None:
        return None
    band = np.asarray(limit, dtype=np.float64)
    if band.shape not in ((), (n_windows,)):
        raise ValueError(
            f"found a limit of shape {band.shape}; expected one number, or one for each of {n_windows} windows"
        )
    if not ((band > 0) & (band < 1)).all():
        raise ValueError(f"found the limit {limit!r}; expected fractions between 0 and 1 (.1 for 10 %)")
    return np.broadcast_to(band, (n_windows,))[:, None]
