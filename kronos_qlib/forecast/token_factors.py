"""Token factors: what the network says of the bars themselves, without sampling; and its embeddings.

A token factor dated t uses bars up to and including t: the likelihood of bar t is of what has come, the entropy at t is
of the bar to come. Add one with ``@token_factor``: one function and one test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from kronos_qlib.kronos.config import check_keys
from kronos_qlib.kronos.ordering import CLOSE

FloatArray = NDArray[np.float64]
EMBEDDING_MEAN = 10  # bars of the "mean" embedding
NATS, Z = "nats", "z units of the window"


@dataclass(frozen=True)
class TokenReading:
    """What the networks said of W sequences, for the days to answer and some bars before them.

    Attributes
    ----------
    days : K, the last bars of each sequence, which get values.
    surprise_s1, surprise_s2, entropy_s1, entropy_s2 : float64 (W, n), n > K
        See :class:`kronos_qlib.kronos.readout.Readout`.
    probability_s1 : float64 (W, K, V), of the next bar's s1.
    s1 : int64 (W, K), id of the bar's own s1.
    token_close : float64 (V,), close in z units that each s1 means.
    hidden : float32 (W, n, d)
    bars, full, coarse : float64 (W, K, 6)
        The bars as the tokenizer saw them, and its reconstructions from both halves and from s1 alone.
    code : float32 (W, K, bits), ±1
    """

    days: int
    surprise_s1: FloatArray
    surprise_s2: FloatArray
    entropy_s1: FloatArray
    entropy_s2: FloatArray
    probability_s1: FloatArray
    s1: NDArray[np.int64]
    token_close: FloatArray
    hidden: NDArray[np.float32]
    bars: FloatArray
    full: FloatArray
    coarse: FloatArray
    code: NDArray[np.float32]

    def last(self, values: FloatArray, shift: int = 0) -> FloatArray:
        """Return the columns of the K days, or those ``shift`` bars before each, (W, K)."""
        end = values.shape[1] - shift
        return values[:, end - self.days : end]

    def mean(self, values: FloatArray, bars: int) -> FloatArray:
        """Return the mean over the last ``bars`` bars of each of the K days, (W, K); NaN where one is NaN."""
        windows = sliding_window_view(values[:, -(self.days + bars - 1) :], bars, axis=1)
        return windows.mean(axis=-1)


TokenFunction = Callable[[TokenReading], FloatArray]


@dataclass(frozen=True)
class TokenFactor:
    """A registered token factor: its function (W, K) of a reading, definition, unit, and bars it averages over."""

    name: str
    function: TokenFunction
    definition: str
    unit: str
    bars: int
    version: int

    @property
    def timing(self) -> str:
        """Which bars it speaks of."""
        spoken = "bar t" if self.bars == 1 else f"bars t - {self.bars - 1} to t"
        return f"known at the close of t; of {spoken}"


TOKEN_FACTORS: dict[str, TokenFactor] = {}


def token_factor(name: str, *, unit: str, bars: int = 1, version: int = 1) -> Callable[[TokenFunction], TokenFunction]:
    """Register a token factor; the first line of its docstring is the definition.

    Raises
    ------
    ValueError : a taken name, or a function without a docstring.
    """

    def register(function: TokenFunction) -> TokenFunction:
        if name in TOKEN_FACTORS:
            raise ValueError(f"A token factor named {name!r} exists already; choose another name.")
        definition = (function.__doc__ or "").strip().partition("\n")[0]
        if not definition:
            raise ValueError(f"The token factor {name!r} has no docstring; its first line is the factor's definition.")
        TOKEN_FACTORS[name] = TokenFactor(name, function, definition, unit, bars, version)
        return function

    return register


def check_token_factors(names: Sequence[str]) -> list[TokenFactor]:
    """Return the factors; a ``ValueError`` names an unknown one's nearest, or one that occurs twice."""
    check_keys(names, list(TOKEN_FACTORS), "the token factors")
    if len(set(names)) < len(names):
        raise ValueError(f"found the token factors {list(names)}; expected each once")
    return [TOKEN_FACTORS[name] for name in names]


@token_factor("surprise", unit=NATS)
def surprise(reading: TokenReading) -> FloatArray:
    """Negative log-likelihood of the bar's token given the bars before it."""
    return surprise_s1(reading) + surprise_s2(reading)


@token_factor("surprise_5", unit=NATS, bars=5)
def surprise_5(reading: TokenReading) -> FloatArray:
    """Mean negative log-likelihood of the last 5 bars' tokens, each given the bars before it."""
    return surprise_s1_5(reading) + surprise_s2_5(reading)


@token_factor("surprise_20", unit=NATS, bars=20)
def surprise_20(reading: TokenReading) -> FloatArray:
    """Mean negative log-likelihood of the last 20 bars' tokens, each given the bars before it."""
    return surprise_s1_20(reading) + surprise_s2_20(reading)


@token_factor("surprise_s1", unit=NATS)
def surprise_s1(reading: TokenReading) -> FloatArray:
    """Negative log-likelihood of the bar's coarse token s1."""
    return reading.last(reading.surprise_s1)


@token_factor("surprise_s1_5", unit=NATS, bars=5)
def surprise_s1_5(reading: TokenReading) -> FloatArray:
    """Mean negative log-likelihood of the last 5 bars' coarse tokens s1."""
    return reading.mean(reading.surprise_s1, 5)


@token_factor("surprise_s1_20", unit=NATS, bars=20)
def surprise_s1_20(reading: TokenReading) -> FloatArray:
    """Mean negative log-likelihood of the last 20 bars' coarse tokens s1."""
    return reading.mean(reading.surprise_s1, 20)


@token_factor("surprise_s2", unit=NATS)
def surprise_s2(reading: TokenReading) -> FloatArray:
    """Negative log-likelihood of the bar's fine token s2 given its s1."""
    return reading.last(reading.surprise_s2)


@token_factor("surprise_s2_5", unit=NATS, bars=5)
def surprise_s2_5(reading: TokenReading) -> FloatArray:
    """Mean negative log-likelihood of the last 5 bars' fine tokens s2, each given its s1."""
    return reading.mean(reading.surprise_s2, 5)


@token_factor("surprise_s2_20", unit=NATS, bars=20)
def surprise_s2_20(reading: TokenReading) -> FloatArray:
    """Mean negative log-likelihood of the last 20 bars' fine tokens s2, each given its s1."""
    return reading.mean(reading.surprise_s2, 20)


@token_factor("excess_surprise", unit=NATS)
def excess_surprise(reading: TokenReading) -> FloatArray:
    """Surprise of the bar's s1 minus what was expected of it, the entropy the day before; 0 for a calibrated model."""
    return reading.last(reading.surprise_s1) - reading.last(reading.entropy_s1, 1)


@token_factor("entropy_s1", unit=NATS)
def entropy_s1(reading: TokenReading) -> FloatArray:
    """Entropy of the next bar's coarse token s1."""
    return reading.last(reading.entropy_s1)


@token_factor("entropy_s2", unit=NATS)
def entropy_s2(reading: TokenReading) -> FloatArray:
    """Entropy of the next bar's fine token s2 given the most likely s1 (not the mean over all s1)."""
    return reading.last(reading.entropy_s2)


@token_factor("entropy_change", unit=NATS, bars=6)
def entropy_change(reading: TokenReading) -> FloatArray:
    """Entropy of the next bar's s1 minus its mean over the 5 bars before."""
    before = reading.mean(reading.entropy_s1[:, :-1], 5)
    return reading.last(reading.entropy_s1) - before


@token_factor("top_probability", unit="probability, 0 to 1")
def top_probability(reading: TokenReading) -> FloatArray:
    """Probability of the next bar's most likely s1."""
    return reading.probability_s1.max(axis=-1)


@token_factor("token_drift", unit=Z)
def token_drift(reading: TokenReading) -> FloatArray:
    """Expected close of the next bar's s1 minus the close of this bar's s1, closes as single tokens decode."""
    expected = (reading.probability_s1 * reading.token_close).sum(axis=-1)
    return expected - reading.token_close[reading.s1]


@token_factor("token_probability_up", unit="probability, 0 to 1, half of ties")
def token_probability_up(reading: TokenReading) -> FloatArray:
    """Probability that the next bar's s1 means a higher close than this bar's s1, closes as single tokens decode."""
    now = reading.token_close[reading.s1][..., None]
    above = (reading.token_close > now) + 0.5 * (reading.token_close == now)
    return (reading.probability_s1 * above).sum(axis=-1)


@token_factor("token_spread", unit=Z)
def token_spread(reading: TokenReading) -> FloatArray:
    """Standard deviation of the next bar's close over its s1, closes as single tokens decode."""
    mean = (reading.probability_s1 * reading.token_close).sum(axis=-1, keepdims=True)
    return np.sqrt((reading.probability_s1 * (reading.token_close - mean) ** 2).sum(axis=-1))


@token_factor("reconstruction_error", unit=Z)
def reconstruction_error(reading: TokenReading) -> FloatArray:
    """Root mean square over the six fields of the bar minus its reconstruction: what the token could not say."""
    return _root_mean_square(reading.bars - reading.full)


@token_factor("reconstruction_error_coarse", unit=Z)
def reconstruction_error_coarse(reading: TokenReading) -> FloatArray:
    """Root mean square over the six fields of the bar minus its reconstruction from s1 alone."""
    return _root_mean_square(reading.bars - reading.coarse)


@token_factor("reconstruction_residual", unit=Z)
def reconstruction_residual(reading: TokenReading) -> FloatArray:
    """Close of the bar minus the close of its reconstruction."""
    return reading.bars[..., CLOSE] - reading.full[..., CLOSE]


def _root_mean_square(difference: FloatArray) -> FloatArray:
    return np.sqrt((difference**2).mean(axis=-1))


def last_hidden(reading: TokenReading) -> NDArray[np.float32]:
    """Hidden state at the bar."""
    return reading.hidden[:, -reading.days :]


def mean_hidden(reading: TokenReading) -> NDArray[np.float32]:
    """Mean of the hidden states of the last 10 bars."""
    needed = reading.hidden[:, -(reading.days + EMBEDDING_MEAN - 1) :]
    return sliding_window_view(needed, EMBEDDING_MEAN, axis=1).mean(axis=-1, dtype=np.float64).astype(np.float32)


def token_code(reading: TokenReading) -> NDArray[np.float32]:
    """The bar's token, bit by bit as ±1: s1 first, lowest bit first."""
    return reading.code


# kind: (W, K, width) of a reading, and the version of the definition
EMBEDDINGS: dict[str, tuple[Callable[[TokenReading], NDArray[np.float32]], int]] = {
    "last": (last_hidden, 1),
    "mean": (mean_hidden, 1),
    "code": (token_code, 1),
}
