"""Adjusted bars of one instrument."""

from __future__ import annotations

import pandas as pd
import pytest

from kronos_qlib.market.adjust import adjust_bars


def two_for_one() -> pd.DataFrame:
    """A share of 10 becomes two shares of 5: the factor doubles, twice as many shares trade."""
    bars = pd.DataFrame({"close": [10.0, 5.0], "volume": [100.0, 200.0], "amount": [1000.0, 1000.0]})
    return bars.assign(open=bars["close"], high=bars["close"], low=bars["close"], factor=[1.0, 2.0])


def test_a_split_leaves_no_jump_in_store_units() -> None:
    adjusted = adjust_bars(two_for_one())
    assert adjusted["close"].tolist() == [10.0, 10.0]
    assert adjusted["volume"].tolist() == [100.0, 100.0]
    assert adjusted["amount"].tolist() == [1000.0, 1000.0]


def test_the_base_bar_keeps_its_traded_price() -> None:
    bars = two_for_one()
    adjusted = adjust_bars(bars, base=2.0)
    assert adjusted["close"].tolist() == [5.0, 5.0]
    assert adjusted["volume"].tolist() == [200.0, 200.0]
    assert bars["close"].tolist() == [10.0, 5.0]  # the input is untouched


@pytest.mark.parametrize("factor", [[1.0, 0.0], [1.0, -1.0], [float("nan"), 1.0]])
def test_a_factor_that_is_no_factor_is_refused(factor: list[float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        adjust_bars(two_for_one().assign(factor=factor))


def test_bars_without_a_factor_are_refused() -> None:
    with pytest.raises(ValueError, match="'factor'"):
        adjust_bars(two_for_one().drop(columns="factor"))
