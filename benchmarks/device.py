"""One CSI300 year on a device: the small shape, 300 members × 243 days, 32 paths, 10 steps.

    python benchmarks/device.py --device cuda --dtype bfloat16            # the whole year
    python benchmarks/device.py --device cpu --windows 64                  # the same code on a CPU, fewer windows

Prints seconds, windows a second, the share of the measured matrix-product rate, peak memory, the agreement with
float32 on the CPU on a few windows, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from sampler import MAX_CONTEXT, Case, inputs, networks, useful_flops

from kronos_qlib.kronos import SamplingConfig, generate
from kronos_qlib.kronos.plan import windows_per_chunk

YEAR = 300 * 243


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a large square product on the device, best of ten."""
    size = size if device.type == "cuda" else 2048
    x = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        x @ x
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--shape", default="small", choices=["mini", "small"])
    parser.add_argument("--windows", type=int, default=YEAR)
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--paths", type=int, default=32)
    args = parser.parse_args()
    device = torch.device(args.device)
    case = Case(args.shape, args.windows, args.lookback, args.horizon, args.paths)
    model, tokenizer = networks(args.shape)
    x, past, future = inputs(case)
    sampling = SamplingConfig(n_paths=args.paths)
    few = slice(0, min(4, args.windows))
    reference = generate(model, tokenizer, x[few], past[few], future[few], sampling, MAX_CONTEXT)
    model, tokenizer = model.to(device), tokenizer.to(device)
    near = generate(model, tokenizer, x[few], past[few], future[few], sampling, MAX_CONTEXT, dtype=args.dtype).cpu()
    # random weights have flat distributions: a rounding moves many draws, but not what they average to
    first_bars = float((near - reference)[:, :, 0].abs().amax(dim=-1).le(1e-2).float().mean())
    pairs = torch.stack((near.mean(dim=1).flatten(), reference.mean(dim=1).flatten()))
    chunk = windows_per_chunk(model.config, args.lookback, args.horizon, args.paths, device.type)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{case.name} on {name}, {args.dtype}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    rate = product_rate(device, getattr(torch, args.dtype))
    start = time.perf_counter()
    # batches of whole chunks keep the result's memory bounded, as the forecaster does
    size = chunk * max(1, 2048 // chunk)
    for first in range(0, args.windows, size):
        rows = slice(first, first + size)
        generate(model, tokenizer, x[rows], past[rows], future[rows], sampling, MAX_CONTEXT, dtype=args.dtype)
    synchronise(device)
    seconds = time.perf_counter() - start
    achieved = useful_flops(case) / seconds
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    result = {
        "benchmark": "device",
        "case": case.name,
        "device": name,
        "dtype": args.dtype,
        "torch": torch.__version__,
        "seconds": seconds,
        "windows_per_second": args.windows / seconds,
        "useful_tflops": achieved / 1e12,
        "product_tflops": rate / 1e12,
        "share_of_product_rate": achieved / rate,
        "peak_gib": peak,
        "windows_per_chunk": chunk,
        "first_bars_equal_to_float32_cpu": first_bars,
        "mean_path_correlation_with_float32_cpu": float(torch.corrcoef(pairs)[0, 1]),
        "seconds_for_a_year": seconds * YEAR / args.windows,
    }
    for key, value in result.items():
        print(f"  {key}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
