"""Filters and draws against a full stable sort in numpy, ties and edges included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference_sampling import boundary_gap, reference_probabilities

from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.kronos.sampling import draw, filtered_probabilities, inverse_cdf

NEARLY_ONE = float(np.nextafter(1.0, 0.0))


def ours(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Normalised distribution of one row, float64."""
    weights = filtered_probabilities(torch.from_numpy(np.asarray(logits))[None], temperature, top_k, top_p)[0]
    return (weights / weights.sum()).double().numpy()


logit_rows = hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(-20, 20))
temperatures = st.floats(0.05, 10)
top_ks = st.integers(0, 210)
top_ps = st.one_of(st.just(1.0), st.floats(0.01, 0.999))


@settings(max_examples=300, deadline=None)
@given(logit_rows, temperatures, top_ks, top_ps)
def test_filters_equal_a_full_sort(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> None:
    assume(boundary_gap(logits, temperature, top_k, top_p) > 1e-12)
    expected = reference_probabilities(logits, temperature, top_k, top_p)
    np.testing.assert_allclose(ours(logits, temperature, top_k, top_p), expected, rtol=1e-9, atol=1e-14)


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.int64, st.integers(1, 150), elements=st.integers(-2, 2)), st.integers(0, 160), st.floats(0.01, 0.99)
)
def test_ties_go_to_the_lowest_ids(levels: np.ndarray, top_k: int, top_p: float) -> None:
    logits = levels.astype(np.float64)
    # ties everywhere are the point; only the nucleus bound itself may not be hit by rounding
    probabilities = np.sort(np.exp(logits))[::-1]
    if 0 < top_k < len(logits):
        probabilities = probabilities[:top_k]
    assume(np.abs(np.cumsum(probabilities / probabilities.sum()) - top_p).min() > 1e-9)
    expected = reference_probabilities(logits, 1.0, top_k, top_p)
    np.testing.assert_allclose(ours(logits, 1.0, top_k, top_p), expected, rtol=1e-9, atol=1e-15)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.floats(0.5, 0.999), st.sampled_from([0, 3, 70]), st.sampled_from([0.05, 1.0, 30.0])
)
def test_rows_of_one_batch_are_filtered_apart(seed: int, top_p: float, top_k: int, scale: float) -> None:
    """Peaked and flat rows together: some nuclei hold one token, some nearly all 300."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(6, 300)) * scale * np.array([0.01, 0.1, 0.5, 1, 2, 5])[:, None])
    together = filtered_probabilities(logits, 1.0, top_k, top_p)
    for row in range(len(logits)):
        alone = filtered_probabilities(logits[row : row + 1], 1.0, top_k, top_p)[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-12)


@pytest.mark.parametrize(
    ("logits", "top_k", "top_p", "kept"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0, 0.5, [0, 1, 2]),  # one half is reached by two tokens and exceeded by three
        ([0.0, 0.0, 0.0, 0.0], 0, 0.49, [0, 1]),
        ([0.0, 0.0, 0.0, 0.0], 2, 1.0, [0, 1]),
        ([0.0, 5.0, 5.0, 5.0], 2, 1.0, [1, 2]),
        ([1.0, 3.0, 2.0, 0.0], 1, 1.0, [1]),
        ([1.0, 3.0, 2.0, 0.0], 9, 1.0, [0, 1, 2, 3]),  # top_k above the vocabulary
        ([1.0, 3.0, 2.0, 0.0], 0, 1.0, [0, 1, 2, 3]),
        ([1.0, 3.0, 2.0, 0.0], 0, 1e-9, [1]),  # at least one token stays
        ([7.0], 5, 0.1, [0]),
        ([0.0, -1000.0], 0, 1.0, [0]),  # underflow leaves weight 0
    ],
)
def test_kept_tokens_by_hand(logits: list[float], top_k: int, top_p: float, kept: list[int]) -> None:
    assert np.flatnonzero(ours(np.array(logits), 1.0, top_k, top_p)).tolist() == kept


def test_top_p_counts_what_top_k_left() -> None:
    """p = .4 .3 .2 .1: top_k=2 leaves .571 .429, so a nucleus of .5 is the first; of all four it would be two."""
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    assert np.flatnonzero(ours(logits, 1.0, 2, 0.5)).tolist() == [1]
    assert np.flatnonzero(ours(logits, 1.0, 0, 0.5)).tolist() == [1, 3]
    assert np.flatnonzero(ours(logits, 1.0, 2, 0.6)).tolist() == [1, 3]


@pytest.mark.parametrize("size", [63, 64, 65, 100, 1024])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999])
def test_large_nuclei_are_exact(size: int, top_p: float) -> None:
    """Nearly flat rows: the nucleus holds most of the vocabulary, beyond any partial sort."""
    logits = np.random.default_rng(size).normal(size=size) * 0.1
    assert boundary_gap(logits, 1.0, 0, top_p) > 1e-9
    expected = reference_probabilities(logits, 1.0, 0, top_p)
    assert np.count_nonzero(expected) >= top_p * size * 0.7
    np.testing.assert_allclose(ours(logits, 1.0, 0, top_p), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_stay_untouched(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(1)).to(dtype)
    uniform = torch.rand(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = logits.clone(), uniform.clone()
    draw(logits, uniform, temperature, 7, 0.5)
    assert torch.equal(logits, kept[0])
    assert torch.equal(uniform, kept[1])


def test_probabilities_are_computed_in_float32_at_least() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    expected = filtered_probabilities(logits, 0.7, 0, 1.0)
    low = filtered_probabilities(logits.bfloat16(), 0.7, 0, 1.0)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected)
    assert filtered_probabilities(logits.double(), 0.7, 0, 1.0).dtype == torch.float64


def test_extreme_logits_and_temperatures_stay_finite() -> None:
    logits = torch.tensor([[-3e38, 0.0, 3e38], [1e4, 1e4, -1e4]])
    for temperature in (0.01, 1.0, 1e6):
        assert torch.isfinite(filtered_probabilities(logits / 100, temperature, 0, 0.9)).all()
    assert draw(logits[1:], torch.tensor([[0.0, 0.999]]), 0.01, 0, 1.0).tolist() == [[0, 1]]


# --- draws ---


def test_greedy_takes_the_most_likely_and_the_lowest_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0], [-5.0, -4.0, -9.0, -1.0]])
    uniform = torch.tensor([[0.0, 0.5, NEARLY_ONE]], dtype=torch.float64).expand(3, 3)
    order = torch.tensor([3, 2, 1, 0])
    for given_order in (None, order):
        assert draw(logits, uniform, 0.0, 0, 0.9, order=given_order).tolist() == [[1] * 3, [0] * 3, [3] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_cdf_at_its_edges(dtype: torch.dtype) -> None:
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]], dtype=dtype)
    uniform = torch.tensor([[0.0, 0.2499, 0.25, 0.7499, 0.75, NEARLY_ONE]], dtype=torch.float64)
    assert inverse_cdf(weights, uniform).tolist() == [[1, 1, 3, 3, 4, 4]]


@pytest.mark.parametrize("scale", [1.0, 1e-30, 3.0])
def test_weights_need_not_be_normalised(scale: float) -> None:
    weights = torch.tensor([[0.2, 0.3, 0.5]]) * scale
    uniform = torch.tensor([[0.1, 0.4, 0.6, NEARLY_ONE]], dtype=torch.float64)
    assert inverse_cdf(weights, uniform).tolist() == [[0, 1, 2, 2]]


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 1100), elements=st.floats(0, 1, width=32)),
    st.lists(st.one_of(st.just(0.0), st.just(NEARLY_ONE), st.floats(0, NEARLY_ONE)), min_size=1, max_size=20),
)
def test_no_token_of_weight_zero_is_ever_drawn(weights: np.ndarray, uniform: list[float]) -> None:
    weights[weights < 0.3] = 0.0
    assume(weights.sum() > 0)
    rows = torch.from_numpy(weights)[None]
    drawn = inverse_cdf(rows, torch.tensor([uniform], dtype=torch.float64))[0]
    assert (rows[0][drawn] > 0).all()
    # a larger uniform never draws an earlier token
    ranked = np.argsort(uniform, kind="stable")
    assert (np.diff(drawn.numpy()[ranked]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(logit_rows, temperatures, top_ks, top_ps, st.integers(0, 2**32 - 1))
def test_an_order_moves_tokens_along_the_cdf_and_not_their_share(
    logits: np.ndarray, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(logits)))
    rows = torch.from_numpy(logits)[None]
    uniform = torch.from_numpy(rng.random((1, 8)))
    weights = filtered_probabilities(rows, temperature, top_k, top_p)
    expected = order[inverse_cdf(weights[:, order], uniform)]
    assert torch.equal(draw(rows, uniform, temperature, top_k, top_p, order=order), expected)
    # an order per row means the same
    assert torch.equal(draw(rows, uniform, temperature, top_k, top_p, order=order[None]), expected)


def test_draws_hit_each_token_in_proportion() -> None:
    """An even grid of uniforms hits each token as often as its probability says, to one grid point a token."""
    logits = np.random.default_rng(4).normal(size=40)
    n = 100_000
    grid = torch.from_numpy((np.arange(n) + 0.5) / n)[None]
    for temperature, top_k, top_p in ((1.0, 0, 1.0), (0.5, 0, 0.8), (2.0, 11, 1.0), (0.8, 9, 0.7)):
        drawn = draw(torch.from_numpy(logits)[None], grid, temperature, top_k, top_p)[0].numpy()
        share = np.bincount(drawn, minlength=40) / n
        expected = reference_probabilities(logits, temperature, top_k, top_p)
        np.testing.assert_allclose(share, expected, atol=1.5 / n)
        assert (share[expected == 0] == 0).all()


# --- separate settings of the two halves ---


def test_s2_settings_follow_s1_unless_given() -> None:
    shared = SamplingConfig(temperature=0.7, top_k=5, top_p=0.8)
    assert shared.filters("s1") == shared.filters("s2") == (0.7, 5, 0.8)
    apart = SamplingConfig(temperature=0.7, top_k=5, top_p=0.8, s2_temperature=0.0, s2_top_k=0, s2_top_p=1.0)
    assert apart.filters("s1") == (0.7, 5, 0.8)
    assert apart.filters("s2") == (0.0, 0, 1.0)
