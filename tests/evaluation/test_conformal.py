"""Recalibration: amounts that can be read off by hand, coverage that follows, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.evaluation.conformal import IntervalCalibration, calibrate_intervals
from kronos_qlib.evaluation.probability import interval_coverage


def nine_windows() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Intervals -1 to 1 around 0, and truths 0.5, 1, …, 4.5: the needed factor is the truth itself."""
    low, high = np.full((9, 1), -1.0), np.full((9, 1), 1.0)
    return low, np.zeros((9, 1)), high, np.arange(1, 10).reshape(9, 1) * 0.5


def test_the_factor_is_the_right_order_statistic() -> None:
    # k = ceil(10 x 0.8) = 8: the eighth smallest need is 4.0
    found = calibrate_intervals(*nine_windows(), level=0.8)
    assert found.amounts.tolist() == [4.0]
    assert found.counts.tolist() == [9]


def test_the_shift_is_what_the_truth_lies_beyond_the_end() -> None:
    found = calibrate_intervals(*nine_windows(), level=0.8, method="shift")
    assert found.amounts.tolist() == [3.0]
    low, high = found.apply([[-1.0]], [[0.0]], [[1.0]])
    assert (low[0, 0], high[0, 0]) == (-4.0, 4.0)


def test_a_whole_rank_is_not_rounded_up_by_its_last_digit() -> None:
    # 10 x 0.9 must be 9, though 10 * 0.9 style products may exceed it by an ulp
    assert calibrate_intervals(*nine_windows(), level=0.9).amounts.tolist() == [4.5]


def test_intervals_that_are_too_wide_get_narrower() -> None:
    low, centre, high, truth = nine_windows()
    found = calibrate_intervals(10 * low, centre, 10 * high, truth, level=0.8)
    assert found.amounts == pytest.approx([0.4])
    shifted = calibrate_intervals(10 * low, centre, 10 * high, truth, level=0.8, method="shift")
    assert shifted.amounts == pytest.approx([-6.0])
    turned = shifted.apply([[-1.0]], [[0.0]], [[3.0]])
    assert (turned[0][0, 0], turned[1][0, 0]) == (1.0, 1.0)


def test_each_step_has_its_own_amount_and_unknown_truths_do_not_count() -> None:
    low, centre, high, truth = (np.repeat(part, 2, axis=1) for part in nine_windows())
    truth[:, 1] *= 10.0
    truth[0, 1] = np.nan
    # the second step has 8 windows: k = ceil(9 x 0.8) = 8, the largest of 10, 15, …, 45
    found = calibrate_intervals(low, centre, high, truth, level=0.8)
    assert found.amounts.tolist() == [4.0, 45.0]
    assert found.counts.tolist() == [9, 8]


def test_an_asymmetric_interval_keeps_its_shape_when_scaled() -> None:
    found = IntervalCalibration(0.9, "scale", np.array([2.0]), np.array([9]))
    low, high = found.apply([[-1.0]], [[0.0]], [[3.0]])
    assert (low[0, 0], high[0, 0]) == (-2.0, 6.0)
    assert np.isnan(found.apply([[np.nan]], [[0.0]], [[1.0]])[0]).all()


@given(st.integers(0, 1000), st.floats(0.3, 3.0), st.sampled_from(["scale", "shift"]))
@settings(max_examples=25, deadline=None)
def test_new_windows_of_the_same_kind_are_covered_as_promised(seed: int, narrow: float, method: str) -> None:
    """Normal truths, intervals wrong by a factor: after recalibration 90 % hold, within the error of 4,000 windows."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((4000, 1))
    reach = np.full_like(truth, 1.6449 * narrow)
    found = calibrate_intervals(-reach[:2000], 0 * reach[:2000], reach[:2000], truth[:2000], level=0.9, method=method)
    low, high = found.apply(-reach[2000:], 0 * reach[2000:], reach[2000:])
    coverage = interval_coverage(low, high, truth[2000:])["coverage"].iloc[0]
    assert abs(coverage - 0.9) < 5 * np.sqrt(2 * 0.09 / 2000)


def test_it_survives_json() -> None:
    found = calibrate_intervals(*nine_windows(), level=0.8)
    again = IntervalCalibration.from_dict(found.to_dict())
    assert again.to_dict() == found.to_dict()


def test_what_cannot_be_is_refused() -> None:
    low, centre, high, truth = nine_windows()
    with pytest.raises(ValueError, match="9 windows"):
        calibrate_intervals(low, centre, high, truth, level=0.95)
    with pytest.raises(ValueError, match="outside it"):
        calibrate_intervals(high, centre, low, truth)
    with pytest.raises(ValueError, match="method"):
        calibrate_intervals(low, centre, high, truth, method="magic")
    with pytest.raises(ValueError, match="level"):
        calibrate_intervals(low, centre, high, truth, level=1.0)
    with pytest.raises(ValueError, match="shape"):
        calibrate_intervals(low, centre, high, truth[:5])
    with pytest.raises(ValueError, match="learned for 1"):
        calibrate_intervals(low, centre, high, truth).apply(np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 2)))
