"""The stream of uniforms: exact marginals, the promised spread, no state, and the very numbers pinned."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.kronos.uniforms import uniforms, window_bytes_keys

SCHEMES = ["independent", "antithetic", "stratified", "sobol"]
KEYS = np.arange(4000, dtype=np.uint64)
# smallest p-value that fixed seeds may show; about 700 are looked at in this file
UNLIKELY = 1e-5


def sample(scheme: str, n_paths: int = 8, horizon: int = 3, keys: np.ndarray = KEYS, seed: int = 0) -> np.ndarray:
    return uniforms(SamplingConfig(scheme=scheme, n_paths=n_paths, seed=seed), keys, horizon)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("n_paths", [1, 2, 5, 8])
def test_range_and_shape(scheme: str, n_paths: int) -> None:
    values = sample(scheme, n_paths)
    assert values.shape == (len(KEYS), n_paths, 3, 2)
    assert values.dtype == np.float64
    assert values.min() >= 0.0
    assert values.max() < 1.0


@pytest.mark.parametrize("n_paths", [1, 2, 5, 8])
def test_every_single_entry_is_uniform(scheme: str, n_paths: int) -> None:
    """Across keys, each (path, step, token) on its own: the exact marginal that the sampled law rests on."""
    values = sample(scheme, n_paths, horizon=2).reshape(len(KEYS), -1)
    for column in values.T:
        assert stats.kstest(column, "uniform").pvalue > UNLIKELY


def test_entries_of_a_path_are_independent_across_steps_and_tokens(scheme: str) -> None:
    """Two entries of one path fill the unit square evenly: 4 × 4 cells, all pairs of a path's six entries."""
    values = sample(scheme, n_paths=4, horizon=3)
    for path in range(4):
        cells = np.floor(values[:, path].reshape(len(KEYS), 6) * 4).astype(int)
        for first in range(6):
            for second in range(first + 1, 6):
                counts = np.bincount(cells[:, first] * 4 + cells[:, second], minlength=16)
                assert stats.chisquare(counts).pvalue > UNLIKELY


def test_keys_and_seeds_give_unrelated_numbers(scheme: str) -> None:
    first = sample(scheme)[:, 0, 0, 0]
    for other in (
        sample(scheme, seed=1)[:, 0, 0, 0],
        sample(scheme, keys=KEYS + np.uint64(1))[:, 0, 0, 0],
        sample(scheme, keys=KEYS ^ np.uint64(1 << 63))[:, 0, 0, 0],
        sample(scheme, seed=2**62)[:, 0, 0, 0],
    ):
        assert not (first == other).any()
        assert stats.pearsonr(first, other).pvalue > UNLIKELY
        counts = np.bincount((np.floor(first * 5) * 5 + np.floor(other * 5)).astype(int), minlength=25)
        assert stats.chisquare(counts).pvalue > UNLIKELY


def test_seed_and_key_are_not_interchangeable() -> None:
    one = sample("independent", keys=np.array([7], dtype=np.uint64), seed=3)
    other = sample("independent", keys=np.array([3], dtype=np.uint64), seed=7)
    assert not np.isin(one, other).any()


def test_independent_paths_are_independent() -> None:
    values = np.floor(sample("independent", n_paths=4, horizon=1)[:, :, 0, 0] * 4).astype(int)
    for first, second in ((0, 1), (0, 3), (1, 2), (2, 3)):
        counts = np.bincount(values[:, first] * 4 + values[:, second], minlength=16)
        assert stats.chisquare(counts).pvalue > UNLIKELY


# --- spread over paths ---


@pytest.mark.parametrize("n_paths", [1, 3, 7, 10])
def test_stratified_hits_each_stratum_once(n_paths: int) -> None:
    values = sample("stratified", n_paths, horizon=4, keys=KEYS[:200])
    strata = np.sort(np.floor(values * n_paths).astype(int), axis=1)
    assert (strata == np.arange(n_paths)[None, :, None, None]).all()


def test_strata_are_permuted_anew_at_each_step() -> None:
    """A path's stratum at one step says nothing of its stratum at the next."""
    strata = np.floor(sample("stratified", 4, horizon=2) * 4).astype(int)
    counts = np.bincount((strata[:, 0, 0, 0] * 4 + strata[:, 0, 1, 0]), minlength=16)
    assert stats.chisquare(counts).pvalue > UNLIKELY


@pytest.mark.parametrize("n_paths", [2, 5, 8])
def test_antithetic_paths_come_in_mirrored_pairs(n_paths: int) -> None:
    values = sample("antithetic", n_paths)
    half = n_paths // 2
    mirrored = values[:, n_paths - half :]
    np.testing.assert_allclose(values[:, :half] + mirrored, 1.0, rtol=0, atol=2**-52)
    # the first half, and the odd one in the middle, are the independent scheme's own
    independent = sample("independent", n_paths)
    np.testing.assert_array_equal(values[:, : n_paths - half], independent[:, : n_paths - half])


@pytest.mark.parametrize("n_paths", [1, 2, 8, 32])
def test_sobol_hits_each_stratum_once_for_powers_of_two(n_paths: int) -> None:
    values = sample("sobol", n_paths, horizon=6, keys=KEYS[:100])
    strata = np.sort(np.floor(values * n_paths).astype(int), axis=1)
    assert (strata == np.arange(n_paths)[None, :, None, None]).all()


def test_sobol_paths_have_no_fixed_place() -> None:
    """The path index says nothing of where its point lies in the sequence."""
    values = sample("sobol", 4, horizon=1)
    first_cell = np.floor(values[:, 0, 0] * 2).astype(int)
    second_cell = np.floor(values[:, 1, 0] * 2).astype(int)
    relation = (first_cell ^ second_cell)[:, 0] * 2 + (first_cell ^ second_cell)[:, 1]
    # of a sequence's four points, the other three differ from one in the halves (0,1), (1,0) and (1,1)
    counts = np.bincount(relation, minlength=4)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > UNLIKELY


@pytest.mark.parametrize("spread", ["antithetic", "stratified", "sobol"])
def test_spread_schemes_estimate_a_mean_better(spread: str) -> None:
    """The mean over a window's paths of a monotone function has less variance than with independent draws."""
    plain = np.exp(sample("independent", 8)[..., 0, 0]).mean(axis=1).var()
    assert np.exp(sample(spread, 8)[..., 0, 0]).mean(axis=1).var() < 0.2 * plain


# --- a pure function ---


def test_a_windows_numbers_do_not_depend_on_its_batch(scheme: str) -> None:
    whole = sample(scheme, keys=KEYS[:50])
    for order in (np.arange(50)[::-1], np.array([7]), np.array([3, 3, 9])):
        np.testing.assert_array_equal(sample(scheme, keys=KEYS[order]), whole[order])


def test_a_longer_horizon_only_appends(scheme: str) -> None:
    np.testing.assert_array_equal(sample(scheme, horizon=9, keys=KEYS[:20])[:, :, :4], sample(scheme, 8, 4, KEYS[:20]))


def test_more_independent_paths_only_append() -> None:
    np.testing.assert_array_equal(sample("independent", 30)[:, :8], sample("independent", 8))


def test_no_global_state_is_read_or_written(scheme: str) -> None:
    import torch

    first = sample(scheme, keys=KEYS[:5])
    np.random.seed(12)  # noqa: NPY002 - the point is that the global generator does not matter
    torch.manual_seed(12)
    before = np.random.get_state()[1].copy(), torch.get_rng_state().clone()  # noqa: NPY002
    np.testing.assert_array_equal(sample(scheme, keys=KEYS[:5]), first)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_another_process_draws_the_same() -> None:
    code = (
        "import numpy as np; from kronos_qlib.kronos import SamplingConfig; "
        "from kronos_qlib.kronos.uniforms import uniforms\n"
        f"for scheme in {SCHEMES}: print(uniforms(SamplingConfig(scheme=scheme, n_paths=3, seed=5), "
        "np.array([2**64 - 1], dtype=np.uint64), 2).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    key = np.array([2**64 - 1], dtype=np.uint64)
    assert done.stdout.split() == [sample(scheme, 3, 2, key, seed=5).tobytes().hex() for scheme in SCHEMES]


# first path, then last path, both tokens of step 0, of key 0x0123456789ABCDEF, seed 7, 4 paths
PINNED = {
    "independent": [0.7402712982479575, 0.9233734912823575, 0.955183447016595, 0.7155683316408441],
    "antithetic": [0.7402712982479575, 0.9233734912823575, 0.42669135172446837, 0.024714522876397305],
    "stratified": [0.43506782456198934, 0.23084337282058937, 0.7387958617541488, 0.678892082910211],
    "sobol": [0.07904315712256527, 0.5901312644071668, 0.8290431571225653, 0.8401312644071668],
}


def test_the_stream_itself_is_pinned(scheme: str) -> None:
    """These numbers are part of the interface: published results are repeated with them. A change needs a note."""
    values = sample(scheme, 4, 2, np.array([0x0123456789ABCDEF], dtype=np.uint64), seed=7)
    assert values[0, [0, 3], 0].ravel().tolist() == PINNED[scheme]


# --- default keys ---


def test_window_keys_hash_the_windows_bytes() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    keys = window_bytes_keys(x)
    assert keys.dtype == np.uint64
    assert len(set(keys.tolist())) == 3
    np.testing.assert_array_equal(window_bytes_keys(x[::-1]), keys[::-1])
    np.testing.assert_array_equal(window_bytes_keys(np.asfortranarray(x)), keys)
    # pinned too: default keys are part of a result's address
    assert window_bytes_keys(np.arange(30, dtype=np.float32).reshape(1, 5, 6)).tolist() == [0xEF5B9869A0F58AB6]
    changed = x.copy()
    changed[1, 4, 5] = np.nextafter(changed[1, 4, 5], np.float32(9))
    assert (window_bytes_keys(changed) != keys).tolist() == [False, True, False]
