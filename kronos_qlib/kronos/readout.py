"""What the networks say of bars that are there, without sampling: likelihoods, entropies, states, reconstructions.

Shapes: W sequences of T bars; answers for the last n of them. Position p uses bars up to p only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .engine import ModelEngine, TokenizerEngine, linear, rms_scale, rotate_halves
from .layers import rotary_table
from .ordering import CLOSE


@dataclass(frozen=True)
class Readout:
    """Answers for the last n bars of W sequences, wide (float32, or float64 for float64 weights).

    Attributes
    ----------
    s1, s2 : int64 (W, n)
        Ids of the bars.
    surprise_s1, surprise_s2 : (W, n)
        Negative log-likelihood, nats, of the bar's s1 given the bars before it, and of its s2 given these and its s1;
        NaN for the first bar of the context.
    entropy_s1, entropy_s2 : (W, n)
        Entropy, nats, of the *next* bar's s1, and of its s2 given the most likely s1.
    probability_s1 : (W, n, 2**s1_bits)
        Distribution of the next bar's s1.
    hidden : (W, n, d_model)
        Hidden states after the last norm.
    full, coarse : (W, m, 6)
        Reconstructions of the last m bars from both halves and from s1 alone, z units.
    """

    s1: Tensor
    s2: Tensor
    surprise_s1: Tensor
    surprise_s2: Tensor
    entropy_s1: Tensor
    entropy_s2: Tensor
    probability_s1: Tensor
    hidden: Tensor
    full: Tensor
    coarse: Tensor


def read(
    model: ModelEngine, coder: TokenizerEngine, x: Tensor, stamps: Tensor, max_context: int, last: int, reconstruct: int
) -> Readout:
    """Run both networks once over whole sequences.

    Parameters
    ----------
    model, coder : packed networks.
    x : (W, T, 6)
        Normalised bars. All are encoded, the last ``max_context`` are attended to.
    stamps : int64 (W, T, 5)
    last : n, answers wanted; at most the number of bars attended to.
    reconstruct : m, reconstructions wanted; fewer than the bars attended to.

    Notes
    -----
    s2 is conditioned as in training, all positions at once and causally; the published decoding leaves the dependency
    layer's query and keys unrotated, which is not the form that the weights were fitted in (trap 2).
    """
    s1, s2 = (ids[:, -max_context:] for ids in coder.encode(x))
    hidden = hidden_states(model, s1, s2, stamps[:, -max_context:])
    asked = min(last + 1, s1.shape[1])
    s1_log = torch.log_softmax(linear(hidden[:, -asked:], *model.s1_head).to(model.wide), dim=-1)
    true = s1[:, 1:][:, 1 - asked :] if asked > 1 else s1[:, :0]
    keys = _dependency_keys(model, hidden)
    s2_log = torch.log_softmax(_s2_logits(model, hidden[:, -asked:-1], true, keys, 1), dim=-1)
    likely = s1_log[:, -last:].argmax(-1)
    likely_log = torch.log_softmax(_s2_logits(model, hidden[:, -last:], likely, keys, 0), dim=-1)
    embedded = [coder.embed_code(s1, s2, coarse=coarse) for coarse in (False, True)]
    full, coarse = (coder.decode_embedded(z[:, :-reconstruct], z[:, None, -reconstruct:])[:, 0] for z in embedded)
    return Readout(
        s1=s1[:, -last:],
        s2=s2[:, -last:],
        surprise_s1=_surprise(s1_log[:, :-1], true, last),
        surprise_s2=_surprise(s2_log, s2[:, 1:][:, 1 - asked :] if asked > 1 else s2[:, :0], last),
        entropy_s1=_entropy(s1_log[:, -last:]),
        entropy_s2=_entropy(likely_log),
        probability_s1=s1_log[:, -last:].exp(),
        hidden=hidden[:, -last:],
        full=full,
        coarse=coarse,
    )


def hidden_states(model: ModelEngine, s1: Tensor, s2: Tensor, stamps: Tensor) -> Tensor:
    """Hidden states after the last norm, (W, T, d_model): ``Kronos.hidden`` on packed weights."""
    x = model.embed(s1, s2, model.embed_stamps(stamps))
    for block in model.blocks:
        x, _ = block.prefix(x)
    return rms_scale(x).mul_(model.norm)


@torch.inference_mode()
def token_closes(coder: TokenizerEngine) -> Tensor:
    """Close, z units, to which each s1 decodes coarsely as a sequence of one bar, (2**s1_bits,).

    An approximation of what the token means after a context.
    """
    ids = torch.arange(2**coder.tokenizer.config.s1_bits, device=coder.tokenizer.head.weight.device)
    z = coder.embed_code(ids, torch.zeros_like(ids), coarse=True)[:, None]
    return coder.decode_embedded(z[:, :0], z[:, None])[:, 0, 0, CLOSE]


def _dependency_keys(model: ModelEngine, hidden: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = model.dependency.project(hidden, first=1)
    return (_rotate(model, keys, 0) if _rotated(model) else keys).to(values.dtype), values


def _s2_logits(model: ModelEngine, hidden: Tensor, s1: Tensor, keys: tuple[Tensor, Tensor], behind: int) -> Tensor:
    """Logits of the next bar's s2 given its ``s1`` (W, n), for the n positions that end ``behind`` before the last."""
    dependency, length, count = model.dependency, keys[0].shape[2], s1.shape[1]
    start = length - behind - count
    q = F.embedding(s1, model.query_table).unflatten(-1, (dependency.n_heads, dependency.head_dim)).movedim(-2, 1)
    if _rotated(model):
        q = _rotate(model, q, start)
    seen = torch.ones(count, length, dtype=torch.bool, device=q.device).tril(start)
    out = F.scaled_dot_product_attention(q.to(keys[1].dtype), *keys, attn_mask=seen, scale=1.0)
    return linear(rms_scale(hidden + dependency.merge(out)), *model.s2_head).to(model.wide)


def _rotated(model: ModelEngine) -> bool:
    return model.model.dep_layer.rotary != "unrotated"


def _rotate(model: ModelEngine, x: Tensor, start: int) -> Tensor:
    cos, sin = rotary_table(start + x.shape[-2], model.dependency.head_dim, x.device, x.dtype == torch.float64)
    return rotate_halves(x, cos[start:], sin[start:])


def _surprise(log: Tensor, true: Tensor, last: int) -> Tensor:
    """Minus the log-probability of what came, NaN in front for a bar that nothing predicts."""
    found = -log.gather(-1, true.unsqueeze(-1)).squeeze(-1)
    return F.pad(found, (last - found.shape[1], 0), value=float("nan"))


def _entropy(log: Tensor) -> Tensor:
    return -(log.exp() * log).sum(-1)
