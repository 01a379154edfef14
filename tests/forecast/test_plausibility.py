"""Trap 15: impossible bars are counted by name, and repaired ones are possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_paths import make_paths

from kronos_qlib.forecast.plausibility import count_impossible, repair_paths

GOOD = [10.0, 11.0, 9.0, 10.5, 100.0, 1000.0]


def one_path(*bars: list[float]) -> np.ndarray:
    return np.array([[bars]], dtype=np.float32)


@pytest.mark.parametrize(
    ("bar", "fault", "repaired"),
    [
        ([10.0, 10.2, 9.0, 10.5, 1.0, 1.0], "high_below_body", [10.0, 10.5, 9.0, 10.5, 1.0, 1.0]),
        ([10.0, 11.0, 10.2, 10.5, 1.0, 1.0], "low_above_body", [10.0, 11.0, 10.0, 10.5, 1.0, 1.0]),
        ([10.0, 11.0, 9.0, 10.5, -1.0, 1.0], "negative_volume", [10.0, 11.0, 9.0, 10.5, 0.0, 1.0]),
        ([10.0, 11.0, 9.0, 10.5, 1.0, -1.0], "negative_amount", [10.0, 11.0, 9.0, 10.5, 1.0, 0.0]),
        # the last close is 10: an open of -1 becomes 10
        ([-1.0, 11.0, 9.0, 10.5, 1.0, 1.0], "non_positive_price", [10.0, 11.0, 9.0, 10.5, 1.0, 1.0]),
        # a low of 0 becomes the body's bottom
        ([10.0, 11.0, 0.0, 10.5, 1.0, 1.0], "non_positive_price", [10.0, 11.0, 10.0, 10.5, 1.0, 1.0]),
    ],
)
def test_each_fault_by_hand(bar: list[float], fault: str, repaired: list[float]) -> None:
    counts = count_impossible(one_path(bar), np.array([10.0])).to_dict()
    assert counts[fault] == 1
    assert (counts["n_bars"], counts["impossible"]) == (1, 1)
    np.testing.assert_array_equal(repair_paths(one_path(bar), np.array([10.0])), one_path(repaired))


def test_high_below_low_is_two_faults_in_one_bar() -> None:
    counts = count_impossible(one_path(GOOD, [10.0, 9.0, 11.0, 10.5, 1.0, 1.0]), np.array([10.0]))
    assert (counts.n_bars, counts.impossible, counts.high_below_body, counts.low_above_body) == (2, 1, 1, 1)


def test_possible_bars_stay_as_they_are() -> None:
    values = one_path(GOOD, GOOD)
    assert count_impossible(values, np.array([10.0]), limit=0.2).impossible == 0
    np.testing.assert_array_equal(repair_paths(values, np.array([10.0]), limit=0.2), values)


def test_limit_counts_against_the_close_before_and_repairs_along_the_path() -> None:
    closes = [[[11.0, 12.5, 12.0]]]  # from 10: +10 %, +13.6 %, -4 %
    paths = make_paths(closes, [10.0])
    assert paths.impossible_bars().impossible == 0
    repaired, counts = paths.repair(limit=0.1)
    assert (counts.beyond_limit, counts.impossible, counts.n_bars) == (1, 1, 3)
    np.testing.assert_allclose(repaired.field("close")[0, 0], [11.0, 12.1, 12.0], rtol=1e-6)
    assert paths.field("close")[0, 0, 1] == 12.5  # a copy was repaired
    assert repaired.impossible_bars(limit=0.1).impossible == 0


def test_limit_may_differ_by_window() -> None:
    paths = make_paths([[[11.5]], [[11.5]]], [10.0, 10.0])
    assert paths.impossible_bars(limit=np.array([0.1, 0.2])).beyond_limit == 1


def test_a_bar_that_is_not_finite_is_counted_and_left() -> None:
    values = one_path(GOOD, [np.nan, 9.0, 11.0, 10.5, -1.0, 1.0], GOOD)
    counts = count_impossible(values, np.array([10.0]))
    assert (counts.not_finite, counts.impossible) == (1, 1)
    np.testing.assert_array_equal(repair_paths(values, np.array([10.0]), limit=0.5), values)


@given(
    arrays.arrays(np.float32, (2, 3, 4, 6), elements=st.floats(-50, 50, width=32)),
    st.none() | st.floats(0.02, 0.4),
)
def test_every_repaired_bar_is_possible(values: np.ndarray, limit: float | None) -> None:
    last = np.array([10.0, 3.0])
    repaired = repair_paths(values, last, limit)
    assert count_impossible(repaired, last, limit).impossible == 0
    np.testing.assert_array_equal(repair_paths(repaired, last, limit), repaired)


@pytest.mark.parametrize(
    ("limit", "message"),
    [(0.0, "between 0 and 1"), (10.0, "between 0 and 1"), (np.array([0.1, 0.1]), "one for each of 1 windows")],
)
def test_a_bad_limit_is_refused(limit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_paths([[[1.0]]], [1.0]).impossible_bars(limit)


def test_a_repair_needs_a_price_to_start_from() -> None:
    with pytest.raises(ValueError, match="window 1 has the last close nan"):
        make_paths([[[1.0]], [[1.0]]], [1.0, np.nan]).repair()
