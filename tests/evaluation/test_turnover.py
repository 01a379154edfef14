"""Rank autocorrelation and turnover: by hand, against scipy, and against Qlib's own strategy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kronos_qlib.evaluation.turnover import dropout_turnover, rank_autocorrelation, top_k_turnover


def scores(days: list[dict[str, float]]) -> pd.Series:
    dates = pd.bdate_range("2020-01-01", periods=len(days))
    rows = {(date, name): value for date, day in zip(dates, days, strict=True) for name, value in day.items()}
    return pd.Series(
        list(rows.values()), pd.MultiIndex.from_tuples(rows, names=["datetime", "instrument"]), dtype=float
    )


def random_scores(n_days: int, names: int, seed: int, missing: float = 0.0) -> pd.Series:
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.normal(size=(n_days, names)), axis=0)
    days = [{f"S{i:02}": walk[d, i] for i in range(names) if random.random() >= missing} for d in range(n_days)]
    return scores(days)


def test_rank_autocorrelation_equals_scipy_on_common_names() -> None:
    score = random_scores(8, 15, 1, missing=0.2)
    found = rank_autocorrelation(score, 2)
    dates = score.index.unique("datetime")
    assert list(found.index) == list(dates[2:])
    for day, before in zip(dates[2:], dates[:-2], strict=True):
        pair = pd.concat([score.loc[day], score.loc[before]], axis=1, join="inner")
        np.testing.assert_allclose(found[day], stats.spearmanr(pair.iloc[:, 0], pair.iloc[:, 1]).statistic, atol=1e-12)


def test_standing_scores_have_one_and_turned_ones_minus_one() -> None:
    day = {"A": 1.0, "B": 2.0, "C": 5.0}
    turned = {name: -value for name, value in day.items()}
    np.testing.assert_allclose(rank_autocorrelation(scores([day, day, turned])), [1.0, -1.0])


def test_top_k_by_hand() -> None:
    score = scores([{"A": 3, "B": 2, "C": 1}, {"A": 3, "B": 1, "C": 2}, {"B": 9}, {"A": 1, "B": 1, "C": 1}])
    found = top_k_turnover(score, 2)
    # AB -> AC -> B -> AB (ties go to the first names)
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5])
    assert found.index[0] == pd.Timestamp("2020-01-02")


def test_dropout_by_hand() -> None:
    score = scores(
        [
            {"A": 5, "B": 4, "C": 3, "D": 2, "E": 1},  # buys A B C
            {"A": 1, "B": 2, "C": 3, "D": 4, "E": 5},  # looks at E: sells A, the worst of A B C E
            {"A": 9, "B": 9, "C": 0, "D": -1, "E": 9},  # A comes back for C
            {"A": 9, "B": 8, "D": 1, "E": 7},  # D is worse than any held: nothing
            {"B": 8, "C": 1, "D": 2},  # A and E have no score and rank last; E goes, D comes
        ]
    )
    found = dropout_turnover(score, top_k=3, n_drop=1)
    assert found["bought"].tolist() == [3, 1, 1, 0, 1]
    assert found["sold"].tolist() == [0, 1, 1, 0, 1]
    assert found["held"].tolist() == [3] * 5
    np.testing.assert_allclose(found["turnover"], [1, 1 / 3, 1 / 3, 0, 1 / 3])


def qlib_holdings(score: pd.Series, top_k: int, n_drop: int) -> list[set[str]]:
    """What Qlib's strategy holds after each date, when every order is filled."""
    from qlib.backtest.decision import Order
    from qlib.backtest.position import Position
    from qlib.contrib.strategy.signal_strategy import TopkDropoutStrategy

    dates = score.index.unique("datetime")
    position = Position(cash=1e9)
    step = {"now": 0}
    exchange = SimpleNamespace(
        is_stock_tradable=lambda **_: True,
        check_order=lambda order: True,
        deal_order=lambda order, position: (order.amount, 0.0, 1.0),
        get_deal_price=lambda **_: 1.0,
        get_factor=lambda **_: 1.0,
        round_amount_by_trade_unit=lambda amount, factor: amount,
    )

    class Bare(TopkDropoutStrategy):
        trade_calendar = SimpleNamespace(  # type: ignore[assignment]
            get_trade_step=lambda: step["now"], get_step_time=lambda *_, **__: (None, None), get_freq=lambda: "day"
        )
        trade_position = position  # type: ignore[assignment]
        trade_exchange = exchange  # type: ignore[assignment]

        def __init__(self) -> None:
            self.topk, self.n_drop, self.method_buy, self.method_sell = top_k, n_drop, "top", "bottom"
            self.only_tradable, self.forbid_all_trade_at_limit, self.hold_thresh = False, True, 0
            self.risk_degree = 0.95
            self.signal = SimpleNamespace(get_signal=lambda **_: score.loc[dates[step["now"]]])

    held: set[str] = set()
    history = []
    strategy = Bare()
    for step["now"] in range(len(dates)):
        for order in strategy.generate_trade_decision().order_list:
            if order.direction == Order.SELL:
                held.discard(order.stock_id)
            else:
                held.add(order.stock_id)
        strategy.trade_position = Position(
            cash=1e9, position_dict={name: {"amount": 1.0, "price": 1.0} for name in sorted(held)}
        )
        history.append(set(held))
    return history


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("top_k", "n_drop", "names"), [(5, 2, 12), (5, 5, 9), (8, 1, 9), (5, 3, 6)])
def test_dropout_equals_qlib(top_k: int, n_drop: int, names: int, holes: bool) -> None:
    for seed in range(4):
        score = random_scores(25, names, seed)
        if holes:  # one name without a score every third date: Qlib leaves the order of several such names open
            score = score.drop([(day, f"S{i % names:02}") for i, day in enumerate(score.index.unique("datetime")[::3])])
        expected = qlib_holdings(score, top_k, n_drop)
        found = dropout_turnover(score, top_k, n_drop)
        before = [set(), *expected[:-1]]
        assert found["held"].tolist() == [len(held) for held in expected]
        assert found["bought"].tolist() == [len(now - then) for now, then in zip(expected, before, strict=True)]
        assert found["sold"].tolist() == [len(then - now) for now, then in zip(expected, before, strict=True)]
        assert found["bought"].sum() > top_k  # something happens


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_dropout_never_holds_more_nor_exchanges_more(top_k: int, n_drop: int, names: int, seed: int) -> None:
    n_drop = min(n_drop, top_k)
    found = dropout_turnover(random_scores(12, names, seed), top_k, n_drop)
    assert (found["held"] <= min(top_k, names)).all()
    assert (found["held"].diff().iloc[1:] == (found["bought"] - found["sold"]).iloc[1:]).all()
    assert (found["sold"] <= n_drop).all()
    assert found["turnover"].between(0, 1).all()
    if names >= top_k + n_drop:
        assert (found["held"] == top_k).all()


def test_dropout_of_everything_is_the_top_k() -> None:
    score = random_scores(30, 12, 4)
    np.testing.assert_allclose(dropout_turnover(score, 4, 4)["turnover"].iloc[1:], top_k_turnover(score, 4))


def test_user_errors() -> None:
    score = random_scores(3, 4, 1)
    with pytest.raises(ValueError, match="lag=0"):
        rank_autocorrelation(score, 0)
    with pytest.raises(ValueError, match="top_k=0"):
        top_k_turnover(score, 0)
    with pytest.raises(ValueError, match="n_drop=3"):
        dropout_turnover(score, 2, 3)
    with pytest.raises(ValueError, match="n_drop=0"):
        dropout_turnover(score, 2, 0)
