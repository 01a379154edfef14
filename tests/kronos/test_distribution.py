"""What comes out of ``generate`` follows the exact law: sampled frequencies against probabilities, chi-square.

The model has 4 × 4 tokens, so that every law is known in full. Every key of many gives one independent draw of each
path, so that a test of one path's draws holds for every scheme, however its paths hang together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from reference_sampling import reference_probabilities
from scipy import stats
from tiny_network import Networks, all_pairs, tiny_networks, windows

from kronos_qlib.kronos import SamplingConfig, generate

N_KEYS = 2000
LENGTH, MAX_CONTEXT = 6, 32
# smallest p-value that fixed seeds may show
UNLIKELY = 1e-4

FILTERS = {
    "plain": {"top_p": 1.0},
    "default": {},
    "cold": {"temperature": 0.6, "top_p": 1.0},
    "hot": {"temperature": 2.5, "top_p": 1.0},
    "top_k": {"top_k": 2, "top_p": 1.0},
    "top_p": {"top_p": 0.7},
    "all at once": {"temperature": 1.7, "top_k": 3, "top_p": 0.8},
    "s2 apart": {"temperature": 0.8, "top_k": 3, "s2_temperature": 1.5, "s2_top_k": 0, "s2_top_p": 0.6},
    "s1 greedy": {"temperature": 0.0, "s2_temperature": 1.0, "s2_top_p": 1.0},
    "s2 greedy": {"top_p": 1.0, "s2_temperature": 0.0},
}
SCHEMES = ["independent", "antithetic", "stratified", "sobol"]
ORDERS = ["token", "close"]


@dataclass(frozen=True)
class Laws:
    """Logits of the first token and of the second after each first, and the bars that they decode to."""

    s1_logits: np.ndarray  # (1 + 16, 4): before any token, then after each joint token
    s2_logits: np.ndarray  # (1 + 16, 4, 4): given s1
    first_bars: torch.Tensor  # (16, 6)
    second_bars: torch.Tensor  # (16, 16, 6)

    def joint(self, sampling: SamplingConfig, after: int = 0) -> np.ndarray:
        """Probabilities (16,) of the joint token; ``after`` 0 is the first step, 1 + t the step after token t."""
        s1 = reference_probabilities(self.s1_logits[after], *sampling.filters("s1"))
        s2 = [reference_probabilities(row, *sampling.filters("s2")) for row in self.s2_logits[after]]
        return (s1[:, None] * np.array(s2)).ravel()


@cache
def networks() -> Networks:
    return tiny_networks(bits=2, sharpness=1.0)


def data() -> list[np.ndarray]:
    return list(windows(1, LENGTH, 2, seed=3))


@cache
@torch.inference_mode()
def laws() -> Laws:
    """From the plain forward functions of the networks, in double precision."""
    net = tiny_networks(bits=2, sharpness=1.0, dtype=torch.float64)
    x, past, future = (torch.from_numpy(array) for array in data())
    s1, s2 = net.tokenizer.encode(x.double())
    pairs = all_pairs(net)
    n = len(pairs[0])
    longer = [torch.cat((ids.expand(n, -1), new[:, None]), 1) for ids, new in zip((s1, s2), pairs, strict=True)]
    stamps = torch.cat((past, future[:, :1]), 1).expand(n, -1, -1)
    s1_rows, s2_rows = [], []
    for ids, stamp in (((s1, s2), past), (longer, stamps)):
        hidden = net.model.hidden(*ids, stamp)
        s1_rows.append(net.model.s1_step(hidden))
        choices = [net.model.s2_step(hidden, torch.full((len(hidden),), i)) for i in range(net.n_s1)]
        s2_rows.append(torch.stack(choices, 1))
    first = net.tokenizer.decode(*longer)[:, -1]
    rows = [ids.repeat_interleave(n, 0) for ids in longer]
    twice = [torch.cat((row, new.repeat(n)[:, None]), 1) for row, new in zip(rows, pairs, strict=True)]
    second = net.tokenizer.decode(*twice)[:, -1].view(n, n, -1)
    return Laws(torch.cat(s1_rows).numpy(), torch.cat(s2_rows).numpy(), first, second)


def nearest(bars: torch.Tensor, choices: torch.Tensor) -> np.ndarray:
    """Index of the choice (..., 16, 6) that each bar (..., 6) is."""
    distance = (bars.double().unsqueeze(-2) - choices).abs().amax(-1)
    two = distance.topk(2, dim=-1, largest=False).values
    assert float(two[..., 0].max()) < 1e-4 < float(two[..., 1].min())
    return distance.argmin(-1).numpy()


def tokens(sampling: SamplingConfig, steps: int) -> np.ndarray:
    """Joint tokens (N_KEYS, n_paths, steps) of one window under many keys."""
    x, past, future = (np.repeat(array, N_KEYS, axis=0) for array in data())
    net = networks()
    keys = np.arange(N_KEYS, dtype=np.uint64)
    paths = generate(net.model, net.tokenizer, x, past, future[:, :steps], sampling, MAX_CONTEXT, keys=keys)
    first = nearest(paths[:, :, 0], laws().first_bars)
    if steps == 1:
        return first[..., None]
    second = nearest(paths[:, :, 1], laws().second_bars[torch.from_numpy(first)])
    return np.stack((first, second), axis=-1)


def assert_follows(drawn: np.ndarray, probabilities: np.ndarray) -> None:
    """Chi-square of tokens (n,) against the law; impossible tokens never, certain ones always."""
    counts = np.bincount(drawn, minlength=len(probabilities))
    assert (counts[probabilities == 0] == 0).all(), "a filtered token was drawn"
    expected = probabilities * len(drawn)
    # rare tokens go into one cell together
    rare = (expected < 5) & (probabilities > 0)
    cells = (probabilities > 0) & ~rare
    observed, wanted = counts[cells], expected[cells]
    if rare.any():
        observed, wanted = np.append(observed, counts[rare].sum()), np.append(wanted, expected[rare].sum())
    if len(observed) > 1:
        assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > UNLIKELY


def test_the_law_is_worth_testing() -> None:
    """No token is nearly certain, each matters, and s2 depends on s1."""
    joint = laws().joint(SamplingConfig(top_p=1.0))
    assert joint.max() < 0.5
    assert (joint > 0.005).sum() >= 8
    conditional = joint.reshape(4, 4) / joint.reshape(4, 4).sum(1, keepdims=True)
    assert np.abs(conditional - conditional[0]).max() > 0.1


@pytest.mark.parametrize("filters", FILTERS)
def test_first_token_under_every_filter(filters: str) -> None:
    sampling = SamplingConfig(n_paths=4, **FILTERS[filters])
    drawn = tokens(sampling, 1)[:, :, 0]
    joint = laws().joint(sampling)
    # independent paths of independent keys: all of them together, and s1, and s2 given each s1
    assert_follows(drawn.ravel(), joint)
    by_s1 = joint.reshape(4, 4)
    assert_follows(drawn.ravel() // 4, by_s1.sum(1))
    for s1 in np.flatnonzero(by_s1.sum(1)):
        given = drawn[drawn // 4 == s1] % 4
        if len(given) > 100:
            assert_follows(given, by_s1[s1] / by_s1[s1].sum())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_steps_of_each_path_in_every_scheme(scheme: str, order: str) -> None:
    """The exact marginal law of each path by itself, also a step later, where strata must not remember the first."""
    sampling = SamplingConfig(n_paths=3, scheme=scheme, order=order, temperature=1.2, top_k=3, top_p=0.9)
    drawn = tokens(sampling, 2)
    first = laws().joint(sampling)
    after = np.array([laws().joint(sampling, 1 + token) for token in range(16)])
    for path in range(sampling.n_paths):
        assert_follows(drawn[:, path, 0], first)
        assert_follows(drawn[:, path, 1], first @ after)
        assert_follows(drawn[:, path, 0] * 16 + drawn[:, path, 1], (first[:, None] * after).ravel())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_temperature_zero_takes_the_most_likely_token_always(scheme: str) -> None:
    sampling = SamplingConfig(n_paths=3, scheme=scheme, temperature=0.0)
    drawn = tokens(sampling, 2)
    s1 = laws().s1_logits[0].argmax()
    first = s1 * 4 + laws().s2_logits[0, s1].argmax()
    s1 = laws().s1_logits[1 + first].argmax()
    second = s1 * 4 + laws().s2_logits[1 + first, s1].argmax()
    assert (drawn == [first, second]).all()


@pytest.mark.parametrize("scheme", ["stratified", "sobol"])
def test_stratified_paths_share_out_the_first_token(scheme: str) -> None:
    """With 8 paths each s1 is drawn by 8 p of them, give or take one at either end of its stretch of the CDF."""
    sampling = SamplingConfig(n_paths=8, scheme=scheme, top_p=1.0)
    s1 = tokens(sampling, 1)[:, :, 0] // 4
    expected = 8 * laws().joint(sampling).reshape(4, 4).sum(1)
    counts = (s1[:, :, None] == np.arange(4)).sum(1)
    assert (np.abs(counts - expected) < 2).all()
    independent = tokens(SamplingConfig(n_paths=8, top_p=1.0), 1)[:, :, 0] // 4
    plain = (independent[:, :, None] == np.arange(4)).sum(1)
    assert counts.var(0).sum() < 0.25 * plain.var(0).sum()


def test_other_seeds_and_the_law_again() -> None:
    sampling = SamplingConfig(n_paths=1, seed=2**63 - 1, top_p=1.0)
    drawn = tokens(sampling, 1)[:, :, 0]
    assert_follows(drawn.ravel(), laws().joint(sampling))
    assert (drawn != tokens(SamplingConfig(n_paths=1, seed=1, top_p=1.0), 1)[:, :, 0]).mean() > 0.5
