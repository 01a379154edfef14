"""Keys of windows: the same everywhere, different for different windows."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.forecast.keys import window_keys


def test_keys_are_the_documented_hash() -> None:
    digest = hashlib.blake2b(b"SH600000|2020-01-02T00:00:00.000000000", digest_size=8).digest()
    keys = window_keys(["SH600000"], pd.DatetimeIndex(["2020-01-02"]))
    assert keys.dtype == np.uint64
    assert int(keys[0]) == int.from_bytes(digest, "little")
    assert int(keys[0]) == 333299808458181207  # a stored figure: a change would change every published path


def test_keys_are_the_same_in_another_process() -> None:
    code = (
        "import pandas as pd; from kronos_qlib.forecast.keys import window_keys; "
        "print(int(window_keys(['SH600000'], pd.DatetimeIndex(['2020-01-02']))[0]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == int(window_keys(["SH600000"], pd.DatetimeIndex(["2020-01-02"]))[0])


def test_resolution_and_zone_of_the_stamp_do_not_matter() -> None:
    times = pd.DatetimeIndex(["2020-01-02 09:45", "2020-01-02 10:00"])
    expected = window_keys(["A", "B"], times)
    np.testing.assert_array_equal(window_keys(["A", "B"], times.as_unit("s")), expected)
    np.testing.assert_array_equal(window_keys(["A", "B"], times.tz_localize("Asia/Shanghai")), expected)
    np.testing.assert_array_equal(window_keys(["A", "B"], times.to_numpy().astype("datetime64[us]")), expected)


def test_different_windows_have_different_keys() -> None:
    days = pd.date_range("2010-01-01", periods=1000)
    codes = [f"SH{600000 + i}" for i in range(50)]
    keys = np.concatenate([window_keys([code] * len(days), days) for code in codes])
    assert len(np.unique(keys)) == 50_000


def test_no_window_has_no_key() -> None:
    assert window_keys([], pd.DatetimeIndex([])).shape == (0,)


def test_lengths_must_fit() -> None:
    with pytest.raises(ValueError, match="found 2 instruments and 1 times"):
        window_keys(["A", "B"], pd.DatetimeIndex(["2020-01-02"]))
