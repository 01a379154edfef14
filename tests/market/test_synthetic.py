"""The synthetic market is legal, repeatable, and its truth is true and knows no future."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.synthetic import INDEX_CODE, SyntheticConfig, SyntheticMarket, make_market
from kronos_qlib.market.synthetic_members import members_on
from kronos_qlib.market.synthetic_truth import daily_correlations, label_from_bars, truth_from_bars

SMALL = SyntheticConfig(
    seed=3,
    n_instruments=24,
    n_members=12,
    start="2013-01-01",
    end="2015-06-30",
    listing_wait=200.0,
    listing_life=600.0,
    listed_at_start=0.7,
    suspension_rate=0.004,
    split_rate=1 / 200,
)


@pytest.fixture(scope="module")
def small() -> SyntheticMarket:
    return make_market(SMALL)


@pytest.fixture(scope="module")
def default() -> SyntheticMarket:
    return make_market()


def stocks_of(market: SyntheticMarket) -> pd.DataFrame:
    """Stock bars with the reference price of each (NaN on a stock's first bar)."""
    bars = market.bars[market.bars["instrument"] != INDEX_CODE].copy()
    before = bars.groupby("instrument")[["close", "factor"]].shift(1)
    return bars.assign(reference=before["close"] * before["factor"] / bars["factor"])


def test_same_seed_same_market(small: SyntheticMarket) -> None:
    again = make_market(SMALL)
    pd.testing.assert_frame_equal(again.bars, small.bars, check_exact=True)
    pd.testing.assert_frame_equal(again.members, small.members, check_exact=True)
    pd.testing.assert_frame_equal(again.truth, small.truth, check_exact=True)


def test_another_seed_another_market(small: SyntheticMarket) -> None:
    other = make_market(dataclasses.replace(SMALL, seed=4))
    assert not other.bars["close"].equals(small.bars["close"])


def test_a_longer_market_repeats_a_shorter_one_so_nothing_reads_the_future(small: SyntheticMarket) -> None:
    end = pd.Timestamp("2014-08-29")
    short = make_market(dataclasses.replace(SMALL, end="2014-08-29"))
    early = small.bars[small.bars["datetime"] <= end].reset_index(drop=True)
    pd.testing.assert_frame_equal(short.bars, early, check_exact=True)
    known = small.truth.index.get_level_values("datetime") <= end
    pd.testing.assert_frame_equal(short.truth, small.truth[known], check_exact=True)
    cut = small.members[small.members["start"] <= end].reset_index(drop=True)
    cut["end"] = cut["end"].clip(upper=end)
    pd.testing.assert_frame_equal(short.members, cut)


def test_bars_are_in_vendor_format(small: SyntheticMarket) -> None:
    columns = ["instrument", "datetime", "open", "high", "low", "close", "volume", "amount", "factor"]
    bars = small.bars
    assert list(bars.columns) == columns
    assert not bars.isna().any().any()
    assert not bars.duplicated(["instrument", "datetime"]).any()
    assert bars["datetime"].isin(small.sessions).all()
    assert (bars[["open", "high", "low", "close", "volume", "amount", "factor"]] > 0).all().all()
    assert (bars["high"] >= bars[["open", "close", "low"]].max(axis=1)).all()
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
    stocks = stocks_of(small)
    price = stocks["amount"] / stocks["volume"]
    assert ((price > stocks["low"] - 1e-4) & (price < stocks["high"] + 1e-4)).all()
    assert (stocks["volume"] % 100 == 0).all()


def test_prices_are_cents_inside_the_boards_limits_and_touch_them(default: SyntheticMarket) -> None:
    stocks = stocks_of(default).dropna()
    highest, lowest = np.round(stocks["reference"] * 1.1, 2), np.round(stocks["reference"] * 0.9, 2)
    for name in ("open", "high", "low", "close"):
        cents = stocks[name] * 100
        assert (abs(cents - cents.round()) < 1e-6).all()
        assert (stocks[name] <= highest + 1e-9).all()
        assert (stocks[name] >= lowest - 1e-9).all()
    assert (abs(stocks["close"] - highest) < 1e-9).sum() > 20
    assert (abs(stocks["close"] - lowest) < 1e-9).sum() > 20


def test_adjusted_returns_are_the_intended_ones_through_splits_and_dividends(small: SyntheticMarket) -> None:
    stocks = stocks_of(small).set_index(["datetime", "instrument"]).dropna()
    adjusted = stocks["close"] / stocks["reference"] - 1
    intended = small.truth["intended_return"].reindex(stocks.index)
    free = intended.abs() < 0.099
    half_tick = 0.005 / stocks["reference"]
    assert (abs(adjusted - intended)[free] <= half_tick[free] + 1e-9).all()
    steps = stocks["factor"].groupby("instrument").pct_change().dropna()
    assert (steps > 0.4).sum() > 10  # splits
    assert ((steps > 0.001) & (steps < 0.05)).sum() > 10  # dividends
    assert steps.min() > -1e-12


def test_reference_prices_are_cents_on_ex_days(small: SyntheticMarket) -> None:
    cents = stocks_of(small)["reference"].dropna() * 100
    assert (abs(cents - cents.round()) < 1e-6).all()


def test_suspensions_listings_and_delistings_are_absent_rows(small: SyntheticMarket) -> None:
    stocks = stocks_of(small)
    traded = stocks.pivot(index="datetime", columns="instrument", values="close").notna()
    traded = traded.reindex(small.sessions, fill_value=False)
    position = pd.Series(np.arange(len(small.sessions)), small.sessions)
    suspended = 0
    for code, listing in small.listings.iterrows():
        if listing["listed"] >= len(small.sessions):
            assert code not in traded
            continue
        days = position[traded[code]]
        assert days.iloc[0] == listing["listed"]
        assert days.iloc[-1] < listing["delisted"]
        suspended += days.iloc[-1] - days.iloc[0] + 1 - len(days)
    assert suspended > 100
    assert (small.listings["listed"] > 0).any()
    assert (small.listings["delisted"] < len(small.sessions)).any()


def test_membership_spans_are_disjoint_and_lie_in_the_listing(small: SyntheticMarket) -> None:
    members, sessions = small.members, small.sessions
    assert (members["start"] <= members["end"]).all()
    assert members["start"].isin(sessions).all()
    assert members["end"].isin(sessions).all()
    for code, spans in members.groupby("instrument"):
        assert (spans["start"].iloc[1:].to_numpy() > spans["end"].iloc[:-1].to_numpy()).all()
        listing = small.listings.loc[code]
        assert sessions.get_loc(spans["start"].iloc[0]) >= listing["listed"]
        assert sessions.get_loc(spans["end"].iloc[-1]) < listing["delisted"]
    counts = [((members["start"] <= day) & (members["end"] >= day)).sum() for day in sessions]
    assert max(counts) <= SMALL.n_members
    assert min(counts) >= SMALL.n_members // 2


def test_members_change_and_come_back(default: SyntheticMarket) -> None:
    spans = default.members.groupby("instrument").size()
    assert (default.members["start"] > default.sessions[0]).sum() > 10
    assert (default.members["end"] < default.sessions[-1]).sum() > 10
    assert (spans > 1).any()


def test_members_on_reads_both_ends_of_a_span_as_inside() -> None:
    spans = pd.DataFrame(
        {"instrument": ["A", "A"], "start": ["2020-01-02", "2020-01-08"], "end": ["2020-01-03", "2020-01-08"]}
    ).astype({"start": "datetime64[ns]", "end": "datetime64[ns]"})
    days = pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-06", "2020-01-08", "2020-01-09"])
    index = pd.MultiIndex.from_product([days, ["A", "B"]], names=["datetime", "instrument"])
    inside = members_on(spans, index).reshape(-1, 2)
    assert inside[:, 0].tolist() == [False, True, True, False, True, False]
    assert not inside[:, 1].any()


def test_index_follows_its_members_and_has_every_session(small: SyntheticMarket) -> None:
    index = small.bars[small.bars["instrument"] == INDEX_CODE].set_index("datetime")
    assert index.index.equals(pd.DatetimeIndex(small.sessions, name="datetime"))
    assert (index["factor"] == 1).all()
    stocks = stocks_of(small).set_index(["datetime", "instrument"]).dropna()
    held = stocks[members_on(small.members, stocks.index)]
    mean = (held["close"] / held["reference"] - 1).groupby("datetime").mean()
    moves = index["close"].pct_change().dropna()
    pd.testing.assert_series_equal(moves, mean.reindex(moves.index), check_names=False, atol=5e-6, rtol=0)


def test_truth_by_hand() -> None:
    """Three bars, decay .5, persistence .75 (so pull = .5), a reference of two bars."""
    config = SyntheticConfig(decay=0.5, persistence=0.75, reference_bars=2, strength=0.1)
    logs = [1.0, 3.0, 2.0]
    bars = pd.DataFrame(
        {
            "instrument": "A",
            "datetime": pd.to_datetime(["2020-01-02", "2020-01-03", "2020-01-06"]),
            "volume": np.exp(logs) * 2,
            "factor": 2.0,  # a split never changes the adjusted volume
        }
    )
    listings = pd.DataFrame({"base_log_volume": [1.0], "volatility": [0.02]}, index=["A"])
    truth = truth_from_bars(bars, listings, config)
    # averages: 1, 2, 2; means of two: 1, 2, 2.5
    np.testing.assert_allclose(truth["abnormal_volume"], [0.0, 0.0, -0.5], atol=1e-12)
    unit = -0.1 * 0.02 / config.state_scale
    np.testing.assert_allclose(truth["expected_next"], [0.0, 0.0, -0.5 * unit], atol=1e-12)
    # next log volumes to be expected: 1, 1.5, 1.5; averages then: 1, 1.75, 1.75; means then: 1, 2.25, 1.75
    np.testing.assert_allclose(truth["expected_return"], [0.0, -0.5 * unit, 0.0], atol=1e-12)


def test_truth_does_not_move_when_the_future_changes_or_is_cut(small: SyntheticMarket) -> None:
    day = small.sessions[300]
    past = small.bars["datetime"] <= day
    known = small.truth.index.get_level_values("datetime") <= day
    expected = small.truth.loc[known, ["abnormal_volume", "expected_return", "expected_next"]]

    cut = truth_from_bars(small.bars[past], small.listings, SMALL)
    pd.testing.assert_frame_equal(cut[expected.columns], expected, check_exact=True)

    altered = small.bars.copy()
    altered.loc[~past, "volume"] *= 7
    moved = truth_from_bars(altered, small.listings, SMALL)
    pd.testing.assert_frame_equal(moved.loc[known, list(expected.columns)], expected, check_exact=True)
    assert not moved.loc[~known, "expected_return"].equals(small.truth.loc[~known, "expected_return"])


def test_label_is_qlibs() -> None:
    bars = pd.DataFrame(
        {
            "instrument": "A",
            "datetime": pd.to_datetime(["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"]),
            "close": [10.0, 11.0, 6.0, 6.6],
            "factor": [1.0, 1.0, 2.0, 2.0],
        }
    )
    label = label_from_bars(bars).to_numpy()
    np.testing.assert_allclose(label[:2], [12 / 11 - 1, 0.1])
    assert np.isnan(label[2:]).all()


def test_the_drift_is_the_conditional_mean_of_the_label(default: SyntheticMarket) -> None:
    """Within each day, the slope of the label on the truth is 1 (its standard error is about .02)."""
    both = default.truth[["expected_return"]].assign(label=default.label().reindex(default.truth.index)).dropna()
    centred = both - both.groupby("datetime").transform("mean")
    products = (centred["expected_return"] * centred["label"]).groupby("datetime").sum()
    slope = products.sum() / (centred["expected_return"] ** 2).sum()
    assert abs(slope - 1) < 0.08


def test_planted_ic_is_the_ratio_of_standard_deviations(default: SyntheticMarket) -> None:
    """A conditional mean correlates with its outcome by sd(mean) / sd(outcome)."""
    planted = default.planted_ic(members_only=False)
    truth = default.truth["expected_return"]
    label = default.label().reindex(truth.index)
    known = label.notna()
    ratio = truth[known].groupby("datetime").std() / label[known].groupby("datetime").std()
    error = planted.daily["ic"].std() / np.sqrt(planted.days)
    assert abs(planted.ic - ratio.mean()) < 4 * error
    assert 0.10 < planted.ic < 0.16
    assert 0.10 < planted.rank_ic < 0.17


def test_planted_ic_agrees_with_independent_simulations() -> None:
    config = SyntheticConfig(start="2016-01-01", end="2017-12-31", n_instruments=60, n_members=60)
    found = [make_market(dataclasses.replace(config, seed=seed)).planted_ic() for seed in range(5)]
    means = np.array([planted.ic for planted in found])
    errors = np.array([planted.daily["ic"].std() / np.sqrt(planted.days) for planted in found])
    assert (abs(means - means.mean()) < 4 * errors).all()


def test_nothing_planted_nothing_found() -> None:
    market = make_market(SyntheticConfig(strength=0.0, start="2016-01-01", end="2018-12-31"))
    assert (market.truth["expected_return"] == 0).all()
    daily = daily_correlations(market.truth["abnormal_volume"], market.label())
    assert abs(daily["rank_ic"].mean()) < 4 * daily["rank_ic"].std() / np.sqrt(len(daily))


def test_reversal_to_the_windows_mean_does_not_earn(default: SyntheticMarket) -> None:
    """What random weights score (trap 19)."""
    stocks = stocks_of(default)
    close = (stocks["close"] * stocks["factor"]).set_axis(pd.MultiIndex.from_frame(stocks[["datetime", "instrument"]]))
    mean = close.groupby("instrument").rolling(60).mean().droplevel(0)
    daily = daily_correlations((mean / close - 1).dropna(), default.label())
    assert daily["rank_ic"].mean() < 0.0


def test_state_scale_is_the_stationary_deviation(default: SyntheticMarket) -> None:
    abnormal = default.truth["abnormal_volume"]
    settled = abnormal[abnormal.index.get_level_values("datetime") > default.sessions[120]]
    assert settled.std() == pytest.approx(default.config.state_scale, rel=0.03)


def test_returns_have_fat_tails_and_clustered_volatility(default: SyntheticMarket) -> None:
    stocks = stocks_of(default).dropna()
    returns = stocks["close"] / stocks["reference"] - 1
    assert returns.kurt() > 1.5
    size = returns.abs()
    before = size.groupby(stocks["instrument"]).shift(1)
    assert size.corr(before) > 0.05


def test_planted_ic_refuses_days_outside_the_market(small: SyntheticMarket) -> None:
    with pytest.raises(ValueError, match=r"the market runs from 2013-01-04 to 2015-06-30"):
        small.planted_ic("2019-01-01")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_members": 200}, "n_members=200"),
        ({"end": "2011-01-01"}, "end='2011-01-01'"),
        ({"persistence": 0.5}, "persistence=0.5"),
        ({"tail": 2.0}, "tail=2.0"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticConfig.from_mapping(changes)


def test_a_typo_names_the_nearest_setting() -> None:
    with pytest.raises(ValueError, match="unknown key 'strenght'; did you mean 'strength'"):
        SyntheticConfig.from_mapping({"strenght": 0.1})
