"""The plan of a run: fixed chunks, a memory estimate that grows with the chunk alone, and refusal with numbers."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from golden_network import load_golden
from hypothesis import given
from hypothesis import strategies as st

from kronos_qlib.kronos import SamplingConfig, generate
from kronos_qlib.kronos.plan import NotEnoughMemoryError, chunk_bytes, windows_per_chunk

SIZES = st.tuples(st.integers(1, 2048), st.integers(1, 60), st.integers(1, 64))


@given(SIZES)
def test_a_chunk_has_sixteen_rows_of_decoding_on_a_cpu(sizes: tuple[int, int, int]) -> None:
    length, horizon, n_paths = sizes
    windows = windows_per_chunk(load_golden("mini").model.config, length, horizon, n_paths, "cpu")
    assert windows >= 1
    assert windows * n_paths >= 16


@given(SIZES)
def test_the_estimate_grows_with_everything(sizes: tuple[int, int, int]) -> None:
    golden = load_golden("mini")
    configs = golden.model.config, golden.tokenizer.config
    length, horizon, n_paths = sizes
    base = chunk_bytes(*configs, 4, length, horizon, n_paths)
    assert base < chunk_bytes(*configs, 5, length, horizon, n_paths)
    assert base < chunk_bytes(*configs, 4, length + 1, horizon, n_paths)
    assert base < chunk_bytes(*configs, 4, length, horizon, n_paths + 1)


def test_too_little_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = load_golden("tiny")
    figures = golden.figures
    stamps = figures["x_stamp"].astype(np.int64), figures["y_stamp"].astype(np.int64)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(NotEnoughMemoryError, match=r"needs about .* GiB .* are free on cpu; use fewer paths") as caught:
        generate(golden.model, golden.tokenizer, figures["x"], *stamps, SamplingConfig())
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, ValueError)


PEAK = """
import resource, sys
import numpy as np, torch
from kronos_qlib.kronos import *
windows, length, horizon, paths = 6, 512, 10, 32
torch.manual_seed(0)
bits = {"s1_bits": 10, "s2_bits": 10}
model = Kronos(ModelConfig(n_layers=8, d_model=512, n_heads=8, ff_dim=1024, **bits)).eval()
tokenizer = KronosTokenizer(TokenizerConfig(
    d_model=256, n_heads=4, ff_dim=512, n_enc_layers=4, n_dec_layers=4, group_size=4, **bits)).eval()
x = np.random.default_rng(0).standard_normal((windows, length, 6)).astype("float32").clip(-5, 5)
stamp = np.ones((windows, length + horizon, 5), dtype=np.int64)
torch.set_num_threads(2)
generate(model, tokenizer, x, stamp[:, :length], stamp[:, length:], SamplingConfig(n_paths=paths), 2048)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def test_the_small_shape_with_long_windows_and_many_paths_fits_in_four_gigabytes() -> None:
    # two chunks at once, as many as two threads ever hold: more windows add only their results
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 4.0
