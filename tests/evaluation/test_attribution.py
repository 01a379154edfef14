"""Removing references date by date: against statsmodels, by hand, and on signals whose make-up is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.evaluation.attribution import attribution, neutralise
from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic, ic_summary


def market(n_days: int, names: int, seed: int) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(
        [pd.bdate_range("2020-01-01", periods=n_days), [f"S{i:03}" for i in range(names)]],
        names=["datetime", "instrument"],
    )
    values = np.random.default_rng(seed).normal(size=(len(index), 5))
    return pd.DataFrame(values, index, ["reversal", "volatility", "own", "noise", "shock"])


def test_by_hand() -> None:
    index = pd.MultiIndex.from_product([pd.to_datetime(["2020-01-02"]), list("ABCD")], names=["datetime", "instrument"])
    score = pd.Series([1.0, 2.0, 4.0, 5.0], index)
    reference = pd.DataFrame({"x": [-1.0, 1.0, -1.0, 1.0]}, index)
    # slope: mean(x (score - 3)) = (2 - 1 - 1 + 2) / 4 = .5
    np.testing.assert_allclose(neutralise(score, reference, rank=False), [-1.5, -1.5, 1.5, 1.5])
    # ranks 1 2 3 4 and 1.5 3.5 1.5 3.5: slope .5, centred 2.5
    np.testing.assert_allclose(neutralise(score, reference), [-1.0, -1.0, 1.0, 1.0])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equal_to_statsmodels(seed: int, rank: bool) -> None:
    random = np.random.default_rng(seed)
    data = market(3, 14, seed).round(1)
    data["volatility"] *= 1e6
    data = data.mask(random.random(data.shape) < 0.05)
    residual = neutralise(data["own"], data[["reversal", "volatility", "noise"]], rank=rank)
    for day in data.index.unique("datetime"):
        rows = data.loc[day, ["own", "reversal", "volatility", "noise"]].dropna()
        rows = rows.rank() if rank else rows
        fit = sm.OLS(rows["own"], sm.add_constant(rows.drop(columns="own"))).fit()
        got = residual.loc[day]
        np.testing.assert_allclose(got[rows.index], fit.resid, atol=1e-8)
        assert got.drop(rows.index).isna().all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_residuals_know_nothing_of_the_references_and_remain_themselves(seed: int) -> None:
    data = market(2, 20, seed)
    references = data[["reversal", "volatility"]]
    residual = neutralise(data["own"] + 3 * data["reversal"], references, rank=False)
    for name in references:
        assert abs((residual * references[name]).groupby(level=0).sum()).max() < 1e-9
    assert abs(residual.groupby(level=0).sum()).max() < 1e-9
    again = neutralise(residual, references, rank=False)
    np.testing.assert_allclose(again, residual, atol=1e-10)
    # adding references to a score changes nothing of what is left
    np.testing.assert_allclose(neutralise(data["own"], references, rank=False), residual, atol=1e-9)


def test_a_score_that_is_only_its_references_leaves_exactly_nothing() -> None:
    data = market(4, 30, 1)
    references = data[["reversal", "volatility"]]
    mixed = 2.0 * data["reversal"] - 0.3 * data["volatility"] + 1e3
    assert (neutralise(mixed, references, rank=False) == 0).all()
    # a monotone function of a reference is that reference's ranks
    assert (neutralise(np.exp(data["reversal"]), references) == 0).all()
    found = attribution(mixed, data["own"], references, rank=False).loc["everything"]
    assert found["explained"] == 1.0
    assert np.isnan(found["rank_ic"])
    assert found["n_days"] == 0


def test_dependent_and_constant_references_are_no_trouble() -> None:
    data = market(3, 25, 2)
    once = neutralise(data["own"], data[["reversal"]], rank=False)
    doubled = data[["reversal"]].assign(twice=2 * data["reversal"], constant=7.0)
    np.testing.assert_allclose(neutralise(data["own"], doubled, rank=False), once, atol=1e-10)


def test_dates_with_too_few_names_and_rows_without_a_value_are_nan() -> None:
    data = market(2, 6, 3)
    first = data.index.unique("datetime")[0]
    data.loc[(first, ["S000", "S001", "S002"]), "reversal"] = np.nan
    residual = neutralise(data["own"], data[["reversal", "volatility"]])
    assert residual.loc[first].isna().all()  # three names, three coefficients
    assert residual.drop(first).notna().all()


def test_attribution_tells_reversal_from_news() -> None:
    data = market(120, 80, 4)
    label = 0.10 * data["reversal"] + 0.10 * data["own"] + data["shock"]
    references = data[["reversal", "volatility"]]
    disguised = attribution(data["reversal"] + 0.3 * data["noise"], label, references)
    news = attribution(data["reversal"] + data["own"], label, references, groups={"both": ["reversal", "volatility"]})
    assert disguised.loc["nothing", "rank_ic_t"] > 5
    assert abs(disguised.loc["reversal", "rank_ic_t"]) < 3
    assert disguised.loc["reversal", "explained"] > 0.85
    assert news.loc["everything", "rank_ic_t"] > 5
    assert news.loc["reversal", "rank_ic"] == pytest.approx(0.1, abs=0.03)
    assert news.loc["volatility", "rank_ic"] == pytest.approx(news.loc["nothing", "rank_ic"], abs=0.005)
    assert news.loc["nothing", "explained"] == 0.0
    assert news.loc["reversal", "explained"] == pytest.approx(0.5, abs=0.06)
    assert list(news.index) == ["nothing", "reversal", "volatility", "both", "everything"]
    pd.testing.assert_series_equal(news.loc["both"], news.loc["everything"], check_names=False)


def test_figures_are_those_of_the_ic_functions_on_common_entries() -> None:
    data = market(40, 30, 5)
    data.loc[data.sample(frac=0.1, random_state=1).index, "volatility"] = np.nan
    data.loc[data.sample(frac=0.1, random_state=2).index, "shock"] = np.nan
    references = data[["reversal", "volatility"]]
    table = attribution(data["own"], data["shock"], references, rank=False, newey_west_lags=3)
    common = data[["own", "shock", "reversal", "volatility"]].dropna()
    plain = ic_summary(daily_rank_ic(common["own"], common["shock"]), lags=3)
    assert table.loc["nothing", "rank_ic"] == pytest.approx(plain.mean)
    assert table.loc["nothing", "rank_ic_t"] == pytest.approx(plain.newey_west_t)
    residual = neutralise(common["own"], common[["volatility"]], rank=False)
    assert table.loc["volatility", "ic"] == pytest.approx(daily_ic(residual, common["shock"]).mean())
    own = daily_rank_ic(common["volatility"], common["shock"]).mean()
    assert table.loc["volatility", "reference_rank_ic"] == pytest.approx(own)
    assert np.isnan(table.loc["everything", "reference_rank_ic"])
    assert table["coverage"].unique() == pytest.approx([len(common) / len(data[["own", "shock"]].dropna())])


def test_order_of_levels_and_rows_does_not_matter() -> None:
    data = market(5, 20, 6)
    references = data[["reversal", "volatility"]]
    expected = neutralise(data["own"], references)
    turned = references.swaplevel().sample(frac=1.0, random_state=1)
    pd.testing.assert_series_equal(neutralise(data["own"], turned), expected)
    mixed = data["own"].sample(frac=1.0, random_state=2)
    found = neutralise(mixed, references)
    assert found.index.equals(mixed.index)
    np.testing.assert_allclose(found.loc[expected.index], expected, atol=1e-10)


def test_user_errors() -> None:
    data = market(3, 8, 7)
    references = data[["reversal"]]
    with pytest.raises(ValueError, match="at least one column"):
        neutralise(data["own"], references.iloc[:, :0])
    with pytest.raises(ValueError, match="must be the same"):
        neutralise(data["own"], references.rename_axis(["datetime", "code"]))
    with pytest.raises(ValueError, match="rename it"):
        neutralise(data["own"], references.rename(columns={"reversal": "label"}))
    with pytest.raises(ValueError, match=r"group 'all' names \['beta'\]"):
        attribution(data["own"], data["shock"], references, groups={"all": ["beta"]})
    with pytest.raises(ValueError, match="is taken"):
        attribution(data["own"], data["shock"], references, groups={"nothing": ["reversal"]})
    with pytest.raises(ValueError, match="no entry"):
        attribution(data["own"], data["shock"] * np.nan, references)
