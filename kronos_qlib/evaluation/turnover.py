"""How much a signal makes one trade: rank autocorrelation, and the turnover of a top-k portfolio."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kronos_qlib.evaluation.decay import lag_score
from kronos_qlib.evaluation.ic import MIN_NAMES, daily_rank_ic
from kronos_qlib.evaluation.series import to_wide


def rank_autocorrelation(score: pd.Series, lag: int = 1, *, min_names: int = MIN_NAMES) -> pd.Series:
    """Spearman correlation of each day's scores with those ``lag`` score dates earlier, over the names that have both.

    Parameters
    ----------
    score : float Series with a unique index of the levels ``datetime`` and ``instrument``; values that are not finite
        are left out.
    lag : score dates, at least 1.
    min_names : a day with fewer names in common is left out.

    Returns
    -------
    float64 Series ``rank_autocorrelation`` indexed by ``datetime``; NaN on a day when either side is constant.

    Raises
    ------
    ValueError : ``lag`` below 1, and as :func:`kronos_qlib.evaluation.ic.daily_ic`.
    """
    if lag < 1:
        raise ValueError(f"found lag={lag}; expected score dates, at least 1")
    return daily_rank_ic(score, lag_score(score, lag), min_names=min_names).rename("rank_autocorrelation")


def top_k_turnover(score: pd.Series, top_k: int) -> pd.Series:
    """Share of the ``top_k`` best names that were not among them on the score date before.

    Parameters
    ----------
    score : float Series with a unique index of the levels ``datetime`` and ``instrument``; values that are not finite
        are left out. Ties go to the instrument that sorts first.
    top_k : names held, at least 1; on a day with fewer names, all of them.

    Returns
    -------
    float64 Series ``turnover`` indexed by ``datetime``, from 0 to 1: names bought / ``top_k``, one way. The first date,
        on which everything is bought, is left out.

    Raises
    ------
    ValueError : ``top_k`` below 1, or a bad index.
    """
    if top_k < 1:
        raise ValueError(f"found top_k={top_k}; expected at least 1")
    wide = to_wide("score", score)
    held = np.zeros(wide.shape, dtype=bool)
    for day, values in enumerate(wide.to_numpy()):
        held[day, _best(values, np.isfinite(values), top_k)] = True
    bought = (held[1:] & ~held[:-1]).sum(axis=1)
    return pd.Series(bought / top_k, index=wide.index[1:].rename("datetime"), name="turnover")


def dropout_turnover(score: pd.Series, top_k: int = 50, n_drop: int = 5) -> pd.DataFrame:
    """Follow the names that Qlib's ``TopkDropoutStrategy`` would hold if every order were filled.

    Each date it looks at the ``n_drop`` best names not held (more while the portfolio is not full) together with those
    held, sells what is held among the ``n_drop`` worst of them all, and buys the best ones not held in their place.

    Parameters
    ----------
    score : float Series with a unique index of the levels ``datetime`` and ``instrument``; values that are not finite
        are no scores. Ties go to the instrument that sorts first (Qlib leaves their order open).
    top_k : names held. n_drop : names exchanged a date at most; 1 to ``top_k``.

    Returns
    -------
    DataFrame indexed by ``datetime``: ``held`` (int64, names after that date), ``bought``, ``sold`` (int64, names on
        that date), ``turnover`` (float64, names bought / ``top_k``, one way). The first date buys everything. A held
        name without a score that date ranks last and so is sold first, as in Qlib: carry scores over suspensions
        before calling. With fewer than ``top_k + n_drop`` names it may sell without buying, as Qlib does.

    Raises
    ------
    ValueError : ``top_k`` below 1, ``n_drop`` outside 1 to ``top_k``, or a bad index.

    Notes
    -----
    The rule of ``qlib.contrib.strategy.TopkDropoutStrategy`` with ``method_buy="top"``, ``method_sell="bottom"`` and
    ``only_tradable=False``, without limits, suspensions, cash or holding thresholds. A date of this table is the
    score's; the trade comes after it.
    """
    if top_k < 1 or not 1 <= n_drop <= top_k:
        raise ValueError(f"found top_k={top_k}, n_drop={n_drop}; expected 1 <= n_drop <= top_k")
    wide = to_wide("score", score)
    held = np.zeros(wide.shape[1], dtype=bool)
    rows = []
    for values in wide.to_numpy():
        bought, sold = _exchange(values, held, top_k, n_drop)
        held[sold], held[bought] = False, True
        rows.append((int(held.sum()), len(bought), len(sold)))
    table = pd.DataFrame(rows, columns=["held", "bought", "sold"], index=wide.index.rename("datetime"))
    return table.assign(turnover=table["bought"] / top_k)


def _exchange(
    values: NDArray[np.float64], held: NDArray[np.bool_], top_k: int, n_drop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions bought and sold on one date."""
    free = top_k - int(held.sum())
    candidates = _best(values, np.isfinite(values) & ~held, n_drop + free)
    pool = np.sort(np.concatenate([np.flatnonzero(held), candidates]))
    ordered = pool[np.argsort(-np.nan_to_num(values[pool], nan=-np.inf), kind="stable")]
    worst = ordered[-n_drop:]
    sold = worst[held[worst]]
    return candidates[: len(sold) + free], sold


def _best(values: NDArray[np.float64], allowed: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Return the positions of the ``count`` highest allowed values, best first."""
    positions = np.flatnonzero(allowed)
    return positions[np.argsort(-values[positions], kind="stable")[:count]]
