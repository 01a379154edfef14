"""Scaled ensembles: every number against brute force, known factors found again, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from kronos_qlib.evaluation.probability import crps_ensemble, crps_normal
from kronos_qlib.evaluation.spread_calibration import SpreadCalibration, calibrate_spread, recalibrated_crps

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def numbers(a: list[float], b: list[float], c: list[float]) -> SpreadCalibration:
    return SpreadCalibration(np.array(a), np.array(b), np.array(c), np.full(len(a), 99))


def normal_windows(
    n: int, n_paths: int, a: float, b: float, c: float, *, seed: int = 0, means: float = 0.3
) -> tuple[Arrays, np.ndarray]:
    """Paths, truths that these numbers recalibrate them to, and references; the scores of the true distribution."""
    rng = np.random.default_rng(seed)
    mean, spread = rng.normal(0.0, means, (n, 1)), np.exp(rng.normal(0.0, 0.4, (n, 1)))
    reference = spread * np.exp(rng.normal(0.0, 0.4, (n, 1)))
    paths = mean[:, None] + spread[:, None] * rng.normal(size=(n, n_paths, 1))
    true_spread = spread * np.exp(a) * (reference / spread) ** b
    truth = c * mean + true_spread * rng.normal(size=(n, 1))
    return (paths, truth, reference), crps_normal(c * mean, true_spread, truth)


def test_paths_move_as_the_formula_says() -> None:
    rng = np.random.default_rng(1)
    paths, reference = rng.normal(size=(3, 5, 2)), rng.uniform(0.5, 2.0, (3, 2))
    found = numbers([0.1, -0.2], [0.0, 0.7], [1.0, 0.4]).apply(paths, reference)
    for window in range(3):
        for step, (a, b, c) in enumerate([(0.1, 0.0, 1.0), (-0.2, 0.7, 0.4)]):
            x = paths[window, :, step]
            factor = np.exp(a + b * np.log(reference[window, step] / np.std(x)))
            expected = [c * np.median(x) + factor * (value - np.median(x)) for value in x]
            assert found[window, :, step] == pytest.approx(expected)


def test_no_change_is_no_change() -> None:
    (paths, truth, reference), _ = normal_windows(20, 8, 0.0, 0.0, 1.0)
    same = numbers([0.0], [0.0], [1.0])
    assert same.apply(paths, reference) == pytest.approx(paths)
    standard = recalibrated_crps(paths, truth, reference, same, estimator="standard")
    assert standard == pytest.approx(crps_ensemble(paths, truth, estimator="standard"))


@pytest.mark.parametrize("n_paths", [8, 9])
def test_the_fair_score_weighs_all_paths_against_their_halves(n_paths: int) -> None:
    (paths, truth, reference), _ = normal_windows(4, n_paths, 0.0, 0.0, 1.0)
    calibration = numbers([0.2], [0.5], [0.5])

    def plain(some: np.ndarray) -> np.ndarray:
        x = calibration.apply(some, reference)[:, :, 0]
        apart = np.abs(x[:, :, None] - x[:, None]).sum(axis=(1, 2)) / (2 * x.shape[1] * (x.shape[1] - 1))
        return (np.abs(x - truth).mean(axis=1) - apart)[:, None]

    halves = (plain(paths[:, :4]) + plain(paths[:, 4:8])) / 2
    expected = (n_paths * plain(paths) - 4 * halves) / (n_paths - 4)
    assert recalibrated_crps(paths, truth, reference, calibration) == pytest.approx(expected)


def test_the_fair_score_is_that_of_the_distribution_and_the_plain_one_is_not() -> None:
    (paths, truth, reference), true = normal_windows(20000, 16, 0.1, 0.5, 0.3)
    calibration = numbers([0.1], [0.5], [0.3])
    plain = crps_ensemble(calibration.apply(paths, reference), truth).mean() / true.mean() - 1.0
    fair = recalibrated_crps(paths, truth, reference, calibration).mean() / true.mean() - 1.0
    assert plain < -0.02
    assert abs(fair) < 0.008


@pytest.mark.parametrize(("a", "b", "c"), [(0.3, 0.0, 1.0), (-0.2, 0.5, 0.4), (0.1, 1.0, 0.0)])
def test_known_numbers_are_found_again(a: float, b: float, c: float) -> None:
    found = calibrate_spread(*normal_windows(6000, 32, a, b, c, means=1.0)[0])
    assert found.log_factor == pytest.approx([a], abs=0.04)
    assert found.shrinkage == pytest.approx([b], abs=0.06)
    assert found.centre == pytest.approx([c], abs=0.06)
    assert found.counts.tolist() == [6000]


@pytest.mark.parametrize("estimator", ["fair", "standard"])
def test_no_point_of_a_fine_grid_is_better(estimator: str) -> None:
    windows = normal_windows(400, 8, 0.2, 0.4, 0.6)[0]

    def score(a: float, b: float, c: float) -> float:
        return float(recalibrated_crps(*windows, numbers([a], [b], [c]), estimator=estimator).mean())

    found = calibrate_spread(*windows, estimator=estimator)
    lowest = score(float(found.log_factor[0]), float(found.shrinkage[0]), float(found.centre[0]))
    grid = min(score(a, b, c) for a in np.arange(-0.2, 0.5, 0.1) for b in np.arange(0, 1.1, 0.2)
               for c in np.arange(0, 1.1, 0.2))  # fmt: skip
    assert lowest <= grid + 1e-6


def test_equal_arguments_give_equal_numbers_and_steps_do_not_mix() -> None:
    first, second = normal_windows(200, 8, 0.3, 0.0, 1.0)[0], normal_windows(200, 8, -0.3, 1.0, 0.0, seed=1)[0]
    both = tuple(np.concatenate(pair, axis=-1) for pair in zip(first, second, strict=True))
    found, again, alone = calibrate_spread(*both), calibrate_spread(*both), calibrate_spread(*second)
    for name in ("log_factor", "shrinkage", "centre"):
        assert getattr(found, name).tolist() == getattr(again, name).tolist()
        assert getattr(found, name)[1] == getattr(alone, name)[0]


def test_what_is_unknown_stays_unknown_and_teaches_nothing() -> None:
    (paths, truth, reference), _ = normal_windows(60, 8, 0.0, 0.0, 1.0)
    known = calibrate_spread(paths[4:], truth[4:], reference[4:])
    paths[0, 3], truth[1], reference[2], paths[3] = np.nan, np.nan, 0.0, 0.01  # the last: no spread
    found = calibrate_spread(paths, truth, reference)
    assert found.counts.tolist() == [56]
    assert found.log_factor == pytest.approx(known.log_factor)
    score = recalibrated_crps(paths, truth, reference, found)
    assert np.isnan(score[:4]).all()
    assert np.isfinite(score[4:]).all()
    assert np.isfinite(found.apply(paths, reference)[[1, 4]]).all()
    assert np.isnan(found.apply(paths, reference)[[0, 2, 3]]).all()


def test_it_survives_json() -> None:
    found = numbers([0.1, 0.2], [0.0, 1.0], [0.5, 0.25])
    again = SpreadCalibration.from_dict(found.to_dict())
    assert again.to_dict() == found.to_dict()


def test_what_is_refused() -> None:
    (paths, truth, reference), _ = normal_windows(40, 8, 0.0, 0.0, 1.0)
    same = numbers([0.0], [0.0], [1.0])
    with pytest.raises(ValueError, match="expected at least 30"):
        calibrate_spread(paths[:20], truth[:20], reference[:20])
    with pytest.raises(ValueError, match="at least 4"):
        recalibrated_crps(paths[:, :3], truth, reference, same)
    with pytest.raises(ValueError, match="estimator='best'"):
        calibrate_spread(paths, truth, reference, estimator="best")
    with pytest.raises(ValueError, match="truth"):
        calibrate_spread(paths, truth[:, 0], reference)
    with pytest.raises(ValueError, match="reference"):
        same.apply(paths, reference[:9])
    with pytest.raises(ValueError, match="learned for 1"):
        same.apply(np.zeros((2, 4, 2)), np.ones((2, 2)))
