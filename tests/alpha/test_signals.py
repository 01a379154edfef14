"""Signals on paths small enough to check by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.alpha.signals import SIGNALS, Z_CLIP, check_signal, compute_signal, find_signal, signal
from kronos_qlib.kronos.normalise import CLIP

NAMES = {
    "expected_return",
    "terminal_return",
    "execution_return",
    "probability_up",
    "return_over_dispersion",
    "quantile_return",
    "z_unit",
}


@dataclass
class Forecast:
    """The least that a signal needs: closes in column 3, everything else a value no signal may read."""

    close: Any
    last_close: Any
    center: Any = field(default=None)
    scale: Any = field(default=None)

    def __post_init__(self) -> None:
        close = np.asarray(self.close, dtype=np.float64)
        self.values = np.full((*close.shape, 6), -777.0)
        self.values[..., 3] = close
        self.last_close = np.asarray(self.last_close, dtype=np.float64)
        if self.center is None:
            self.center = np.full((len(close), 6), 0.0)
        if self.scale is None:
            self.scale = np.full((len(close), 6), 1.0)


# One window, last close 10; two paths of three closes.
ONE = Forecast([[[11.0, 12.0, 13.0], [10.0, 9.0, 8.0]]], [10.0])


def test_the_registry_holds_the_documented_names() -> None:
    assert set(SIGNALS) >= NAMES
    assert all(s.unit and s.function.__doc__ for s in SIGNALS.values())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # (11 + 12 + 13 + 10 + 9 + 8) / 6 = 10.5
        ("expected_return", {}, 0.05),
        # first step only: (11 + 10) / 2
        ("expected_return", {"horizon": 1}, 0.05),
        # two steps: (11 + 12 + 10 + 9) / 4
        ("expected_return", {"horizon": 2}, 0.05),
        # (13 + 8) / 2
        ("terminal_return", {}, 0.05),
        # (12 + 9) / 2
        ("terminal_return", {"horizon": 2}, 0.05),
        # mean of 12/11 - 1 and 9/10 - 1, whatever the horizon
        ("execution_return", {}, (12 / 11 + 9 / 10) / 2 - 1),
        ("execution_return", {"horizon": 2}, (12 / 11 + 9 / 10) / 2 - 1),
        ("execution_return", {"holding": 2}, (13 / 11 + 8 / 10) / 2 - 1),
        # only 13 > 10 at the last step; the second path ends at 8
        ("probability_up", {}, 0.5),
        # at step 1 the second path equals the last close: no rise
        ("probability_up", {"horizon": 1}, 0.5),
        # per path .2 and -.1: mean .05, sample std .3 / sqrt(2)
        ("return_over_dispersion", {}, 0.05 / (0.3 / np.sqrt(2))),
        ("quantile_return", {}, 0.05),
        ("quantile_return", {"q": 0.0}, -0.2),
        ("quantile_return", {"q": 1.0}, 0.3),
        # between 8 and 13, a tenth of the way: 8.5
        ("quantile_return", {"q": 0.1}, -0.15),
    ],
)
def test_hand_computed(name: str, options: dict[str, Any], expected: float) -> None:
    np.testing.assert_allclose(compute_signal(name, ONE, **options), [expected], rtol=1e-12)


def test_paths_that_differ_by_horizon() -> None:
    forecast = Forecast([[[10.0, 20.0, 60.0]], [[30.0, 30.0, 15.0]]], [10.0, 30.0])
    np.testing.assert_allclose(compute_signal("expected_return", forecast), [2.0, -1 / 6])
    np.testing.assert_allclose(compute_signal("expected_return", forecast, horizon=2), [0.5, 0.0])
    np.testing.assert_allclose(compute_signal("terminal_return", forecast, horizon=2), [1.0, 0.0])
    np.testing.assert_allclose(compute_signal("execution_return", forecast), [1.0, 0.0])


def test_z_unit_is_the_originals_mean_score_with_the_last_bar_clipped() -> None:
    center = np.zeros((2, 6))
    scale = np.ones((2, 6))
    center[:, 3] = [9.0, 9.0]
    scale[:, 3] = [2.0, 0.1]
    forecast = Forecast([[[11.0, 13.0]], [[11.0, 13.0]]], [10.0, 10.0], center, scale)
    # window 0: (12 - 9) / 2 - (10 - 9) / 2; window 1: the last bar is 10 z units away and counts as 5
    np.testing.assert_allclose(compute_signal("z_unit", forecast), [1.0, 30.0 - 5.0])


def test_trap_4_z_unit_ranks_by_volatility_and_the_return_signals_do_not() -> None:
    calm, wild = 0.5, 2.0
    scale = np.ones((2, 6))
    scale[:, 3] = [calm, wild]
    forecast = Forecast([[[10.4, 10.4]], [[10.4, 10.4]]], [10.0, 10.0], np.full((2, 6), 10.0), scale)
    in_z = compute_signal("z_unit", forecast)
    np.testing.assert_allclose(in_z, [0.8, 0.2])
    np.testing.assert_allclose(compute_signal("expected_return", forecast), [0.04, 0.04])


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_close_inside_the_horizon_makes_that_window_nan_and_no_other(name: str, bad: float) -> None:
    closes = np.array([[[11.0, 12.0, 13.0], [10.5, 9.0, 8.0]]] * 3)
    closes[1, 0, 1] = bad
    score = compute_signal(name, Forecast(closes, [10.0, 10.0, 10.0]))
    assert np.isnan(score[1])
    assert np.isfinite(score[[0, 2]]).all()
    assert score.dtype == np.float64


def test_a_non_finite_close_beyond_the_horizon_does_not_matter() -> None:
    closes = np.array([[[11.0, 12.0, np.nan], [10.0, 9.0, 8.0]]])
    np.testing.assert_allclose(compute_signal("expected_return", Forecast(closes, [10.0]), horizon=2), [0.05])


@pytest.mark.parametrize("last", [np.nan, 0.0, -3.0, np.inf])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_last_close_that_is_no_price_gives_nan(name: str, last: float) -> None:
    assert np.isnan(compute_signal(name, Forecast(ONE.close, [last]))).all()


def test_execution_return_is_nan_where_a_path_buys_at_no_price() -> None:
    assert np.isnan(compute_signal("execution_return", Forecast([[[-1.0, 2.0], [1.0, 2.0]]], [10.0]))).all()


def test_return_over_dispersion_is_nan_where_all_paths_agree() -> None:
    same = Forecast([[[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]]], [0.3])
    assert np.isnan(compute_signal("return_over_dispersion", same)).all()


def test_no_window_gives_an_empty_score() -> None:
    assert compute_signal("expected_return", Forecast(np.ones((0, 2, 3)), np.ones(0))).shape == (0,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("expcted_return", {}, "Did you mean 'expected_return'"),
        ("momentum", {}, "Known signals: .*terminal_return"),
        ("quantile_return", {"quantile": 0.1}, "no option 'quantile'.* Its options: q"),
        ("expected_return", {"q": 0.1}, "no option 'q'.* Its options: none"),
        ("quantile_return", {"q": 1.5}, "q must be a number from 0 to 1, got 1.5"),
        ("quantile_return", {"q": "0.1"}, "q must be a number from 0 to 1"),
        ("expected_return", {"horizon": 4}, "from 1 to 3.*got 4"),
        ("expected_return", {"horizon": 0}, "from 1 to 3.*got 0"),
        ("expected_return", {"horizon": 1.5}, "from 1 to 3.*got 1.5"),
        ("execution_return", {"horizon": 1}, "needs at least 2 forecast steps"),
        ("execution_return", {"holding": 3}, "holding must be a whole number from 1 to 2"),
    ],
)
def test_user_errors_say_what_to_do(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_signal(name, ONE, **options)


def test_dispersion_needs_two_paths() -> None:
    with pytest.raises(ValueError, match="at least 2 paths, got 1"):
        compute_signal("return_over_dispersion", Forecast([[[1.0, 2.0]]], [1.0]))


def test_check_signal_refuses_before_anything_is_sampled() -> None:
    assert check_signal("quantile_return", horizon=1, n_paths=1, options={"q": 0.2}).name == "quantile_return"
    with pytest.raises(ValueError, match="needs at least 2 forecast steps, got horizon 1"):
        check_signal("execution_return", horizon=1, n_paths=5)


def test_the_clip_is_the_one_of_the_normalisation() -> None:
    assert Z_CLIP == CLIP


def test_a_taken_name_is_refused() -> None:
    before = find_signal("z_unit")
    with pytest.raises(ValueError, match="exists already"):
        signal("z_unit", unit="none")(lambda paths, close: close.mean(axis=(1, 2)))
    assert find_signal("z_unit") is before


def test_a_new_signal_is_used_by_name() -> None:
    @signal("worst_close", unit="price")
    def worst_close(paths: Any, close: np.ndarray, *, add: float = 0.0) -> np.ndarray:
        return close.min(axis=(1, 2)) + add

    try:
        np.testing.assert_allclose(compute_signal("worst_close", ONE, add=1.0), [9.0])
    finally:
        SIGNALS.pop("worst_close")


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1000.0), st.sampled_from(sorted(NAMES - {"z_unit"})))
def test_the_currency_does_not_matter(seed: int, unit: float, name: str) -> None:
    random = np.random.default_rng(seed)
    closes = random.uniform(5.0, 20.0, size=(4, 6, 3))
    last = random.uniform(5.0, 20.0, size=4)
    there = compute_signal(name, Forecast(closes * unit, last * unit))
    np.testing.assert_allclose(there, compute_signal(name, Forecast(closes, last)), rtol=1e-8, atol=1e-10)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(NAMES)))
def test_windows_do_not_touch_each_other_and_paths_have_no_order(seed: int, name: str) -> None:
    random = np.random.default_rng(seed)
    closes = random.uniform(5.0, 20.0, size=(5, 4, 3))
    last = random.uniform(5.0, 20.0, size=5)
    whole = compute_signal(name, Forecast(closes, last))
    order = random.permutation(5)
    np.testing.assert_array_equal(compute_signal(name, Forecast(closes[order], last[order])), whole[order])
    shuffled = compute_signal(name, Forecast(closes[:, random.permutation(4)], last))
    np.testing.assert_allclose(shuffled, whole, rtol=1e-9, atol=1e-12)
