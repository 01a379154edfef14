"""The report's figures, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_inputs import made_up

from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.report import contents

DAYS = pd.to_datetime(["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"])


def series(values: list[list[float]]) -> pd.Series:
    """One row a day, one column a stock."""
    days = DAYS[: len(values)]
    index = pd.MultiIndex.from_product([days, [f"S{i}" for i in range(len(values[0]))]])
    return pd.Series(np.ravel(values), index.set_names(["datetime", "instrument"]))


def test_net_excess_takes_benchmark_and_cost_off() -> None:
    backtest = pd.DataFrame({"return": [0.03, 0.0], "bench": [0.01, 0.02], "cost": [0.001, 0.0]}, index=DAYS[:2])
    assert contents.net_excess(backtest).tolist() == pytest.approx([0.019, -0.02])


def test_quantile_returns_by_hand() -> None:
    """Two groups of two; day 1: (1 % + 3 %) / 2 - 4 % = -2 %, and the other half; day 2 the other way round."""
    score = series([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    label = series([[0.01, 0.03, 0.05, 0.07], [0.01, 0.01, 0.01, 0.05]])
    table = contents.quantile_returns(score, label, groups=2)
    # day 2: the lower half by score are the stocks 2 and 3 with 1 % and 5 %, mean 3 %, the day's is 2 %
    assert table["mean"].tolist() == pytest.approx([(-0.02 + 0.01) / 2, (0.02 - 0.01) / 2])
    assert table["error"].tolist() == pytest.approx([0.03 / 2**0.5 / 2**0.5] * 2)


def test_quantile_returns_leave_thin_days_and_missing_labels_out() -> None:
    score = series([[1.0, 2.0, 3.0], [1.0, 2.0, np.nan]])
    label = series([[0.0, 0.03, 0.03], [0.0, 0.5, 0.1]])
    assert contents.quantile_returns(score, label, groups=3)["mean"].tolist() == pytest.approx([-0.02, 0.01, 0.01])


def test_rolling_ic_is_a_mean_with_two_errors() -> None:
    band = contents.rolling_ic(pd.Series([0.0, 0.2, 0.4, np.nan], DAYS), 2)
    assert list(band.index) == list(DAYS[1:3])
    assert band["mean"].tolist() == pytest.approx([0.1, 0.3])
    # std of two values 0.2 apart is 0.2 / √2, its error 0.1, twice that 0.2
    assert (band["high"] - band["mean"]).tolist() == pytest.approx([0.2, 0.2])
    assert (band["mean"] - band["low"]).tolist() == pytest.approx([0.2, 0.2])


def test_the_headline_agrees_with_the_evaluation() -> None:
    inputs = made_up()
    table = contents.headline(inputs)
    summary = ic_summary(daily_rank_ic(inputs.score, inputs.label))
    row = table.loc["Rank IC"]
    assert (row["value"], row["t"]) == (summary.mean, summary.newey_west_t)
    # half the interval over 1.96 is the standard error, and the mean over it is t
    assert row["value"] / ((row["high"] - row["low"]) / 2 / 1.959964) == pytest.approx(summary.newey_west_t, rel=1e-6)
    net = contents.net_excess(inputs.backtest)
    assert table.loc["Net excess return a year", "value"] == pytest.approx(net.mean() * 238)
    assert table.loc["Information ratio after cost", "value"] == pytest.approx(net.mean() / net.std() * 238**0.5)
    assert "Net excess return a year" not in contents.headline(made_up(backtest=None)).index


def test_controls_fail_on_a_true_signal_and_pass_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = made_up(strength=1.0)
    assert contents.headline(inputs).loc["Rank IC", "t"] > 20
    table = contents.controls(inputs.score, inputs.label)
    assert table["passed"].all()
    assert table["mean"].abs().max() < 0.02
    # a shuffle that does not shuffle must be found out
    monkeypatch.setattr(contents, "shuffle_within_date", lambda values, seed: values)
    assert not contents.controls(inputs.score, inputs.label)["passed"].any()


def test_worst_days_come_with_the_scores_that_made_them() -> None:
    """A score of one close is traded at the next close and earns on the day after: two sessions later."""
    score = series([[1.0, 2.0, 3.0]] * 4)
    label = series([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    backtest = pd.DataFrame(
        {"return": [0.0, 0.01, -0.02, -0.05], "bench": 0.0, "cost": 0.0, "turnover": 0.1}, index=DAYS
    )  # fmt: skip
    table = contents.worst_days(made_up(score=score, label=label, backtest=backtest), count=2)
    assert list(table.index) == [DAYS[3], DAYS[2]]
    assert table["rank_ic"].tolist() == pytest.approx([-1.0, 1.0])
    alone = contents.worst_days(made_up(score=score, label=label, backtest=None), count=1)
    assert list(alone.index) == [DAYS[1]]


def test_by_year_splits_at_new_year() -> None:
    inputs = made_up()
    table = contents.by_year(inputs)
    assert list(table.index) == [2019, 2020]
    assert table["days"].sum() == 120
    assert table["net_excess"].sum() == pytest.approx(contents.net_excess(inputs.backtest).sum())


def test_coverage_counts_what_lies_inside() -> None:
    pit = pd.DataFrame({1: [0.1, 0.3, 0.5, 0.99], 2: [0.3, 0.6, np.nan, 0.8]})
    table = contents.coverage(pit, (0.5, 0.9))
    assert table[0.5].tolist() == pytest.approx([0.5, 2 / 3])
    assert table[0.9].tolist() == pytest.approx([0.75, 1.0])


def test_bad_inputs_are_told() -> None:
    with pytest.raises(ValueError, match="no column"):
        made_up(backtest=pd.DataFrame({"return": [0.0]}))
    with pytest.raises(ValueError, match="control_seeds"):
        made_up(control_seeds=0)
    with pytest.raises(ValueError, match="at least 2 days"):
        contents.rolling_ic(pd.Series([0.1]), 1)
