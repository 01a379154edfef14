"""One test for every trap of the design that concerns the network and its sampler, named by its number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import Networks, model_config, tiny_networks, tokens_of, windows

from kronos_qlib.kronos import (
    CheckpointError,
    Kronos,
    KronosTokenizer,
    SamplingConfig,
    denormalise,
    generate,
    generate_naive,
    load_card,
    load_model,
    load_tokenizer,
    normalise,
    save_model,
    save_tokenizer,
)
from kronos_qlib.kronos.engine import ModelEngine
from kronos_qlib.kronos.layers import Rotary
from kronos_qlib.kronos.sampling import draw, filtered_probabilities

GENERATORS = [generate, generate_naive]


def ids(n: int, length: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, size, (n, length), generator=torch.Generator().manual_seed(seed))


def fresh(**settings: object) -> Networks:
    """Networks of this test's own, to be changed."""
    return tiny_networks.__wrapped__(**settings)


# 1 ---


@pytest.mark.parametrize("generator", GENERATORS)
def test_trap_01_no_dropout_at_inference(tmp_path: Path, generator) -> None:  # type: ignore[no-untyped-def]
    """Loading gives eval mode; a network in training mode is refused instead of forecasting with dropout."""
    model = Kronos(model_config(ffn_dropout_p=0.5, resid_dropout_p=0.5, token_dropout_p=0.5, attn_dropout_p=0.5))
    tokenizer = fresh().tokenizer
    assert model.training
    data = windows(2, 8, 2)
    with pytest.raises(ValueError, match=r"model is in training mode.*model\.eval\(\)"):
        generator(model, tokenizer, *data, SamplingConfig(), 64)
    save_model(model, tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    loaded, codec = load_model(tmp_path), load_tokenizer(tmp_path)
    greedy = SamplingConfig(temperature=0.0, n_paths=2)
    first = generator(loaded, codec, *data, greedy, 64)
    assert torch.equal(first, generator(loaded, codec, *data, greedy, 64))
    codec.train()
    with pytest.raises(ValueError, match="tokenizer is in training mode"):
        generator(loaded, codec, *data, greedy, 64)


# 2 ---


def _unrotated_step(model: Kronos, hidden: torch.Tensor, s1: torch.Tensor) -> torch.Tensor:
    """The published decoding written out: one query, no rotation of query or keys."""
    layer = model.dep_layer.cross_attn
    q = layer.q_proj(model.embedding.emb_s1(s1)).view(len(s1), 4, 1, -1)
    k, v = (proj(hidden).unflatten(-1, (4, -1)).transpose(1, 2) for proj in (layer.k_proj, layer.v_proj))
    weights = torch.softmax(q @ k.transpose(-1, -2) / layer.head_dim**0.5, -1)
    attended = layer.out_proj((weights @ v).transpose(1, 2).flatten(-2))[:, 0]
    return model.head.proj_s2(model.dep_layer.norm(hidden[:, -1] + attended))


def test_trap_02_the_one_query_step_is_unrotated_and_training_is_not() -> None:
    s1, s2, target = ids(3, 9, 8), ids(3, 9, 8, 1), ids(3, 9, 8, 2)
    stamp = torch.from_numpy(windows(3, 9, 1)[1])
    last = {}
    for rotary in ("published", "rotated", "unrotated"):
        model = tiny_networks(dtype=torch.float64, dependency_rotary=rotary).model
        hidden = model.hidden(s1, s2, stamp)
        step = model.s2_step(hidden, target[:, -1])
        full = model(s1, s2, stamp, target)[1][:, -1]
        last[rotary] = step, full
        unrotated = _unrotated_step(model, hidden, target[:, -1])
        assert torch.allclose(step, unrotated) == (rotary != "rotated")
        # the consistent variants are one function in training and in decoding, the published one is not
        assert torch.allclose(step, full) == (rotary != "published")
    assert torch.allclose(last["published"][0], last["unrotated"][0])
    assert torch.allclose(last["published"][1], last["rotated"][1])


@pytest.mark.parametrize("rotary", ["published", "rotated", "unrotated"])
def test_trap_02_every_variant_decodes_from_its_cache(rotary: str) -> None:
    networks = tiny_networks(dtype=torch.float64, dependency_rotary=rotary)
    arguments = (networks.model, networks.tokenizer, *windows(3, 10, 5), SamplingConfig(n_paths=4), 64)
    torch.testing.assert_close(generate(*arguments), generate_naive(*arguments), rtol=0, atol=1e-9)


# 3 ---


@pytest.mark.parametrize("rotary", ["published", "rotated", "unrotated"])
@pytest.mark.parametrize("training", [True, False])
def test_trap_03_validation_sees_no_future(rotary: str, training: bool) -> None:
    """Logits at t stay as they are when everything after t changes, in training and in eval mode alike."""
    model = fresh(dtype=torch.float64, dependency_rotary=rotary).model.train(training)
    inputs = [ids(2, 12, 8, i) for i in range(2)]
    target, stamp = ids(2, 12, 8, 3), torch.from_numpy(windows(2, 12, 1)[1])
    before = model(*inputs, stamp, target)
    t = 6
    for tensor in (*inputs, target):
        tensor[:, t + 1 :] ^= 5
    stamp[:, t + 1 :] = 0
    after = model(*inputs, stamp, target)
    for ours, theirs in zip(before, after, strict=True):
        torch.testing.assert_close(ours[:, : t + 1], theirs[:, : t + 1], rtol=0, atol=1e-12)
        assert not torch.allclose(ours[:, t + 1 :], theirs[:, t + 1 :])


def test_trap_03_training_and_validation_are_one_function() -> None:
    """Without dropout the two modes give the same logits, so that a validation loss is comparable."""
    model = fresh(dtype=torch.float64).model
    s1, s2, target = ids(2, 12, 8), ids(2, 12, 8, 1), ids(2, 12, 8, 2)
    stamp = torch.from_numpy(windows(2, 12, 1)[1])
    evaluated = model.eval()(s1, s2, stamp, target)
    trained = model.train()(s1, s2, stamp, target)
    for ours, theirs in zip(evaluated, trained, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


# 5 ---


def test_trap_05_normalisation_reads_the_context_only() -> None:
    """Statistics of a window are those of its own bars; bars to predict cannot move them."""
    rng = np.random.default_rng(0)
    series = rng.lognormal(size=(30, 6)).astype(np.float32)
    x, center, scale = normalise(series[:20])
    series[20:] *= 100
    again = normalise(series[:20])
    for ours, theirs in zip((x, center, scale), again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(center[0], series[:20].mean(0), rtol=1e-5)
    np.testing.assert_allclose(scale[0], series[:20].std(0) + 1e-5, rtol=1e-5)
    # the way back uses the context's statistics for the bars to come
    np.testing.assert_allclose(denormalise((series[20:] - center) / scale, center, scale), series[20:], rtol=1e-4)


# 6 ---


@pytest.mark.parametrize("generator", GENERATORS)
def test_trap_06_paths_are_kept(generator) -> None:  # type: ignore[no-untyped-def]
    networks = tiny_networks()
    paths = generator(networks.model, networks.tokenizer, *windows(2, 8, 3), SamplingConfig(n_paths=7), 64)
    assert paths.shape == (2, 7, 3, 6)
    assert (paths.std(dim=1) > 0).all(), "no average stands in for the paths"


# 7 ---


def test_trap_07_filters_compose_and_leave_their_input_alone() -> None:
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    kept = {
        (top_k, top_p): torch.nonzero(filtered_probabilities(logits, 1.0, top_k, top_p)[0])[:, 0].tolist()
        for top_k in (0, 3)
        for top_p in (0.5, 1.0)
    }
    assert kept == {(0, 1.0): [0, 1, 2, 3], (3, 1.0): [0, 1, 2], (0, 0.5): [0, 1], (3, 0.5): [0, 1]}
    # top_k = 3 with top_p = .5 is neither filter alone
    assert kept[3, 0.5] != kept[3, 1.0]
    before = logits.clone()
    draw(logits, torch.tensor([[0.3]]), 0.5, 2, 0.5)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("generator", GENERATORS)
def test_trap_07_temperature_zero_is_greedy(generator) -> None:  # type: ignore[no-untyped-def]
    networks = tiny_networks(dtype=torch.float64)
    x, past, future = windows(3, 8, 1)
    paths = generator(networks.model, networks.tokenizer, x, past, future, SamplingConfig(temperature=0, n_paths=3), 64)
    assert torch.isfinite(paths).all()
    hidden = networks.model.hidden(*networks.tokenizer.encode(torch.from_numpy(x).double()), torch.from_numpy(past))
    s1 = networks.model.s1_step(hidden).argmax(-1)
    s2 = networks.model.s2_step(hidden, s1).argmax(-1)
    assert tokens_of(networks, x, paths, 64)[:, :, 0].tolist() == [[t] * 3 for t in (s1 * 8 + s2).tolist()]


# 8 ---

MAX_CONTEXT, STEPS = 20, 6


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2])
def test_trap_08_the_models_cache_is_exact_up_to_max_context_and_recomputed_past_it(beyond: int) -> None:
    """L + H - 1 just below, at and just past max_context; L + H is where the decoder's cache ends."""
    networks = tiny_networks(dtype=torch.float64)
    length = MAX_CONTEXT + 1 - STEPS + beyond
    arguments = (networks.model, networks.tokenizer, *windows(3, length, STEPS), SamplingConfig(n_paths=4), MAX_CONTEXT)
    torch.testing.assert_close(generate(*arguments), generate_naive(*arguments), rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [MAX_CONTEXT - 1, MAX_CONTEXT, MAX_CONTEXT + 1, 3 * MAX_CONTEXT])
def test_trap_08_contexts_as_long_as_max_context_and_longer(length: int) -> None:
    networks = tiny_networks(dtype=torch.float64)
    arguments = (networks.model, networks.tokenizer, *windows(3, length, STEPS), SamplingConfig(n_paths=4), MAX_CONTEXT)
    torch.testing.assert_close(generate(*arguments), generate_naive(*arguments), rtol=0, atol=1e-9)


@pytest.mark.parametrize("generator", GENERATORS)
def test_trap_08_all_bars_are_encoded_and_the_last_ones_attended_to(generator) -> None:  # type: ignore[no-untyped-def]
    """A bar before max_context acts through the encoder alone: cutting it off before encoding is another forecast."""
    networks = tiny_networks(dtype=torch.float64)
    x, past, future = windows(8, 3 * MAX_CONTEXT, 2)
    cut = -MAX_CONTEXT
    encoded = [codes[:, cut:] for codes in networks.tokenizer.encode(torch.from_numpy(x).double())]
    encoded_late = networks.tokenizer.encode(torch.from_numpy(x[:, cut:]).double())
    assert any(not torch.equal(a, b) for a, b in zip(encoded, encoded_late, strict=True))
    settings = SamplingConfig(n_paths=2), MAX_CONTEXT
    keys = np.arange(8, dtype=np.uint64)
    whole = generator(networks.model, networks.tokenizer, x, past, future, *settings, keys=keys)
    late = generator(networks.model, networks.tokenizer, x[:, cut:], past[:, cut:], future, *settings, keys=keys)
    assert not torch.allclose(whole, late)
    # stamps before max_context are seen by the model alone, that is by nobody
    past[:, :cut] = 0
    assert torch.equal(whole, generator(networks.model, networks.tokenizer, x, past, future, *settings, keys=keys))


# 9 ---


def test_trap_09_rotary_tables_stay_float32_in_low_precision() -> None:
    """Positions above 256 are what a frequency table rounded to bfloat16 gets wrong."""
    length, head_dim = 700, 32
    x = torch.ones(1, 1, length, head_dim)
    exact = Rotary(head_dim)(x.double())
    low = Rotary(head_dim).to(torch.bfloat16)
    out = low(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.01)
    # what the module's own buffer would give by now, with positions in its dtype
    angles = torch.outer(torch.arange(length).bfloat16(), low.inv_freq).double()
    broken = (angles.cos() - angles.sin() - exact[0, 0, :, : head_dim // 2]).abs()
    assert float(broken[257:].max()) > 1.0


@torch.inference_mode()
def test_trap_09_bfloat16_keeps_its_precision_at_late_positions() -> None:
    """Hidden states in bfloat16 are as near to float32 at position 600 as at position 20."""
    model = tiny_networks().model
    converted = Kronos(model.config).eval()
    converted.load_state_dict(model.state_dict())
    converted.bfloat16()
    s1, s2, stamps = ids(4, 600, 8), ids(4, 600, 8, 1), torch.from_numpy(windows(4, 600, 1)[1])

    def last_hidden(module: Kronos, length: int) -> torch.Tensor:
        engine = ModelEngine(module, next(module.parameters()).dtype)
        times = engine.embed_stamps(stamps[:, :length])
        return engine.start(s1[:, :length], s2[:, :length], times, 1, 1)[0].float()

    errors = [(last_hidden(model, n) - last_hidden(converted, n)).abs().mean() for n in (20, 300, 600)]
    assert max(errors) < 0.05
    assert max(errors[1:]) < 3 * errors[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_trap_09_rotary_caches_follow_the_dtype(dtype: torch.dtype) -> None:
    """A table that was made for one dtype is not used for another."""
    for _ in range(2):
        for kind in (torch.float32, dtype):
            networks = fresh(dtype=kind)
            paths = generate(networks.model, networks.tokenizer, *windows(2, 300, 2), SamplingConfig(n_paths=2))
            assert torch.isfinite(paths).all()
            assert paths.dtype == (torch.float64 if kind == torch.float64 else torch.float32)


# 10 ---


@pytest.mark.parametrize("generator", GENERATORS)
def test_trap_10_no_answer_depends_on_batch_mates(generator) -> None:  # type: ignore[no-untyped-def]
    """A wild window beside a tame one changes nothing; more is in test_identity.py."""
    networks = tiny_networks()
    x, past, future = windows(4, 12, 3)
    settings = SamplingConfig(n_paths=3), 64
    tame = generator(networks.model, networks.tokenizer, x, past, future, *settings)
    wild = x.copy()
    wild[1:] = 5.0
    mixed = generator(networks.model, networks.tokenizer, wild, past, future, *settings)
    if generator is generate:
        assert torch.equal(tame[0], mixed[0])
    else:
        torch.testing.assert_close(tame[0], mixed[0])


# 13 ---


@pytest.mark.parametrize("generator", GENERATORS)
def test_trap_13_randomness_is_keyed_and_global_generators_are_left_alone(generator) -> None:  # type: ignore[no-untyped-def]
    networks = tiny_networks()
    data = windows(3, 8, 3)
    keys = np.array([5, 6, 7], dtype=np.uint64)

    def paths(seed: int, keys: np.ndarray, n_paths: int = 4) -> torch.Tensor:
        sampling = SamplingConfig(n_paths=n_paths, seed=seed)
        return generator(networks.model, networks.tokenizer, *data, sampling, 64, keys=keys)

    torch.manual_seed(1)
    state = torch.get_rng_state().clone()
    first = paths(0, keys)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(paths(0, keys), first)
    assert not torch.equal(paths(1, keys), first)
    assert not torch.equal(paths(0, keys + np.uint64(1)), first)
    # the second half of eight independent paths is new, the first is what it was
    torch.testing.assert_close(paths(0, keys, 8)[:, :4], first)


# 17 ---


def test_trap_17_loading_is_strict(tmp_path: Path) -> None:
    networks = fresh()
    save_model(networks.model, tmp_path / "model")
    save_tokenizer(networks.tokenizer, tmp_path / "tokenizer")
    for load, kind, other in ((load_model, "model", "tokenizer"), (load_tokenizer, "tokenizer", "model")):
        weights = tmp_path / kind / "model.safetensors"
        kept = weights.read_bytes()
        weights.write_bytes((tmp_path / other / "model.safetensors").read_bytes())
        with pytest.raises(CheckpointError, match=r"missing tensors: .*; unexpected tensors: "):
            load(tmp_path)
        weights.write_bytes(kept)
        load(tmp_path)


# 18 ---


def test_trap_18_s2_is_taught_with_the_true_s1() -> None:
    """The s2 logits at t are conditioned on the given s1 of bar t + 1, and nothing is sampled on the way."""
    model = fresh(dtype=torch.float64).model.train()
    s1, s2, target = ids(2, 10, 8), ids(2, 10, 8, 1), ids(2, 10, 8, 2)
    stamp = torch.from_numpy(windows(2, 10, 1)[1])
    before = model(s1, s2, stamp, target)
    again = model(s1, s2, stamp, target)
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    changed = target.clone()
    changed[:, 4] ^= 3
    after = model(s1, s2, stamp, changed)
    assert torch.equal(before[0], after[0]), "s1 is predicted without it"
    moved = (before[1] - after[1]).abs().amax(-1) > 1e-9
    assert moved.tolist() == [[t == 4 for t in range(10)]] * 2


def test_trap_18_s1_logits_get_no_gradient_from_s2() -> None:
    model = fresh().model.requires_grad_(True).train()
    s1, s2, target = ids(2, 10, 8), ids(2, 10, 8, 1), ids(2, 10, 8, 2)
    _, s2_logits = model(s1, s2, torch.from_numpy(windows(2, 10, 1)[1]), target)
    s2_logits.square().sum().backward()
    assert model.head.proj_s1.weight.grad is None
    assert float(model.embedding.emb_s1.weight.grad.abs().sum()) > 0


# 20 ---


def test_trap_20_neither_config_nor_network_fixes_a_context_length(tmp_path: Path) -> None:
    """max_context is the caller's; a card may name it, a published config never does."""
    networks = tiny_networks()
    save_model(networks.model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert not {"lookback", "max_context"} & set(config)
    assert load_card(tmp_path) == {}
    (tmp_path / "card.json").write_text(json.dumps({"lookback": 90, "max_context": 256}))
    assert load_card(tmp_path / "model")["max_context"] == 256
    x, past, future = windows(4, 40, 3)
    forecasts = [
        generate(networks.model, networks.tokenizer, x, past, future, SamplingConfig(n_paths=4), context)
        for context in (10, 45, 512)
    ]
    assert torch.equal(forecasts[1], forecasts[2])
    assert not torch.equal(forecasts[0], forecasts[1])


def test_trap_20_the_tokenizer_has_no_positions_to_run_out_of() -> None:
    tokenizer: KronosTokenizer = tiny_networks().tokenizer
    x = torch.from_numpy(windows(1, 2100, 1)[0])
    assert tokenizer.decode(*tokenizer.encode(x)).shape == (1, 2100, 6)
