"""Every token factor and embedding by hand, on a reading made up of round numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_qlib.forecast.token_factors import (
    EMBEDDINGS,
    TOKEN_FACTORS,
    TokenReading,
    check_token_factors,
    token_factor,
)

# One sequence, 25 bars read, values for the last 2. Surprises 1 … 25 of s1, all 2 of s2; entropies 0, 1, 4, 9, …
COUNT = np.arange(1.0, 26.0)[None]
HALF = 0.5
READING = TokenReading(
    days=2,
    surprise_s1=COUNT,
    surprise_s2=np.full((1, 25), 2.0),
    entropy_s1=(COUNT - 1) ** 2,
    entropy_s2=COUNT * 10,
    probability_s1=np.array([[[HALF, HALF, 0.0], [0.25, 0.25, HALF]]]),
    s1=np.array([[1, 0]]),
    token_close=np.array([-1.0, 0.0, 3.0]),
    hidden=np.stack([COUNT, -COUNT], axis=-1).astype(np.float32),
    bars=np.array([[[0, 0, 0, 1, 0, 0], [0, 0, 0, 2, 0, 0]]], dtype=np.float64),
    full=np.array([[[0, 0, 0, 0, 0, 0], [0, 0, 0, 3, 0, 0]]], dtype=np.float64),
    coarse=np.array([[[0, 0, 0, 3, 0, 0], [0, 0, 0, 0, 0, 0]]], dtype=np.float64),
    code=np.array([[[1, -1], [-1, -1]]], dtype=np.float32),
)
SIXTH = np.sqrt(1 / 6)

CASES = {
    # 24 and 25, and 2 each
    "surprise": [26, 27],
    # means of 20 … 24 and 21 … 25, and 2 each
    "surprise_5": [24, 25],
    # means of 5 … 24 and 6 … 25, and 2 each
    "surprise_20": [16.5, 17.5],
    "surprise_s1": [24, 25],
    "surprise_s1_5": [22, 23],
    "surprise_s1_20": [14.5, 15.5],
    "surprise_s2": [2, 2],
    "surprise_s2_5": [2, 2],
    "surprise_s2_20": [2, 2],
    # 24 - 22 ** 2 and 25 - 23 ** 2
    "excess_surprise": [24 - 484, 25 - 529],
    "entropy_s1": [529, 576],
    "entropy_s2": [240, 250],
    # 23 ** 2 less the mean of 18 ** 2 … 22 ** 2 = 402; 24 ** 2 less that of 19 ** 2 … 23 ** 2 = 443
    "entropy_change": [127, 133],
    "top_probability": [HALF, HALF],
    # -.5 from 0; 1.25 from -1
    "token_drift": [-0.5, 2.25],
    # the second token half counts, as the bar's own; the third is not likely: .25. Then half of .25, .25 and .5
    "token_probability_up": [0.25, 0.875],
    # values -1, 0: .5; mean 1.25, squares .25 * 1 + .5 * 9 = 4.75
    "token_spread": [0.5, np.sqrt(4.75 - 1.25**2)],
    # one field of six off by 1, and by 2
    "reconstruction_error": [SIXTH, SIXTH],
    "reconstruction_error_coarse": [2 * SIXTH, 2 * SIXTH],
    "reconstruction_residual": [1, -1],
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_hand_computed(name: str) -> None:
    found = TOKEN_FACTORS[name].function(READING)
    np.testing.assert_allclose(found, [CASES[name]], rtol=1e-12)


def test_every_token_factor_has_a_case_a_definition_and_a_unit() -> None:
    assert set(CASES) == set(TOKEN_FACTORS)
    for found in TOKEN_FACTORS.values():
        assert found.definition.endswith("."), found.name
        assert found.unit
        assert found.timing.startswith("known at the close of t; of bar")


def test_embeddings() -> None:
    np.testing.assert_array_equal(EMBEDDINGS["last"][0](READING), [[[24, -24], [25, -25]]])
    # means of 15 … 24 and of 16 … 25
    np.testing.assert_array_equal(EMBEDDINGS["mean"][0](READING), [[[19.5, -19.5], [20.5, -20.5]]])
    np.testing.assert_array_equal(EMBEDDINGS["code"][0](READING), [[[1, -1], [-1, -1]]])


def test_user_errors() -> None:
    with pytest.raises(ValueError, match="did you mean 'token_drift'"):
        check_token_factors(["token_drifft"])
    with pytest.raises(ValueError, match="each once"):
        check_token_factors(["surprise", "surprise"])
    with pytest.raises(ValueError, match="exists already"):
        token_factor("surprise", unit="nats")(lambda reading: reading.surprise_s1)
    with pytest.raises(ValueError, match="no docstring"):
        token_factor("silent", unit="nats")(lambda reading: reading.surprise_s1)
