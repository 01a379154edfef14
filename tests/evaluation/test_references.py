"""Reference columns against pandas and statsmodels, by hand, across gaps, and bit-identical without later bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.evaluation.references import REFERENCES, reference_columns
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy

POLICY = WindowPolicy(lookback=40, min_bars=30)
SESSIONS = pd.bdate_range("2018-01-01", periods=150)


def bars(seed: int, names: int = 4, keep: float = 1.0) -> pd.DataFrame:
    """Random bars, each session of each name present with the chance ``keep``."""
    random = np.random.default_rng(seed)
    market = random.normal(0, 0.01, len(SESSIONS))
    frames = {}
    for i in range(names):
        close = 10 * np.exp(np.cumsum(0.7 * (i + 1) * market / 2 + random.normal(0, 0.01, len(SESSIONS))))
        frame = pd.DataFrame({"open": close, "high": close * 1.01, "low": close * 0.99, "close": close}, SESSIONS)
        frame["volume"] = random.uniform(1e5, 1e6, len(SESSIONS))
        frame["amount"] = frame["volume"] * close
        frames[f"S{i}"] = frame[random.random(len(SESSIONS)) < keep]
    return pd.concat(frames, names=["instrument", "datetime"])


def panel_of(frame: pd.DataFrame) -> BarPanel:
    return BarPanel.from_frame(frame, SESSIONS)


def closes(panel: BarPanel, name: str) -> pd.Series:
    rows = panel.codes == panel.instruments.index(name)
    return pd.Series(panel.values[rows, 3].astype(float), pd.DatetimeIndex(panel.timestamps[rows]))


@pytest.mark.parametrize("keep", [1.0, 0.9])
def test_equal_to_pandas(keep: float) -> None:
    panel = panel_of(bars(1, keep=keep))
    found = reference_columns(panel, policy=POLICY)
    assert list(found.columns) == list(REFERENCES)
    assert len(found) == len(panel)
    for name in panel.instruments:
        close = closes(panel, name)
        amount = pd.Series(panel.values[panel.codes == panel.instruments.index(name), 5].astype(float), close.index)
        expected = pd.DataFrame(
            {
                "reversal_5": 1 - close / close.shift(5),
                "reversal_20": 1 - close / close.shift(20),
                "mean_reversion": close.rolling(40, min_periods=30).mean() / close - 1,
                "volatility": close.pct_change().rolling(20).std(ddof=0),
                "size": np.log(amount.rolling(60).mean()),
            }
        )
        got = found.xs(name, level="instrument")[list(expected)]
        pd.testing.assert_frame_equal(got, expected, check_names=False, check_freq=False, rtol=1e-8, atol=1e-12)


def test_first_values_are_where_the_docstring_says() -> None:
    found = reference_columns(panel_of(bars(2, names=1)), policy=POLICY)
    first = {name: int(np.flatnonzero(np.isfinite(found[name]))[0]) + 1 for name in REFERENCES}
    assert first == {
        "reversal_5": 6,
        "reversal_20": 21,
        "mean_reversion": 30,
        "volatility": 21,
        "size": 60,
        "beta": 61,
    }


@pytest.mark.parametrize("keep", [1.0, 0.9])
def test_beta_equals_a_regression_on_an_index(keep: float) -> None:
    panel = panel_of(bars(3, keep=keep))
    index = pd.Series(3000 * np.exp(np.cumsum(np.random.default_rng(9).normal(0, 0.01, 150))), SESSIONS)
    found = reference_columns(panel, policy=POLICY, market_close=index)["beta"]
    close = closes(panel, "S2")
    # after a suspension the stock's return spans several sessions, and the index's must span the same ones
    own, common = close.pct_change(), index.reindex(close.index).pct_change()
    for end in (61, 90, len(close)):
        fit = sm.OLS(own.iloc[end - 60 : end].to_numpy(), sm.add_constant(common.iloc[end - 60 : end].to_numpy())).fit()
        np.testing.assert_allclose(found.loc[(close.index[end - 1], "S2")], fit.params[1], rtol=1e-8)


@pytest.mark.parametrize("keep", [1.0, 0.9])
def test_without_an_index_the_market_is_the_mean_of_all(keep: float) -> None:
    panel = panel_of(bars(4, keep=keep))
    # a return over a suspension is no return of one session
    wide = pd.DataFrame({name: closes(panel, name) for name in panel.instruments}, index=SESSIONS)
    returns = wide.pct_change(fill_method=None)
    level = (1 + returns.mean(axis=1).fillna(0.0)).cumprod()
    own = reference_columns(panel, policy=POLICY)["beta"]
    given_index = reference_columns(panel, policy=POLICY, market_close=level)["beta"]
    pd.testing.assert_series_equal(own, given_index, rtol=1e-9)
    if keep == 1.0:  # betas of all instruments on their own mean average to 1
        np.testing.assert_allclose(own.dropna().groupby(level="datetime").mean(), 1.0, rtol=1e-9)
    assert own.xs("S3", level="instrument").iloc[-1] > own.xs("S0", level="instrument").iloc[-1]


def test_signs_by_hand() -> None:
    frame = bars(5, names=1)
    steady = np.linspace(10, 20, 150)
    frame[["open", "high", "low", "close"]] = np.repeat(steady[:, None], 4, axis=1)
    last = reference_columns(panel_of(frame), policy=POLICY).iloc[-1]
    np.testing.assert_allclose(last["reversal_5"], 1 - steady[-1] / steady[-6], rtol=1e-5)  # it rose: negative
    np.testing.assert_allclose(last["mean_reversion"], steady[-40:].mean() / steady[-1] - 1, rtol=1e-5)
    np.testing.assert_allclose(last["beta"], 1.0, rtol=1e-9)  # alone, it is the market


def test_no_value_spans_a_long_suspension_or_an_unexplained_jump() -> None:
    frame = bars(6, names=2)
    cut = frame.drop([("S0", day) for day in SESSIONS[70:80]])
    cut.loc[("S1", slice(SESSIONS[100], None)), ["open", "high", "low", "close"]] *= 2.0
    policy = replace(POLICY, max_gap=9)
    found = reference_columns(panel_of(cut), policy=policy)
    for name, start in (("S0", SESSIONS[80]), ("S1", SESSIONS[100])):
        after = found.xs(name, level="instrument").loc[start:]
        counts = {column: int(after[column].isna().sum()) for column in ("reversal_5", "reversal_20", "volatility")}
        assert counts == {"reversal_5": 5, "reversal_20": 20, "volatility": 20}
        assert after["mean_reversion"].isna().sum() == 29
        assert after["size"].isna().sum() == min(59, len(after))
    kept = reference_columns(panel_of(cut), policy=replace(policy, max_gap=10))
    assert kept.xs("S0", level="instrument").loc[SESSIONS[80], "reversal_5"] == pytest.approx(
        1 - frame.loc[("S0", SESSIONS[80]), "close"] / frame.loc[("S0", SESSIONS[65]), "close"], rel=1e-5
    )


@settings(deadline=None, max_examples=15)
@given(st.integers(5, 149), st.integers(0, 2**32 - 1))
def test_bars_after_t_leave_values_dated_t_bit_identical(last: int, seed: int) -> None:
    frame = bars(7, keep=0.95)
    whole = reference_columns(panel_of(frame), policy=POLICY)
    day = SESSIONS[last]
    past = frame.index.get_level_values("datetime") <= day
    changed = frame.copy()
    factor = np.exp(np.random.default_rng(seed).normal(0, 0.05, int((~past).sum())))
    changed.loc[~past, list(frame.columns)] = frame[~past].to_numpy() * factor[:, None]
    for other in (frame[past], changed):
        found = reference_columns(panel_of(other), policy=POLICY)
        pd.testing.assert_frame_equal(found.loc[:day], whole.loc[:day], check_exact=True, check_freq=False)


def test_later_listings_do_not_change_a_value() -> None:
    frame = bars(8, names=5)
    late = frame.drop([("S4", day) for day in SESSIONS[:100]])
    without = reference_columns(panel_of(frame.drop("S4")), policy=POLICY)
    pd.testing.assert_frame_equal(
        reference_columns(panel_of(late), policy=POLICY).loc[: SESSIONS[99]],
        without.loc[: SESSIONS[99]],
        check_exact=True,
    )


def test_prices_that_are_no_base_for_a_return_give_nan() -> None:
    frame = bars(9, names=2)
    frame.loc[("S0", SESSIONS[80]), ["open", "high", "low", "close"]] = 0.0
    frame.loc["S1", "amount"] = 0.0
    found = reference_columns(panel_of(frame), policy=replace(POLICY, max_jump=None))
    assert found.xs("S0", level="instrument")["volatility"].iloc[80:102].isna().sum() == 21
    assert np.isfinite(found.xs("S0", level="instrument").iloc[-1]).all()
    assert found.xs("S1", level="instrument")["size"].isna().all()
    assert not np.isinf(found.to_numpy()).any()


def test_an_empty_panel_and_user_errors() -> None:
    panel = panel_of(bars(10, names=1))
    empty = reference_columns(panel_of(bars(10, names=1).iloc[:0]), policy=POLICY)
    assert list(empty.columns) == list(REFERENCES)
    assert len(empty) == 0
    index = pd.Series(1.0, SESSIONS)
    with pytest.raises(ValueError, match="ascending order"):
        reference_columns(panel, market_close=index[::-1])
    assert reference_columns(panel, market_close=index)["beta"].isna().all()  # a market that stands still
    assert reference_columns(panel, market_close=index.iloc[:70])["beta"].iloc[75:].isna().all()
