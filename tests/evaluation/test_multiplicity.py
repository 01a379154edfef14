"""Romano–Wolf against a naive step-down, statsmodels and arch, and its error rate on many true nulls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import StepM
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from kronos_qlib.evaluation.bootstrap import paired_bootstrap, resample_means
from kronos_qlib.evaluation.multiplicity import romano_wolf, step_down


def table(values: NDArray[np.float64]) -> pd.DataFrame:
    index = pd.bdate_range("2017-01-03", periods=len(values), name="datetime")
    return pd.DataFrame(values, index, [f"v{i}" for i in range(values.shape[1])])


def noise(n: int, k: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(n, k))


def test_step_down_by_hand() -> None:
    statistic = np.array([1.0, 3.0, 2.0])
    null = np.array([[0.0, 1.0, 2.5], [0.5, 0.0, 0.0], [1.5, 3.5, 0.0], [2.0, 0.0, 1.0]])
    own, adjusted = step_down(statistic, null)
    # own: columns against 1, 3, 2; null rows at or above: {1.5, 2.0}, {3.5}, {2.5}
    np.testing.assert_allclose(own, [3 / 5, 2 / 5, 2 / 5])
    # 3 against row maxima 2.5, .5, 3.5, 2: one; 2 against columns 0 and 2, maxima 2.5, .5, 1.5, 2: two; 1: two
    np.testing.assert_allclose(adjusted, [3 / 5, 2 / 5, 3 / 5])


@given(st.integers(1, 7), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_step_down_equals_the_definition(k: int, n_resamples: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    statistic, null = random.normal(size=k).round(1), random.normal(size=(n_resamples, k)).round(1)
    own, adjusted = step_down(statistic, null)
    previous = 0.0
    for place in sorted(range(k), key=lambda i: -statistic[i]):
        left = [i for i in range(k) if statistic[i] <= statistic[place]]
        p = (1 + sum(row[left].max() >= statistic[place] for row in null)) / (1 + n_resamples)
        previous = max(previous, p)
        assert adjusted[place] == pytest.approx(previous)
    assert (adjusted >= own - 1e-12).all()


def test_one_variant_is_the_paired_bootstrap() -> None:
    first, second = noise(200, 1, 1)[:, 0] + 0.12, noise(200, 1, 2)[:, 0]
    index = pd.bdate_range("2017-01-03", periods=200)
    single = paired_bootstrap(pd.Series(first, index), pd.Series(second, index), horizon=3, n_resamples=2000)
    family = romano_wolf(pd.DataFrame({"a": first - second}, index), horizon=3, n_resamples=2000)
    row = family.table.loc["a"]
    assert family.block_length == single.block_length
    assert row["adjusted_p_value"] == row["p_value"] == single.p_value
    np.testing.assert_allclose(row[["mean", "standard_error"]], [single.estimate, single.standard_error], rtol=1e-3)


def test_copies_of_one_variant_cost_nothing_and_independent_ones_cost_what_holm_sidak_says() -> None:
    values = noise(400, 6, 3) + np.array([0.14, 0.12, 0.1, 0.05, 0.0, 0.02])
    found = romano_wolf(table(values), block_length=1, n_resamples=40_000).table
    independent = multipletests(found["p_value"], method="holm-sidak")[1]
    np.testing.assert_allclose(found["adjusted_p_value"], independent, atol=0.015)
    copies = romano_wolf(table(np.repeat(values[:, :1], 6, axis=1)), block_length=1, n_resamples=2000).table
    np.testing.assert_allclose(copies["adjusted_p_value"], copies["p_value"], atol=1e-12)


def test_finds_what_arch_finds() -> None:
    values = noise(500, 8, 6)
    values[:, [1, 4]] += [0.3, 0.25]
    values[:, 6] -= 0.4
    found = romano_wolf(table(values), alternative="greater", block_length=5, n_resamples=4000)
    step = StepM(np.zeros(500), -values, size=0.05, block_size=5, reps=2000, seed=1)
    step.compute()
    assert list(np.flatnonzero(found.table["adjusted_p_value"] < 0.05)) == list(step.superior_models) == [1, 4]
    two_sided = romano_wolf(table(values), block_length=5, n_resamples=4000).table
    assert list(np.flatnonzero(two_sided["adjusted_p_value"] < 0.05)) == [1, 4, 6]


def test_family_error_is_held_where_single_tests_are_not() -> None:
    any_single, any_adjusted = [], []
    for seed in range(150):
        common = noise(150, 1, 10_000 + seed)
        found = romano_wolf(table(noise(150, 10, seed) + common), block_length=1, n_resamples=400, seed=seed).table
        any_single.append((found["p_value"] <= 0.05).any())
        any_adjusted.append((found["adjusted_p_value"] <= 0.05).any())
    assert np.mean(any_adjusted) <= 0.11
    assert np.mean(any_single) > 0.2


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_order_of_columns_and_units_do_not_matter(seed: int) -> None:
    values = table(noise(40, 4, seed) + 0.3)
    first = romano_wolf(values, n_resamples=200, block_length=2).table
    turned = romano_wolf(values[["v2", "v0", "v3", "v1"]] * 1024.0, n_resamples=200, block_length=2).table
    pd.testing.assert_frame_equal(
        first[["t", "p_value", "adjusted_p_value"]],
        turned.loc[first.index, ["t", "p_value", "adjusted_p_value"]],
    )


def test_variants_tried_elsewhere_are_counted() -> None:
    values = table(noise(100, 3, 5) + 0.25)
    here = romano_wolf(values, n_resamples=500)
    counted = romano_wolf(values, n_resamples=500, n_tried=12)
    assert (here.n_variants, here.n_tried) == (3, 3)
    assert (counted.n_variants, counted.n_tried) == (3, 12)
    np.testing.assert_allclose(counted.table["adjusted_p_value"], np.minimum(4 * here.table["adjusted_p_value"], 1.0))
    np.testing.assert_array_equal(counted.table["p_value"], here.table["p_value"])


def test_the_same_resamples_as_a_single_test() -> None:
    values = noise(90, 3, 7)
    family = romano_wolf(table(values), block_length=4, n_resamples=300, seed=8).table
    alone = resample_means(values[:, 1:2], 4.0, 300, 8)[:, 0] - values[:, 1].mean()
    assert family.loc["v1", "p_value"] == (1 + (np.abs(alone) >= abs(values[:, 1].mean())).sum()) / 301


def test_holes_and_flat_variants() -> None:
    values = table(noise(60, 2, 9))
    values["nothing"], values["sure"] = 0.0, 0.3
    values.iloc[5, 0] = np.nan
    found = romano_wolf(values, n_resamples=99)
    assert (found.n_days, found.n_undefined) == (59, 1)
    assert found.table.loc["nothing", "adjusted_p_value"] == 1.0
    assert found.table.loc["nothing", "t"] == 0.0
    assert found.table.loc["sure", "t"] == np.inf
    assert found.table.loc["sure", "adjusted_p_value"] == 0.01


def test_user_errors() -> None:
    values = table(noise(40, 2, 1))
    with pytest.raises(ValueError, match="at least one column"):
        romano_wolf(values.iloc[:, :0])
    with pytest.raises(ValueError, match="each name once"):
        romano_wolf(values.set_axis(["a", "a"], axis=1))
    with pytest.raises(ValueError, match="two-sided"):
        romano_wolf(values, alternative="less")
    with pytest.raises(ValueError, match="count every variant"):
        romano_wolf(values, n_tried=1)
    with pytest.raises(ValueError, match="ascending"):
        romano_wolf(values[::-1])
