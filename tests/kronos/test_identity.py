"""A window's paths are the same to the last bit, whatever it is generated together with, and where."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_network import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import windows

from kronos_qlib.kronos import SamplingConfig, generate

TESTS = Path(__file__).resolve().parents[1]
# size, dtype, lookback, horizon, windows, paths: more than one chunk of either size, and a ragged last one; where a
# window alone has one path of one step, a product of one row is what an unpadded batch would run
SHAPES = {
    "tiny-float32": ("tiny", "float32", 24, 5, 37, 3),
    "tiny-bfloat16": ("tiny", "bfloat16", 24, 5, 37, 3),
    "tiny-sliding": ("tiny", "float32", 46, 5, 37, 3),
    "mini-float32": ("mini", "float32", 40, 2, 19, 3),
    "mini-one-step": ("mini", "float32", 3, 1, 35, 1),
    "mini-one-step-bfloat16": ("mini", "bfloat16", 3, 1, 35, 1),
    "mini-bfloat16": ("mini", "bfloat16", 40, 2, 19, 3),
}
MAX_CONTEXT = 48
SAMPLING = SamplingConfig(n_paths=3, scheme="stratified", order="close", seed=5)


class Case:
    """Windows of one shape and their paths, generated all together."""

    def __init__(self, name: str) -> None:
        size, self.dtype, self.length, self.horizon, self.n, n_paths = SHAPES[name]
        golden = load_golden(size)
        self.model, self.tokenizer = golden.model, golden.tokenizer
        self.data = windows(self.n, self.length, self.horizon, seed=3)
        # ordering the tokens of the published size by close takes seconds
        order = "close" if size == "tiny" else "token"
        self.sampling = SAMPLING.model_copy(update={"order": order, "n_paths": n_paths})
        self.keys = np.arange(self.n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self.whole = self.paths(np.arange(self.n))

    def paths(self, rows: np.ndarray, *, keyed: bool = True) -> torch.Tensor:
        data = [array[rows] for array in self.data]
        keys = self.keys[rows] if keyed else None
        return generate(self.model, self.tokenizer, *data, self.sampling, MAX_CONTEXT, keys=keys, dtype=self.dtype)


@pytest.fixture(params=SHAPES, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def n_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_windows_and_paths_differ(case: Case) -> None:
    """Otherwise the tests below would prove nothing."""
    flat = case.whole.flatten(2).flatten(0, 1)
    assert len(torch.unique(flat, dim=0)) > 0.9 * len(flat)


def test_reversed(case: Case) -> None:
    rows = np.arange(case.n)[::-1].copy()
    assert torch.equal(case.paths(rows), case.whole[rows])


def test_shuffled_and_repeated(case: Case) -> None:
    rows = np.random.default_rng(0).integers(0, case.n, size=case.n + 4)
    assert torch.equal(case.paths(rows), case.whole[rows])


def test_alone(case: Case) -> None:
    for row in (0, 7, case.n - 1):
        assert torch.equal(case.paths(np.array([row])), case.whole[[row]])


@pytest.mark.parametrize("n_shards", [2, 3])
def test_in_shards(case: Case, n_shards: int) -> None:
    parts = [case.paths(rows) for rows in np.array_split(np.arange(case.n), n_shards)]
    assert torch.equal(torch.cat(parts), case.whole)
    strided = [case.paths(np.arange(shard, case.n, n_shards)) for shard in range(n_shards)]
    for shard, part in enumerate(strided):
        assert torch.equal(part, case.whole[shard::n_shards])


def test_default_keys_go_with_the_window(case: Case) -> None:
    """Without keys the randomness is that of the window's own bars."""
    whole = case.paths(np.arange(case.n), keyed=False)
    assert not torch.equal(whole, case.whole)
    for rows in (np.arange(case.n)[::-1].copy(), np.array([3]), np.array([5, 5])):
        assert torch.equal(case.paths(rows, keyed=False), whole[rows])


def test_any_number_of_threads(case: Case, n_threads: Callable[[int], None]) -> None:
    for n in (1, 2, 3):
        n_threads(n)
        assert torch.equal(case.paths(np.arange(case.n)), case.whole)
        assert torch.get_num_threads() == n, "generate leaves the number of threads as it was"


def test_same_window_other_key_other_paths(case: Case) -> None:
    data = [array[[0, 0]] for array in case.data]
    keys = np.array([1, 2], dtype=np.uint64)
    first, second = generate(
        case.model, case.tokenizer, *data, case.sampling, MAX_CONTEXT, keys=keys, dtype=case.dtype
    ).unbind(0)
    assert not torch.equal(first, second)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 36), min_size=1, max_size=40))
def test_any_batch_of_the_tiny_model(rows: list[int]) -> None:
    case = _tiny()
    assert torch.equal(case.paths(np.array(rows)), case.whole[rows])


_CASES: list[Case] = []


def _tiny() -> Case:
    if not _CASES:
        _CASES.append(Case("tiny-float32"))
    return _CASES[0]


def digests(names: list[str]) -> list[str]:
    """Hash of each shape's paths; also what a fresh process prints."""
    return [hashlib.sha256(Case(name).whole.numpy().tobytes()).hexdigest() for name in names]


def test_another_process() -> None:
    """Another process, another hash seed, another number of threads from the start."""
    names = list(SHAPES)
    code = f"import sys; sys.path[:0] = {[str(TESTS / 'helpers'), str(TESTS / 'kronos')]}; "
    code += f"import test_identity; print(*test_identity.digests({names}))"
    threads = "2" if torch.get_num_threads() == 1 else "1"
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == digests(names)


def test_callers_in_threads_at_once(n_threads: Callable[[int], None]) -> None:
    """They do not disturb each other, and leave the process's number of threads as it was."""
    n_threads(2)
    case = _tiny()
    # one after the other while others run, each from a thread that has not used torch before
    parts = [np.tile(rows, 4) for rows in (np.arange(20), np.arange(20, 37), np.arange(5, 30), np.arange(37))]
    with ThreadPoolExecutor(len(parts)) as pool:
        futures = []
        for rows in parts:
            futures.append(pool.submit(case.paths, rows))
            time.sleep(0.05)
        for rows, future in zip(parts, futures, strict=True):
            assert torch.equal(future.result(), case.whole[rows])
    assert torch.get_num_threads() == 2
    # a new thread starts with what the process is set to
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2


def test_windows_of_other_lengths_do_not_matter() -> None:
    """Lengths are generated one after the other; none leaves anything behind (trap 10)."""
    golden = load_golden("tiny")

    def of_length(length: int) -> torch.Tensor:
        data = windows(3, length, 4, seed=length)
        return generate(golden.model, golden.tokenizer, *data, SAMPLING, MAX_CONTEXT)

    lengths = [5, 30, 46, 60]
    first = {length: of_length(length) for length in lengths}
    for length in reversed(lengths):
        assert torch.equal(of_length(length), first[length])
