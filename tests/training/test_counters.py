"""Permutations without memory, numbers without a generator, and the dealing of slots among sources."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.training.counters import hash_words, permuted, unit
from kronos_qlib.training.mixture import Mixture


@given(st.integers(1, 3_000), st.integers(0, 2**40), st.integers(0, 9))
def test_permuted_is_a_permutation(size: int, seed: int, pass_: int) -> None:
    assert sorted(permuted(np.arange(size), size, seed, pass_)) == list(range(size))


@given(st.integers(2, 10**7), st.integers(0, 2**40), st.data())
def test_each_position_is_sent_alone(size: int, seed: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    together = permuted(positions, size, seed)
    assert [int(permuted(positions[i : i + 1], size, seed)[0]) for i in range(len(positions))] == together.tolist()
    assert ((together >= 0) & (together < size)).all()


def test_keys_give_different_orders() -> None:
    orders = {tuple(permuted(np.arange(50), 50, seed, pass_)) for seed in range(10) for pass_ in range(10)}
    assert len(orders) == 100


@pytest.mark.parametrize("size", [3, 7, 50])
def test_every_item_comes_equally_often_at_every_place(size: int) -> None:
    """Over many keys, place × item counts pass a chi-squared test at one in a million."""
    from scipy.stats import chi2

    keys = 500
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permuted(np.arange(size), size, 5, key)] += 1
    expected = keys / size
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(1 - 1e-6, (size - 1) ** 2)


def test_neighbours_are_torn_apart() -> None:
    """Windows that overlap do not meet in a batch: neighbours' images are as far apart as chance puts them."""
    size = 100_000
    order = permuted(np.arange(size), size, 1)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(size)
    assert np.abs(np.diff(order)).mean() == pytest.approx(size / 3, rel=0.02)


def test_positions_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="outside 0 … 9"):
        permuted(np.array([10]), 10, 0)


def test_words_are_told_apart() -> None:
    numbers = np.arange(100)
    assert len(np.unique(hash_words(1, numbers[:, None], numbers))) == 10_000
    assert hash_words(1, 2) != hash_words(2, 1)
    draws = unit(3, numbers[:, None], numbers)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert draws.mean() == pytest.approx(0.5, abs=0.015)


SHARES = st.fractions(Fraction(1, 2**20), 1 - Fraction(1, 2**20), max_denominator=2**20)


@given(st.lists(SHARES, max_size=3), st.integers(0, 10**9))
def test_each_slot_has_one_group_and_each_turn_comes_once(shares: list[Fraction], first: int) -> None:
    mixture = Mixture(tuple(np.arange(5) for _ in range(len(shares) + 1)), tuple(shares))
    slots = np.arange(first, first + 500)
    found = mixture.turns(slots)
    assert (sum(chosen.astype(int) for chosen, _ in found.values()) == 1).all()
    for group, (chosen, turns) in found.items():
        assert (np.diff(turns) == 1).all()
        if group < len(shares):
            before = np.prod([float(1 - other) for other in shares[:group]])
            assert abs(chosen.sum() - len(slots) * before * float(shares[group])) <= 1 + group
