"""The paired block bootstrap against arch, by hand, and on simulated days whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import StationaryBootstrap
from arch.bootstrap import optimal_block_length as arch_block_length
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal, stats

from kronos_qlib.evaluation import bootstrap
from kronos_qlib.evaluation.bootstrap import (
    bootstrap_skill,
    choose_block_length,
    optimal_block_length,
    paired_bootstrap,
    resample_counts,
    resample_means,
)


def autoregression(n: int, persistence: float, seed: int) -> NDArray[np.float64]:
    shocks = np.random.default_rng(seed).normal(size=n + 200)
    return signal.lfilter([1.0], [1.0, -persistence], shocks)[200:]


def days(values: NDArray[np.float64], start: str = "2017-01-03") -> pd.Series:
    return pd.Series(values, pd.bdate_range(start, periods=len(values), name="datetime"))


@settings(deadline=None, max_examples=60)
@given(st.integers(20, 900), st.sampled_from([-0.6, 0.0, 0.3, 0.8, 0.97]), st.integers(0, 2**32 - 1))
def test_block_length_equals_arch(n: int, persistence: float, seed: int) -> None:
    values = autoregression(n, persistence, seed)
    expected = float(arch_block_length(values)["stationary"].iloc[0])
    np.testing.assert_allclose(optimal_block_length(values), max(expected, 1.0), rtol=1e-8)


def test_block_length_grows_with_persistence_and_minds_no_units() -> None:
    lengths = [optimal_block_length(autoregression(870, p, 1)) for p in (0.0, 0.5, 0.9)]
    assert lengths == sorted(lengths)
    assert lengths[0] < 6 < lengths[2]
    values = autoregression(870, 0.5, 2)
    np.testing.assert_allclose(optimal_block_length(1e-4 * values + 3.0), optimal_block_length(values), rtol=1e-6)
    assert optimal_block_length(np.full(50, 0.1 + 0.2)) == 1.0


@given(st.integers(1, 40), st.floats(1.0, 50.0), st.integers(1, 30), st.integers(0, 2**63 - 1))
def test_every_resample_draws_n_days(n: int, length: float, n_resamples: int, seed: int) -> None:
    counts = np.concatenate(list(resample_counts(n, length, n_resamples, seed)))
    assert counts.shape == (n_resamples, n)
    assert (counts == np.round(counts)).all()
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == n).all()


def test_memory_bound_does_not_change_the_resamples() -> None:
    whole = np.concatenate(list(resample_counts(37, 4.5, 101, 9)))
    for cells in (1, 37, 500):
        parts = list(resample_counts(37, 4.5, 101, 9, chunk_cells=cells))
        assert max(part.size for part in parts) <= max(cells, 37)
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(np.concatenate(list(resample_counts(37, 4.5, 101, 10))), whole)


def test_very_long_blocks_draw_every_day_once() -> None:
    counts = np.concatenate(list(resample_counts(30, 1e9, 200, 0)))
    assert (counts == 1).all()


def test_block_of_one_day_is_the_plain_bootstrap() -> None:
    values = autoregression(300, 0.0, 4)
    means = resample_means(values[:, None], 1.0, 20_000)[:, 0]
    np.testing.assert_allclose(means.std(), values.std() / np.sqrt(300), rtol=0.02)
    np.testing.assert_allclose(means.mean(), values.mean(), atol=4 * values.std() / np.sqrt(300 * 20_000))


@pytest.mark.parametrize("length", [1.0, 3.0, 7.5, 25.0])
def test_spread_equals_the_closed_form_of_politis_and_romano(length: float) -> None:
    """Their lemma 1: the variance of a resampled mean given the days, as a weighted sum of circular autocovariances."""
    n = 120
    values = autoregression(n, 0.6, 11)
    errors = values - values.mean()
    circular = np.array([errors @ np.roll(errors, -lag) / n for lag in range(n)])
    lags = np.arange(1, n)
    stay = 1.0 - 1.0 / length
    weights = (1 - lags / n) * stay**lags + lags / n * stay ** (n - lags)
    variance = (circular[0] + (weights * circular[1:]).sum()) / n
    means = resample_means(values[:, None], length, 40_000, seed=5)[:, 0]
    np.testing.assert_allclose(means.std(), np.sqrt(variance), rtol=0.02)


def test_distribution_equals_arch() -> None:
    values = autoregression(250, 0.5, 21) + 0.1
    ours = resample_means(values[:, None], 8.0, 4000, seed=3)[:, 0]
    theirs = StationaryBootstrap(8, values, seed=17).apply(np.mean, 4000)[:, 0]
    assert stats.ks_2samp(ours, theirs).pvalue > 0.001
    # the test has teeth: blocks of one day are told apart
    assert stats.ks_2samp(resample_means(values[:, None], 1.0, 4000)[:, 0], theirs).pvalue < 1e-6


def test_interval_and_p_value_follow_from_arch_resamples_too() -> None:
    first, second = autoregression(400, 0.3, 5) + 0.15, autoregression(400, 0.3, 6)
    found = paired_bootstrap(days(first), days(second), block_length=6)
    theirs = StationaryBootstrap(6, first - second, seed=2).apply(np.mean, 5000)[:, 0]
    mean = (first - second).mean()
    deviation = np.abs(theirs - mean)
    np.testing.assert_allclose(found.estimate, mean, rtol=1e-12)
    np.testing.assert_allclose(found.upper - mean, np.quantile(deviation, 0.95), rtol=0.06)
    np.testing.assert_allclose(found.upper - mean, mean - found.lower, rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, theirs.std(), rtol=0.05)
    np.testing.assert_allclose(found.p_value, (deviation >= abs(mean)).mean(), atol=0.02)


def test_pairing_removes_what_both_share() -> None:
    market, edge = autoregression(500, 0.2, 8), 0.02 + 0.05 * autoregression(500, 0.0, 9)
    paired = paired_bootstrap(days(market + edge), days(market))
    assert paired.lower > 0
    assert paired.standard_error < 0.1 * paired_bootstrap(days(market + edge), days(np.zeros(500))).standard_error


@given(st.integers(0, 2**32 - 1), st.floats(-0.3, 0.3))
@settings(deadline=None, max_examples=30)
def test_interval_and_p_value_agree_and_swapping_turns_the_sign(seed: int, shift: float) -> None:
    first, second = days(autoregression(60, 0.2, seed) + shift), days(autoregression(60, 0.2, seed + 1))
    there = paired_bootstrap(first, second, n_resamples=499, block_length=3)
    back = paired_bootstrap(second, first, n_resamples=499, block_length=3)
    assert (there.estimate, there.lower, there.upper) == pytest.approx((-back.estimate, -back.upper, -back.lower))
    assert there.p_value == back.p_value
    excludes_zero = there.lower > 0 or there.upper < 0
    # 25 of 500: at the boundary one resample decides
    assert there.p_value <= 26 / 500 if excludes_zero else there.p_value >= 24 / 500


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Persistent days: blocks must be as long as chosen here; blocks of one day cover far less."""
    covered, covered_short = [], []
    zero = days(np.zeros(400))
    for seed in range(200):
        series = days(autoregression(400, 0.5, 1000 + seed))
        for kept, length in ((covered, None), (covered_short, 1)):
            found = paired_bootstrap(series, zero, n_resamples=300, seed=seed, block_length=length)
            kept.append(found.lower <= 0 <= found.upper)
    assert 0.89 <= np.mean(covered) <= 0.99
    assert np.mean(covered_short) < 0.82


def test_no_difference_and_a_sure_difference() -> None:
    same = days(autoregression(50, 0.0, 1))
    found = paired_bootstrap(same, same)
    assert (found.estimate, found.lower, found.upper, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    sure = paired_bootstrap(days(np.full(50, 0.5)), days(np.zeros(50)), n_resamples=999)
    assert sure.p_value == 1 / 1000
    assert (sure.lower, sure.upper) == pytest.approx((0.5, 0.5))


def test_days_without_a_value_are_left_out_of_both_and_counted() -> None:
    first, second = autoregression(80, 0.2, 1), autoregression(80, 0.2, 2)
    holed = days(first.copy()), days(second.copy())
    holed[0].iloc[3], holed[1].iloc[[7, 8]] = np.nan, [np.inf, np.nan]
    kept = np.delete(np.arange(80), [3, 7, 8])
    found = paired_bootstrap(*holed)
    assert (found.n_days, found.n_undefined) == (77, 3)
    without = paired_bootstrap(days(first[kept]), days(second[kept]))
    assert (found.estimate, found.lower, found.p_value) == (without.estimate, without.lower, without.p_value)


def test_the_block_is_never_shorter_than_the_horizon() -> None:
    first, second = days(autoregression(300, 0.0, 1)), days(autoregression(300, 0.0, 2))
    assert paired_bootstrap(first, second, horizon=20, n_resamples=50).block_length == 20
    assert paired_bootstrap(first, second, horizon=20, block_length=5, n_resamples=50).block_length == 20
    assert paired_bootstrap(first, second, horizon=2, block_length=30, n_resamples=50).block_length == 30
    values = np.column_stack([autoregression(400, 0.0, 3), autoregression(400, 0.9, 4)])
    assert choose_block_length(values, 1) == optimal_block_length(values[:, 1])


def test_the_defaults_are_the_design() -> None:
    found = paired_bootstrap(days(autoregression(60, 0.0, 1)), days(autoregression(60, 0.0, 2)))
    assert (found.n_resamples, found.level, found.seed) == (10_000, 0.95, bootstrap.SEED)
    again = paired_bootstrap(days(autoregression(60, 0.0, 1)), days(autoregression(60, 0.0, 2)))
    assert found.to_dict() == again.to_dict()


def test_skill_against_the_delta_method_and_by_hand() -> None:
    reference = 2.0 + 0.3 * autoregression(600, 0.4, 3)
    loss = 0.97 * reference + 0.02 * autoregression(600, 0.0, 4)
    found = bootstrap_skill(days(loss), days(reference), horizon=5)
    np.testing.assert_allclose(found.estimate, 1 - loss.sum() / reference.sum(), rtol=1e-12)
    ratio = loss.mean() / reference.mean()
    linear = paired_bootstrap(days(loss), days(ratio * reference), horizon=5)
    np.testing.assert_allclose(found.standard_error, linear.standard_error / reference.mean(), rtol=0.01)
    assert found.block_length == linear.block_length
    assert 0.02 < found.lower < 0.03 < found.upper < 0.04
    sure = bootstrap_skill(days(np.full(20, 3.0)), days(np.full(20, 4.0)), n_resamples=99)
    assert (sure.estimate, sure.lower, sure.upper) == pytest.approx((0.25, 0.25, 0.25))


def test_user_errors() -> None:
    good = days(autoregression(40, 0.0, 1))
    with pytest.raises(ValueError, match="must be a pandas Series"):
        paired_bootstrap(good.to_numpy(), good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="differs from first in 1 days"):
        paired_bootstrap(good, good.iloc[:-1])
    with pytest.raises(ValueError, match="ascending order"):
        paired_bootstrap(good[::-1], good)
    with pytest.raises(ValueError, match="only 9 days"):
        paired_bootstrap(good.iloc[:9], good.iloc[:9])
    with pytest.raises(ValueError, match="two must fit"):
        paired_bootstrap(good, good, horizon=21)
    with pytest.raises(ValueError, match="horizon=0"):
        paired_bootstrap(good, good, horizon=0)
    with pytest.raises(ValueError, match=r"block_length=0\.5"):
        paired_bootstrap(good, good, block_length=0.5)
    with pytest.raises(ValueError, match="level=95"):
        paired_bootstrap(good, good, level=95, n_resamples=10)
    with pytest.raises(ValueError, match="n_resamples=0"):
        paired_bootstrap(good, good, n_resamples=0)
    with pytest.raises(ValueError, match="needs a positive loss"):
        bootstrap_skill(good, -good.abs())
    with pytest.raises(ValueError, match="not finite"):
        optimal_block_length(good.where(good < 0.5))
    with pytest.raises(ValueError, match="one dimension"):
        optimal_block_length(np.zeros((20, 2)))
