"""Losses of the alpha head by hand, with gradients, and blind to padding."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from torch import Tensor

from kronos_qlib.training.alpha_losses import LOSSES, ic_loss, listmle_loss, listnet_loss, loss_function

ALL = pytest.mark.parametrize("name", LOSSES)


def random_dates(seed: int, dates: int = 3, names: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and labels of some dates with at least 3 names each, in double precision."""
    random = torch.Generator().manual_seed(seed)
    score, label = torch.randn(2, dates, names, generator=random, dtype=torch.float64)
    counts = torch.randint(3, names + 1, (dates, 1), generator=random)
    return score, label, torch.arange(names) < counts


def test_ic_loss_by_hand() -> None:
    """Centred scores (-1, 0, 1), centred labels (-1, 1, 0): products sum to 1, norms to 2."""
    loss = ic_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 2.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(1 - 0.5)


def test_ic_loss_is_one_minus_pearson_within_each_date() -> None:
    score, label, mask = random_dates(1)
    expected = [1 - pearsonr(s[m], y[m])[0] for s, y, m in zip(score, label, mask, strict=True)]
    assert ic_loss(score, label, mask).item() == pytest.approx(np.mean(expected))


def test_ic_loss_of_equal_scores_is_one_and_has_a_finite_gradient() -> None:
    score = torch.zeros(1, 4, requires_grad=True)
    loss = ic_loss(score, torch.tensor([[1.0, 2.0, 3.0, 5.0]]), torch.ones(1, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 1.0
    assert torch.isfinite(score.grad).all()


def test_listnet_by_hand() -> None:
    """Target softmax(0, ln 3) = (1/4, 3/4) against the even softmax(0, 0)."""
    label = torch.tensor([[0.0, math.log(3.0)]])
    loss = listnet_loss(torch.zeros(1, 2), label, torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_listnet_is_zero_where_the_score_is_the_label_over_the_temperature() -> None:
    _, label, mask = random_dates(2)
    assert listnet_loss(label / 3 + 5, label, mask, temperature=3.0).item() == pytest.approx(0, abs=1e-12)
    assert listnet_loss(label, label, mask, temperature=3.0).item() > 0.01


def test_listmle_by_hand() -> None:
    """Order b, a, c with odds 2, 1, 3: probability 2/6 × 1/4 × 1."""
    score = torch.log(torch.tensor([[1.0, 2.0, 3.0]]))
    loss = listmle_loss(score, torch.tensor([[0.5, 0.9, -1.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(-math.log(2 / 6 * 1 / 4) / 3)


@ALL
@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_padding_and_the_order_of_names_change_nothing(name: str, seed: int) -> None:
    loss = loss_function(name)
    score, label, mask = random_dates(seed)
    reference = loss(score, label, mask)
    order = torch.randperm(score.shape[1], generator=torch.Generator().manual_seed(seed))
    assert loss(score[:, order], label[:, order], mask[:, order]).item() == pytest.approx(reference.item(), rel=1e-9)
    junk = torch.where(mask, score, 1e6), torch.where(mask, label, -7.0)
    assert loss(*junk, mask).item() == pytest.approx(reference.item(), rel=1e-9)
    apart = [loss(s[None, m], y[None, m], m[None, m]).item() for s, y, m in zip(score, label, mask, strict=True)]
    assert np.mean(apart) == pytest.approx(reference.item(), rel=1e-9)


@ALL
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    loss: Callable[..., Tensor] = loss_function(name, temperature=2.0)
    score, label, mask = random_dates(4)
    assert torch.autograd.gradcheck(lambda s: loss(s, label, mask), score.requires_grad_())


@ALL
def test_padding_has_no_gradient_and_a_step_downhill_raises_the_correlation(name: str) -> None:
    score, label, mask = random_dates(5)
    score.requires_grad_()
    loss_function(name)(score, label, mask).backward()
    assert (score.grad[~mask] == 0).all()
    better = score.detach() - 0.1 * score.grad
    assert ic_loss(better, label, mask) < ic_loss(score.detach(), label, mask)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="one of ic, listnet, listmle"):
        loss_function("mse")
