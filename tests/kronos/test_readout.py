"""The readout equals the network's own forward pass, position by position, and never looks ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_network import Networks, tiny_networks, windows

from kronos_qlib.kronos.engine import ModelEngine, TokenizerEngine
from kronos_qlib.kronos.readout import Readout, read, token_closes

LENGTH = 12
ROTARY = ("published", "rotated", "unrotated")


def engines(networks: Networks) -> tuple[ModelEngine, TokenizerEngine]:
    dtype = networks.model.head.proj_s1.weight.dtype
    return ModelEngine(networks.model, dtype), TokenizerEngine(networks.tokenizer, dtype)


@torch.inference_mode()
def readout(
    networks: Networks, x: np.ndarray, stamps: np.ndarray, last: int, reconstruct: int = 2, context: int = 64
) -> Readout:
    dtype = networks.model.head.proj_s1.weight.dtype
    bars = torch.from_numpy(x).to(dtype)
    return read(*engines(networks), bars, torch.from_numpy(stamps), context, last, reconstruct)


@pytest.mark.parametrize("rotary", ROTARY)
@torch.inference_mode()
def test_surprises_are_the_log_likelihood_of_the_forward_pass(rotary: str) -> None:
    networks = tiny_networks(dtype=torch.float64, dependency_rotary=rotary)
    x, stamps, _ = windows(3, LENGTH, 1)
    found = readout(networks, x, stamps, last=5)
    s1, s2 = networks.tokenizer.encode(torch.from_numpy(x).double())
    logits = networks.model(s1[:, :-1], s2[:, :-1], torch.from_numpy(stamps)[:, :-1], s1[:, 1:])
    for log, true, surprise in zip(logits, (s1, s2), (found.surprise_s1, found.surprise_s2), strict=True):
        expected = -torch.log_softmax(log, -1).gather(-1, true[:, 1:, None])[..., 0]
        torch.testing.assert_close(surprise, expected[:, -5:])
    assert torch.equal(found.s1, s1[:, -5:])
    assert torch.equal(found.s2, s2[:, -5:])


@torch.inference_mode()
def test_entropies_hidden_states_and_reconstructions() -> None:
    networks = tiny_networks(dtype=torch.float64)
    x, stamps, _ = windows(2, LENGTH, 1)
    found = readout(networks, x, stamps, last=4, reconstruct=3)
    bars, times = torch.from_numpy(x).double(), torch.from_numpy(stamps)
    s1, s2 = networks.tokenizer.encode(bars)
    hidden = networks.model.hidden(s1, s2, times)
    torch.testing.assert_close(found.hidden, hidden[:, -4:])
    probability = torch.softmax(networks.model.head.proj_s1(hidden), -1)
    torch.testing.assert_close(found.probability_s1, probability[:, -4:])
    torch.testing.assert_close(found.entropy_s1, torch.special.entr(probability).sum(-1)[:, -4:])
    _, s2_logits = networks.model(s1, s2, times, probability.argmax(-1))
    entropy = torch.special.entr(torch.softmax(s2_logits, -1)).sum(-1)
    torch.testing.assert_close(found.entropy_s2, entropy[:, -4:])
    (coarse, full), *_ = networks.tokenizer(bars)
    torch.testing.assert_close(found.full, full[:, -3:])
    torch.testing.assert_close(found.coarse, coarse[:, -3:])


def test_the_first_bar_of_the_context_has_no_surprise() -> None:
    networks = tiny_networks()
    x, stamps, _ = windows(2, 6, 1)
    found = readout(networks, x, stamps, last=6)
    for surprise in (found.surprise_s1, found.surprise_s2):
        assert torch.isnan(surprise[:, 0]).all()
        assert torch.isfinite(surprise[:, 1:]).all()
    assert torch.isfinite(found.entropy_s1).all()


def test_past_max_context_all_bars_are_encoded_and_the_last_ones_attended_to() -> None:
    networks = tiny_networks(dtype=torch.float64)
    x, stamps, _ = windows(2, LENGTH, 1)
    whole, cut = readout(networks, x, stamps, 3), readout(networks, x, stamps, 3, context=7)
    assert torch.equal(whole.s1, cut.s1)
    s1, s2 = networks.tokenizer.encode(torch.from_numpy(x).double())
    hidden = networks.model.hidden(s1[:, -7:], s2[:, -7:], torch.from_numpy(stamps)[:, -7:])
    torch.testing.assert_close(cut.hidden, hidden[:, -3:])


def test_later_bars_leave_every_earlier_answer_bit_identical() -> None:
    networks = tiny_networks()
    x, stamps, _ = windows(16, LENGTH, 1)
    changed, other = x.copy(), stamps.copy()
    changed[:, -3:] = -changed[:, -3:] + 1
    other[:, -3:] = 1
    before, after = readout(networks, x, stamps, 6, 6), readout(networks, changed, other, 6, 6)
    for name in Readout.__dataclass_fields__:
        left, right = getattr(before, name), getattr(after, name)
        assert torch.equal(left[:, :-3], right[:, :-3]), name
        assert not torch.equal(left[:, -3:], right[:, -3:]), name


def test_token_closes_are_coarse_decodings_of_single_bars() -> None:
    networks = tiny_networks(dtype=torch.float64)
    found = token_closes(engines(networks)[1])
    tokenizer = networks.tokenizer
    code = tokenizer.code(torch.tensor([5]), torch.tensor([0]))[:, None, : tokenizer.config.s1_bits]
    expected = tokenizer._decode_latent(tokenizer.post_quant_embed_pre(code))[0, 0, 3]
    assert found.shape == (8,)
    torch.testing.assert_close(found[5], expected)
