"""Our sampler beside the original's, in one process, on the same weights and inputs.

    python benchmarks/sampler.py --upstream FOLDER            # a checkout of the original, commit 67b630e
    python benchmarks/sampler.py                              # ours alone, with the roofline

Prints a table of medians and ratios, the matrix-product rate of this machine at a large product and at the engine's
own shapes, and one JSON line last. The original runs in eval mode in float32, as published (it has no other dtype).
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, SamplingConfig, TokenizerConfig, generate
from kronos_qlib.kronos.plan import windows_per_chunk

TOKENIZER_2K = {
    "d_model": 256,
    "n_heads": 4,
    "ff_dim": 512,
    "n_enc_layers": 4,
    "n_dec_layers": 4,
    "s1_bits": 10,
    "s2_bits": 10,
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mini": (
        {"n_layers": 4, "d_model": 256, "n_heads": 4, "ff_dim": 512, "s1_bits": 10, "s2_bits": 10},
        dict(TOKENIZER_2K, group_size=5),
    ),
    "small": (
        {"n_layers": 8, "d_model": 512, "n_heads": 8, "ff_dim": 1024, "s1_bits": 10, "s2_bits": 10},
        dict(TOKENIZER_2K, group_size=4),
    ),
}
MAX_CONTEXT = 512
TOP_P = 0.9


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    shape: str
    windows: int
    lookback: int
    horizon: int
    n_paths: int

    @property
    def name(self) -> str:
        return f"{self.shape} B{self.windows} L{self.lookback} H{self.horizon} N{self.n_paths}"


CASES = (
    Case("mini", 32, 90, 10, 5),
    Case("mini", 300, 90, 10, 10),
    Case("mini", 8, 400, 30, 5),
    Case("small", 32, 90, 10, 5),
)


def networks(shape: str) -> tuple[Kronos, KronosTokenizer]:
    """Networks of a published shape with fixed random weights: cost does not depend on what they learned."""
    torch.manual_seed(0)
    model_config, tokenizer_config = SHAPES[shape]
    model = Kronos(ModelConfig(**model_config)).eval().requires_grad_(False)
    return model, KronosTokenizer(TokenizerConfig(**tokenizer_config)).eval().requires_grad_(False)


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random walks, normalised, with plausible stamps."""
    rng = np.random.default_rng(1)
    walk = rng.standard_normal((case.windows, case.lookback, 6)).cumsum(axis=1)
    x = (walk - walk.mean(axis=1, keepdims=True)) / (walk.std(axis=1, keepdims=True) + 1e-5)
    sizes = ((0, 60), (0, 24), (0, 7), (1, 32), (1, 13))
    stamps = [rng.integers(*size, (case.windows, case.lookback + case.horizon)) for size in sizes]
    stamp = np.stack(stamps, axis=-1)
    return x.clip(-5, 5).astype(np.float32), stamp[:, : case.lookback], stamp[:, case.lookback :]


def original(folder: Path, model: Kronos, tokenizer: KronosTokenizer) -> Callable[..., np.ndarray]:
    """The original's generation function bound to copies of our weights."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module = importlib.import_module("model.kronos")
    dropouts = {"ffn_dropout_p": 0.0, "attn_dropout_p": 0.0, "resid_dropout_p": 0.0}
    config = model.config.to_published() | dropouts
    theirs = module.Kronos(**config)
    theirs.load_state_dict(model.state_dict())
    coder = module.KronosTokenizer(**(tokenizer.config.to_dict() | dropouts))
    coder.load_state_dict(tokenizer.state_dict())
    theirs.eval(), coder.eval()

    def run(x: np.ndarray, past: np.ndarray, future: np.ndarray, n_paths: int, top_k: int = 0) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (x, past, future)]
        horizon = future.shape[1]
        out = module.auto_regressive_inference(
            coder, theirs, *tensors, MAX_CONTEXT, horizon, 5, 1.0, top_k, TOP_P, n_paths, False
        )
        return out[:, -horizon:]

    return run


def seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def useful_flops(case: Case) -> float:
    """Multiply-adds × 2 that any exact method must do per window set: each bar once, prefixes shared."""
    model, tokenizer = SHAPES[case.shape]

    def block(config: dict[str, Any]) -> float:
        return 4 * config["d_model"] ** 2 + 3 * config["d_model"] * config["ff_dim"]

    width = model["d_model"]
    coder = (tokenizer["n_enc_layers"] - 1) * block(tokenizer)
    context = 2 * coder + model["n_layers"] * block(model) + 2 * width**2
    heads = width * (2 ** model["s1_bits"] + 2 ** model["s2_bits"]) + 2 * width**2
    steps = (case.horizon - 1) * (model["n_layers"] * block(model) + 2 * width**2) + case.horizon * heads
    attention = model["n_layers"] * width + 2 * (tokenizer["n_enc_layers"] - 1) * tokenizer["d_model"]
    own = case.n_paths * (steps + case.horizon * coder + case.horizon * case.lookback * 2 * attention)
    return 2.0 * case.windows * (case.lookback * (context + case.lookback * attention) + own)


def product_rate(rows: int, inner: int, columns: int, dtype: torch.dtype, budget: float = 0.4) -> float:
    """FLOP/s of ``x @ w.T`` at one shape, all threads, best of a short loop."""
    x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    best, spent = float("inf"), 0.0
    F.linear(x, w)
    while spent < budget:
        taken = seconds(lambda: F.linear(x, w), 1)[0]
        best, spent = min(best, taken), spent + taken
    return 2.0 * rows * inner * columns / best


def roofline() -> dict[str, dict[str, float]]:
    """GFLOP/s at a large product and at the shapes of mini's prefill and decoding."""
    shapes = {
        "large 4096³": (4096, 4096, 4096),
        "prefill 1440×256×1024": (1440, 256, 1024),
        "step 160×256×1024": (160, 256, 1024),
    }
    return {
        dtype: {name: product_rate(*shape, getattr(torch, dtype)) / 1e9 for name, shape in shapes.items()}
        for dtype in ("float32", "bfloat16")
    }


def measure(case: Case, repeats: int, upstream: Path | None, upstream_repeats: int) -> dict[str, Any]:
    """Median seconds of each contender on one case, interleaved so that drift hits all."""
    model, tokenizer = networks(case.shape)
    x, past, future = inputs(case)
    sampling = SamplingConfig(n_paths=case.n_paths, top_p=TOP_P)
    greedy = SamplingConfig(n_paths=1, temperature=0.0)
    row: dict[str, Any] = asdict(case) | {"case": case.name, "gflop": useful_flops(case) / 1e9}
    row["windows_per_chunk"] = windows_per_chunk(model.config, case.lookback, case.horizon, case.n_paths, "cpu")
    ours = {
        dtype: lambda dtype=dtype: generate(model, tokenizer, x, past, future, sampling, MAX_CONTEXT, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    }
    times: dict[str, list[float]] = {name: [] for name in ours}
    for run in ours.values():
        run()  # warm-up: kernels, tables
    theirs = original(upstream, model, tokenizer) if upstream else None
    if theirs is not None:
        few = slice(0, min(8, case.windows))
        mine = generate(model, tokenizer, x[few], past[few], future[few], greedy, MAX_CONTEXT)[:, 0].numpy()
        row["greedy_difference"] = float(np.abs(mine - theirs(x[few], past[few], future[few], 1, top_k=1)).max())
        times["original"] = []
    for i in range(repeats):
        for name, run in ours.items():
            times[name] += seconds(run, 1)
        if theirs is not None and i < upstream_repeats:
            times["original"] += seconds(lambda: theirs(x, past, future, case.n_paths), 1)
    for name, taken in times.items():
        row[f"{name}_seconds"] = statistics.median(taken)
        row[f"{name}_spread"] = max(taken) / min(taken)
    return row


def report(rows: list[dict[str, Any]], rates: dict[str, dict[str, float]]) -> None:
    print("\n| case | original s | float32 s | × | bfloat16 s | × | float32 GFLOP/s | bfloat16 GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        theirs = row.get("original_seconds")
        cells = [row["case"], f"{theirs:.2f}" if theirs else "–"]
        for dtype in rates:
            taken = row[f"{dtype}_seconds"]
            cells += [f"{taken:.3f}", f"{theirs / taken:.1f}" if theirs else "–"]
        for dtype, shapes in rates.items():
            reached = row["gflop"] / row[f"{dtype}_seconds"]
            cells.append(f"{reached:.0f} ({reached / next(iter(shapes.values())):.0%})")
        print("| " + " | ".join(cells) + " |")
    print("\nmatrix products on this machine, GFLOP/s (shares above are of the large one):")
    for dtype, shapes in rates.items():
        print(f"  {dtype}: " + ", ".join(f"{name} {rate:.0f}" for name, rate in shapes.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="checkout of the original Kronos (needs einops)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--upstream-repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=None, help="substrings of case names to run")
    args = parser.parse_args()
    cases = [c for c in CASES if args.cases is None or any(part in c.name for part in args.cases)]
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, numpy {np.__version__}, python {platform.python_version()}, {threads} threads")
    print("compares kronos_qlib generate (float32, bfloat16 products) with the original's auto_regressive_inference")
    rates = roofline()
    rows = []
    for case in cases:
        rows.append(measure(case, args.repeats, args.upstream, args.upstream_repeats))
        print(f"  done {case.name}", file=sys.stderr)
    report(rows, rates)
    versions = {"torch": torch.__version__, "numpy": np.__version__, "threads": threads}
    print(json.dumps({"benchmark": "sampler", "versions": versions, "rates": rates, "rows": rows}))


if __name__ == "__main__":
    main()
