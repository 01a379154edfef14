"""Every path factor on paths small enough to check by hand, and what holds for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from kronos_qlib.alpha.factors import FACTORS, FactorInputs, check_factors, compute_factors, default_factors, factor

NAMES = sorted(FACTORS)
MEANS = np.array([[9.0, 9.0, 9.0, 9.0, 100.0, 1000.0]])
SCALES = np.array([[2.0, 2.0, 2.0, 2.0, 10.0, 10.0]])


@dataclass
class Forecast:
    """One window, last close 10; fields that are not given are flat bars at the close, 100 shares, 1000 of amount."""

    close: Any
    given: dict[str, Any] = field(default_factory=dict)
    center: Any = field(default_factory=lambda: MEANS)
    scale: Any = field(default_factory=lambda: SCALES)

    def __post_init__(self) -> None:
        close = np.asarray(self.close, dtype=np.float64)[None]
        flat = dict.fromkeys(("open", "high", "low", "close"), close)
        flat |= {"volume": np.full_like(close, 100.0), "amount": np.full_like(close, 1000.0)}
        for name, values in self.given.items():
            flat[name] = np.broadcast_to(np.asarray(values, dtype=np.float64)[None], close.shape)
        self.values = np.stack([flat[name] for name in ("open", "high", "low", "close", "volume", "amount")], axis=-1)
        self.last_close = np.array([10.0])


def bars(close: Any, **given: Any) -> Forecast:
    return Forecast(close, given)


# one path that rises by 1 a step, one that stays
TWO = bars([[11, 12, 13, 14, 15, 16], [10, 10, 10, 10, 10, 10]])
SPREAD = bars([[11, 11, 11, 11, 12, 13], [9, 9, 9, 9, 8, 7]])
MIDDLE = bars([[9] * 6, [10, 10.2, 10.4, 10.6, 11, 12], [14] * 6])
TURNS = bars([[11, 9, 9, 9, 11, 9], [11, 9, 9, 9, 9, 9]])
OPENS = bars([[11], [10]], open=[[10.5], [9.7]])
RANGES = bars([[10, 10], [10, 10]], high=[[11, 12], [11, 10]], low=[[10, 9], [9.6, 9.8]])
WIDTHS = bars([[10, 10], [10, 10]], high=[[11, 12], [10, 11]], low=[[10, 10], [10, 10]])
VOLUMES = bars([[10, 10], [10, 10]], volume=[[150, 50], [100, 140]], amount=[[800, 900], [900, 1000]])
THREE = [[9], [10], [11]]

CASES: list[tuple[str, Forecast, float]] = [
    # (mean of 11 … 15 = 13, and 10): 11.5
    ("expected_return_5", TWO, 0.15),
    # (mean of 11 … 16 = 13.5, and 10): 11.75
    ("expected_return", TWO, 0.175),
    ("terminal_return_1", TWO, 0.05),
    ("terminal_return_2", TWO, 0.10),
    ("terminal_return_5", TWO, 0.25),
    ("terminal_return", TWO, 0.30),
    # the middle one of 9, B, 14
    ("median_return_1", MIDDLE, 0.0),
    ("median_return_5", MIDDLE, 0.1),
    ("median_return", MIDDLE, 0.2),
    # 12 / 11 - 1 and 0
    ("execution_return", TWO, 1 / 22),
    # 16 / 11 - 1 and 0
    ("execution_return_5", TWO, 5 / 22),
    # 16 - 13 and 0, over 10
    ("late_return", TWO, 0.15),
    # 10.5 and 9.7
    ("overnight_return", OPENS, 0.01),
    # 11 - 10.5 and 10 - 9.7
    ("intraday_return", OPENS, 0.04),
    # (11.75 - 9) / 2 - (10 - 9) / 2
    ("z_unit", TWO, 0.875),
    ("probability_up_1", TURNS, 1.0),
    ("probability_up_5", TURNS, 0.5),
    ("probability_up", TURNS, 0.0),
    # 10 → 11 is the limit of 10 %; the other path's 9 % are not
    ("probability_limit_up", bars([[11, 11], [10.9, 10.9]]), 0.5),
    # the fall at the second step counts, against 10
    ("probability_limit_down", bars([[10, 9], [9.5, 9.5]]), 0.5),
    ("probability_touch_limit_up_1", bars([[10, 12], [10, 12]], high=[[11, 12], [10.5, 12]]), 0.5),
    # returns .1 and -.1; .2 and -.2; .3 and -.3
    ("dispersion_1", SPREAD, 0.1 * np.sqrt(2)),
    ("dispersion_5", SPREAD, 0.2 * np.sqrt(2)),
    ("dispersion", SPREAD, 0.3 * np.sqrt(2)),
    # .1 and 0: mean .05, deviation .1 / sqrt(2)
    ("return_over_dispersion", bars([[11, 11], [10, 10]]), 0.05 / (0.1 / np.sqrt(2))),
    # 0, 0, .3: centred -.1, -.1, .2; second moment .02, third .002
    ("skew", bars([[10], [10], [13]]), 0.002 / 0.02**1.5),
    # a tenth of the way from 8 to 13, and from 13 to 8
    ("lower_tail_return", bars([[8], [13]]), -0.15),
    ("upper_tail_return", bars([[8], [13]]), 0.25),
    # 10.2, 11, 13.4: (23.6 - 22) / 3.2
    ("tail_asymmetry", bars([[10], [11], [14]]), 0.5),
    # two of ten paths: 7 and 8
    ("worst_fifth_return", bars([[c] for c in (16, 15, 14, 13, 12, 11, 10, 9, 8, 7)]), -0.25),
    # .1 and -.1: root mean square .1; the other path 0
    ("path_volatility", bars([[11, 9.9], [10, 10]]), 0.05),
    # .3 over .1 and over the root of 6 steps
    ("dispersion_growth", SPREAD, 3 / np.sqrt(6)),
    # one of four ends up: 3 of 6 pairs
    ("direction_disagreement", bars([[11], [10], [9], [8]]), 0.5),
    # one-step returns .1, 0 and .1, .1: variance .001875; mean path .1, .05: .000625
    ("common_share", bars([[11, 11], [11, 12.1]]), 1 / 3),
    # 12 and 11; 9 and 9.6
    ("expected_maximum", RANGES, 0.15),
    ("expected_minimum", RANGES, -0.07),
    ("expected_range", RANGES, 0.22),
    ("range_asymmetry", RANGES, 0.08 / 0.22),
    # 9 under the 12 before it: .25; 9.5 under the last close: .05
    ("expected_drawdown", bars([[10, 10]] * 2, high=[[12, 10], [10, 10]], low=[[10, 9], [9.5, 10]]), 0.15),
    # 10 over the 8 before it: .25; 10.5 over the last close: .05
    ("expected_runup", bars([[10, 10]] * 2, high=[[10, 10], [10.5, 10]], low=[[8, 9], [10, 10]]), 0.15),
    # 1, 2, 0, 1
    ("bar_range", WIDTHS, 0.1),
    ("bar_range_1", WIDTHS, 0.05),
    # second of two; first of two equals
    ("time_of_maximum", bars([[10, 10]] * 2, high=[[11, 12], [12, 12]]), 0.75),
    ("probability_rise_5pct", bars([[10, 10]] * 2, high=[[10, 10.6], [10.4, 10.4]]), 0.5),
    ("probability_fall_5pct", bars([[10, 10]] * 2, low=[[10, 9.4], [9.6, 9.6]]), 0.5),
    # a high below the close, a low above the open
    (
        "impossible_share",
        bars([[10, 10]] * 2, high=[[9, 11], [11, 11]], open=[[9, 10], [9, 10]], low=[[9, 9], [9.5, 9]]),
        0.5,
    ),
    # 150, 50, 100, 140 over 100
    ("volume_change", VOLUMES, 0.1),
    ("volume_change_1", VOLUMES, 0.25),
    ("amount_change", VOLUMES, -0.1),
    # 95 less 125
    ("volume_trend", VOLUMES, -0.3),
    # path means 1.0 and 1.2
    ("volume_dispersion", VOLUMES, 0.2 / np.sqrt(2)),
    # deviations -1, 0, 1 with 0, 50, -50: -50 / (sqrt(2) sqrt(5000))
    ("price_volume_across_paths", bars(THREE, volume=[[100], [150], [50]]), -0.5),
    # .1, 0, -.1 with 150, 100, 50: 1; a constant path: 0
    ("price_volume_along_paths", bars([[11, 11, 9.9], [10] * 3], volume=[[150, 100, 50], [150, 100, 50]]), 0.5),
    # 1/30, -2/30, 1/30 with 50, -50, 0: 5 / (sqrt(6 / 900) sqrt(5000))
    ("move_volume_across_paths", bars(THREE, volume=[[150], [50], [100]]), np.sqrt(0.75)),
]


@pytest.mark.parametrize(("name", "forecast", "expected"), CASES, ids=[case[0] for case in CASES])
def test_hand_computed(name: str, forecast: Forecast, expected: float) -> None:
    found = compute_factors([name], forecast, limit_fraction=np.array([0.1]))
    np.testing.assert_allclose(found, [[expected]], rtol=1e-9, atol=1e-12)


def test_every_factor_has_a_case_a_definition_and_a_unit() -> None:
    assert {case[0] for case in CASES} == set(FACTORS)
    assert len(FACTORS) >= 30
    for found in FACTORS.values():
        assert found.definition.endswith((".", ")")), found.name
        assert found.unit
        assert found.timing.startswith("known at the close of t")


@dataclass
class Windows:
    """Many random windows of ten steps."""

    values: Any
    last_close: Any
    center: Any
    scale: Any

    def take(self, rows: Any) -> Windows:
        return Windows(self.values[rows], self.last_close[rows], self.center[rows], self.scale[rows])


def windows(n: int = 70, n_paths: int = 10, horizon: int = 10) -> Windows:
    random = np.random.default_rng(3)
    close = 10 * np.exp(random.normal(0, 0.03, (n, n_paths, horizon)).cumsum(axis=2))
    noise = random.uniform(0.99, 1.01, (3, *close.shape))
    volume = random.uniform(50, 200, close.shape)
    values = np.stack(
        [close * noise[0] ** 4, close * noise[1] * 1.02, close * noise[2] * 0.98, close, volume, volume * close]
    )
    return Windows(
        np.moveaxis(values, 0, -1).astype(np.float32),
        random.uniform(9, 11, n).astype(np.float32),
        np.tile(MEANS, (n, 1)).astype(np.float32),
        np.tile(SCALES, (n, 1)).astype(np.float32),
    )


WINDOWS = windows()
LIMITS = np.full(len(WINDOWS.values), 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_never_depends_on_its_batch(name: str) -> None:
    whole = compute_factors([name], WINDOWS, limit_fraction=LIMITS)
    assert np.isfinite(whole).all()
    assert len(np.unique(whole)) > 1
    for rows in ([0], [69], [5, 3], list(range(69, -1, -1))):
        part = compute_factors([name], WINDOWS.take(rows), limit_fraction=LIMITS[rows])
        np.testing.assert_array_equal(part, whole[rows])


@pytest.mark.parametrize("name", NAMES)
def test_the_paths_have_no_order(name: str) -> None:
    shuffled = Windows(WINDOWS.values[:, ::-1], WINDOWS.last_close, WINDOWS.center, WINDOWS.scale)
    expected = compute_factors([name], WINDOWS, limit_fraction=LIMITS)
    np.testing.assert_allclose(
        compute_factors([name], shuffled, limit_fraction=LIMITS), expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_currency_and_the_size_of_a_share_do_not_matter(name: str) -> None:
    units = np.array([4.0, 4.0, 4.0, 4.0, 0.25, 1.0], dtype=np.float32)
    other = Windows(WINDOWS.values * units, WINDOWS.last_close * 4, WINDOWS.center * units, WINDOWS.scale * units)
    expected = compute_factors([name], WINDOWS, limit_fraction=LIMITS)
    np.testing.assert_allclose(compute_factors([name], other, limit_fraction=LIMITS), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_makes_that_window_nan_and_no_other(name: str, bad: float) -> None:
    three = WINDOWS.take([0, 1, 2])
    three.values[1, 4, 9, 4] = bad
    assert np.isnan(compute_factors([name], three, limit_fraction=LIMITS[:3])[:, 0]).tolist() == [False, True, False]


@pytest.mark.parametrize("last", [np.nan, 0.0, -3.0, np.inf])
def test_a_last_close_that_is_no_price_gives_nan(last: float) -> None:
    one = WINDOWS.take([0])
    one.last_close[0] = last
    assert np.isnan(compute_factors(NAMES, one, limit_fraction=LIMITS[:1])).all()


@pytest.mark.parametrize(
    ("name", "forecast"),
    [
        ("skew", bars([[10], [10], [10]])),
        ("return_over_dispersion", bars([[11, 11], [11, 11]])),
        ("tail_asymmetry", bars([[10], [10], [10]])),
        ("dispersion_growth", bars([[10, 11], [10, 9]])),
        ("common_share", bars([[10, 10], [10, 10]])),
        ("range_asymmetry", bars([[10], [10]])),
        ("price_volume_across_paths", bars([[10], [10], [10]], volume=[[1], [2], [3]])),
        ("price_volume_across_paths", bars(THREE)),
        ("execution_return", bars([[-1, 2], [1, 2]])),
        ("path_volatility", bars([[-1, 2], [1, 2]])),
        ("expected_runup", bars([[10, 10]] * 2, low=[[-1, 9], [9, 9]])),
        ("volume_change", Forecast([[10], [10]], center=MEANS * 0)),
    ],
)
def test_where_a_factor_is_undefined(name: str, forecast: Forecast) -> None:
    assert np.isnan(compute_factors([name], forecast)).all()


def test_no_limit_no_probability_of_one() -> None:
    names = [name for name in NAMES if FACTORS[name].needs_limit]
    assert len(names) == 3
    assert np.isnan(compute_factors(names, bars([[11, 11], [9, 9]]), limit_fraction=np.array([np.nan]))).all()
    with pytest.raises(ValueError, match=r"no limit_fraction.*limit_fractions"):
        compute_factors(names, bars([[11, 11], [9, 9]]))
    with pytest.raises(ValueError, match=r"shape \(2,\); expected \(1,\)"):
        compute_factors(names, bars([[11, 11], [9, 9]]), limit_fraction=np.array([0.1, 0.1]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["expcted_return"], "did you mean 'expected_return'"),
        ([], "expected at least one"),
        (["skew", "skew"], "each once"),
        (["expected_return_5"], "at least 5 forecast steps, got horizon 2"),
        (["skew"], "at least 3 paths, got 2"),
    ],
)
def test_user_errors_say_what_to_do(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_factors(names, horizon=2, n_paths=2)


def test_default_factors_are_those_that_the_forecast_defines() -> None:
    assert set(default_factors(10, 10)) == set(FACTORS)
    few = default_factors(1, 1, limits=False)
    assert "terminal_return_1" in few
    assert not {"expected_return_5", "skew", "probability_limit_up"} & set(few)
    check_factors(few, horizon=1, n_paths=1)


def test_no_window_gives_an_empty_table() -> None:
    assert compute_factors(NAMES, WINDOWS.take([]), limit_fraction=LIMITS[:0]).shape == (0, len(NAMES))


def test_a_new_factor_is_one_function() -> None:
    @factor("first_open", unit="return")
    def first_open(inputs: FactorInputs) -> np.ndarray:
        """First open over the last close, minus 1."""
        return inputs.open[:, :, 0].mean(axis=1)

    try:
        np.testing.assert_allclose(compute_factors(["first_open"], OPENS), [[0.01]])
        with pytest.raises(ValueError, match="exists already"):
            factor("first_open", unit="return")(first_open)
        with pytest.raises(ValueError, match="no docstring"):
            factor("silent", unit="return")(lambda inputs: inputs.open[:, 0, 0])
    finally:
        FACTORS.pop("first_open")
