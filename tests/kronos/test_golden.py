"""Parity with the original implementation on fixed weights, both sizes (figures of tests/data/golden)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_network import Golden, load_golden

from kronos_qlib.kronos import Kronos, ModelConfig, SamplingConfig, generate, generate_naive

RTOL, ATOL = 1e-4, 1e-5
GREEDY = SamplingConfig(temperature=0.0, n_paths=1)


@pytest.fixture(params=["tiny", "mini"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def ids(golden: Golden, name: str) -> torch.Tensor:
    return torch.from_numpy(golden.figures[name]).long()


def bars(golden: Golden, name: str = "x") -> torch.Tensor:
    return torch.from_numpy(golden.figures[name])


def close(ours: torch.Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=RTOL, atol=ATOL)


def test_parameters_and_state_names(golden: Golden) -> None:
    for module, entry, count in zip(
        (golden.tokenizer, golden.model),
        ("tokenizer_state", "model_state"),
        golden.figures["parameter_count"],
        strict=True,
    ):
        shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
        assert shapes == golden.description[entry]
        assert sum(p.numel() for p in module.parameters()) == count


def test_tokens(golden: Golden) -> None:
    s1, s2 = golden.tokenizer.encode(bars(golden))
    np.testing.assert_array_equal(s1, golden.figures["s1"])
    np.testing.assert_array_equal(s2, golden.figures["s2"])
    joint = s1 + (s2 << golden.tokenizer.config.s1_bits)
    np.testing.assert_array_equal(joint, golden.figures["joint_index"])


def test_decode(golden: Golden) -> None:
    close(golden.tokenizer.decode(ids(golden, "s1"), ids(golden, "s2")), golden.figures["decoded"])


def test_tokenizer_forward(golden: Golden) -> None:
    (coarse, full), loss, s1, s2 = golden.tokenizer(bars(golden))
    close(coarse, golden.figures["recon_coarse"])
    close(full, golden.figures["recon_full"])
    close(loss, golden.figures["bsq_loss"])
    np.testing.assert_array_equal(s1, golden.figures["s1"])
    np.testing.assert_array_equal(s2, golden.figures["s2"])


def test_one_query_step(golden: Golden) -> None:
    hidden = golden.model.hidden(ids(golden, "s1"), ids(golden, "s2"), ids(golden, "x_stamp"))
    close(hidden[:, -1], golden.figures["context_last"])
    s1_logits = golden.model.s1_step(hidden)
    close(s1_logits, golden.figures["last_s1_logits"])
    s2_logits = golden.model.s2_step(hidden, s1_logits.argmax(-1))
    close(s2_logits, golden.figures["last_s2_logits_given_argmax_s1"])


@pytest.mark.parametrize("training", [True, False])
def test_teacher_forced_forward(golden: Golden, training: bool) -> None:
    # every dropout off: then training and validation are one function, both causal
    model = Kronos(
        ModelConfig(**{k: 0.0 if k.endswith("dropout_p") else v for k, v in golden.description["model"].items()})
    )
    model.load_state_dict(golden.model.state_dict())
    model.train(training)
    s1, s2, stamp = ids(golden, "s1"), ids(golden, "s2"), ids(golden, "x_stamp")
    with torch.no_grad():
        s1_logits, s2_logits = model(s1[:, :-1], s2[:, :-1], stamp[:, :-1], s1[:, 1:])
    close(s1_logits[:, -1], golden.figures["train_s1_logits_last"])
    close(s2_logits[:, -1], golden.figures["train_s2_logits_last"])
    losses = [
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        for logits, target in ((s1_logits, s1), (s2_logits, s2))
    ]
    close(torch.stack([sum(losses) / 2, *losses]), golden.figures["train_loss"])


@pytest.mark.parametrize("generator", [generate, generate_naive])
@pytest.mark.parametrize("case", ["greedy", "greedy_slide"])
def test_greedy_generation(golden: Golden, case: str, generator) -> None:  # type: ignore[no-untyped-def]
    figures = golden.figures
    paths = generator(
        golden.model,
        golden.tokenizer,
        bars(golden, f"{case}_x"),
        ids(golden, f"{case}_x_stamp"),
        ids(golden, f"{case}_y_stamp"),
        GREEDY,
        int(figures[f"{case}_max_context"]),
    )
    close(paths[:, 0], figures[f"{case}_pred"])
