"""Drawdown by hand, and equal to Qlib's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.evaluate import risk_analysis

from kronos_qlib.evaluation.drawdown import drawdown, max_drawdown

DAYS = pd.date_range("2020-01-02", periods=4)


def test_it_is_counted_from_the_first_day() -> None:
    # running sum -.02, .03, .02, -.01; the first day's loss is its own high
    given = pd.Series([-0.02, 0.05, -0.01, -0.03], DAYS)
    found = drawdown(given)
    assert found.tolist() == pytest.approx([0.0, 0.0, -0.01, -0.04])
    assert found.index.equals(given.index)
    assert max_drawdown(given) == pytest.approx(-0.04)


def test_a_day_without_a_return_adds_nothing() -> None:
    found = drawdown(pd.Series([0.01, np.nan, -0.03, 0.01], DAYS))
    np.testing.assert_allclose(found, [0.0, np.nan, -0.03, -0.02])
    assert np.isnan(max_drawdown(pd.Series(np.nan, DAYS)))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_qlibs(seed: int) -> None:
    returns = pd.Series(np.random.default_rng(seed).normal(0, 0.01, 300), pd.date_range("2019-01-01", periods=300))
    returns.iloc[0] = -0.1  # where the first day matters
    assert max_drawdown(returns) == risk_analysis(returns, freq="day", mode="sum")["risk"]["max_drawdown"]
