"""Losses of a cross-sectional rank: each is taken within a date, then averaged over dates.

Shapes: D dates, M the most names of a date. ``score`` and ``label`` are (D, M), padded; ``mask`` (D, M) is True where
there is a name. A date's loss depends on its own names only; padding changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
TINY = 1e-12
FAR_BELOW = -1e9


def ic_loss(score: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """One minus the Pearson correlation of score and label, 0 (best) to 2.

    With labels that are ranks this pulls towards the Rank IC. A date whose scores or labels are all equal counts as 1.
    """
    score, label = _centred(score, mask), _centred(label, mask)
    norms = (score.square().sum(1).clamp_min(TINY) * label.square().sum(1).clamp_min(TINY)).sqrt()
    return (1 - (score * label).sum(1) / norms).mean()


def listnet_loss(score: Tensor, label: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """ListNet: divergence of softmax(score) from softmax(label / temperature), 0 when they agree.

    Cross-entropy less the target's entropy, which no score can change (Cao et al., 2007).
    """
    wanted = torch.log_softmax((label / temperature).masked_fill(~mask, FAR_BELOW), dim=1)
    found = torch.log_softmax(score.masked_fill(~mask, FAR_BELOW), dim=1)
    terms = wanted.exp() * (wanted - found)
    return terms.masked_fill(~mask, 0.0).sum(1).mean()


def listmle_loss(score: Tensor, label: Tensor, mask: Tensor) -> Tensor:
    """ListMLE: minus the log-likelihood of the labels' order, best name first, by drawing names in turn with
    probability softmax(score), over the number of names (Xia et al., 2008). Equal labels keep the given order.
    """
    order = label.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    mask = mask.gather(1, order)
    score = score.gather(1, order).masked_fill(~mask, FAR_BELOW)
    remaining = score.flip(1).logcumsumexp(dim=1).flip(1)
    terms = (remaining - score).masked_fill(~mask, 0.0)
    return (terms.sum(1) / mask.sum(1).clamp_min(1)).mean()


LOSSES = ("ic", "listnet", "listmle")


def loss_function(name: str, temperature: float = 1.0) -> Loss:
    """Return a loss by name; ``temperature`` is ListNet's."""
    known: dict[str, Loss] = {
        "ic": ic_loss, "listnet": partial(listnet_loss, temperature=temperature), "listmle": listmle_loss,
    }  # fmt: skip
    if name not in known:
        raise ValueError(f"found loss {name!r}; expected one of {', '.join(LOSSES)}")
    return known[name]


def _centred(values: Tensor, mask: Tensor) -> Tensor:
    mean = values.masked_fill(~mask, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
    return (values - mean).masked_fill(~mask, 0.0)
