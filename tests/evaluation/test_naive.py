"""The random walk with HistVol20: volatility by hand, quantiles in closed form, CRPS as scoringrules has it."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
from scipy import stats

from kronos_qlib.evaluation.naive import (
    crps_lognormal,
    random_walk_crps,
    random_walk_pit,
    random_walk_quantiles,
    trailing_volatility,
)
from kronos_qlib.evaluation.probability import crps_ensemble


def test_volatility_uses_the_last_returns_up_to_the_day() -> None:
    found = trailing_volatility([0.3, 0.0, 0.4, np.nan, 0.1, 0.1], bars=2)
    assert found == pytest.approx([np.nan, np.sqrt(0.045), np.sqrt(0.08), np.nan, np.nan, 0.1], nan_ok=True)


def test_volatility_does_not_see_the_future() -> None:
    returns = np.random.default_rng(0).standard_normal(60)
    changed = np.concatenate([returns[:40], 100 * returns[40:]])
    assert (trailing_volatility(returns)[20:40] == trailing_volatility(changed)[20:40]).all()
    assert np.isnan(trailing_volatility(returns)[:19]).all()
    assert np.isnan(trailing_volatility(returns[:5])).all()


def test_quantiles_widen_with_the_root_of_time_and_the_median_stays() -> None:
    found = random_walk_quantiles([0.02], 4, [0.05, 0.5, 0.95])[0]
    assert found[1] == pytest.approx(np.zeros(4))
    assert np.log1p(found[2]) == pytest.approx(0.02 * 1.6448536 * np.sqrt([1, 2, 3, 4]))
    assert np.log1p(found[0]) == pytest.approx(-np.log1p(found[2]))


def test_crps_is_that_of_scoringrules_and_of_many_draws() -> None:
    rng = np.random.default_rng(1)
    m, s, y = rng.normal(0, 0.3, 50), rng.uniform(0.01, 0.8, 50), rng.lognormal(0, 0.5, 50)
    assert crps_lognormal(m, s, y) == pytest.approx(scoringrules.crps_lognormal(y, m, s), rel=1e-9)
    truth = np.array([[0.03, -0.05]])
    drawn = np.expm1(np.cumsum(0.02 * rng.standard_normal((1, 20_000, 2)), axis=2))
    assert random_walk_crps([0.02], truth) == pytest.approx(crps_ensemble(drawn, truth), rel=0.02)


def test_pit_is_the_probability_of_less() -> None:
    assert random_walk_pit([0.02], [[0.0, np.expm1(0.02 * np.sqrt(2)), np.nan]])[0] == pytest.approx(
        [0.5, stats.norm.cdf(1.0), np.nan], nan_ok=True
    )


def test_a_price_of_nothing_and_an_unknown_volatility() -> None:
    # a truth of -100 % has log-price minus infinity, which is a truth like any other
    assert np.isfinite(random_walk_crps([0.02], [[-1.0]])).all()
    assert np.isnan(random_walk_crps([np.nan, 0.0], [[0.1], [0.1]])).all()
    with pytest.raises(ValueError, match="below 0"):
        random_walk_quantiles([-0.1], 2, [0.5])
    with pytest.raises(ValueError, match="levels"):
        random_walk_quantiles([0.1], 2, [0.0])
