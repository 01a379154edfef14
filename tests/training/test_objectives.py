"""The losses, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_training import MODEL, TOKENIZER

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, TokenizerConfig
from kronos_qlib.training.objectives import PredictorObjective, TokenizerObjective
from kronos_qlib.training.stream import TrainingBatch

CPU = torch.device("cpu")
CONTEXT, LENGTH = 5, 8


def make_batch(seed: int = 0, windows: int = 3) -> TrainingBatch:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(windows, LENGTH, 6, generator=random)
    stamps = torch.ones(windows, LENGTH, 5, dtype=torch.int64)
    return TrainingBatch(x, stamps, np.arange(windows), CONTEXT)


@pytest.fixture
def networks() -> tuple[Kronos, KronosTokenizer]:
    torch.manual_seed(0)
    return Kronos(ModelConfig(**MODEL)), KronosTokenizer(TokenizerConfig(**TOKENIZER))


Networks = tuple[Kronos, KronosTokenizer]


def test_the_tokenizer_learns_both_reconstructions_and_the_quantiser(networks: Networks) -> None:
    tokenizer = networks[1]
    x = make_batch().x
    loss, metrics = TokenizerObjective().loss(tokenizer, x)
    (coarse, full), quantiser, _, _ = tokenizer(x)
    wanted = (F.mse_loss(coarse, x) + F.mse_loss(full, x) + quantiser) / 2
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert metrics["full_mse"].item() == pytest.approx(F.mse_loss(full, x).item(), rel=1e-6)


@pytest.mark.parametrize("context_weight", [0.0, 0.3, 1.0])
def test_the_predictor_loss_weighs_bars_by_where_they_stand(networks: Networks, context_weight: float) -> None:
    model, tokenizer = networks
    model.eval()
    objective = PredictorObjective(tokenizer, context_weight=context_weight)
    inputs = objective.prepare(make_batch(), CPU)
    loss, metrics = objective.loss(model, *inputs)
    s1, s2, stamps = inputs[:3]
    s1_logits, s2_logits = model(s1[:, :-1], s2[:, :-1], stamps[:, :-1], s1[:, 1:])
    total, weights = 0.0, 0.0
    for position in range(1, LENGTH):
        weight = 1.0 if position >= CONTEXT else context_weight
        nats = F.cross_entropy(s1_logits[:, position - 1], s1[:, position])
        nats = nats + F.cross_entropy(s2_logits[:, position - 1], s2[:, position])
        total, weights = total + weight * nats.item(), weights + weight
    assert loss.item() == pytest.approx(total / weights, rel=1e-5)
    ahead = F.cross_entropy(s1_logits[:, CONTEXT - 1 :].flatten(0, 1), s1[:, CONTEXT:].flatten())
    assert metrics["s1_forecast"].item() == pytest.approx(ahead.item(), rel=1e-5)
    parts = metrics["s1_forecast"] + metrics["s2_forecast"]
    assert metrics["forecast"].item() == pytest.approx(parts.item())


@pytest.mark.parametrize("training", [True, False])
def test_trap_3_no_bar_s_loss_sees_a_later_bar(networks: Networks, training: bool) -> None:
    model, tokenizer = networks
    model.train(training)  # the tiny model has no dropout
    objective = PredictorObjective(tokenizer, context_weight=1.0)
    s1, s2, stamps, _ = objective.prepare(make_batch(windows=1), CPU)
    others = [tensor.clone() for tensor in (s1, s2)]
    for tensor in others:
        tensor[:, -1] = (tensor[:, -1] + 3) % 8
    logits, changed = (model(a[:, :-1], b[:, :-1], stamps[:, :-1], a[:, 1:]) for a, b in ((s1, s2), others))
    for before, after in zip(logits, changed, strict=True):
        # only the last position's s2 may know of the last bar's s1
        assert torch.allclose(before[:, :-1], after[:, :-1], atol=1e-6)
    assert torch.allclose(logits[0], changed[0], atol=1e-6)
    assert not torch.allclose(logits[1][:, -1], changed[1][:, -1], atol=1e-4)


def test_trap_18_the_true_s1_teaches_s2(networks: Networks) -> None:
    model, tokenizer = networks
    objective = PredictorObjective(tokenizer, context_weight=1.0)
    inputs = objective.prepare(make_batch(), CPU)
    taught: list[torch.Tensor] = []
    model.dep_layer.register_forward_pre_hook(lambda _, given: taught.append(given[1].detach()))
    objective.loss(model, *inputs)
    assert torch.equal(taught[0], model.embedding.emb_s1(inputs[0][:, 1:]))


def test_the_tokenizer_of_a_predictor_is_frozen(networks: Networks) -> None:
    model, tokenizer = networks
    objective = PredictorObjective(tokenizer.train(), context_weight=1.0)
    loss, _ = objective.loss(model, *objective.prepare(make_batch(), CPU))
    loss.backward()
    assert not tokenizer.training
    assert all(parameter.grad is None for parameter in tokenizer.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_window_without_a_bar_to_predict_is_refused(networks: Networks) -> None:
    batch = make_batch()
    short = TrainingBatch(batch.x[:, :CONTEXT], batch.stamps[:, :CONTEXT], batch.rows, CONTEXT)
    with pytest.raises(ValueError, match="5 bars, 5 of them context"):
        PredictorObjective(networks[1], context_weight=1.0).prepare(short, CPU)


def test_bfloat16_is_near_float32(networks: Networks) -> None:
    model, tokenizer = networks
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = PredictorObjective(tokenizer, context_weight=1.0).prepare(make_batch(windows=16), CPU)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, _ = PredictorObjective(tokenizer, context_weight=1.0).loss(model, *inputs)
        assert loss.dtype == torch.float32
        losses.append(loss.item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
