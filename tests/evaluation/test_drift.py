"""The stability index against scipy's entropies, by hand, and its noise against simulated histograms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kronos_qlib.evaluation.drift import drift_level, population_stability

COUNTS = st.lists(st.integers(1, 500), min_size=2, max_size=20)


def test_by_hand() -> None:
    found = population_stability([50, 50], [25, 75], pseudo_count=0)
    # (.25 - .5) ln(.5) + (.75 - .5) ln(1.5)
    assert found.psi == pytest.approx(0.25 * np.log(2) + 0.25 * np.log(1.5))
    assert found.noise == pytest.approx(0.02)
    assert (found.n_bins, found.n_expected, found.n_actual, found.level) == (2, 100, 100, "large")
    assert found.to_dict()["level"] == "large"


@given(COUNTS, st.integers(0, 2**32 - 1))
def test_equals_both_entropies_and_is_symmetric(expected: list[int], seed: int) -> None:
    actual = np.random.default_rng(seed).integers(1, 500, len(expected))
    e, a = np.array(expected) / sum(expected), actual / actual.sum()
    found = population_stability(expected, actual, pseudo_count=0).psi
    assert found == pytest.approx(stats.entropy(a, e) + stats.entropy(e, a), abs=1e-12)
    assert population_stability(actual, expected, pseudo_count=0).psi == pytest.approx(found, abs=1e-12)
    assert found >= 0


@given(COUNTS)
def test_the_same_shares_have_not_moved(counts: list[int]) -> None:
    assert population_stability(counts, np.array(counts) * 3, pseudo_count=0).psi == pytest.approx(0, abs=1e-12)
    found = population_stability(counts, counts)
    assert found.psi == 0.0
    assert found.level == "none"


def test_empty_bins() -> None:
    assert population_stability([10, 0], [5, 5], pseudo_count=0).psi == np.inf
    found = population_stability([10, 0, 0], [5, 5, 0])
    assert found.n_bins == 2
    e, a = np.array([10.5, 0.5]) / 11, np.array([5.5, 5.5]) / 11
    assert found.psi == pytest.approx(((a - e) * np.log(a / e)).sum())


def test_noise_is_the_mean_when_nothing_moved_and_raises_no_alarm() -> None:
    random = np.random.default_rng(1)
    shares = random.dirichlet(np.full(64, 5.0))
    pairs = [
        population_stability(random.multinomial(20_000, shares), random.multinomial(3000, shares)) for _ in range(300)
    ]
    assert np.mean([pair.psi for pair in pairs]) == pytest.approx(pairs[0].noise, rel=0.06)
    # few draws in many bins: the plain index alarms, the level does not
    few = [population_stability(random.multinomial(20_000, shares), random.multinomial(150, shares)) for _ in range(50)]
    assert np.mean([pair.psi for pair in few]) > 0.25
    assert np.mean([pair.level == "none" for pair in few]) > 0.8


def test_a_market_that_moved_is_seen() -> None:
    bins = np.arange(16)
    before, after = (np.exp(-0.5 * ((bins - centre) / 3.0) ** 2) * 10_000 for centre in (7.5, 9.5))
    assert population_stability(before, after).level == "large"
    assert population_stability(before, np.exp(-0.5 * ((bins - 8.7) / 3.0) ** 2) * 10_000).level == "moderate"


def test_the_usual_thresholds() -> None:
    assert [drift_level(psi) for psi in (-0.1, 0.0999, 0.1, 0.2499, 0.25, np.inf)] == [
        "none",
        "none",
        "moderate",
        "moderate",
        "large",
        "large",
    ]
    with pytest.raises(ValueError, match="NaN"):
        drift_level(float("nan"))


def test_user_errors() -> None:
    with pytest.raises(ValueError, match="same bins"):
        population_stability([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="actual must be one row of counts"):
        population_stability([1, 2], [0, 0])
    with pytest.raises(ValueError, match="expected must be one row of counts"):
        population_stability([1, -2], [1, 1])
    with pytest.raises(ValueError, match="pseudo_count=-1"):
        population_stability([1, 2], [1, 1], pseudo_count=-1)
