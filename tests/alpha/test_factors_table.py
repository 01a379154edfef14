"""Table factors by hand: differences to the session before, whatever rows the table holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.alpha.factors_table import TABLE_FACTORS, compute_table_factors

SESSIONS = pd.DatetimeIndex(["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07"])


def table(rows: dict[tuple[str, str], float], column: str = "expected_return") -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(
        [(pd.Timestamp(day), code) for day, code in rows], names=["datetime", "instrument"]
    )
    return pd.DataFrame({column: list(rows.values())}, index=index, dtype=np.float32)


ROWS = {
    ("2020-01-02", "A"): 0.5,
    ("2020-01-03", "A"): 0.75,
    ("2020-01-06", "A"): 0.25,
    ("2020-01-02", "B"): 4.0,
    # B has no row on the 3rd
    ("2020-01-06", "B"): 5.0,
    ("2020-01-07", "B"): 7.0,
}
CHANGES = [np.nan, 0.25, -0.5, np.nan, np.nan, 2.0]


def test_forecast_minus_last_forecast() -> None:
    found = compute_table_factors(["expected_return_change"], table(ROWS), SESSIONS)
    np.testing.assert_array_equal(found["expected_return_change"], CHANGES)


def test_the_order_of_rows_does_not_matter_and_later_rows_change_nothing() -> None:
    whole = table(ROWS)
    expected = compute_table_factors(["expected_return_change"], whole, SESSIONS)
    shuffled = compute_table_factors(["expected_return_change"], whole.iloc[::-1], SESSIONS)
    pd.testing.assert_frame_equal(shuffled.iloc[::-1], expected)
    until = whole[whole.index.get_level_values("datetime") <= "2020-01-06"]
    early = compute_table_factors(["expected_return_change"], until, SESSIONS[:3])
    pd.testing.assert_frame_equal(early, expected.loc[until.index])


def test_the_session_before_is_the_markets_not_the_tables() -> None:
    rows = {("2020-01-02", "A"): 1.0, ("2020-01-06", "A"): 2.0}
    found = compute_table_factors(["expected_return_change"], table(rows), SESSIONS)
    assert found["expected_return_change"].isna().all()


@pytest.mark.parametrize("name", sorted(TABLE_FACTORS))
def test_every_table_factor_is_the_difference_of_its_column(name: str) -> None:
    factor = TABLE_FACTORS[name]
    found = compute_table_factors([name], table(ROWS, factor.column), SESSIONS)
    np.testing.assert_array_equal(found[name], CHANGES)
    assert factor.definition
    assert factor.unit


def test_user_errors() -> None:
    whole = table(ROWS)
    with pytest.raises(ValueError, match="did you mean 'expected_return_change'"):
        compute_table_factors(["expected_return_chang"], whole, SESSIONS)
    with pytest.raises(ValueError, match="lacks dispersion"):
        compute_table_factors(["dispersion_change"], whole, SESSIONS)
    with pytest.raises(ValueError, match="2020-01-07 00:00:00 is no session"):
        compute_table_factors(["expected_return_change"], whole, SESSIONS[:3])
    with pytest.raises(ValueError, match="unique: False"):
        compute_table_factors(["expected_return_change"], pd.concat([whole, whole]), SESSIONS)
