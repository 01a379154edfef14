"""Day by day, all stocks at once: the bars of a synthetic market."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kronos_qlib.market.synthetic_config import SyntheticConfig
from kronos_qlib.market.synthetic_truth import VolumeState, drift

LIMIT_FRACTION = 0.1  # every synthetic code is of a main board
STREAMS = (
    "listing",
    "volatility",
    "market",
    "sector",
    "idiosyncratic",
    "volume",
    "overnight",
    "extremes",
    "vwap",
    "suspension",
    "actions",
)


@dataclass(frozen=True)
class Bars:
    """Arrays (T, I), NaN without a trade; ``intended`` is the return before the limit and rounding."""

    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    amount: np.ndarray
    factor: np.ndarray
    intended: np.ndarray


def streams(seed: int) -> dict[str, np.random.Generator]:
    """One generator a purpose, so that a longer market repeats a shorter one bar by bar."""
    children = np.random.SeedSequence(seed).spawn(len(STREAMS))
    return {name: np.random.default_rng(child) for name, child in zip(STREAMS, children, strict=True)}


def make_listings(config: SyntheticConfig, random: np.random.Generator) -> pd.DataFrame:
    """Draw what is fixed about each stock, indexed by instrument (Qlib codes, sorted).

    Columns: ``sector``, ``beta``, ``volatility`` (daily, idiosyncratic), ``base_log_volume`` (adjusted shares
    a day), ``first_price`` (CNY), ``shares``, ``listed`` and ``delisted`` (first session, and first session
    without it, as positions that may lie beyond the market's end).
    """
    n = config.n_instruments
    half = n - n // 2
    codes = [f"SH600{i:03d}" for i in range(1, half + 1)] + [f"SZ000{i:03d}" for i in range(1, n - half + 1)]
    waits = 1 + random.exponential(config.listing_wait, n).astype(np.int64)
    listed = np.where(random.random(n) < config.listed_at_start, 0, waits)
    delisted = listed + 250 + random.exponential(config.listing_life, n).astype(np.int64)
    shares = np.exp(random.normal(np.log(8e8), 0.8, n)).round(-4)
    return pd.DataFrame(
        {
            "sector": random.integers(0, config.n_sectors, n),
            "beta": np.clip(random.normal(1.0, 0.15, n), 0.5, 1.5),
            "volatility": config.idiosyncratic_volatility * np.exp(random.normal(0.0, 0.15, n)),
            "base_log_volume": np.log(shares * 0.01) + random.normal(0.0, 0.3, n),
            "first_price": np.exp(random.uniform(np.log(8), np.log(40), n)).round(2),
            "shares": shares,
            "listed": listed,
            "delisted": delisted,
        },
        index=pd.Index(codes, name="instrument"),
    ).sort_index()


def make_returns(
    config: SyntheticConfig, random: dict[str, np.random.Generator], listings: pd.DataFrame, n_sessions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the unpredictable part of returns: total, own unit shocks, own volatility; (T, I) each."""
    n = len(listings)
    level = _log_volatility(config, random["volatility"], n_sessions, n + 1)
    # exp(2 × level) has mean 1, so that the volatilities of the configuration are the unconditional ones
    scale = np.exp(level - config.volatility_dispersion**2)
    unit = 1 / np.sqrt(config.tail / (config.tail - 2))
    market = random["market"].standard_t(config.tail, n_sessions) * unit * config.market_volatility * scale[:, -1]
    sector = random["sector"].standard_normal((n_sessions, config.n_sectors)) * config.sector_volatility
    shocks = random["idiosyncratic"].standard_t(config.tail, (n_sessions, n)) * unit
    volatility = listings["volatility"].to_numpy() * scale[:, :-1]
    common = (
        config.market_drift + market[:, None] * listings["beta"].to_numpy() + sector[:, listings["sector"].to_numpy()]
    )
    return common + volatility * shocks, shocks, volatility


def _log_volatility(config: SyntheticConfig, random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    surprises = random.standard_normal((rows, columns)) * config.volatility_dispersion
    surprises[1:] *= np.sqrt(1 - config.volatility_persistence**2)
    for day in range(1, rows):
        surprises[day] += config.volatility_persistence * surprises[day - 1]
    return surprises


def make_trading(
    config: SyntheticConfig, random: np.random.Generator, listings: pd.DataFrame, n_sessions: int
) -> np.ndarray:
    """Who trades when, bool (T, I): listed, not delisted, not suspended; always on the day of listing."""
    n = len(listings)
    days = np.arange(n_sessions)[:, None]
    listed, delisted = listings["listed"].to_numpy(), listings["delisted"].to_numpy()
    starts = random.random((n_sessions, n, 3))
    mean = np.where(starts[..., 1] < config.long_suspension_share, 10.0, 1.0) * config.suspension_length
    length = np.ceil(-mean * np.log1p(-starts[..., 2])).astype(np.int64)
    until = np.where((starts[..., 0] < config.suspension_rate) & (days > listed), days + length, 0)
    suspended = np.maximum.accumulate(until, axis=0) > days
    return (days >= listed) & (days < delisted) & ~suspended


def simulate(config: SyntheticConfig, sessions: pd.DatetimeIndex) -> tuple[Bars, pd.DataFrame]:
    """Simulate the market; returns the bars and the listings."""
    random = streams(config.seed)
    n_sessions, n = len(sessions), config.n_instruments
    listings = make_listings(config, random["listing"])
    total, shocks, volatility = make_returns(config, random, listings, n_sessions)
    traded = make_trading(config, random["suspension"], listings, n_sessions)
    draws = _bar_draws(config, random, shocks, n_sessions, n)
    payouts, splits = _corporate_actions(config, random["actions"], n_sessions, n)

    base, own = listings["base_log_volume"].to_numpy(), listings["volatility"].to_numpy()
    state = VolumeState(config, n)
    state.average[:] = base  # what the first bar's volume is drawn around
    close, factor = listings["first_price"].to_numpy().copy(), np.ones(n)
    out = Bars(*(np.full((n_sessions, n), np.nan) for _ in range(8)))
    for day in range(n_sessions):
        rows = np.flatnonzero(traded[day])
        reference = _reference_price(close[rows], payouts[day, rows], splits[day, rows], state.count[rows])
        factor[rows] *= close[rows] / reference
        intended = total[day, rows] + drift(state.abnormal(), own, config)[rows]
        prices = _prices(reference, intended, volatility[day, rows], *(d[day, rows] for d in draws[:3]))
        log_volume = state.expected_log_volume(base)[rows] + config.volume_volatility * draws[3][day, rows]
        volume = np.maximum(np.round(np.exp(log_volume) * factor[rows], -2), 100.0)
        vwap = _volume_weighted_price(prices, draws[4][day, rows])
        values = (*prices, volume, np.round(volume * vwap, 2), factor[rows], intended)
        for array, value in zip(vars(out).values(), values, strict=True):
            array[day, rows] = value
        seen = np.zeros(n)
        seen[rows] = np.log(volume / factor[rows])
        state.update(traded[day], seen)
        close[rows] = prices[3]
    return out, listings


def _bar_draws(
    config: SyntheticConfig,
    random: dict[str, np.random.Generator],
    shocks: np.ndarray,
    rows: int,
    columns: int,
) -> tuple[np.ndarray, ...]:
    """Overnight normal, two uniforms for the extremes, volume surprise (mean 0, variance 1), vwap uniform."""
    size = np.abs(shocks)
    typical, spread = _absolute_moments(config.tail)
    link = config.volume_move_correlation
    volume = random["volume"].standard_normal((rows, columns)) * np.sqrt(1 - link**2) + link * (size - typical) / spread
    extremes = random["extremes"].random((rows, columns, 2))
    overnight, vwap = (
        random["overnight"].standard_normal((rows, columns)),
        random["vwap"].random((rows, columns)),
    )
    return overnight, extremes[..., 0], extremes[..., 1], volume, vwap


def _absolute_moments(tail: float) -> tuple[float, float]:
    """Mean and standard deviation of the absolute value of a unit-variance Student-t variable."""
    from scipy.special import gammaln

    mean = 2 * np.sqrt(tail - 2) / (tail - 1) * np.exp(gammaln((tail + 1) / 2) - gammaln(tail / 2)) / np.sqrt(np.pi)
    return float(mean), float(np.sqrt(1 - mean**2))


def _corporate_actions(
    config: SyntheticConfig, random: np.random.Generator, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Dividend as a share of the price, and new shares for each old one; zero on most days, (T, I) each."""
    draws = random.random((rows, columns, 4))
    payouts = np.where(draws[..., 0] < config.dividend_rate, 0.005 + 0.025 * draws[..., 1], 0.0)
    splits = np.where(draws[..., 2] < config.split_rate, np.where(draws[..., 3] < 0.5, 0.5, 1.0), 0.0)
    return payouts, splits


def _reference_price(close: np.ndarray, payout: np.ndarray, split: np.ndarray, bars: np.ndarray) -> np.ndarray:
    """The exchange's reference price, to the cent: last close less the dividend, over the split. Not before
    the second bar.

    A stock below 5 CNY is not split, so that ticks stay small beside daily moves.
    """
    ratio = 1 + np.where(close >= 5, split, 0.0)
    ex = np.round((close - np.round(close * payout, 2)) / ratio, 2)
    return np.where(bars > 0, np.maximum(ex, 0.01), close)


def _prices(
    reference: np.ndarray,
    intended: np.ndarray,
    volatility: np.ndarray,
    overnight: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Open, high, low, close to the cent, inside the board's limits.

    About a quarter of the day's variance falls overnight; the extremes are those of a Brownian bridge from
    open to close.
    """
    lowest = np.round(reference * (1 - LIMIT_FRACTION), 2)
    highest = np.round(reference * (1 + LIMIT_FRACTION), 2)

    def legal(price: np.ndarray) -> np.ndarray:
        return np.clip(np.round(price, 2), lowest, highest)

    close = legal(reference * (1 + intended))
    open_ = legal(reference * (1 + 0.25 * intended + 0.43 * volatility * overnight))
    start, end = np.log(open_), np.log(close)
    spread, variance = (end - start) ** 2, 0.75 * volatility**2
    middle = (start + end) / 2
    high = legal(np.exp(middle + np.sqrt(spread - 2 * variance * np.log1p(-up)) / 2))
    low = legal(np.exp(middle - np.sqrt(spread - 2 * variance * np.log1p(-down)) / 2))
    return open_, np.maximum(high, np.maximum(open_, close)), np.minimum(low, np.minimum(open_, close)), close


def _volume_weighted_price(prices: tuple[np.ndarray, ...], uniform: np.ndarray) -> np.ndarray:
    """A price inside [low, high], near the mean of the four prices."""
    open_, high, low, close = prices
    mean = (open_ + high + low + close) / 4
    room = np.minimum(high - mean, mean - low)
    return mean + 0.5 * room * (2 * uniform - 1)
