"""What a synthetic market is made of: one frozen record of settings, checked when constructed."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings of a synthetic A-share-like market. The defaults are the quickstart's market.

    Parameters
    ----------
    seed : int
        Everything random follows from it. Two markets that differ only in ``end`` agree on every common bar.
    n_instruments, n_members, n_sectors : int
        Stocks in all, stocks in the index, sectors.
    start, end : str
        First and last day (ISO dates); sessions are those of the Shanghai exchange, XSHG.
    strength : float
        Planted drift of a day, in units of the stock's own idiosyncratic daily volatility, per standard
        deviation of the abnormal volume. It is nearly the attainable IC. Life is far weaker. 0 plants
        nothing.
    decay : float
        Weight of a new bar in the exponential average of log volume, in (0, 1].
    persistence : float
        AR(1) coefficient per bar of that average around the stock's base volume, in (1 - decay, 1).
    reference_bars : int
        Number of latest bars whose mean log volume counts as normal.
    volume_volatility : float
        Standard deviation of a bar's surprise in log volume.
    volume_move_correlation : float
        Correlation of that surprise with the size of the stock's own move on the same day, in [0, 1).
    idiosyncratic_volatility, sector_volatility, market_volatility : float
        Typical daily standard deviations of the three parts of a return.
    market_drift : float
        Expected daily market return.
    tail : float
        Degrees of freedom of the Student-t shocks, above 2.
    volatility_persistence, volatility_dispersion : float
        AR(1) coefficient per session of log volatility, and its stationary standard deviation.
    listed_at_start : float
        Share of the stocks that trade on the first day; the rest list later.
    listing_wait, listing_life : float
        Mean sessions until a late listing, and mean sessions from listing to delisting.
    suspension_rate, suspension_length, long_suspension_share : float
        Chance per session that a suspension starts, its mean length in sessions, and the share of suspensions
        that last ten times longer.
    dividend_rate, split_rate : float
        Chance per session of a cash dividend and of a share split (ten shares become fifteen or twenty).
    """

    seed: int = 7
    n_instruments: int = 100
    n_members: int = 70
    n_sectors: int = 8
    start: str = "2012-01-01"
    end: str = "2020-12-31"
    strength: float = 0.15
    decay: float = 0.2
    persistence: float = 0.97
    reference_bars: int = 60
    volume_volatility: float = 0.35
    volume_move_correlation: float = 0.3
    idiosyncratic_volatility: float = 0.018
    sector_volatility: float = 0.006
    market_volatility: float = 0.010
    market_drift: float = 0.0005
    tail: float = 6.0
    volatility_persistence: float = 0.97
    volatility_dispersion: float = 0.3
    listed_at_start: float = 0.85
    listing_wait: float = 600.0
    listing_life: float = 12_000.0
    suspension_rate: float = 0.001
    suspension_length: float = 6.0
    long_suspension_share: float = 0.1
    dividend_rate: float = 1 / 260
    split_rate: float = 1 / 1_200

    def __post_init__(self) -> None:
        checks = {
            "n_instruments": 2 <= self.n_instruments <= 999,
            "n_members": 1 <= self.n_members <= self.n_instruments,
            "n_sectors": self.n_sectors >= 1,
            "end": pd.Timestamp(self.start) < pd.Timestamp(self.end),
            "strength": 0 <= self.strength < 1,
            "decay": 0 < self.decay <= 1,
            "persistence": 1 - self.decay < self.persistence < 1,
            "reference_bars": self.reference_bars >= 2,
            "volume_volatility": self.volume_volatility > 0,
            "volume_move_correlation": 0 <= self.volume_move_correlation < 1,
            "tail": self.tail > 2,
            "volatility_persistence": 0 <= self.volatility_persistence < 1,
            "listed_at_start": 0 < self.listed_at_start <= 1,
        }
        wrong = [name for name, holds in checks.items() if not holds]
        if wrong:
            found = ", ".join(f"{name}={getattr(self, name)!r}" for name in wrong)
            raise ValueError(f"SyntheticConfig: out of range: {found}; see the class's docstring for the ranges")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> SyntheticConfig:
        """Build from a mapping; an unknown key is a ValueError that names the nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
                raise ValueError(f"SyntheticConfig: unknown key {key!r}{hint}")
        return cls(**given)

    @property
    def pull(self) -> float:
        """Share of the average's distance from base that the next bar's expected log volume keeps."""
        return 1 - (1 - self.persistence) / self.decay

    @property
    def state_scale(self) -> float:
        """Stationary standard deviation of the abnormal volume, in closed form from its impulse response.

        One surprise of size 1 moves the next bars' log volume by ``decay × pull × persistence**(k-1)`` and
        the average by ``decay × persistence**k``; abnormal volume is the average less the mean of the last
        ``reference_bars`` bars.
        """
        steps = np.arange(20 * self.reference_bars + 2_000)
        average = self.decay * self.persistence**steps
        bar = np.concatenate([[1.0], self.pull * average[:-1]])
        window = np.convolve(bar, np.full(self.reference_bars, 1 / self.reference_bars))[: len(steps)]
        return self.volume_volatility * math.sqrt(float(((average - window) ** 2).sum()))
