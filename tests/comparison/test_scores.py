"""One rule for suspended names: the last score is kept so long, whatever a learner says of the empty day."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kronos_qlib.comparison.scores import blend, carry_scores

DAYS = pd.date_range("2020-01-01", periods=5, name="datetime")


def table(**ages: list[int]) -> pd.Series:
    frame = pd.DataFrame(ages, index=DAYS).rename_axis(columns="instrument")
    return frame.stack().astype("int64")


def scores(**values: list[float]) -> pd.Series:
    return pd.DataFrame(values, index=DAYS).rename_axis(columns="instrument").stack()


def test_a_suspended_name_keeps_its_last_score() -> None:
    age = table(a=[0, 1, 2, 0, 0], b=[0, 0, 0, 0, 0])
    raw = scores(a=[1.0, 9.0, 9.0, 4.0, 5.0], b=[1.0, 2.0, 3.0, 4.0, 5.0])
    laid = carry_scores(raw, age, carry=20).unstack("instrument")
    assert laid["a"].tolist() == [1.0, 1.0, 1.0, 4.0, 5.0]
    assert laid["b"].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_it_is_kept_so_long_and_no_longer() -> None:
    age = table(a=[0, 1, 2, 3, -1])
    laid = carry_scores(scores(a=[1.0, 9.0, 9.0, 9.0, 9.0]), age, carry=2)
    assert laid.fillna(0).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert carry_scores(scores(a=[1.0] * 5), age, carry=0).notna().tolist() == [True, False, False, False, False]


def test_a_missing_score_on_a_day_of_trade_stays_missing() -> None:
    age = table(a=[0, 0, 0, 1, 1])
    laid = carry_scores(scores(a=[1.0, np.inf, 3.0, 9.0, 9.0]), age, carry=20)
    assert laid.fillna(-1).tolist() == [1.0, -1.0, 3.0, 3.0, 3.0]


def test_rows_outside_the_table_and_their_order_do_not_count() -> None:
    age = table(a=[0, 0, 0, 0, 0])
    raw = scores(a=[1.0, 2.0, 3.0, 4.0, 5.0], other=[9.0] * 5)
    shuffled = raw.sample(frac=1.0, random_state=1).swaplevel()
    assert carry_scores(shuffled, age, 20).equals(carry_scores(raw, age, 20))
    assert carry_scores(raw, age, 20).index.equals(age.index)


def test_a_blend_weighs_both_alike_and_takes_a_missing_one_for_its_mean() -> None:
    nan = np.nan
    small = scores(a=[1.0] * 5, b=[2.0] * 5, c=[3.0] * 5)
    large = pd.DataFrame(
        {"a": [300.0, nan] * 2 + [nan], "b": [200.0] * 4 + [nan], "c": [100.0] * 4 + [nan]}, index=DAYS
    )
    found = blend([small, large.rename_axis(columns="instrument").stack(future_stack=True)]).unstack("instrument")
    assert found.iloc[0].tolist() == [0.0, 0.0, 0.0]  # opposite, whatever their units
    half = np.sqrt(0.5)
    np.testing.assert_allclose(found.iloc[1], [-0.5, half / 2, 0.5 - half / 2])
    np.testing.assert_allclose(found.iloc[4], [-0.5, 0.0, 0.5])
    assert blend([small * nan, small * nan]).isna().all()
