"""The maximum of standard normals against known values and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_qlib.evaluation.null_maximum import expected_null_maximum, null_maximum_quantile


def test_small_numbers_have_closed_forms() -> None:
    assert expected_null_maximum(1) == pytest.approx(0.0, abs=1e-9)
    assert expected_null_maximum(2) == pytest.approx(1 / np.sqrt(np.pi), rel=1e-8)
    assert expected_null_maximum(3) == pytest.approx(1.5 / np.sqrt(np.pi), rel=1e-8)
    assert null_maximum_quantile(1) == pytest.approx(1.6448536)


@pytest.mark.parametrize("n", [12, 60])
def test_simulation_agrees(n: int) -> None:
    best = np.random.default_rng(1).normal(size=(40_000, n)).max(axis=1)
    assert expected_null_maximum(n) == pytest.approx(best.mean(), abs=0.01)
    assert null_maximum_quantile(n) == pytest.approx(np.quantile(best, 0.95), abs=0.02)


def test_no_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        expected_null_maximum(0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        null_maximum_quantile(3, 1.0)
