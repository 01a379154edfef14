"""Figures on either side of the cutoff: each part is what the figures of its rows alone are."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.evaluation.split import cutoff_masks, split_figures


def signal(days: int = 60, names: int = 8) -> tuple[pd.Series, pd.Series]:
    """A score that knows the label up to 2020-02-14 and is noise afterwards."""
    dates = pd.bdate_range("2020-01-01", periods=days)
    index = pd.MultiIndex.from_product([dates, [f"S{i}" for i in range(names)]], names=["datetime", "instrument"])
    random = np.random.default_rng(0)
    label = pd.Series(random.normal(size=len(index)), index=index)
    noise = pd.Series(random.normal(size=len(index)), index=index)
    known = index.get_level_values("datetime") <= pd.Timestamp("2020-02-14")
    return label.where(known, noise).rename("score"), label


def test_each_part_has_the_figures_of_its_own_rows() -> None:
    score, label = signal()
    parts = split_figures(score, label, pd.Timestamp("2020-02-14"), pd.Timestamp("2020-02-28"))
    assert list(parts) == ["all", "before_cutoff", "after_cutoff", "after_valid"]
    assert parts["before_cutoff"]["rank_ic"]["mean"] == pytest.approx(1.0)
    assert abs(parts["after_cutoff"]["rank_ic"]["mean"]) < 0.25
    dates = score.index.get_level_values("datetime")
    alone = ic_summary(daily_rank_ic(score[dates > "2020-02-28"], label[dates > "2020-02-28"]))
    assert parts["after_valid"]["rank_ic"]["mean"] == pytest.approx(alone.mean)
    assert parts["after_valid"]["rank_ic"]["newey_west_t"] == pytest.approx(alone.newey_west_t)
    assert parts["before_cutoff"]["days"] + parts["after_cutoff"]["days"] == parts["all"]["days"] == 60
    assert parts["before_cutoff"]["rows"] + parts["after_cutoff"]["rows"] == parts["all"]["rows"] == 480
    assert (parts["before_cutoff"]["last"], parts["after_cutoff"]["first"]) == ("2020-02-14", "2020-02-17")


def test_without_a_cutoff_there_is_one_part_and_a_valid_span_inside_the_training_adds_none() -> None:
    score, label = signal(10)
    assert list(split_figures(score, label, None, pd.Timestamp("2020-01-05"))) == ["all"]
    days = pd.bdate_range("2020-01-01", periods=3)
    assert list(cutoff_masks(days, pd.Timestamp("2020-01-02"), pd.Timestamp("2020-01-02"))) == [
        "all", "before_cutoff", "after_cutoff",
    ]  # fmt: skip


def test_the_day_of_the_cutoff_lies_before_it_with_all_its_bars() -> None:
    stamps = pd.DatetimeIndex(["2020-01-02 09:45", "2020-01-02 15:00", "2020-01-03 09:45"])
    assert cutoff_masks(stamps, pd.Timestamp("2020-01-02"))["before_cutoff"].tolist() == [True, True, False]


def test_a_part_without_days_has_figures_of_none_and_the_whole_is_json() -> None:
    score, label = signal(5)
    parts = split_figures(score, label, pd.Timestamp("2030-01-01"))
    assert parts["after_cutoff"]["days"] == parts["after_cutoff"]["rows"] == 0
    assert parts["after_cutoff"]["ic"]["mean"] is None
    assert parts["after_cutoff"]["first"] is None
    json.dumps(parts, allow_nan=False)


def test_index_levels_may_stand_the_other_way_round() -> None:
    score, label = signal(10)
    swapped = split_figures(score, label.swaplevel().sort_index(), pd.Timestamp("2020-01-06"))
    assert swapped == split_figures(score, label, pd.Timestamp("2020-01-06"))
