"""Shuffling within dates keeps each date's values, loses who has them, and depends on nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.evaluation.controls import shuffle_within_date
from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary


def panel(n_days: int, names: int, seed: int, start: str = "2020-01-01") -> pd.Series:
    index = pd.MultiIndex.from_product(
        [pd.bdate_range(start, periods=n_days), [f"S{i:02}" for i in range(names)]], names=["datetime", "instrument"]
    )
    return pd.Series(np.random.default_rng(seed).normal(size=len(index)), index, name="label")


@given(st.integers(0, 2**32 - 1))
def test_each_date_keeps_its_values_and_holes_stay(seed: int) -> None:
    series = panel(5, 9, seed)
    series[np.random.default_rng(seed).random(len(series)) < 0.2] = np.nan
    shuffled = shuffle_within_date(series, seed)
    assert shuffled.index.equals(series.index)
    assert shuffled.name == "label"
    np.testing.assert_array_equal(shuffled.isna(), series.isna())
    for day in series.index.unique("datetime"):
        np.testing.assert_array_equal(np.sort(shuffled.loc[day].dropna()), np.sort(series.loc[day].dropna()))


def test_a_perfect_score_fails_on_shuffled_labels() -> None:
    label = panel(250, 60, 1)
    assert daily_rank_ic(label, label).mean() == pytest.approx(1.0)
    for control in (daily_rank_ic(label, shuffle_within_date(label)), daily_rank_ic(shuffle_within_date(label), label)):
        assert abs(ic_summary(control).newey_west_t) < 3
        assert abs(control.mean()) < 4 / np.sqrt(250 * 59)


def test_what_a_date_as_a_whole_knows_stays() -> None:
    level = panel(50, 5, 1) * 0.01 + np.repeat(np.arange(50.0), 5)
    shuffled = shuffle_within_date(level)
    np.testing.assert_allclose(shuffled.groupby(level=0).mean(), level.groupby(level=0).mean())


def test_every_arrangement_is_as_likely() -> None:
    days = panel(6000, 3, 1)
    order = shuffle_within_date(days).groupby(level=0).rank().to_numpy().reshape(-1, 3)
    before = days.groupby(level=0).rank().to_numpy().reshape(-1, 3)
    moved = np.take_along_axis(order, np.argsort(before, axis=1), axis=1)
    _, counts = np.unique(moved, axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 130  # 4.5 standard deviations


def test_order_of_rows_other_dates_and_levels_do_not_matter() -> None:
    series = panel(20, 8, 2)
    shuffled = shuffle_within_date(series, 5)
    mixed = series.sample(frac=1.0, random_state=1)
    pd.testing.assert_series_equal(shuffle_within_date(mixed, 5).sort_index(), shuffled)
    few = series.loc[series.index.unique("datetime")[7:9]]
    pd.testing.assert_series_equal(shuffle_within_date(few, 5), shuffled.loc[few.index])
    turned = shuffle_within_date(series.swaplevel(), 5)
    pd.testing.assert_series_equal(turned.swaplevel(), shuffled)
    assert not shuffle_within_date(series, 6).equals(shuffled)
    pd.testing.assert_series_equal(shuffle_within_date(series, 5), shuffled)


def test_dates_before_1970_and_whole_numbers() -> None:
    old = panel(3, 6, 3, start="1960-01-04").rank().astype(np.int64)
    shuffled = shuffle_within_date(old)
    assert shuffled.dtype == np.int64
    assert sorted(shuffled) == sorted(old)


def test_the_input_is_left_alone() -> None:
    series = panel(4, 6, 1)
    before = series.copy()
    shuffle_within_date(series)
    pd.testing.assert_series_equal(series, before)
    with pytest.raises(ValueError, match="must be indexed by"):
        shuffle_within_date(series.droplevel("datetime"))
