"""The oracle: generation without any cache. Short, slow, obviously right; it stays for ever."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import SamplingConfig
from .inputs import GenerationInputs, prepare
from .sampling import draw
from .tokenizer import KronosTokenizer
from .transformer import Kronos


@torch.inference_mode()
def generate_naive(
    model: Kronos,
    tokenizer: KronosTokenizer,
    x: object,
    x_stamp: object,
    y_stamp: object,
    sampling: SamplingConfig,
    max_context: int = 512,
    *,
    keys: object = None,
) -> Tensor:
    """Generate paths by running the whole network over the whole context at every step.

    Parameters and result are those of :func:`kronos_qlib.kronos.generate`.
    """
    inputs = prepare(model, tokenizer, x, x_stamp, y_stamp, sampling, max_context, keys)
    s1, s2 = tokenizer.encode(inputs.x.to(inputs.dtype))
    s1, s2 = _each_path(s1, inputs.n_paths), _each_path(s2, inputs.n_paths)
    stamps = _each_path(torch.cat((inputs.x_stamp, inputs.y_stamp), dim=1), inputs.n_paths)
    for step in range(inputs.horizon):
        next_s1, next_s2 = _next_token(model, s1, s2, stamps, inputs, sampling, step, max_context)
        s1 = torch.cat((s1, next_s1), dim=1)
        s2 = torch.cat((s2, next_s2), dim=1)
    decoded = tokenizer.decode(s1[:, -max_context:], s2[:, -max_context:])[:, -inputs.horizon :]
    return decoded.unflatten(0, (-1, inputs.n_paths)).to(inputs.out_dtype)


def _next_token(
    model: Kronos,
    s1: Tensor,
    s2: Tensor,
    stamps: Tensor,
    inputs: GenerationInputs,
    sampling: SamplingConfig,
    step: int,
    max_context: int,
) -> tuple[Tensor, Tensor]:
    """The next token of every path: ids (B * n_paths, 1) twice."""
    length = s1.shape[1]
    start = max(0, length - max_context)
    hidden = model.hidden(s1[:, start:], s2[:, start:], stamps[:, start:length])
    uniform = inputs.uniforms[:, :, step].flatten(0, 1)
    next_s1 = draw(model.s1_step(hidden), uniform[:, :1], *sampling.filters("s1"), order=inputs.s1_order)
    s2_logits = model.s2_step(hidden, next_s1[:, 0])
    s2_order = None if inputs.s2_order is None else inputs.s2_order[next_s1[:, 0]]
    next_s2 = draw(s2_logits, uniform[:, 1:], *sampling.filters("s2"), order=s2_order)
    return next_s1, next_s2


def _each_path(x: Tensor, n_paths: int) -> Tensor:
    """Repeat every window once per path, paths of a window together."""
    return x.repeat_interleave(n_paths, dim=0)
