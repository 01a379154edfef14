"""Board limits against prices that a reader can check by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.market.board import is_index, limit_fractions, limit_prices, reference_prices, round_to_tick
from kronos_qlib.market.columns import BarColumns


@pytest.mark.parametrize(
    ("code", "date", "fraction"),
    [
        ("SH600000", "2020-01-02", 0.10),
        ("SZ000001", "2007-01-04", 0.10),
        ("SH688009", "2019-07-23", 0.20),
        ("SZ300001", "2020-08-21", 0.10),
        ("SZ300001", "2020-08-24", 0.20),
        ("BJ830799", "2023-01-03", 0.30),
    ],
)
def test_fraction_of_a_board(code: str, date: str, fraction: float) -> None:
    assert limit_fractions(code, date).tolist() == [fraction]


@pytest.mark.parametrize("code", ["SH000300", "SZ399001", "AAPL", "600000", "SH60000", "XX600000"])
def test_no_limit_is_claimed_for_indices_and_unknown_codes(code: str) -> None:
    assert np.isnan(limit_fractions(code, "2020-01-02")).all()


def test_fractions_of_many_bars_follow_code_and_date_of_each() -> None:
    codes = ["SZ300001", "SH600000", "SZ300001"]
    dates = pd.to_datetime(["2020-08-21", "2020-08-24", "2020-08-24"])
    assert limit_fractions(pd.Series(codes, dtype="category"), dates).tolist() == [0.1, 0.1, 0.2]


def test_index_codes() -> None:
    assert is_index(["SH000001", "SZ000001", "SZ399006", "SH600000"]).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("reference", "fraction", "down", "up"),
    [
        (10.00, 0.1, 9.00, 11.00),
        (10.05, 0.1, 9.05, 11.06),  # 9.045 and 11.055: the exchange rounds halves up
        (3.33, 0.1, 3.00, 3.66),
        (12.27, 0.2, 9.82, 14.72),
        (0.27, 0.1, 0.24, 0.30),
        (2627.89, 0.05, 2496.50, 2759.28),  # 2759.2845: just under half a tick at a high price
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_limit_prices(reference: float, fraction: float, down: float, up: float, dtype: type) -> None:
    got_down, got_up = limit_prices(np.array([reference], dtype=dtype), fraction)
    assert got_down == pytest.approx([down], abs=1e-9)
    assert got_up == pytest.approx([up], abs=1e-9)


@settings(max_examples=500)
@given(cents=st.integers(1, 500_000), percent=st.sampled_from([5, 10, 20, 30]))
def test_limit_prices_are_those_of_exact_arithmetic_even_from_float32(cents: int, percent: int) -> None:
    reference = np.array([cents / 100], dtype=np.float32)
    down, up = limit_prices(reference, percent / 100)
    assert round(float(up[0]) * 100) == (cents * (100 + percent) + 50) // 100
    assert round(float(down[0]) * 100) == (cents * (100 - percent) + 50) // 100


def test_limits_need_a_tick() -> None:
    with pytest.raises(ValueError, match="tick=0"):
        limit_prices(np.array([10.0]), 0.1, tick=0)


@given(price=st.floats(0.01, 5_000))
def test_rounding_to_the_tick_is_idempotent(price: float) -> None:
    once = round_to_tick(np.array([price]))
    np.testing.assert_allclose(round_to_tick(once), once, rtol=0, atol=1e-9)


def test_reference_price_takes_a_split_into_account_and_the_day_before_intraday() -> None:
    frame = pd.DataFrame(
        {
            "instrument": "SH600000",
            "datetime": pd.to_datetime(
                ["2024-01-02 11:30", "2024-01-02 15:00", "2024-01-03 11:30", "2024-01-03 15:00"]
            ),
            "close": [9.0, 10.0, 5.0, 5.2],
            "factor": [1.0, 1.0, 2.0, 2.0],
        }
    )
    reference = reference_prices(BarColumns.from_frame(frame, ("close", "factor")))
    np.testing.assert_array_equal(reference, [np.nan, np.nan, 5.0, 5.0])
