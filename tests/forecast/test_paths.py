"""KlinePaths on paths small enough to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_paths import make_paths

from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.forecast.paths import KlinePaths

TWO = make_paths([[[11.0, 12.0], [9.0, 8.0], [10.0, 16.0]], [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]], [10.0, 2.0])


def test_shape_and_names() -> None:
    assert (len(TWO), TWO.n_paths, TWO.n_steps) == (2, 3, 2)
    assert repr(TWO) == "KlinePaths(2 windows, 3 paths, 2 steps)"
    assert TWO.index.names == ["datetime", "instrument"]
    np.testing.assert_array_equal(TWO.field("close"), TWO.values[..., 3])


def test_returns_and_mean_by_hand() -> None:
    np.testing.assert_allclose(
        TWO.returns(), [[[0.1, 0.2], [-0.1, -0.2], [0.0, 0.6]], [[-0.5, 0.0], [0.5, 1.0], [1.5, 3.5]]]
    )
    np.testing.assert_allclose(TWO.mean()[..., 3], [[10.0, 12.0], [3.0, 5.0]])
    np.testing.assert_allclose(TWO.mean()[..., 4], 1.0)


def test_returns_are_nan_where_the_last_close_is_no_price() -> None:
    found = make_paths(np.ones((2, 1, 1)), [0.0, 1.0]).returns()
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1], 0.0)


def test_quantiles_by_hand() -> None:
    np.testing.assert_allclose(TWO.quantile(0.5), [[10.0, 12.0], [3.0, 4.0]])
    np.testing.assert_allclose(TWO.quantile(0.25), [[9.5, 10.0], [2.0, 3.0]])
    both = TWO.quantile([0.0, 1.0], field="amount")
    np.testing.assert_allclose(both, [[[9.0, 8.0], [1.0, 2.0]], [[11.0, 16.0], [5.0, 9.0]]])


def test_long_frame() -> None:
    frame = TWO.to_frame()
    assert list(frame.columns) == [
        "datetime", "instrument", "path", "step", "timestamp", "open", "high", "low", "close", "volume", "amount",
    ]  # fmt: skip
    assert len(frame) == 2 * 3 * 2
    row = frame.query("instrument == 'SH600001' and path == 2 and step == 2").iloc[0]
    assert row["close"] == 9.0
    assert row["datetime"] == pd.Timestamp("2020-01-03")
    assert row["timestamp"] == pd.Timestamp("2020-01-05")
    again = frame.set_index(["instrument", "path", "step"])["close"].to_numpy().reshape(2, 3, 2)
    np.testing.assert_array_equal(again, TWO.field("close"))


def test_select_and_concat_are_inverse() -> None:
    first, second = TWO.select([0]), TWO.select(np.array([False, True]))
    assert list(second.index) == [(pd.Timestamp("2020-01-03"), "SH600001")]
    whole = KlinePaths.concat([second, first])
    assert whole.index.equals(TWO.index[[1, 0]])
    assert whole.index.names == ["datetime", "instrument"]
    for name in ("values", "last_close", "center", "scale", "timestamps"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(TWO, name)[[1, 0]])
    assert len(TWO.select(slice(0, 1))) == 1
    assert len(TWO.select([])) == 0
    assert len(KlinePaths.concat([TWO.select([]), TWO])) == 2


def test_signals_read_them() -> None:
    np.testing.assert_allclose(compute_signal("terminal_return", TWO), [0.2, 1.5])


def test_user_errors() -> None:
    with pytest.raises(ValueError, match="levels from 0 to 1"):
        TWO.quantile(1.5)
    with pytest.raises(ValueError, match="expected one of open, high"):
        TWO.field("vwap")
    with pytest.raises(ValueError, match="mask of shape"):
        TWO.select(np.array([True]))
    with pytest.raises(ValueError, match="at least one"):
        KlinePaths.concat([])
    with pytest.raises(ValueError, match=r"\(paths, steps\) \[\(1, 1\), \(3, 2\)\]"):
        KlinePaths.concat([TWO, make_paths([[[1.0]]], [1.0])])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("values", np.zeros((2, 3, 6)), "expected .window, path, step, 6."),
        ("last_close", np.zeros(3), r"last_close of shape \(3,\); expected \(2,\)"),
        ("timestamps", TWO.timestamps[:, :1], r"timestamps of shape \(2, 1\); expected \(2, 2\)"),
        ("index", TWO.index.set_names(["day", "code"]), "expected .'datetime', 'instrument'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, value: Any, message: str) -> None:
    fields = {k: getattr(TWO, k) for k in ("values", "index", "last_close", "center", "scale", "timestamps")}
    with pytest.raises(ValueError, match=message):
        KlinePaths(**{**fields, name: value})
