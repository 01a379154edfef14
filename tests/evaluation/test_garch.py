"""GARCH(1,1)-t: the filter by hand, the fit on its own kind, draws against closed forms, no look-ahead."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kronos_qlib.evaluation.garch import (
    GarchParameters,
    draw_cumulative_returns,
    filter_variance,
    fit_garch,
    forecast_garch,
    refit_positions,
    standard_points,
)
from kronos_qlib.evaluation.probability import crps_ensemble, crps_normal

TRUE = GarchParameters(omega=4e-6, alpha=0.1, beta=0.88, degrees=6.0, start=2e-4)


def simulate(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shocks = rng.standard_t(TRUE.degrees, n) * np.sqrt((TRUE.degrees - 2) / TRUE.degrees)
    variance, returns = TRUE.start, np.empty(n)
    for t in range(n):
        returns[t] = shocks[t] * np.sqrt(variance)
        variance = TRUE.omega + TRUE.alpha * returns[t] ** 2 + TRUE.beta * variance
    return returns


def test_the_filter_is_the_recursion() -> None:
    returns = np.array([0.02, np.nan, -0.03])
    variance, expected = TRUE.start, []
    for value in returns:
        square = TRUE.start if np.isnan(value) else value**2
        variance = TRUE.omega + TRUE.alpha * square + TRUE.beta * variance
        expected.append(variance)
    assert filter_variance(returns, TRUE) == pytest.approx(expected, rel=1e-12)


def test_a_fit_finds_what_the_returns_were_made_with() -> None:
    found = fit_garch(simulate(20_000, 1))
    assert found.alpha == pytest.approx(TRUE.alpha, abs=0.03)
    assert found.beta == pytest.approx(TRUE.beta, abs=0.03)
    assert found.degrees == pytest.approx(TRUE.degrees, abs=1.0)
    assert found.omega / (1 - found.alpha - found.beta) == pytest.approx(2e-4, rel=0.3)


def test_draws_have_the_variance_that_theory_gives() -> None:
    """E[r[t+h]^2] = v + (alpha + beta)^(h-1) (variance[t+1] - v), v the long-run variance."""
    calm = GarchParameters(TRUE.omega, TRUE.alpha, TRUE.beta, 30.0, TRUE.start)
    paths = np.log1p(draw_cumulative_returns([4e-4], calm, standard_points(2**14, 5, 0)))[0]
    long_run = calm.omega / (1 - calm.alpha - calm.beta)
    each = long_run + (calm.alpha + calm.beta) ** np.arange(5) * (4e-4 - long_run)
    assert paths.var(axis=0) == pytest.approx(np.cumsum(each), rel=0.03)


def test_evenly_spread_draws_score_as_the_distribution_does() -> None:
    """Without memory and with many degrees of freedom the paths are a normal walk, whose CRPS is known."""
    flat = GarchParameters(4e-4, 0.0, 0.0, 1e6, 4e-4)
    truth = np.array([[0.01, -0.04]])
    paths = np.log1p(draw_cumulative_returns([4e-4], flat, standard_points(256, 2, 0)))
    expected = crps_normal(0.0, 0.02 * np.sqrt([1.0, 2.0]), truth)
    assert crps_ensemble(paths, truth, estimator="standard") == pytest.approx(expected, rel=0.005)


def test_points_are_even_and_repeat() -> None:
    points = standard_points(256, 3, 5)
    assert (np.sort(np.floor(points * 256), axis=0) == np.arange(256)[:, None]).all()
    assert (points == standard_points(256, 3, 5)).all()
    assert np.isfinite(stats.t.ppf(points, 2.1)).all()
    with pytest.raises(ValueError, match="power of 2"):
        standard_points(100, 3, 0)


def test_parameters_are_fitted_when_a_month_begins() -> None:
    months = [1, 1, 1, 2, 2, 3, 3, 5]
    assert refit_positions(months, 0).tolist() == [0, 3, 5, 7]
    assert refit_positions(months, 4).tolist() == [4, 5, 7]


def test_forecasts_use_nothing_after_their_bar() -> None:
    returns = simulate(420, 2)
    months, points = np.arange(420) // 21, standard_points(16, 3, 0)
    paths, found = forecast_garch(returns, months, np.arange(300, 400), points)
    assert found.tolist() == list(range(100))
    changed = np.concatenate([returns[:351], np.full(69, 0.5)])
    after, _ = forecast_garch(changed, months, np.arange(300, 400), points)
    assert (after[:51] == paths[:51]).all()
    assert (after[51] != paths[51]).any()
    one, _ = forecast_garch(returns, months, np.arange(300, 351), points)
    assert (one == paths[:51]).all()


def test_too_short_a_history_has_no_forecast() -> None:
    returns, points = simulate(300, 3), standard_points(16, 2, 0)
    paths, found = forecast_garch(returns, np.arange(300) // 21, np.arange(200, 300), points)
    assert found.min() >= 52  # the first month that begins with 250 returns before it begins at bar 252
    assert len(paths) == len(found) == 48
    with pytest.raises(ValueError, match="250"):
        fit_garch(returns[:100])
    with pytest.raises(ValueError, match="the same"):
        fit_garch(np.zeros(300))
