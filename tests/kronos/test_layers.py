"""Layers, quantiser, tokenizer and z-score against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_network import model_config, tiny_networks, windows

from kronos_qlib.kronos import Kronos, KronosTokenizer, denormalise, normalise
from kronos_qlib.kronos.config import NetworkConfig
from kronos_qlib.kronos.layers import Attention, FeedForward, RMSNorm, Rotary, TransformerBlock, rotary_table, rotate
from kronos_qlib.kronos.quantizer import BinarySphericalQuantizer, bits_to_ids, entropy, ids_to_bits


def block_config(dropout: float) -> NetworkConfig:
    dropouts = dict.fromkeys(("ffn_dropout_p", "attn_dropout_p", "resid_dropout_p"), dropout)
    return NetworkConfig(s1_bits=2, s2_bits=2, d_model=16, n_heads=2, ff_dim=24, **dropouts)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- norm and feed-forward ---


def test_rms_norm_by_hand() -> None:
    norm = RMSNorm(2).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    # root mean square of (3, 4) is √12.5
    out = norm(torch.tensor([3.0, 4.0], dtype=torch.float64)).detach()
    torch.testing.assert_close(out, torch.tensor([3.0, 40.0], dtype=torch.float64) / math.sqrt(12.5 + 1e-5))


def test_rms_norm_of_low_precision_is_computed_in_float32() -> None:
    x = (random(5, 256) * 1e3).bfloat16()
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    out = RMSNorm(256).bfloat16()(x)
    assert out.dtype == torch.bfloat16
    # one rounding to bfloat16 at the end, and none before
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=0)


def test_feed_forward_is_swiglu() -> None:
    layer = FeedForward(4, 6, 0.0).double()
    x = random(3, 4)
    gate = x @ layer.w1.weight.T
    expected = (gate / (1 + torch.exp(-gate)) * (x @ layer.w3.weight.T)) @ layer.w2.weight.T
    torch.testing.assert_close(layer(x), expected)
    assert [name for name, _ in layer.named_parameters()] == ["w1.weight", "w3.weight", "w2.weight"]


# --- rotary positions ---


def test_rotary_turns_each_pair_of_halves_by_its_angle() -> None:
    """Position p turns the pair (i, i + d/2) by p / 10000^(2i/d)."""
    x = random(1, 1, 5, 6)
    out = Rotary(6)(x)
    for position in range(5):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            a, b = x[0, 0, position, i], x[0, 0, position, i + 3]
            turned = torch.stack((a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)))
            torch.testing.assert_close(out[0, 0, position, [i, i + 3]], turned)


def test_rotary_products_depend_on_the_distance_only() -> None:
    q, k = random(8, seed=1), random(8, seed=2)
    cos, sin = rotary_table(600, 8, torch.device("cpu"), True)
    turned_q, turned_k = rotate(q.expand(600, 8), cos, sin), rotate(k.expand(600, 8), cos, sin)
    for distance in (0, 1, 37):
        products = (turned_q[distance:] * turned_k[: 600 - distance]).sum(-1)
        torch.testing.assert_close(products, products[:1].expand_as(products))


def test_rotary_table_precision_follows_the_input() -> None:
    single, double = (rotary_table(512, 64, torch.device("cpu"), wide) for wide in (False, True))
    assert (single[0].dtype, double[0].dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single[0].double(), double[0], rtol=0, atol=1e-4)
    assert Rotary(64)(random(1, 1, 9, 64)).dtype == torch.float64


# --- attention ---


def attention_by_hand(layer: Attention, query: torch.Tensor, memory: torch.Tensor, causal: bool) -> torch.Tensor:
    """One head and one query position at a time, without rotary."""
    q, k, v = layer.q_proj(query), layer.k_proj(memory), layer.v_proj(memory)
    out = torch.zeros_like(q)
    for head in range(layer.n_heads):
        part = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        for t in range(query.shape[1]):
            seen = slice(0, t + 1 if causal else memory.shape[1])
            scores = (k[:, seen, part] @ q[:, t, part, None])[..., 0] / math.sqrt(layer.head_dim)
            out[:, t, part] = (torch.softmax(scores, -1)[..., None] * v[:, seen, part]).sum(1)
    return layer.out_proj(out)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_hand(causal: bool) -> None:
    layer = Attention(12, 3, 0.0, 0.0).double()
    query, memory = random(2, 5, 12, seed=1), random(2, 5, 12, seed=2)
    expected = attention_by_hand(layer, query, memory, causal)
    torch.testing.assert_close(layer(query, memory, causal=causal, rotary=False), expected)


def test_attention_with_one_query_over_many_keys() -> None:
    layer = Attention(12, 3, 0.0, 0.0).double()
    query, memory = random(2, 1, 12, seed=1), random(2, 7, 12, seed=2)
    expected = attention_by_hand(layer, query, memory, causal=False)
    torch.testing.assert_close(layer(query, memory, causal=False, rotary=False), expected)


def test_blocks_are_causal() -> None:
    block = TransformerBlock(block_config(0.0)).double()
    x = random(1, 9, 16)
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = block(x), block(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


def test_dropouts_work_in_training_and_not_in_eval() -> None:
    block = TransformerBlock(block_config(0.5)).double()
    x = random(1, 9, 16)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


# --- quantiser ---


def test_bit_i_weighs_two_to_the_i() -> None:
    assert bits_to_ids(torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])).tolist() == [5, 6, 0]
    assert ids_to_bits(torch.tensor([5, 6, 0]), 3).tolist() == [[1, -1, 1], [-1, 1, 1], [-1, -1, -1]]


@given(st.integers(1, 16))
def test_ids_and_bits_are_inverse(n_bits: int) -> None:
    ids = torch.arange(2**n_bits) if n_bits < 11 else torch.randint(0, 2**n_bits, (500,))
    assert torch.equal(bits_to_ids(ids_to_bits(ids, n_bits)), ids)


def test_quantiser_by_hand() -> None:
    quantiser = BinarySphericalQuantizer(4, 2, beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05).double()
    z = torch.tensor([[[3.0, -4.0, 0.0, 12.0]]], dtype=torch.float64)
    quantised, loss = quantiser(z)
    # zero counts as negative; 1 / √4
    assert quantised.tolist() == [[[0.5, -0.5, -0.5, 0.5]]]
    unit = z / 13
    commitment = 0.05 * ((quantised - unit) ** 2).sum()
    p = torch.sigmoid(-4 * unit / 2)
    each = entropy(torch.stack((p, 1 - p), -1))
    # one sample is its own average
    assert float(loss) == pytest.approx(float(commitment + 0.05 * (each.sum() - 1.1 * each.sum())))


def test_quantiser_passes_gradients_straight_through() -> None:
    quantiser = BinarySphericalQuantizer(4, 2, beta=0.0, gamma0=1.0, gamma=1.1, zeta=0.0).double()
    z = random(2, 3, 4).requires_grad_()
    quantised, _ = quantiser(z)
    weight = random(2, 3, 4, seed=3)
    (quantised * weight).sum().backward()
    other = z.detach().clone().requires_grad_()
    (torch.nn.functional.normalize(other, dim=-1) * 0.5 * weight).sum().backward()
    torch.testing.assert_close(z.grad, other.grad)


def test_entropy_of_even_and_certain_choices() -> None:
    assert float(entropy(torch.tensor([0.5, 0.5]))) == pytest.approx(math.log(2), abs=1e-6)
    assert float(entropy(torch.tensor([1.0, 0.0]))) == pytest.approx(0.0, abs=1e-6)


# --- tokenizer and model ---


def test_the_tokenizer_is_causal_end_to_end() -> None:
    tokenizer: KronosTokenizer = tiny_networks(dtype=torch.float64).tokenizer
    x = torch.from_numpy(windows(3, 12, 1)[0]).double()
    changed = x.clone()
    changed[:, 7:] = -changed[:, 7:]
    for ours, theirs in zip(tokenizer.encode(x), tokenizer.encode(changed), strict=True):
        assert torch.equal(ours[:, :7], theirs[:, :7])
        assert not torch.equal(ours, theirs)
    s1, s2 = tokenizer.encode(x)
    other = s1.clone()
    other[:, 7:] ^= 1
    before, after = tokenizer.decode(s1, s2), tokenizer.decode(other, s2)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_the_tokenizers_forward_agrees_with_encode_and_decode() -> None:
    tokenizer = tiny_networks(dtype=torch.float64).tokenizer
    x = torch.from_numpy(windows(3, 12, 1)[0]).double()
    (coarse, full), loss, s1, s2 = tokenizer(x)
    assert all(torch.equal(a, b) for a, b in zip((s1, s2), tokenizer.encode(x), strict=True))
    torch.testing.assert_close(full, tokenizer.decode(s1, s2))
    assert coarse.shape == full.shape == x.shape
    assert loss.ndim == 0
    # the coarse reconstruction knows s1 only
    again = tokenizer._decode_latent(tokenizer.post_quant_embed_pre(tokenizer.code(s1, s2)[..., :3]))
    torch.testing.assert_close(coarse, again)


def test_token_ids_stay_in_their_range() -> None:
    for bits in (1, 2, 3):
        networks = tiny_networks(bits)
        for ids in networks.tokenizer.encode(torch.from_numpy(windows(4, 50, 1)[0])):
            assert ids.dtype == torch.int64
            assert 0 <= int(ids.min()) <= int(ids.max()) < 2**bits


def test_fixed_time_embeddings_are_sinusoids_and_no_training_matter() -> None:
    model = Kronos(model_config(learn_te=False))
    table = model.time_emb.get_submodule("hour_embed").emb.weight
    assert table.shape == (24, 16)
    assert not table.requires_grad
    assert float(table[5, 0]) == pytest.approx(math.sin(5))
    assert float(table[5, 3]) == pytest.approx(math.cos(5 / 10000 ** (2 / 16)), abs=1e-6)


def test_each_part_of_a_stamp_counts() -> None:
    model = tiny_networks(dtype=torch.float64).model
    ids = torch.zeros(1, 1, dtype=torch.long)
    plain = torch.tensor([[[1, 1, 1, 1, 1]]])
    base = model.hidden(ids, ids, plain)
    for part in range(5):
        stamp = plain.clone()
        stamp[..., part] += 1
        assert not torch.allclose(model.hidden(ids, ids, stamp), base)


# --- z-score ---


def test_normalise_by_hand() -> None:
    values = np.zeros((2, 6), np.float32)
    values[:, 0] = [1.0, 3.0]
    x, center, scale = normalise(values)
    assert center[0].tolist() == [2.0, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(scale[0], [1.00001, *[1e-5] * 5], rtol=1e-6)
    np.testing.assert_allclose(x[:, 0], [-1 / 1.00001, 1 / 1.00001], rtol=1e-6)
    assert (x[:, 1:] == 0).all(), "a column that never moves is 0, not NaN"


bars = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(2, 40), st.just(6)), elements=st.floats(1, 1000, width=32)
)


@given(bars)
def test_normalise_and_back(values: np.ndarray) -> None:
    x, center, scale = normalise(values, clip=np.inf)
    assert x.dtype == center.dtype == scale.dtype == np.float32
    assert center.shape == scale.shape == (len(values), 1, 6)
    np.testing.assert_allclose(denormalise(x, center, scale), values, rtol=1e-4)
    clipped, _, _ = normalise(values, clip=1.5)
    np.testing.assert_array_equal(clipped, np.clip(x, -1.5, 1.5))


@given(bars)
def test_windows_are_normalised_apart(values: np.ndarray) -> None:
    whole = normalise(values)
    for i in range(len(values)):
        for ours, alone in zip(whole, normalise(values[i]), strict=True):
            np.testing.assert_array_equal(ours[i], alone)


def test_normalise_clips_at_five_by_default() -> None:
    values = np.ones((100, 6), np.float32)
    values[-1] = 1000
    x, _, _ = normalise(values)
    assert x.max() == 5.0
