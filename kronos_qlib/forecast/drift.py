"""Has the market moved away from what a checkpoint's weights know? Its tokens against those of the card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kronos_qlib.evaluation.drift import DriftResult, population_stability
from kronos_qlib.kronos import KronosTokenizer, normalise
from kronos_qlib.kronos.token_statistics import COLUMNS, TokenCounter, TokenStatistics
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, iter_windows, window_lengths

SAMPLE = 2_000
# weight of the card's clip share, in windows: one clipped window among five is no drift
PRIOR = 50
_BATCH = 256
_LEVELS = ("none", "moderate", "large")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenDrift:
    """How far the tokens of some windows lie from those of the card.

    Attributes
    ----------
    s1, s2 : DriftResult
        Of the histograms of ids.
    clipped : dict of DriftResult
        By column: windows with a clipped value against windows without. Shares of values would not do: at most 1 in 25
        can be clipped in a window scaled by itself, which no threshold would notice.
    now, card : TokenStatistics
        What was counted, and what the card holds.
    """

    s1: DriftResult
    s2: DriftResult
    clipped: dict[str, DriftResult]
    now: TokenStatistics
    card: TokenStatistics

    @property
    def level(self) -> str:
        """The worst of all parts: ``none``, ``moderate`` (0.10) or ``large`` (0.25)."""
        return max((part.level for part in self._parts().values()), key=_LEVELS.index)

    def _parts(self) -> dict[str, DriftResult]:
        return {"s1": self.s1, "s2": self.s2, **{f"clipped {name}": part for name, part in self.clipped.items()}}

    def message(self) -> str:
        """All figures in a sentence or two."""
        codes = ", ".join(f"{name} {part.psi - part.noise:.3f}" for name, part in (("s1", self.s1), ("s2", self.s2)))
        shares = ", ".join(
            f"{name} {self.now.clipped_windows[name]:.1%} (card {self.card.clipped_windows[name]:.1%}, index "
            f"{self.clipped[name].psi - self.clipped[name].noise:.3f})"
            for name in COLUMNS
        )
        return f"stability index over its noise: {codes}; windows with a clipped value: {shares}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the counts of both sides included."""
        return {
            "level": self.level,
            "s1": self.s1.to_dict(),
            "s2": self.s2.to_dict(),
            "clipped": {name: part.to_dict() for name, part in self.clipped.items()},
            "now": self.now.to_dict(),
            "card": self.card.to_dict(),
        }


def card_statistics(card: Mapping[str, Any]) -> TokenStatistics | None:
    """Return the token statistics of a card, None where it has none; ValueError when they are broken."""
    found = card.get("tokens")
    return None if found is None else TokenStatistics(**found)


def compare_tokens(card: TokenStatistics, now: TokenStatistics) -> TokenDrift:
    """Compare what was counted now with what the card holds."""
    s1, s2 = population_stability(card.s1, now.s1), population_stability(card.s2, now.s2)
    return TokenDrift(s1, s2, {name: _compare_clipped(card, now, name) for name in COLUMNS}, now, card)


def _compare_clipped(card: TokenStatistics, now: TokenStatistics, column: str) -> DriftResult:
    """Windows with and without a clipped value; as if PRIOR windows of the card's share had been seen now as well."""
    before, after = card.clipped_windows[column], now.clipped_windows[column]
    clipped, seen = after * now.windows + before * PRIOR, now.windows + PRIOR
    return population_stability(
        (before * card.windows, (1 - before) * card.windows), (clipped, max(0.0, seen - clipped))
    )


@torch.inference_mode()
def count_tokens(
    tokenizer: KronosTokenizer,
    panel: BarPanel,
    rows: NDArray[np.int64],
    policy: WindowPolicy,
    *,
    sample: int = SAMPLE,
) -> TokenStatistics | None:
    """Count the tokens of at most ``sample`` windows, spread evenly over the given rows.

    Nothing random is drawn and nothing of a forecast changes.

    Returns
    -------
    TokenStatistics, None where no row has a window.
    """
    chosen = rows[window_lengths(panel, rows, policy) > 0]
    if len(chosen) == 0:
        return None
    if len(chosen) > sample:
        chosen = chosen[np.linspace(0, len(chosen) - 1, sample).round().astype(np.int64)]
    device = next(tokenizer.parameters()).device
    counter = TokenCounter(tokenizer.config.s1_bits, tokenizer.config.s2_bits)
    for batch in iter_windows(panel, chosen, policy, _BATCH):
        x = torch.from_numpy(normalise(batch.values)[0])
        counter.add(x, *tokenizer.encode(x.to(device)))
    return counter.result()


def measure_drift(
    card: Mapping[str, Any],
    tokenizer: KronosTokenizer,
    panel: BarPanel,
    rows: NDArray[np.int64],
    policy: WindowPolicy,
    *,
    sample: int = SAMPLE,
    logger: logging.Logger = _logger,
) -> TokenDrift | None:
    """Compare windows with the card and say so in one line: a warning from 0.25 on, else for information.

    Returns
    -------
    TokenDrift, None where the card has no token statistics (which is said as well) or no row has a window.
    """
    known = card_statistics(card)
    if known is None:
        logger.info("the checkpoint's card has no token histograms: whether the market has drifted is not known")
        return None
    now = count_tokens(tokenizer, panel, rows, policy, sample=sample)
    if now is None:
        return None
    drift = compare_tokens(known, now)
    if drift.level == "large":
        logger.warning("the market has drifted away from what the weights know: %s", drift.message())
    elif drift.level == "moderate":
        logger.info("the market has moved from what the weights know: %s", drift.message())
    else:
        logger.info("the market is what the weights know: %s", drift.message())
    return drift
