"""From logits to token ids: temperature, top-k and top-p compose, draws are by inverse CDF, inputs stay untouched."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def wide(logits: Tensor) -> Tensor:
    """Probabilities are computed in float32, or float64 where the logits are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _descending(values: Tensor) -> Tensor:
    """Each row's values in descending order; only values are needed, so numpy's vectorised sort serves on a CPU."""
    if values.device.type != "cpu":
        return values.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1)).flip(-1)


def _keep_largest(probabilities: Tensor, n_keep: Tensor, ranked: Tensor) -> Tensor:
    """The ``n_keep`` (rows, 1) largest entries of each row, the others 0; ties go to the lowest ids.

    ``ranked`` holds each row's largest entries in descending order, at least ``n_keep`` of them.
    """
    threshold = ranked.gather(-1, n_keep - 1)
    kept = torch.where(probabilities >= threshold, probabilities, 0.0)
    if bool((kept.count_nonzero(-1) == n_keep.squeeze(-1)).all()):
        return kept
    tied = probabilities == threshold
    room = n_keep - (probabilities > threshold).sum(-1, keepdim=True)
    return torch.where(tied & (tied.cumsum(-1) > room), 0.0, kept)


def _nucleus_sizes(ranked: Tensor, top_p: float) -> Tensor:
    """How many of the ranked probabilities (rows, k) are kept: up to the first that exceeds ``top_p`` in sum."""
    before = ranked.cumsum(-1)[..., :-1]
    return 1 + (before <= top_p).sum(-1, keepdim=True)


def filtered_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Distribution that a token is drawn from.

    Parameters
    ----------
    logits : tensor (rows, V)
    temperature : float
        Above 0; divide the logits by it.
    top_k : int
        Keep the k most likely tokens, 0 for all.
    top_p : float
        Then keep the smallest set of tokens whose probability, renormalised after top-k, exceeds ``top_p``. The token
        that crosses the bound is kept, so at least one is. Ties at either bound go to the lowest ids.

    Returns
    -------
    tensor (rows, V), float32 (float64 for float64 logits)
        Not normalised: kept tokens have their probability before the last filter, the others 0.
    """
    scaled = wide(logits) if temperature == 1.0 else wide(logits) / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    vocabulary = probabilities.shape[-1]
    if 0 < top_k < vocabulary:
        ranked = probabilities.topk(top_k, dim=-1).values
        n_keep = torch.full((len(probabilities), 1), top_k, device=logits.device)
        probabilities = _keep_largest(probabilities, n_keep, ranked)
        if top_p < 1.0:
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    if top_p < 1.0:
        ranked = _descending(probabilities)
        probabilities = _keep_largest(probabilities, _nucleus_sizes(ranked, top_p), ranked)
    return probabilities


def draw(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    order: Tensor | None = None,
) -> Tensor:
    """Draw one token per uniform by inverse CDF.

    Parameters
    ----------
    logits : tensor (rows, V)
    uniform : tensor (rows, draws)
        In [0, 1); all draws of a row share its distribution.
    temperature, top_k, top_p
        As in :func:`filtered_probabilities`; temperature 0 takes the most likely token, the lowest id on a tie.
    order : int64 tensor (V,) or (rows, V), optional
        Token order along the CDF; None is by id.

    Returns
    -------
    int64 tensor (rows, draws)
    """
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True).expand(uniform.shape)
    probabilities = filtered_probabilities(logits, temperature, top_k, top_p)
    if order is not None:
        order = order.expand_as(probabilities)
        probabilities = probabilities.gather(-1, order)
    position = inverse_cdf(probabilities, uniform)
    return position if order is None else order.gather(-1, position)


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """First position whose cumulative weight exceeds ``uniform × total``; positions of weight 0 are never drawn."""
    cdf = weights.cumsum(-1)
    target = uniform.to(cdf.dtype) * cdf[..., -1:]
    # uniform × total can round up to the total itself
    target = torch.minimum(target, torch.nextafter(cdf[..., -1:], torch.zeros_like(cdf[..., -1:])))
    return torch.searchsorted(cdf, target.contiguous(), right=True)
