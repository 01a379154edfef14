"""Principal components with fixed order and sign."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.alpha.components import fit_components


def test_two_columns_by_hand() -> None:
    """On the line y = -x the first direction is (1, -1)/sqrt(2): its first largest entry is made positive."""
    values = np.array([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0], [np.nan, 0.0]])
    fit = fit_components(values, 2)
    np.testing.assert_allclose(np.abs(fit.directions[:, 0]), [0.5**0.5, 0.5**0.5])
    assert fit.directions[0, 0] * fit.directions[1, 0] < 0
    np.testing.assert_allclose(fit.mean, [2.0, -2.0])
    np.testing.assert_allclose(fit.explained, [1.0, 0.0], atol=1e-12)
    assert fit.rows == 3
    found = fit.apply(values)
    np.testing.assert_allclose(np.abs(found[:3, 0]), [2**0.5, 0, 2**0.5], atol=1e-6)
    assert np.isnan(found[3]).all()


@given(seed=st.integers(0, 2**20), width=st.integers(2, 8))
def test_they_are_uncorrelated_ordered_and_signed(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(300, width)) @ random.normal(size=(width, width))
    fit = fit_components(values, width)
    found = fit.apply(values).astype(np.float64)
    covariance = np.cov(found, rowvar=False)
    variance = np.diag(covariance)
    assert (np.diff(variance) <= 1e-5 * variance[0]).all()
    np.testing.assert_allclose(covariance - np.diag(variance), 0, atol=1e-4 * variance[0])
    largest = np.abs(fit.directions).argmax(axis=0)
    assert (fit.directions[largest, range(width)] > 0).all()
    np.testing.assert_allclose(variance / variance.sum(), fit.explained, atol=1e-4)


def test_mirrored_data_gives_mirrored_values_not_mirrored_directions() -> None:
    values = np.random.default_rng(0).normal(size=(100, 3)) * [3.0, 2.0, 1.0]
    np.testing.assert_allclose(fit_components(-values, 2).directions, fit_components(values, 2).directions, atol=1e-12)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 3"):
        fit_components(np.zeros((10, 3)), 4)
    with pytest.raises(ValueError, match="found 3 rows without NaN"):
        fit_components(np.zeros((3, 3)), 2)
