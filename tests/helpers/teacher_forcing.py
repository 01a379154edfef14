"""Step both generators' networks along the same tokens and compare every draw that they would make."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from reference_sampling import reference_probabilities
from torch import Tensor

from kronos_qlib.kronos import Kronos, KronosTokenizer, SamplingConfig
from kronos_qlib.kronos.engine import ModelEngine
from kronos_qlib.kronos.ordering import close_orders
from kronos_qlib.kronos.sampling import draw
from kronos_qlib.kronos.uniforms import uniforms


@dataclass
class Comparison:
    """Draws made, draws that differ, how far each of those lay from a boundary, and the logits' largest difference."""

    n_draws: int = 0
    gaps: list[float] = field(default_factory=list)
    largest_logit_error: float = 0.0

    @property
    def largest_gap(self) -> float:
        return max(self.gaps, default=0.0)


def distance_to_boundary(
    logits: np.ndarray, uniform: float, filters: tuple[float, int, float], order: np.ndarray
) -> float:
    """How near a draw is to falling on another token: at the CDF's steps or at the nucleus' bound."""
    temperature, top_k, top_p = filters
    cdf = np.cumsum(reference_probabilities(logits, *filters)[order])
    distance = float(np.abs(cdf - uniform).min())
    ranked = np.sort(reference_probabilities(logits, temperature, 0, 1.0))[::-1]
    if 0 < top_k < len(ranked):
        distance = min(distance, ranked[top_k - 1] - ranked[top_k])
        ranked = ranked[:top_k] / ranked[:top_k].sum()
    if top_p < 1.0:
        distance = min(distance, float(np.abs(np.cumsum(ranked) - top_p).min()))
    return distance


def _compare(
    result: Comparison,
    naive: Tensor,
    fast: Tensor,
    uniform: Tensor,
    filters: tuple[float, int, float],
    order: Tensor | None,
) -> Tensor:
    """Draw from both (rows, V) with uniforms (rows,); returns the naive tokens (rows,)."""
    error = (naive - fast).abs().max() / naive.abs().max()
    result.largest_logit_error = max(result.largest_logit_error, float(error))
    ours = draw(fast, uniform[:, None], *filters, order=order)[:, 0]
    theirs = draw(naive, uniform[:, None], *filters, order=order)[:, 0]
    result.n_draws += len(ours)
    for row in torch.nonzero(ours != theirs)[:, 0].tolist():
        ids = torch.arange(naive.shape[1]) if order is None else order.expand_as(naive)[row]
        result.gaps.append(distance_to_boundary(naive[row].double().numpy(), float(uniform[row]), filters, ids.numpy()))
    return theirs


@torch.inference_mode()
def compare_draws(
    model: Kronos,
    tokenizer: KronosTokenizer,
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    sampling: SamplingConfig,
    max_context: int,
) -> Comparison:
    """Follow the naive tokens with both networks, step by step, past ``max_context`` too."""
    x, past, future = (torch.from_numpy(array) for array in data)
    (n_windows, length, _), horizon, n_paths = x.shape, future.shape[1], sampling.n_paths
    stamps = torch.cat((past, future), dim=1)
    each_stamps = stamps.repeat_interleave(n_paths, 0)
    context = tokenizer.encode(x)
    s1, s2 = (ids.repeat_interleave(n_paths, 0) for ids in context)
    draws = torch.from_numpy(uniforms(sampling, np.arange(n_windows, dtype=np.uint64), horizon)).flatten(0, 1)
    s1_order, s2_order = close_orders(tokenizer) if sampling.order == "close" else (None, None)
    engine, result = ModelEngine(model, torch.float32), Comparison()
    times = engine.embed_stamps(stamps)

    def start(first: int):  # type: ignore[no-untyped-def]
        return engine.start(context[0][:, first:], context[1][:, first:], times[:, first:length], n_paths, horizon)

    last, state = start(max(0, length - max_context))
    fast_hidden = last.unsqueeze(1).expand(-1, n_paths, -1)
    for step in range(horizon):
        end = length + step
        first = max(0, end - max_context)
        if step > 0:
            begin = step - 1
            if end > max_context:
                _, state = start(first)
                begin = 0
            new = [ids[:, length + begin : end].unflatten(0, (n_windows, n_paths)) for ids in (s1, s2)]
            fast_hidden = engine.advance(*new, times[:, None, length + begin : end], state)
        hidden = model.hidden(s1[:, first:], s2[:, first:], each_stamps[:, first:end])
        fast = engine.s1_logits(fast_hidden).flatten(0, 1)
        filters = sampling.filters("s1"), sampling.filters("s2")
        next_s1 = _compare(result, model.s1_step(hidden), fast, draws[:, step, 0], filters[0], s1_order)
        fast = engine.s2_logits(fast_hidden, next_s1.unflatten(0, (n_windows, n_paths)), state).flatten(0, 1)
        order = None if s2_order is None else s2_order[next_s1]
        next_s2 = _compare(result, model.s2_step(hidden, next_s1), fast, draws[:, step, 1], filters[1], order)
        s1, s2 = torch.cat((s1, next_s1[:, None]), 1), torch.cat((s2, next_s2[:, None]), 1)
    return result
