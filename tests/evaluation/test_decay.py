"""Lagged scores and their ICs: by hand, against a loop over dates, and on a signal whose life is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kronos_qlib.evaluation.decay import ic_decay, lag_score, lagged_ic
from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic, ic_summary

DAYS = pd.to_datetime(["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"])


def cross_sections(n_days: int, names: int, seed: int) -> pd.Series:
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", periods=n_days), [f"S{i:02}" for i in range(names)]],
        names=["datetime", "instrument"],
    )
    return pd.Series(np.random.default_rng(seed).normal(size=len(index)), index)


def score_of(rows: dict[tuple[int, str], float]) -> pd.Series:
    index = pd.MultiIndex.from_tuples([(DAYS[d], name) for d, name in rows], names=["datetime", "instrument"])
    return pd.Series(list(rows.values()), index, dtype=float, name="score")


def test_lag_by_hand() -> None:
    score = score_of({(0, "A"): 1, (0, "B"): 2, (1, "B"): np.nan, (1, "A"): 3, (3, "A"): 5})
    expected = score_of({(1, "A"): 1, (1, "B"): 2, (2, "A"): 3})
    pd.testing.assert_series_equal(lag_score(score, 1, DAYS), expected, check_freq=False)
    # without sessions, the date without a score does not count
    assert list(lag_score(score, 1).index) == [(DAYS[1], "A"), (DAYS[1], "B"), (DAYS[3], "A")]
    pd.testing.assert_series_equal(lag_score(score, 0), score.dropna().sort_index())


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equal_to_a_loop_over_dates(seed: int, rank: bool) -> None:
    random = np.random.default_rng(seed)
    score, label = cross_sections(12, 8, seed), cross_sections(12, 8, seed + 1)
    score[random.random(len(score)) < 0.2] = np.nan
    label = label[random.random(len(label)) < 0.8]
    found = lagged_ic(score, label, [0, 1, 4], rank=rank)
    dates = score.index.unique("datetime")
    correlate = stats.spearmanr if rank else stats.pearsonr
    for day, row in found.iterrows():
        for lag, value in row.items():
            pair = pd.concat(
                [score.loc[dates[dates.get_loc(day) - lag]], label.loc[day]], axis=1, join="inner"
            ).dropna()
            np.testing.assert_allclose(value, correlate(pair.iloc[:, 0], pair.iloc[:, 1]).statistic, atol=1e-12)
    assert found.index.min() >= dates[4]


def test_lag_nothing_is_the_plain_ic() -> None:
    score, label = cross_sections(20, 10, 1), cross_sections(20, 10, 2)
    pd.testing.assert_series_equal(lagged_ic(score, label, [0])[0], daily_rank_ic(score, label), check_names=False)
    pd.testing.assert_series_equal(
        lagged_ic(score, label, [0], rank=False)[0], daily_ic(score, label), check_names=False
    )


def test_all_lags_are_judged_on_the_same_days() -> None:
    score, label = cross_sections(30, 10, 1), cross_sections(30, 10, 2)
    found = lagged_ic(score, label, [0, 5, 10])
    assert len(found) == 20
    np.testing.assert_array_equal(found[0], daily_rank_ic(score, label).iloc[10:])
    table = ic_decay(score, label, [0, 5, 10], newey_west_lags=2)
    assert list(table.index) == [0, 5, 10]
    assert (table["n_days"] == 20).all()
    assert table.loc[5].to_dict() == ic_summary(found[5], lags=2).to_dict()


def test_a_signal_that_lives_two_days_is_seen_to() -> None:
    label = cross_sections(60, 40, 3)
    wide = label.unstack("instrument")
    foresight = (wide.shift(-2) + 0.5 * wide).stack().rename_axis(["datetime", "instrument"])
    means = ic_decay(foresight, label, [0, 1, 2, 3])["mean"]
    assert means[2] > 0.75
    assert 0.3 < means[0] < 0.6
    assert abs(means[[1, 3]]).max() < 0.08


def test_user_errors() -> None:
    score = cross_sections(5, 4, 1)
    with pytest.raises(ValueError, match="look ahead"):
        lag_score(score, -1)
    with pytest.raises(ValueError, match="are no sessions"):
        lag_score(score, 1, pd.DatetimeIndex(score.index.unique("datetime")[1:]))
    with pytest.raises(ValueError, match="ascending"):
        lag_score(score, 1, pd.DatetimeIndex(score.index.unique("datetime")[::-1]))
    with pytest.raises(ValueError, match="each once"):
        lagged_ic(score, score, [1, 1])
    with pytest.raises(ValueError, match="at least one"):
        lagged_ic(score, score, [])
    with pytest.raises(ValueError, match="datetime and instrument"):
        lag_score(score.rename_axis(["datetime", "code"]), 1)
