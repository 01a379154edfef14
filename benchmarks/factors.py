"""Block mode of token factors and embeddings against exact windows: what it costs and how far both agree; and the price
of path factors beside their sampling.

    python benchmarks/factors.py --store STORE --checkpoint CHECKPOINT

Seconds are CPU seconds of all threads, so that other work on the machine counts little (wall seconds on a GPU). Prints
a table, and the same as JSON on the last line. Exact mode is the reference: a window of its own for every row.
Block mode runs the network once for up to K bars. Agreement is the rank correlation over the instruments of a date,
averaged over dates. Small by default (about 2,000 rows); ``--instruments`` and the dates make it larger.
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

from kronos_qlib.alpha.factors import compute_factors
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.sources import PathFactorSource, TokenFactorSource
from kronos_qlib.forecast.token_factors import TOKEN_FACTORS
from kronos_qlib.handler import KlineHandler
from kronos_qlib.market.panel import BarPanel

EMBEDDING = ("last", "mean")
clock = time.perf_counter if torch.cuda.is_available() else time.process_time


def chosen_rows(panel: BarPanel, args: argparse.Namespace) -> np.ndarray:
    """Rows of every n-th instrument in the span."""
    every = max(1, len(panel.instruments) // args.instruments)
    inside = (panel.timestamps >= np.datetime64(args.start)) & (panel.timestamps <= np.datetime64(args.end))
    return np.flatnonzero(inside & (panel.codes % every == 0))


def timed(source: Any, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Values and seconds, after a warm-up."""
    source.compute(rows[:16])
    begin = clock()
    return source.compute(rows), clock() - begin


def agreement(exact: np.ndarray, block: np.ndarray, dates: np.ndarray, least: int = 10) -> np.ndarray:
    """Mean over dates of the rank correlation of each column."""
    left, right = (pd.DataFrame(values).groupby(dates).rank() for values in (exact, block))
    groups = pd.Series(dates).groupby(dates).groups
    per_date = [left.loc[i].corrwith(right.loc[i]) for i in groups.values() if len(i) >= least]
    return pd.concat(per_date, axis=1).mean(axis=1).to_numpy()


def token_figures(forecaster: KronosForecaster, panel: BarPanel, rows: np.ndarray, args: Any) -> dict[str, Any]:
    """Cost and agreement of every block length."""
    exact_source = TokenFactorSource(forecaster, panel, embedding=EMBEDDING, calendar=args.calendar)
    exact, seconds = timed(exact_source, rows)
    names = list(TOKEN_FACTORS)
    found: dict[str, Any] = {"exact_seconds": seconds, "blocks": {}}
    columns = {}
    for size in args.blocks:
        source = TokenFactorSource(forecaster, panel, embedding=EMBEDDING, block=size, calendar=args.calendar)
        values, block_seconds = timed(source, rows)
        agreed = agreement(exact, values, panel.timestamps[rows])
        width = (len(agreed) - len(names)) // len(EMBEDDING)
        by_name = dict(zip(names, agreed.tolist(), strict=False))
        for i, kind in enumerate(EMBEDDING):
            begin = len(names) + i * width
            by_name[f"embedding {kind} (median of {width})"] = float(np.median(agreed[begin : begin + width]))
        figures = {"seconds": block_seconds, "times_cheaper": seconds / block_seconds, "rank_correlation": by_name}
        found["blocks"][size] = figures
        columns[f"K {size}"] = by_name
    print(f"exact {seconds:.1f} s for {len(rows)} rows, {1e3 * seconds / len(rows):.2f} ms a row")
    for size, figures in found["blocks"].items():
        print(f"K {size:>3} {figures['seconds']:.1f} s, {figures['times_cheaper']:.1f} times cheaper")
    print(pd.DataFrame(columns).round(3).to_string())
    return found


def path_figures(forecaster: KronosForecaster, panel: BarPanel, rows: np.ndarray, args: Any) -> dict[str, float]:
    """Milliseconds a window of sampling, of path factors, and microseconds of a data key."""
    source = PathFactorSource(forecaster, panel, calendar=args.calendar)
    rows = rows[:: max(1, len(rows) // args.path_windows)]
    begin = clock()
    batches = list(forecaster.forecast_batches(panel, rows, calendar=args.calendar, progress=False))
    sampling = clock() - begin
    begin = clock()
    for _, paths in batches:
        compute_factors(source.columns, paths, limit_fraction=np.full(len(paths), 0.1))
    factors = clock() - begin
    source.data_keys(rows[:1])
    begin = clock()
    source.data_keys(np.arange(min(len(panel), 100_000)))
    keys = (clock() - begin) / min(len(panel), 100_000)
    found = {
        "windows": len(rows),
        "factors": len(source.columns),
        "sampling_ms": 1e3 * sampling / len(rows),
        "factors_ms": 1e3 * factors / len(rows),
        "factors_share": factors / sampling,
        "key_us": 1e6 * keys,
    }
    print(
        f"{found['factors']} path factors (N 10, H 10): sampling {found['sampling_ms']:.2f} ms a window, factors "
        f"{found['factors_ms']:.3f} ms ({found['factors_share']:.1%}), data key {found['key_us']:.1f} µs"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--universe", default="csi300")
    parser.add_argument("--start", default="2015-03-02")
    parser.add_argument("--end", default="2015-05-15")
    parser.add_argument("--instruments", type=int, default=40)
    parser.add_argument("--blocks", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--path-windows", type=int, default=256)
    parser.add_argument("--lookback", type=int, default=90)
    args = parser.parse_args()
    qlib.init(provider_uri=args.store, region="cn", logging_level=40)
    handler = KlineHandler(instruments=args.universe, start_time=args.start, end_time=args.end)
    args.calendar = handler.trading_calendar
    forecaster = KronosForecaster.from_pretrained(args.checkpoint, lookback=args.lookback)
    rows = chosen_rows(handler.panel, args)
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {forecaster.device}"
    print(f"{len(rows)} rows of {args.instruments} instruments, {args.start} to {args.end}; {versions}")
    result = {"benchmark": "factors", "rows": len(rows), "versions": versions}
    result |= {"token": token_figures(forecaster, handler.panel, rows, args)}
    result |= {"path": path_figures(forecaster, handler.panel, rows, args)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
