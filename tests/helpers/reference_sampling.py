"""Token filters in numpy, by one full stable sort: slow and obviously right."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def kept_tokens(probabilities: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Ids that survive: the ``top_k`` most likely, then the smallest set of them that exceeds ``top_p``."""
    ranked = np.argsort(-probabilities, kind="stable")
    if top_k > 0:
        ranked = ranked[:top_k]
    if top_p < 1.0:
        share = probabilities[ranked] / probabilities[ranked].sum()
        exceeded = np.flatnonzero(np.cumsum(share) > top_p)
        if len(exceeded):
            ranked = ranked[: exceeded[0] + 1]
    return np.sort(ranked)


def reference_probabilities(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Distribution (V,), float64, sums to 1, that a token is drawn from."""
    logits = np.asarray(logits, dtype=np.float64)
    result = np.zeros(len(logits))
    if temperature == 0.0:
        result[np.argmax(logits)] = 1.0
        return result
    probabilities = softmax(logits / temperature)
    kept = kept_tokens(probabilities, top_k, top_p)
    result[kept] = probabilities[kept] / probabilities[kept].sum()
    return result


def boundary_gap(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> float:
    """How near a filter is to keeping one token more or fewer, in probability."""
    probabilities = softmax(np.asarray(logits, dtype=np.float64) / temperature)
    ranked = np.sort(probabilities)[::-1]
    gap = np.inf
    if 0 < top_k < len(ranked):
        gap = ranked[top_k - 1] - ranked[top_k]
        ranked = ranked[:top_k]
    if top_p < 1.0:
        gap = min(gap, float(np.abs(np.cumsum(ranked / ranked.sum()) - top_p).min()))
    return float(gap)
