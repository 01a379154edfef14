"""Monte-Carlo noise of sampled signals: how uniforms are spread over a window's paths, and how many paths it takes.

    python benchmarks/path_noise.py --store STORE --checkpoint FOLDER --universe csi300

Every window is forecast with many seeds. For each scheme and order the variance over seeds of each signal, averaged
over windows, stands beside that of independent draws at the same number of paths; then the noise budget: standard
error of a score, and Rank IC lost to noise, against the number of paths; then how far bfloat16 agrees with float32. A
JSON line comes last.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import pandas as pd
import qlib
import torch
from qlib.data import D

from kronos_qlib import KronosForecaster, SamplingConfig
from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.evaluation.ic import daily_rank_ic
from kronos_qlib.handler import KlineHandler
from kronos_qlib.market.windows import WindowPolicy

SIGNALS = ("expected_return", "terminal_return", "execution_return", "probability_up", "return_over_dispersion")
SCHEMES = (
    ("independent", "token"),
    ("antithetic", "token"),
    ("antithetic", "close"),
    ("stratified", "token"),
    ("stratified", "close"),
    ("sobol", "token"),
    ("sobol", "close"),
)


def scores(
    forecaster: KronosForecaster, panel: Any, rows: np.ndarray, sampling: SamplingConfig, args: argparse.Namespace
) -> np.ndarray:
    """Every signal of every row, (signals, rows)."""
    out = np.full((len(SIGNALS), len(rows)), np.nan)
    policy = WindowPolicy(lookback=args.lookback)
    batches = forecaster.forecast_batches(
        panel, rows, policy=policy, horizon=args.horizon, sampling=sampling, calendar=args.calendar, progress=False
    )
    for positions, paths in batches:
        for i, name in enumerate(SIGNALS):
            if name == "return_over_dispersion" and sampling.n_paths < 2:
                continue  # one path has no dispersion
            out[i, positions] = compute_signal(name, paths, horizon=args.horizon)
    return out


def replicate(
    forecaster: KronosForecaster, panel: Any, rows: np.ndarray, args: argparse.Namespace, **settings: Any
) -> tuple[np.ndarray, float]:
    """Signals over seeds, (seeds, signals, rows), and seconds a run."""
    start = time.perf_counter()
    base = {"temperature": args.temperature, "top_p": args.top_p}
    runs = [
        scores(forecaster, panel, rows, SamplingConfig(**base, **settings, seed=seed), args)
        for seed in range(args.seeds)
    ]
    return np.stack(runs), (time.perf_counter() - start) / args.seeds


def noise_variance(runs: np.ndarray) -> np.ndarray:
    """Variance over seeds, averaged over rows, one figure a signal."""
    return np.nanmean(runs.var(axis=0, ddof=1), axis=-1)


def rank_ic(values: np.ndarray, index: pd.MultiIndex, label: pd.Series) -> float:
    return float(daily_rank_ic(pd.Series(values, index=index), label).mean())


def budget_row(runs: np.ndarray, index: pd.MultiIndex, label: pd.Series) -> dict[str, Any]:
    """Standard error relative to the cross-section's spread, and Rank IC of one run beside that of all seeds' mean."""
    row: dict[str, Any] = {}
    for i, name in enumerate(SIGNALS):
        if np.isnan(runs[:, i]).all():
            continue
        mean = runs[:, i].mean(axis=0)
        error = float(np.sqrt(np.nanmean(runs[:, i].var(axis=0, ddof=1))))
        spread = float(pd.Series(mean, index=index).groupby(level="datetime").std().mean())
        single = float(np.mean([rank_ic(run, index, label) for run in runs[:, i]]))
        row[name] = {
            "standard_error": error,
            "relative_to_spread": error / spread,
            "rank_ic": single,
            "rank_ic_lost": rank_ic(mean, index, label) - single,
        }
    return row


def dtype_agreement(panel: Any, rows: np.ndarray, args: argparse.Namespace) -> dict[str, float]:
    """Same seed in float32 and bfloat16: correlation of each signal over windows, beside that of two seeds."""
    runs = {}
    for dtype in ("float32", "bfloat16"):
        forecaster = KronosForecaster.from_pretrained(args.checkpoint, lookback=args.lookback, dtype=dtype)
        for seed in (0, 1):
            sampling = SamplingConfig(n_paths=10, temperature=args.temperature, top_p=args.top_p, seed=seed)
            runs[dtype, seed] = scores(forecaster, panel, rows, sampling, args)
    pairs = {"same_seed": (("float32", 0), ("bfloat16", 0)), "other_seed": (("float32", 0), ("float32", 1))}
    return {
        f"{name}_{pair}": float(pd.Series(runs[first][i]).corr(pd.Series(runs[second][i])))
        for pair, (first, second) in pairs.items()
        for i, name in enumerate(SIGNALS)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--universe", default="csi300")
    parser.add_argument("--calendar", default=None, help="exchange calendar; default: the store's")
    parser.add_argument("--start", default="2015-01-01")
    parser.add_argument("--end", default="2016-12-31")
    parser.add_argument("--every", type=int, default=40, help="sessions between scored dates")
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--paths", type=int, nargs="*", default=[8, 10, 16])
    parser.add_argument("--budget-paths", type=int, nargs="*", default=[1, 2, 5, 10, 20, 50])
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    qlib.init(provider_uri=args.store, region="cn", logging_level=40)
    handler = KlineHandler(instruments=args.universe, start_time=args.start, end_time=args.end)
    args.calendar = args.calendar or handler.trading_calendar
    forecaster = KronosForecaster.from_pretrained(args.checkpoint, lookback=args.lookback, dtype=args.dtype)
    sessions = D.calendar(start_time=args.start, end_time=args.end)[:: args.every]
    label = handler.fetch(col_set="label").iloc[:, 0]
    label = label[label.index.get_level_values("datetime").isin(sessions)].dropna()
    index = label.index
    dates, codes = index.get_level_values("datetime"), index.get_level_values("instrument")
    rows = handler.panel.locate(codes.to_numpy(), dates.to_numpy())
    label, index, rows = label[rows >= 0], index[rows >= 0], rows[rows >= 0]
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.dtype}"
    print(f"{len(rows)} windows on {len(sessions)} dates of {args.universe}, {args.seeds} seeds; {versions}")
    print("Variance over seeds of each signal relative to independent draws (1 = no gain), equal number of paths")
    result: dict[str, Any] = {"benchmark": "path_noise", "windows": len(rows), "versions": versions, "variance": []}
    print(f"{'paths':>5} {'scheme':<12} {'order':<6} " + " ".join(f"{s:>22}" for s in SIGNALS) + f" {'s/run':>7}")
    for n_paths in args.paths:
        reference = None
        for scheme, order in SCHEMES:
            runs, seconds = replicate(
                forecaster, handler.panel, rows, args, n_paths=n_paths, scheme=scheme, order=order
            )
            variance = noise_variance(runs)
            reference = variance if reference is None else reference
            ratio = variance / reference
            print(
                f"{n_paths:>5} {scheme:<12} {order:<6} " + " ".join(f"{r:>22.3f}" for r in ratio) + f" {seconds:>7.1f}"
            )
            row = {"n_paths": n_paths, "scheme": scheme, "order": order, "seconds": seconds}
            result["variance"].append(row | dict(zip(SIGNALS, ratio.tolist(), strict=True)))
    print("\nNoise budget, expected_return: standard error over the cross-section's spread; Rank IC; Rank IC lost")
    result["budget"] = []
    for scheme, order in (("independent", "token"), ("sobol", "close")):
        for n_paths in args.budget_paths:
            runs, seconds = replicate(
                forecaster, handler.panel, rows, args, n_paths=n_paths, scheme=scheme, order=order
            )
            row = budget_row(runs, index, label)
            result["budget"].append({"n_paths": n_paths, "scheme": scheme, "order": order} | row)
            figure = row["expected_return"]
            print(
                f"{scheme:<12} {order:<6} N {n_paths:>3}: {figure['relative_to_spread']:.3f} "
                f"{figure['rank_ic']:+.4f} {figure['rank_ic_lost']:+.4f}  ({seconds:.1f} s/run)"
            )
    result["dtypes"] = dtype_agreement(handler.panel, rows, args)
    print("\nCorrelation over windows of float32 with bfloat16 at the same seed, and of two seeds in float32 (N 10):")
    for name in SIGNALS:
        same, other = result["dtypes"][f"{name}_same_seed"], result["dtypes"][f"{name}_other_seed"]
        print(f"  {name:<24} {same:.3f} {other:.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
