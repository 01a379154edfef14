"""CRPS, coverage and PIT against scoringrules, scipy, an integral, and ensembles that are right by construction."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from kronos_qlib.evaluation import probability
from kronos_qlib.evaluation.probability import (
    crps_ensemble,
    crps_normal,
    crps_student_t,
    ensemble_coverage,
    ensemble_pit,
    interval_coverage,
    pit_histogram,
)


def draws(windows: int, n_paths: int, steps: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Paths and truths from one distribution of their own window and step."""
    random = np.random.default_rng(seed)
    centre = random.normal(size=(windows, 1, steps))
    both = centre + random.standard_t(4, size=(windows, n_paths + 1, steps)) * np.arange(1, steps + 1)
    return both[:, 1:], both[:, 0]


def test_ensemble_by_hand() -> None:
    paths = np.array([1.0, 4.0])[None, :, None]
    # mean |x - 2| = 1.5; |1 - 4| counts twice: 6 / 8 and 6 / 4
    assert crps_ensemble(paths, [[2.0]], estimator="standard") == pytest.approx(1.5 - 0.75)
    assert crps_ensemble(paths, [[2.0]]) == pytest.approx(0.0)
    assert crps_ensemble(paths[:, :1], [[2.0]], estimator="standard") == pytest.approx(1.0)


@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_ensemble_equals_scoringrules(n_paths: int, steps: int, seed: int) -> None:
    paths, truth = draws(6, n_paths, steps, seed)
    paths = paths.round(1)  # ties
    for ours, theirs in (("fair", "fair"), ("standard", "nrg")):
        expected = scoringrules.crps_ensemble(truth, paths, m_axis=1, estimator=theirs)
        np.testing.assert_allclose(crps_ensemble(paths, truth, estimator=ours), expected, atol=1e-10)


@given(st.floats(0.01, 100.0), st.floats(-1e3, 1e3), st.integers(0, 2**32 - 1))
def test_ensemble_scales_moves_and_ignores_the_order_of_paths(scale: float, shift: float, seed: int) -> None:
    paths, truth = draws(3, 8, 2, seed)
    once = crps_ensemble(paths, truth)
    np.testing.assert_allclose(crps_ensemble(scale * paths + shift, scale * truth + shift), scale * once, atol=1e-9)
    np.testing.assert_array_equal(crps_ensemble(paths[:, ::-1], truth), once)
    assert (crps_ensemble(paths, truth, estimator="standard") >= 0).all()


def test_fair_is_unbiased_for_few_paths_and_standard_is_not() -> None:
    random = np.random.default_rng(2)
    paths, truth = random.normal(size=(40_000, 3, 1)), random.normal(size=(40_000, 1))
    exact = 1 / np.sqrt(np.pi)  # mean CRPS of the true standard normal
    assert crps_ensemble(paths, truth).mean() == pytest.approx(exact, abs=0.01)
    assert crps_ensemble(paths, truth, estimator="standard").mean() == pytest.approx(exact * 4 / 3, abs=0.01)


def test_many_paths_approach_the_distribution() -> None:
    paths = stats.t(5).ppf((np.arange(20_000) + 0.5) / 20_000)[None, :, None] * 2.0 + 1.0
    ensemble = crps_ensemble(paths, [[3.0]], estimator="standard")
    np.testing.assert_allclose(ensemble[0, 0], crps_student_t(1.0, 2.0, 5.0, 3.0), rtol=1e-4)


def test_distributions_equal_scoringrules_and_the_integral() -> None:
    random = np.random.default_rng(4)
    truth, mean = random.normal(size=(2, 40)) * 3
    std, degrees = random.uniform(0.1, 4, 40), random.uniform(1.2, 30, 40)
    np.testing.assert_allclose(crps_normal(mean, std, truth), scoringrules.crps_normal(truth, mean, std), rtol=1e-9)
    ours = crps_student_t(mean, std, degrees, truth)
    np.testing.assert_allclose(ours, scoringrules.crps_t(truth, degrees, mean, std), rtol=1e-9)
    for i in range(3):
        frozen = stats.t(degrees[i] + 3, mean[i], std[i])
        left = integrate.quad(lambda x, f=frozen: f.cdf(x) ** 2, -np.inf, truth[i])[0]
        right = integrate.quad(lambda x, f=frozen: f.sf(x) ** 2, truth[i], np.inf)[0]
        found = crps_student_t(mean[i], std[i], degrees[i] + 3, truth[i])
        np.testing.assert_allclose(found, left + right, rtol=1e-6)


def test_distributions_broadcast_and_reach_their_limits() -> None:
    truth = np.array([[0.5, np.nan], [2.0, -1.0]])
    found = crps_normal(0.0, np.array([1.0, 2.0]), truth)
    assert found.shape == (2, 2)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(truth))
    np.testing.assert_allclose(crps_student_t(0.0, 1.0, 1e7, 0.7), crps_normal(0.0, 1.0, 0.7), rtol=1e-5)
    assert crps_normal(1.0, 0.0, 3.0) == 2.0
    assert crps_student_t(1.0, 0.0, 4.0, 3.0) == 2.0


def test_what_is_not_finite_is_nan_there_and_nowhere_else() -> None:
    paths, truth = draws(4, 5, 3, 1)
    clean = crps_ensemble(paths, truth), ensemble_pit(paths, truth)
    paths[1, 2, 0], paths[2, 0, 1], truth[3, 2] = np.nan, np.inf, np.nan
    hit = np.zeros((4, 3), dtype=bool)
    hit[[1, 2, 3], [0, 1, 2]] = True
    for before, after in zip(clean, (crps_ensemble(paths, truth), ensemble_pit(paths, truth)), strict=True):
        np.testing.assert_array_equal(np.isnan(after), hit)
        np.testing.assert_array_equal(after[~hit], before[~hit])
    assert list(ensemble_coverage(paths, truth).table["n"]) == [3, 3, 3]


def test_slices_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    paths, truth = draws(50, 6, 2, 3)
    whole = crps_ensemble(paths.astype(np.float32), truth), ensemble_pit(paths, truth)
    monkeypatch.setattr(probability, "CHUNK_CELLS", 30)
    np.testing.assert_array_equal(crps_ensemble(paths.astype(np.float32), truth), whole[0])
    np.testing.assert_array_equal(ensemble_pit(paths, truth), whole[1])


def test_coverage_by_hand() -> None:
    lower, upper = np.array([[0.0, 0], [0, 0], [0, 0], [0, np.nan]]), np.ones((4, 2))
    truth = np.array([[0.0, 2.0], [1.0, 0.5], [-1.0, np.nan], [3.0, 0.5]])
    table = interval_coverage(lower, upper, truth)
    assert list(table.index) == [1, 2]
    assert table.loc[1].to_dict() == {"coverage": 0.5, "below": 0.25, "above": 0.25, "width": 1.0, "n": 4}
    assert table.loc[2].to_dict() == {"coverage": 0.5, "below": 0.0, "above": 0.5, "width": 1.0, "n": 2}
    assert interval_coverage(lower[:0], upper[:0], truth[:0])["coverage"].isna().all()


@pytest.mark.parametrize(
    ("n_paths", "level", "method"), [(30, 0.8, "weibull"), (30, 0.8, "linear"), (10, 0.9, "weibull")]
)
def test_a_calibrated_ensemble_covers_what_is_said(n_paths: int, level: float, method: str) -> None:
    paths, truth = draws(20_000, n_paths, 2, 5)
    found = ensemble_coverage(paths, truth, level, method=method)
    assert found.nominal == level
    # the t's curved tails cost up to one per cent against the uniform
    np.testing.assert_allclose(found.table["coverage"], found.calibrated, atol=0.015)
    np.testing.assert_allclose(found.table["below"], found.table["above"], atol=0.012)


def test_what_a_calibrated_ensemble_can_reach() -> None:
    paths, truth = draws(5, 10, 1, 6)
    assert ensemble_coverage(paths, truth, 0.8).calibrated == pytest.approx(0.8)
    assert ensemble_coverage(paths, truth, 0.9).calibrated == pytest.approx(9 / 11)  # from the least to the greatest
    assert ensemble_coverage(paths, truth, 0.9, method="linear").calibrated == pytest.approx(0.9 * 9 / 11)
    assert ensemble_coverage(np.repeat(paths, 3, axis=1)[:, :19], truth, 0.9).calibrated == pytest.approx(0.9)


def test_pit_by_hand() -> None:
    paths = np.array([1.0, 2.0, 2.0, 5.0])[None, :, None]
    v = np.random.default_rng(3).random((1, 1))
    np.testing.assert_allclose(ensemble_pit(paths, [[2.0]], seed=3), (1 + v * 3) / 5)
    np.testing.assert_allclose(ensemble_pit(paths, [[0.0]], seed=3), v / 5)
    np.testing.assert_allclose(ensemble_pit(paths, [[9.0]], seed=3), (4 + v) / 5)


@pytest.mark.parametrize("ties", [False, True])
def test_pit_of_a_calibrated_ensemble_is_uniform(ties: bool) -> None:
    paths, truth = draws(4000, 7, 2, 8)
    if ties:
        paths, truth = np.clip(paths, -1, 1), np.clip(truth, -1, 1)  # a price limit
    pit = ensemble_pit(paths, truth)
    assert min(stats.kstest(column, "uniform").pvalue for column in pit.T) > 0.005
    narrow = ensemble_pit(0.4 * paths, truth)
    assert stats.kstest(narrow[:, 1], "uniform").pvalue < 1e-6
    # too narrow an ensemble piles up at both ends
    shares = pit_histogram(narrow).loc[2]
    assert shares.iloc[0] + shares.iloc[-1] > 0.3


def test_pit_histogram_by_hand() -> None:
    shares = pit_histogram([[0.0, np.nan], [0.1, np.nan], [0.6, np.nan], [1.0, np.nan]], bins=2)
    np.testing.assert_array_equal(shares.loc[1], [0.5, 0.5])
    assert shares.loc[2].isna().all()
    np.testing.assert_array_equal(shares.columns, [0.0, 0.5])


def test_user_errors() -> None:
    paths, truth = draws(3, 4, 2, 1)
    with pytest.raises(ValueError, match="expected \\(window, path, step\\)"):
        crps_ensemble(paths, truth.T)
    with pytest.raises(ValueError, match="at least 2"):
        crps_ensemble(paths[:, :1], truth)
    with pytest.raises(ValueError, match="estimator='pwm'"):
        crps_ensemble(paths, truth, estimator="pwm")
    with pytest.raises(ValueError, match="std=-1"):
        crps_normal(0.0, -1.0, 0.0)
    with pytest.raises(ValueError, match="scale=-2"):
        crps_student_t(0.0, -2.0, 3.0, 0.0)
    with pytest.raises(ValueError, match="more than 1"):
        crps_student_t(0.0, 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="level=90"):
        ensemble_coverage(paths, truth, 90)
    with pytest.raises(ValueError, match="upper end below"):
        interval_coverage(truth, truth - 1, truth)
    with pytest.raises(ValueError, match="found shapes"):
        interval_coverage(truth, truth[:2], truth)
    with pytest.raises(ValueError, match="between 0 and 1"):
        pit_histogram(truth + 5)
    with pytest.raises(ValueError, match="at least 2 bins"):
        pit_histogram(truth, bins=1)
