"""Windows of different length in one call: each one's paths are those it gets alone, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_network import tiny_networks, windows

from kronos_qlib.kronos import SamplingConfig, generate, generate_naive, generate_ragged

HORIZON = 4
SAMPLING = SamplingConfig(n_paths=3, seed=2)


def ragged(lengths: list[int], horizon: int = HORIZON) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """One window a length, each of its own random walk."""
    made = [windows(1, length, horizon, seed=number) for number, length in enumerate(lengths)]
    return [x[0] for x, _, _ in made], [past[0] for _, past, _ in made], np.concatenate([to for _, _, to in made])


def alone(data, position: int, max_context: int, keys=None, dtype: str | None = None) -> torch.Tensor:
    networks = tiny_networks()
    bars, past, future = data
    one = slice(position, position + 1)
    given = (bars[position][None], past[position][None], future[one])
    key = None if keys is None else keys[one]
    return generate(networks.model, networks.tokenizer, *given, SAMPLING, max_context, keys=key, dtype=dtype)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keyed", [False, True])
def test_each_window_is_what_it_is_alone(keyed: bool, dtype: str) -> None:
    """Lengths below, at, around and past the context, some shared, in no order."""
    lengths = [40, 7, 64, 40, 60, 61, 1, 130, 64, 40]
    data, networks = ragged(lengths), tiny_networks()
    keys = np.arange(10, dtype=np.uint64) * np.uint64(977) if keyed else None
    found = generate_ragged(networks.model, networks.tokenizer, *data, SAMPLING, 64, keys=keys, dtype=dtype)
    assert found.shape == (10, 3, HORIZON, 6)
    for position in range(len(lengths)):
        assert torch.equal(found[position], alone(data, position, 64, keys, dtype)), lengths[position]


def test_order_and_company_do_not_matter() -> None:
    data, networks = ragged([9, 30, 9, 21, 30, 30]), tiny_networks()
    whole = generate_ragged(networks.model, networks.tokenizer, *data, SAMPLING)
    order = [4, 0, 3, 5]
    part = [[item[i] for i in order] for item in data[:2]]
    found = generate_ragged(networks.model, networks.tokenizer, *part, data[2][order], SAMPLING)
    assert torch.equal(found, whole[order])
    assert len(torch.unique(whole.flatten(1), dim=0)) == 6, "windows that agree prove nothing"


def test_long_contexts() -> None:
    """Up to 2,048 bars within the context, and one past it."""
    lengths = [2044, 512, 2044, 1500, 2100]
    data, networks = ragged(lengths), tiny_networks()
    found = generate_ragged(networks.model, networks.tokenizer, *data, SAMPLING, max_context=2048)
    for position in range(len(lengths)):
        assert torch.equal(found[position], alone(data, position, 2048)), lengths[position]


@pytest.mark.parametrize("length", [2046, 2100])
def test_long_contexts_agree_with_the_naive_generator(length: int) -> None:
    """The whole context counts: the engine with its cache and the one without it give the same bars."""
    networks, data = tiny_networks(dtype=torch.float64), windows(1, length, 2, seed=8)
    given = (networks.model, networks.tokenizer, *data, SAMPLING.model_copy(update={"n_paths": 2}))
    fast, slow = generate(*given, max_context=2048), generate_naive(*given, max_context=2048)
    assert torch.allclose(fast, slow, atol=1e-9, rtol=0)
    cut = (networks.model, networks.tokenizer, data[0][:, -512:], data[1][:, -512:], data[2], given[-1])
    keys = np.zeros(1, dtype=np.uint64)
    short, long = generate(*cut, max_context=2048, keys=keys), generate(*given, max_context=2048, keys=keys)
    assert not torch.allclose(short, long, atol=1e-9)


def test_tensors_are_taken_as_arrays_are() -> None:
    data, networks = ragged([12, 20, 12]), tiny_networks()
    tensors = [[torch.from_numpy(array) for array in part] for part in data[:2]]
    expected = generate_ragged(networks.model, networks.tokenizer, *data, SAMPLING)
    found = generate_ragged(networks.model, networks.tokenizer, *tensors, torch.from_numpy(data[2]), SAMPLING)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, past, to: ([], [], to[:0]), "no window"),
        (lambda x, past, to: (x, past[:1], to), "2 windows, 1 x_stamps"),
        (lambda x, past, to: (x, past, to[:1]), r"y_stamps of shape \(1, 4, 5\)"),
        (lambda x, past, to: ([x[0], x[1][:, :4]], past, to), r"window 1 has shape \(9, 4\)"),
        (lambda x, past, to: ([x[0], x[1][:0]], [past[0], past[1][:0]], to), r"window 1 has shape \(0, 6\)"),
        (lambda x, past, to: ([x[0], x[1][2:]], past, to), r"x_stamps of window 1 have shape \(9, 5\)"),
        (lambda x, past, to: ([x[0], x[1].astype(float)], past, to), r"window 1 is torch.float64"),
        (lambda x, past, to: ([x[0], x[1] * np.float32("nan")], past, to), "NaN"),
        (lambda x, past, to: (x, [past[0], past[1] + 100], to), "expected 0 to 59"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message: str) -> None:
    networks = tiny_networks()
    with pytest.raises(ValueError, match=message):
        generate_ragged(networks.model, networks.tokenizer, *change(*ragged([5, 9])), SAMPLING)


def test_keys_of_another_number_are_refused() -> None:
    networks = tiny_networks()
    with pytest.raises(ValueError, match=r"keys have shape \(3,\), expected \(2,\)"):
        generate_ragged(
            networks.model, networks.tokenizer, *ragged([5, 9]), SAMPLING, keys=np.arange(3, dtype=np.uint64)
        )
