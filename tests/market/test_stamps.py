"""Calendar features of bars."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.stamps import time_stamps


def test_fields_are_minute_hour_weekday_day_month() -> None:
    index = pd.DatetimeIndex(["2024-02-29 09:45", "2023-12-31 23:59"])  # a Thursday and a Sunday
    expected = [[45, 9, 3, 29, 2], [59, 23, 6, 31, 12]]
    assert time_stamps(index).tolist() == expected
    assert time_stamps(index.to_numpy()).tolist() == expected
    assert time_stamps(index).dtype == np.int64


def test_a_zoned_index_is_read_on_its_own_clock() -> None:
    index = pd.DatetimeIndex(["2024-03-01 15:00"], tz="Asia/Shanghai")
    assert time_stamps(index).tolist() == [[0, 15, 4, 1, 3]]


def test_no_stamps_and_missing_stamps() -> None:
    assert time_stamps(pd.DatetimeIndex([])).shape == (0, 5)
    with pytest.raises(ValueError, match="1 of 2 bar stamps are missing"):
        time_stamps(pd.DatetimeIndex(["2024-01-02", None]))
