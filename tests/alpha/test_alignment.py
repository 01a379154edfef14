"""Alignment of two bases: exact where one is a similarity of the other, honest where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.alpha.alignment import procrustes


def rotation(size: int, random: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(random.normal(size=(size, size)))[0]


@given(seed=st.integers(0, 2**20), size=st.integers(1, 6), scale=st.floats(0.1, 10.0))
def test_a_similarity_is_found_exactly(seed: int, size: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    source = random.normal(size=(50, size)) * np.arange(1, size + 1)
    target = scale * (source @ rotation(size, random)) + random.normal(size=size)
    fit = procrustes(source, target)
    np.testing.assert_allclose(fit.apply(source), target, atol=1e-9 * max(scale, 1))
    np.testing.assert_allclose(fit.rotation @ fit.rotation.T, np.eye(size), atol=1e-12)
    assert fit.explained == pytest.approx(1)


def test_a_quarter_turn_by_hand() -> None:
    source = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    target = np.array([[0.0, 2.0], [-2.0, 0.0], [0.0, -2.0], [2.0, 0.0]]) + 5.0
    fit = procrustes(source, target)
    np.testing.assert_allclose(fit.apply(np.array([[2.0, 0.0]])), [[5.0, 9.0]])
    assert fit.scale == pytest.approx(2)


def test_explained_is_one_minus_the_share_of_the_squared_distance_left() -> None:
    random = np.random.default_rng(0)
    source, noise = random.normal(size=(400, 4)), random.normal(size=(400, 4))
    target = source @ rotation(4, random) + noise
    fit = procrustes(source, target)
    left = ((target - fit.apply(source)) ** 2).sum() / ((target - target.mean(axis=0)) ** 2).sum()
    assert fit.explained == pytest.approx(1 - left)
    assert 0.3 < fit.explained < 0.7
    assert procrustes(source, noise).explained < 0.1


def test_rows_with_nan_are_left_out_of_the_fit_and_stay_nan() -> None:
    random = np.random.default_rng(1)
    source = random.normal(size=(20, 2))
    target = source + 1
    source[3, 0] = np.nan
    fit = procrustes(source, target)
    assert fit.rows == 19
    assert np.isnan(fit.apply(source)[3]).any()
    np.testing.assert_allclose(np.delete(fit.apply(source), 3, axis=0), np.delete(target, 3, axis=0))


def test_what_cannot_be_fitted_is_refused() -> None:
    values = np.random.default_rng(0).normal(size=(7, 4))
    with pytest.raises(ValueError, match="found 7 rows that both networks have read; 4 columns need twice as many"):
        procrustes(values, values)
    with pytest.raises(ValueError, match="expected the same"):
        procrustes(values, values[:, :2])
    with pytest.raises(ValueError, match="the same in every row"):
        procrustes(np.ones((20, 2)), np.random.default_rng(0).normal(size=(20, 2)))
