"""Daily ICs against scipy and by hand, and the Newey–West t against a regression's sandwich formula."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic, ic_summary, newey_west_lags


def series(days: dict[str, list[float]], names: str = "ABCDEFGH") -> pd.Series:
    rows = {(pd.Timestamp(day), names[i]): v for day, values in days.items() for i, v in enumerate(values)}
    index = pd.MultiIndex.from_tuples(rows, names=["datetime", "instrument"])
    return pd.Series(list(rows.values()), index=index, dtype=float)


SCORE = series({"2020-01-02": [1, 2, 3], "2020-01-03": [3, 2, 1], "2020-01-06": [1, 2, 4]})
LABEL = series({"2020-01-02": [2, 4, 6], "2020-01-03": [1, 2, 30], "2020-01-06": [1, 3, 2]})


def test_by_hand() -> None:
    ic = daily_ic(SCORE, LABEL)
    assert ic.name == "ic"
    assert ic.index.name == "datetime"
    # day 3: deviations (-4/3, -1/3, 5/3) and (-1, 1, 0): sum 1, norms sqrt(42)/3 and sqrt(2)
    np.testing.assert_allclose(ic.iloc[[0, 2]], [1.0, 1.0 / (np.sqrt(42) / 3 * np.sqrt(2))])
    rank_ic = daily_rank_ic(SCORE, LABEL)
    assert rank_ic.name == "rank_ic"
    np.testing.assert_allclose(rank_ic, [1.0, -1.0, 0.5])


@given(st.integers(0, 2**32 - 1))
def test_equal_to_scipy_on_ties_and_missing_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=4), list("ABCDEFGHIJ")], names=["datetime", "instrument"]
    )
    score = pd.Series(random.integers(0, 6, len(index)).astype(float), index)
    label = pd.Series(random.normal(size=len(index)).round(1), index)
    score[random.random(len(index)) < 0.2] = np.nan
    label[random.random(len(index)) < 0.2] = np.inf
    ic, rank_ic = daily_ic(score, label), daily_rank_ic(score, label)
    for day in index.unique(0):
        a, b = score.loc[day], label.loc[day]
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
        if len(a) < 3:
            assert day not in ic.index
        elif a.nunique() == 1 or b.nunique() == 1:
            assert np.isnan(ic[day])
            assert np.isnan(rank_ic[day])
        else:
            np.testing.assert_allclose(ic[day], stats.pearsonr(a, b).statistic, atol=1e-12)
            np.testing.assert_allclose(rank_ic[day], stats.spearmanr(a, b).statistic, atol=1e-12)


def test_pairs_are_matched_by_index_not_by_position() -> None:
    shuffled = LABEL.sample(frac=1.0, random_state=3)
    swapped = shuffled.swaplevel()
    pd.testing.assert_series_equal(daily_ic(SCORE, swapped), daily_ic(SCORE, LABEL))
    pd.testing.assert_series_equal(daily_rank_ic(SCORE.swaplevel(), shuffled), daily_rank_ic(SCORE, LABEL))


def test_days_without_enough_pairs_are_left_out_and_constant_days_are_nan() -> None:
    score = series({"2020-01-02": [1, 1, 1], "2020-01-03": [1, 2], "2020-01-06": [1, 2, np.nan, 4]})
    label = series({"2020-01-02": [1, 2, 3], "2020-01-03": [1, 2], "2020-01-06": [np.nan, 2, 3, 4]})
    ic = daily_ic(score, label)
    assert list(ic.index) == [pd.Timestamp("2020-01-02")]
    assert ic.isna().all()
    assert list(daily_ic(score, label, min_names=2).index) == list(
        pd.to_datetime(["2020-01-02", "2020-01-03", "2020-01-06"])
    )


def test_a_constant_far_from_zero_is_still_constant() -> None:
    assert daily_ic(series({"2020-01-02": [0.1 + 0.2] * 5}), series({"2020-01-02": [1, 2, 3, 4, 5]})).isna().all()


def test_ic_does_not_mind_large_offsets() -> None:
    np.testing.assert_allclose(daily_ic(SCORE + 1e8, LABEL), daily_ic(SCORE, LABEL), rtol=1e-7)


def test_newey_west_equals_the_sandwich_of_a_regression_on_a_constant() -> None:
    random = np.random.default_rng(5)
    shocks = random.normal(size=205)
    values = 0.03 + shocks[5:] + 0.6 * shocks[4:-1] + 0.3 * shocks[3:-2]
    found = ic_summary(pd.Series(values, pd.bdate_range("2020-01-01", periods=200)), lags=6)
    n, lags = 200, 6
    e = values - values.mean()
    weights = np.maximum(0, 1 - np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / (lags + 1))
    # X'X = n for a constant, so the sandwich is (e' W e) / n^2
    standard_error = np.sqrt(e @ weights @ e / n**2)
    np.testing.assert_allclose(found.newey_west_t, values.mean() / standard_error, rtol=1e-12)
    assert found.lags == 6


def test_without_lags_it_is_the_plain_t() -> None:
    values = np.array([0.01, 0.03, -0.02, 0.05, 0.00, 0.04])
    found = ic_summary(pd.Series(values), lags=0)
    plain = stats.ttest_1samp(values, 0.0).statistic
    np.testing.assert_allclose(found.newey_west_t, plain * np.sqrt(6 / 5), rtol=1e-12)
    np.testing.assert_allclose(found.mean, 0.11 / 6)
    np.testing.assert_allclose(found.std, values.std(ddof=1))
    np.testing.assert_allclose(found.icir, values.mean() / values.std(ddof=1))
    assert found.positive_share == pytest.approx(4 / 6)
    assert found.n_days == 6


def test_autocorrelated_days_lower_the_t() -> None:
    steps = np.repeat([0.05, -0.01, 0.04, 0.02, -0.02, 0.03], 10) + np.tile([0.001, -0.001], 30)
    daily = pd.Series(steps)
    assert ic_summary(daily, lags=9).newey_west_t < 0.6 * ic_summary(daily, lags=0).newey_west_t


def test_undefined_days_are_counted_not_used() -> None:
    found = ic_summary(pd.Series([0.1, np.nan, 0.3]))
    assert (found.n_days, found.n_undefined) == (2, 1)
    assert found.mean == pytest.approx(0.2)
    assert found.to_dict()["n_days"] == 2


@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.1, 0.1]])
def test_no_spread_gives_nan_not_infinity(values: list[float]) -> None:
    found = ic_summary(pd.Series(values, dtype=float))
    assert np.isnan(found.icir)
    assert np.isnan(found.newey_west_t)


def test_the_rule_for_lags() -> None:
    assert [newey_west_lags(n) for n in (0, 10, 100, 870)] == [0, 2, 4, 6]


def test_user_errors() -> None:
    with pytest.raises(ValueError, match="must be a pandas Series"):
        daily_ic(SCORE.to_numpy(), LABEL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be indexed by"):
        daily_ic(SCORE.reset_index(drop=True), LABEL)
    with pytest.raises(ValueError, match="more than one value"):
        daily_ic(SCORE, pd.concat([LABEL, LABEL.iloc[:1]]))
    with pytest.raises(ValueError, match="must be the same"):
        daily_ic(SCORE, LABEL.rename_axis(["datetime", "code"]))
    with pytest.raises(ValueError, match="at least 2"):
        daily_ic(SCORE, LABEL, min_names=1)
    with pytest.raises(ValueError, match="ascending"):
        ic_summary(pd.Series([1.0, 2.0], index=[2, 1]))
    with pytest.raises(ValueError, match="lags must be 0 or more"):
        ic_summary(pd.Series([1.0, 2.0]), lags=-1)


@pytest.mark.parametrize("lags", [0, 1, 6, 30])
def test_newey_west_equals_statsmodels(lags: int) -> None:
    import statsmodels.api as sm

    shocks = np.random.default_rng(3).normal(size=305)
    values = 0.02 + shocks[5:] + 0.5 * shocks[4:-1]
    fit = sm.OLS(values, np.ones((300, 1))).fit(cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": False})
    np.testing.assert_allclose(ic_summary(pd.Series(values), lags=lags).newey_west_t, fit.tvalues[0], rtol=1e-10)
