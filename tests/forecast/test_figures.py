"""Tables of figures: errors by date, PIT distance, what is left without references, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kronos_qlib.evaluation.attribution import neutralise
from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.forecast.figures import dated_mean, overlap_lags, pit_deviation, signal_table

INDEX = pd.MultiIndex.from_product(
    [pd.bdate_range("2020-01-06", periods=30), [f"S{i:02d}" for i in range(12)]], names=["datetime", "instrument"]
)
RNG = np.random.default_rng(2)
REFERENCES = pd.DataFrame(RNG.normal(size=(len(INDEX), 3)), INDEX, columns=["reversal_5", "reversal_20", "volatility"])
SIGNAL = REFERENCES["reversal_5"] + RNG.normal(size=len(INDEX))
LABEL = SIGNAL + 3 * RNG.normal(size=len(INDEX))


def test_what_is_left_without_reversal_is_the_residuals_rank_ic() -> None:
    table = signal_table(SIGNAL.to_frame("s"), LABEL.to_frame("l"), {"l": 1}, references=REFERENCES)
    row = table.loc[("s", "l")]
    left = daily_rank_ic(neutralise(SIGNAL, REFERENCES[["reversal_5", "reversal_20"]]), LABEL)
    assert row["rank_ic"] == pytest.approx(daily_rank_ic(SIGNAL, LABEL).mean())
    assert row["after_reversal"] == pytest.approx(left.mean())
    assert row["after_reversal_t"] == pytest.approx(ic_summary(left).newey_west_t)
    assert row["after_all"] == pytest.approx(daily_rank_ic(neutralise(SIGNAL, REFERENCES), LABEL).mean())
    assert row["rank_ic"] > row["after_reversal"] > 0


def test_a_label_that_is_not_known_yet_gives_no_figure() -> None:
    unknown = pd.DataFrame({"l": np.nan}, index=INDEX)
    row = signal_table(SIGNAL.to_frame("s"), unknown, {"l": 10}, references=REFERENCES).loc[("s", "l")]
    assert row["n_days"] == 0
    assert row.drop("n_days").isna().all()


def test_lags_cover_the_overlap_of_sampled_dates() -> None:
    assert overlap_lags(98, 10, 5) == 3  # the rule's
    assert overlap_lags(98, 10, 1) == 9
    assert overlap_lags(98, 1, 5) == 3


def test_the_error_of_a_mean_counts_dates_not_windows() -> None:
    dates = pd.Index(INDEX.get_level_values("datetime"))
    by_date = RNG.normal(size=30)
    mean, error = dated_mean(np.repeat(by_date, 12), dates, 0)
    assert mean == pytest.approx(by_date.mean())
    assert error == pytest.approx(by_date.std() / np.sqrt(30))
    assert np.isnan(dated_mean(np.full(len(dates), np.nan), dates, 0)).all()


def test_the_distance_of_a_pit_is_kolmogorovs() -> None:
    values = RNG.beta(2, 3, size=200)
    assert pit_deviation(np.append(values, np.nan)) == pytest.approx(stats.kstest(values, "uniform").statistic)
    assert np.isnan(pit_deviation(np.array([np.nan])))
