"""The fast generator against the naive one: in float64 token for token, in float32 draw by draw, bfloat16 loosely."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_network import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_forcing import compare_draws
from tiny_network import Networks, tiny_networks, tokens_of, windows

from kronos_qlib.kronos import SamplingConfig, generate, generate_naive
from kronos_qlib.kronos.generate import generate_tokens

SCHEMES = ["independent", "antithetic", "stratified", "sobol"]
ORDERS = ["token", "close"]


@pytest.fixture(scope="module")
def wide() -> Networks:
    return tiny_networks(dtype=torch.float64)


def assert_same_tokens(
    networks: Networks, length: int, horizon: int, n_windows: int, sampling: SamplingConfig, max_context: int
) -> None:
    x, past, future = windows(n_windows, length, horizon, seed=length * 100 + horizon)
    arguments = (networks.model, networks.tokenizer, x, past, future, sampling, max_context)
    fast, naive = generate(*arguments), generate_naive(*arguments)
    assert fast.shape == naive.shape == (n_windows, sampling.n_paths, horizon, 6)
    assert fast.dtype == naive.dtype == torch.float64
    # another token anywhere would move a bar by far more than rounding does
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-9)


# --- float64 ---


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("order", ORDERS)
def test_every_scheme_and_order_token_for_token(wide: Networks, scheme: str, order: str) -> None:
    sampling = SamplingConfig(scheme=scheme, order=order, n_paths=5, top_p=0.95)
    x, past, future = windows(3, 9, 4)
    arguments = (wide.model, wide.tokenizer, x, past, future, sampling, 32)
    fast, naive = generate(*arguments), generate_naive(*arguments)
    tokens = tokens_of(wide, x, fast, 32)
    assert torch.equal(tokens, tokens_of(wide, x, naive, 32))
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-9)
    assert len(tokens.unique()) > 5, "paths that all agree would prove little"


@pytest.mark.parametrize("rotary", ["published", "rotated", "unrotated"])
@pytest.mark.parametrize("length", [1, 2, 7, 11, 12, 13, 15, 16, 17, 30])
def test_around_and_past_max_context(rotary: str, length: int) -> None:
    """max_context 16, 5 steps: whole in the cache up to length 12, sliding from 13, cut before the start from 17."""
    networks = tiny_networks(dtype=torch.float64, dependency_rotary=rotary)
    assert_same_tokens(networks, length, 5, 3, SamplingConfig(n_paths=3), max_context=16)


filters = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 8, 99]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    s2_temperature=st.sampled_from([None, 0.0, 1.5]),
    s2_top_k=st.sampled_from([None, 2]),
    s2_top_p=st.sampled_from([None, 0.6]),
    n_paths=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
    scheme=st.sampled_from(SCHEMES),
    order=st.sampled_from(ORDERS),
)


@settings(max_examples=60, deadline=None)
@given(
    filters, st.integers(1, 24), st.integers(1, 6), st.integers(1, 4), st.integers(7, 24), st.sampled_from([1, 2, 3])
)
def test_any_setting_token_for_token(
    sampling: SamplingConfig, length: int, horizon: int, n_windows: int, max_context: int, bits: int
) -> None:
    networks = tiny_networks(bits, torch.float64)
    assert_same_tokens(networks, length, horizon, n_windows, sampling, max_context)


@pytest.mark.parametrize("n_windows", [1, 15, 16, 17, 40])
def test_any_number_of_windows(wide: Networks, n_windows: int) -> None:
    assert_same_tokens(wide, 6, 2, n_windows, SamplingConfig(n_paths=2), max_context=32)


@pytest.mark.parametrize("size", ["tiny", "mini"])
def test_golden_sizes_token_for_token(size: str) -> None:
    golden = load_golden(size)
    networks = Networks(_double(golden.model), _double(golden.tokenizer))
    assert_same_tokens(networks, 20, 4, 2, SamplingConfig(n_paths=3, scheme="stratified"), max_context=22)


def _double(module):  # type: ignore[no-untyped-def]
    copy = type(module)(module.config)
    copy.load_state_dict(module.state_dict())
    return copy.double().eval()


@pytest.mark.parametrize("max_context", [13, 32])
def test_tokens_are_those_that_the_bars_decode_from(wide: Networks, max_context: int) -> None:
    x, past, future = windows(19, 10, 4)
    arguments = (wide.model, wide.tokenizer, x, past, future, SamplingConfig(n_paths=3), max_context)
    context_s1, context_s2, s1, s2 = generate_tokens(*arguments)
    encoded = wide.tokenizer.encode(torch.from_numpy(x).double())
    assert torch.equal(context_s1, encoded[0])
    assert torch.equal(context_s2, encoded[1])
    assert s1.shape == s2.shape == (19, 3, 4)
    assert torch.equal(s1 * wide.n_s2 + s2, tokens_of(wide, x, generate(*arguments), max_context))


def test_float64_on_request_equals_float64_weights(wide: Networks) -> None:
    """dtype="float64" computes in double precision from float32 weights, which double precision holds exactly."""
    single = tiny_networks(dtype=torch.float32)
    x, past, future = windows(3, 9, 4)
    sampling = SamplingConfig(n_paths=4)
    widened = generate(single.model, single.tokenizer, x, past, future, sampling, 32, dtype="float64")
    exact = generate(wide.model, wide.tokenizer, x, past, future, sampling, 32)
    torch.testing.assert_close(widened.double(), exact, rtol=0, atol=1e-5)


# --- float32 ---


FLOAT32_CASES = [
    # sampling, length, max_context
    (SamplingConfig(n_paths=16), 14, 512),
    (SamplingConfig(n_paths=16, top_p=1.0, scheme="stratified", order="close"), 14, 512),
    (SamplingConfig(n_paths=16, top_k=20, top_p=0.8, temperature=0.7, scheme="sobol"), 14, 512),
    (SamplingConfig(n_paths=16, scheme="antithetic"), 16, 18),  # slides from the third step on
]


def test_float32_draws_step_by_step() -> None:
    """On the same prefix of tokens nearly every draw agrees, and one that differs lay on a boundary."""
    golden = load_golden("tiny")
    differing, n_draws = 0, 0
    for sampling, length, max_context in FLOAT32_CASES:
        data = windows(48, length, 8, seed=3)
        result = compare_draws(golden.model, golden.tokenizer, data, sampling, max_context)
        assert result.largest_gap < 1e-5
        assert result.largest_logit_error < 1e-5
        differing, n_draws = differing + len(result.gaps), n_draws + result.n_draws
    assert n_draws == 4 * 48 * 16 * 8 * 2
    assert differing < 1e-4 * n_draws


def test_float32_draws_step_by_step_at_the_published_size() -> None:
    golden = load_golden("mini")
    sampling = SamplingConfig(n_paths=4)
    result = compare_draws(golden.model, golden.tokenizer, windows(4, 40, 4, 5), sampling, 512)
    assert result.n_draws == 4 * 4 * 4 * 2
    assert result.gaps == []
    assert result.largest_logit_error < 1e-5


def test_float32_paths_are_nearly_always_the_naive_ones() -> None:
    golden = load_golden("tiny")
    x, past, future = windows(24, 20, 6, seed=9)
    arguments = (golden.model, golden.tokenizer, x, past, future, SamplingConfig(n_paths=8), 64)
    same = (generate(*arguments) - generate_naive(*arguments)).abs().amax((-1, -2)) < 1e-3
    # 192 paths of 12 draws, of which fewer than one in 10,000 may differ
    assert float(same.float().mean()) >= 0.98


# --- bfloat16 ---


@pytest.mark.parametrize("converted", [False, True], ids=["computed in bfloat16", "weights in bfloat16"])
def test_bfloat16_is_close_to_float32(converted: bool) -> None:
    golden = load_golden("tiny")
    model, tokenizer = golden.model, golden.tokenizer
    x, past, future = windows(32, 24, 3, seed=2)
    sampling = SamplingConfig(n_paths=8)
    full = generate(model, tokenizer, x, past, future, sampling, 64)
    if converted:
        model, tokenizer = _bfloat16(model), _bfloat16(tokenizer)
        low = generate(model, tokenizer, x, past, future, sampling, 64)
    else:
        low = generate(model, tokenizer, x, past, future, sampling, 64, dtype="bfloat16")
    assert low.shape == full.shape
    assert low.dtype == torch.float32
    assert torch.isfinite(low).all()
    # an equal first token decodes to nearly the same bar; another token is about one unit away
    first = (low[:, :, 0] - full[:, :, 0]).abs().amax(-1) < 0.1
    # (another seed would agree in one of a hundred; these weights make flat distributions, trained ones agree more)
    assert float(first.float().mean()) > (0.45 if converted else 0.55)
    # and the law is the same: means over windows and paths agree
    torch.testing.assert_close(low.mean((0, 1)), full.mean((0, 1)), rtol=0, atol=0.15)


def _bfloat16(module):  # type: ignore[no-untyped-def]
    copy = type(module)(module.config)
    copy.load_state_dict(module.state_dict())
    return copy.bfloat16().eval()


# --- what a caller may give, and what comes back ---


def test_arrays_and_tensors_are_taken_alike() -> None:
    networks = tiny_networks()
    x, past, future = windows(3, 8, 2)
    sampling = SamplingConfig(n_paths=2)
    arrays = generate(networks.model, networks.tokenizer, x, past, future, sampling, 64)
    tensors = generate(networks.model, networks.tokenizer, *map(torch.from_numpy, (x, past, future)), sampling, 64)
    narrow = generate(
        networks.model, networks.tokenizer, x, past.astype(np.int32), future.astype(np.int16), sampling, 64
    )
    assert torch.equal(arrays, tensors)
    assert torch.equal(arrays, narrow)


def test_inputs_stay_untouched() -> None:
    networks = tiny_networks()
    given = windows(3, 8, 2)
    copies = [array.copy() for array in given]
    keys = np.arange(3, dtype=np.uint64)
    for generator in (generate, generate_naive):
        generator(networks.model, networks.tokenizer, *given, SamplingConfig(n_paths=2), 64, keys=keys)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert keys.tolist() == [0, 1, 2]


def test_sampling_leaves_the_model_ready_to_train() -> None:
    """Tables that were cached while sampling in inference mode can be differentiated through afterwards."""
    networks = tiny_networks()
    x, past, future = windows(2, 37, 2)
    generate(networks.model, networks.tokenizer, x, past, future, SamplingConfig(n_paths=1), 64)
    model = type(networks.model)(networks.model.config).train()
    ids = torch.zeros(2, 37, dtype=torch.long)
    s1_logits, s2_logits = model(ids, ids, torch.from_numpy(past), ids)
    (s1_logits.sum() + s2_logits.sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_networks_made_in_inference_mode_order_by_close() -> None:
    with torch.inference_mode():
        made = tiny_networks.__wrapped__(bits=2)
    x, past, future = windows(2, 8, 2)
    sampling = SamplingConfig(order="close", n_paths=2)
    assert torch.isfinite(generate(made.model, made.tokenizer, x, past, future, sampling, 64)).all()


def test_the_close_order_follows_new_weights() -> None:
    """An order is kept per tokenizer; weights that change in place make it stale, and it is computed again."""
    made = tiny_networks.__wrapped__(bits=2, dtype=torch.float64)
    x, past, future = windows(2, 8, 2)
    arguments = (made.model, made.tokenizer, x, past, future, SamplingConfig(order="close", n_paths=16), 64)
    generate(*arguments)
    with torch.no_grad():
        made.tokenizer.head.weight.neg_()
    after = generate(*arguments)
    fresh = type(made.tokenizer)(made.tokenizer.config).double().eval()
    fresh.load_state_dict(made.tokenizer.state_dict())
    torch.testing.assert_close(generate(made.model, fresh, *arguments[2:]), after, rtol=0, atol=0)


BAD = {
    "context of another batch": ({"x": np.zeros((3, 8, 6))}, "x_stamp has shape"),
    "five columns": ({"x": np.zeros((2, 8, 5))}, "6 columns"),
    "one window without its axis": ({"x": np.zeros((8, 6))}, "3 axes"),
    "NaN": ({"x": np.full((2, 8, 6), np.nan)}, "NaN"),
    "infinity": ({"x": np.full((2, 8, 6), np.inf)}, "infinity"),
    "no windows": (
        {"x": np.zeros((0, 8, 6)), "past": np.zeros((0, 8, 5), int), "future": np.zeros((0, 2, 5), int)},
        "nothing to generate",
    ),
    "no bars": ({"x": np.zeros((2, 0, 6)), "past": np.zeros((2, 0, 5), int)}, "nothing to generate"),
    "no steps": ({"future": np.zeros((2, 0, 5), int)}, "nothing to generate"),
    "stamps of four parts": ({"past": np.zeros((2, 8, 4), int)}, "5 columns"),
    "month 13": ({"future": np.full((2, 2, 5), [0, 0, 0, 1, 13])}, "month"),
    "negative minute": ({"past": np.full((2, 8, 5), [-1, 0, 0, 1, 1])}, "minute"),
    "future of another batch": ({"future": np.zeros((3, 2, 5), int)}, "y_stamp has 3 windows"),
    "horizon as long as the context": ({"max_context": 2}, "below max_context"),
    "keys of another batch": ({"keys": np.zeros(3, np.uint64)}, "one per window"),
    "keys that are no integers": ({"keys": np.zeros(2)}, "uint64"),
    "strings": ({"keys": np.array(["a", "b"])}, "uint64"),
}


@pytest.mark.parametrize("generator", [generate, generate_naive])
@pytest.mark.parametrize("case", BAD)
def test_bad_inputs_are_refused(case: str, generator) -> None:  # type: ignore[no-untyped-def]
    changes, message = BAD[case]
    x, past, future = windows(2, 8, 2)
    inputs = {"x": x, "past": past, "future": future, "max_context": 64, "keys": None} | changes
    networks = tiny_networks()
    with pytest.raises(ValueError, match=message):
        generator(
            networks.model,
            networks.tokenizer,
            inputs["x"],
            inputs["past"],
            inputs["future"],
            SamplingConfig(n_paths=1),
            inputs["max_context"],
            keys=inputs["keys"],
        )


def test_networks_of_different_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"s1_bits, s2_bits = \(3, 3\).*\(2, 2\)"):
        generate(tiny_networks(3).model, tiny_networks(2).tokenizer, *windows(1, 4, 1), SamplingConfig())


def test_an_unknown_dtype_is_refused() -> None:
    networks = tiny_networks()
    with pytest.raises(ValueError, match=r"float16.*float32, bfloat16, float64"):
        generate(networks.model, networks.tokenizer, *windows(1, 4, 1), SamplingConfig(), dtype="float16")
