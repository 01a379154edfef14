"""Costs, years and groups, on figures that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.evaluate import risk_analysis

from kronos_qlib.evaluation.breakdown import by_group, by_year, cost_sensitivity

DAYS = pd.date_range("2020-12-29", periods=6, name="datetime")


def test_costs_take_what_was_traded_times_the_rate() -> None:
    gross = pd.Series([0.01, -0.02, 0.01, 0.0, 0.0, 0.006], DAYS)
    traded = pd.Series([1.0, 0.2, 0.2, 0.2, 0.2, 0.2], DAYS)
    table = cost_sensitivity(gross, traded, [0, 10], days_a_year=6)
    assert table["net_excess_return"].tolist() == pytest.approx([0.006, 0.006 - 2.0 * 0.001])
    assert table["cost"].tolist() == pytest.approx([0.0, 0.002])
    assert table.loc[0, "max_drawdown"] == pytest.approx(-0.02)


def test_without_cost_the_figures_are_qlibs() -> None:
    gross = pd.Series(np.random.default_rng(0).normal(0, 0.01, 300), pd.date_range("2019-01-01", periods=300))
    row = cost_sensitivity(gross, gross * 0.0 + 0.1, [0]).iloc[0]
    qlib = risk_analysis(gross, freq="day")["risk"]
    assert row["net_excess_return"] == pytest.approx(qlib["annualized_return"])
    assert row["information_ratio"] == pytest.approx(qlib["information_ratio"])
    assert row["max_drawdown"] == pytest.approx(qlib["max_drawdown"])


def test_costs_refuse_what_they_cannot_use() -> None:
    gross = pd.Series(0.0, DAYS)
    with pytest.raises(ValueError, match="same days"):
        cost_sensitivity(gross, gross.iloc[1:])
    with pytest.raises(ValueError, match="below 0"):
        cost_sensitivity(gross, gross, [-1])
    with pytest.raises(ValueError, match="finite"):
        cost_sensitivity(gross * np.nan, gross)


def test_years_are_apart() -> None:
    daily = pd.DataFrame({"ic": [0.1, 0.2, 0.3, -0.1, np.nan, -0.3]}, DAYS)
    table = by_year(daily)
    assert table.index.tolist() == [2020, 2021]
    assert table["ic"]["mean"].tolist() == pytest.approx([0.2, -0.2])
    assert table["ic"]["days"].tolist() == [3, 2]
    assert by_year(daily.iloc[:0]).empty


def test_groups_are_alike_in_the_column_and_judged_apart() -> None:
    """Small names are ordered right and large ones wrong: +1 in the first group, -1 in the second."""
    index = pd.MultiIndex.from_product([DAYS[:2], list("abcdefgh")], names=["datetime", "instrument"])
    size = pd.Series([1, 2, 3, 4, 10, 20, 30, 40] * 2, index, dtype=float)
    label = pd.Series([0.1, 0.2, 0.3, 0.4] * 4, index)
    score = pd.Series([1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0] * 2, index)
    table = by_group(score, label, size, groups=2)
    assert table["rank_ic"].tolist() == pytest.approx([1.0, -1.0])
    assert table["n_days"].tolist() == [2, 2]
    # six names a day left, d e f in the upper group: scores 4 4 3 (ranks 2.5 2.5 1) on labels of ranks 3 1 2
    hidden = size.where(size < 30)
    assert by_group(score, label, hidden, groups=2)["rank_ic"].tolist() == pytest.approx([1.0, 0.0])
    with pytest.raises(ValueError, match="groups"):
        by_group(score, label, size, groups=1)
