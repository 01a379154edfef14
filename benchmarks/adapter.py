"""What the Qlib side costs beside the network in a zero-shot run. The goal is less than 5 % of the run.

Compared: the seconds of a whole run (handler, panel, rows, windows, forecasts, signals, Series) with those spent inside
``generate``, which is the network and its sampler. Everything else is the adapter. The run is the one that ``qrun``
does between ``qlib.init`` and the prediction; recording and backtest are Qlib's own and are left out, as is loading
the weights.

    python benchmarks/adapter.py                                  # synthetic market, bundled checkpoint
    python benchmarks/adapter.py --store STORE --checkpoint CHECKPOINT --start 2020-05-01 --end 2020-07-31
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import qlib
import torch

import kronos_qlib
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast import forecaster as forecaster_module
from kronos_qlib.handler import KlineHandler
from kronos_qlib.model import KronosModel

GOAL = 0.05


class Stopwatch:
    """Seconds by name, added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Time a block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def wrap(self, module: Any, function: str, name: str) -> None:
        """Time every call of a module's function; on a GPU until its work is done."""
        original = getattr(module, function)

        def timed(*arguments: Any, **settings: Any) -> Any:
            with self.on(name):
                result = original(*arguments, **settings)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
            return result

        setattr(module, function, timed)


def synthetic_store(folder: Path) -> Path:
    """Write the quickstart's market as a store."""
    from kronos_qlib.market.store import write_store
    from kronos_qlib.market.synthetic import make_market

    market = make_market()
    write_store(market.bars, folder, members={"csi300": market.members})
    return folder


def measure(options: argparse.Namespace, store: Path) -> dict[str, Any]:
    """Run once and return seconds by part."""
    qlib.init(provider_uri=str(store), region="cn", logging_level=40)
    model = KronosModel(
        model=options.checkpoint,
        horizon=options.horizon,
        sampling={"n_paths": options.paths},
        device=options.device,
        dtype=options.dtype,
    )
    network = model.forecaster
    watch = Stopwatch()
    watch.wrap(forecaster_module, "generate", "network")
    began = time.perf_counter()
    with watch.on("handler: member rows and labels"):
        handler = KlineHandler(options.instruments, options.handler_start, options.end)
    with watch.on("panel: full-history bars"):
        bars = len(handler.panel)
    dataset = KlineDataset(handler, {"test": (options.start, options.end)}, lookback=options.lookback)
    with watch.on("rows: which window scores which row"):
        rows = dataset.rows("test")
    with watch.on("predict"):
        scores = model.predict(dataset)
    total = time.perf_counter() - began
    watch.seconds["predict, without the network"] = watch.seconds.pop("predict") - watch.seconds["network"]
    return {
        "total_s": total,
        "network_s": watch.seconds.pop("network"),
        "parts_s": watch.seconds,
        "rows": len(rows),
        "scored": int(scores.notna().sum()),
        "windows": int((np.unique(rows["row"]) >= 0).sum()),
        "bars": bars,
        "device": str(network.device),
    }


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader needs to repeat the measurement."""
    here = Path(__file__).resolve().parent
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    keys = ("instruments", "start", "end", "handler_start", "lookback", "horizon", "paths", "dtype")
    return {
        "kronos_qlib": kronos_qlib.__version__,
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "qlib": qlib.__version__,
        "pandas": pd.__version__,
        "threads": torch.get_num_threads(),
        "checkpoint": Path(options.checkpoint).name,
        **{key: getattr(options, key) for key in keys},
    }


def report(facts: dict[str, Any], result: dict[str, Any]) -> None:
    """Print what was compared, the table, and a JSON line last."""
    total, network = result["total_s"], result["network_s"]
    adapter = total - network
    print("Qlib side (everything but generate()) against the whole zero-shot run")
    print("  " + ", ".join(f"{key} {value}" for key, value in facts.items()) + f", device {result['device']}")
    print(f"  {result['rows']} rows, {result['windows']} windows, {result['bars']} bars in the panel\n")
    print(f"  {'part':<40}{'seconds':>10}{'share':>9}")
    for name, seconds in {**result["parts_s"], "network and sampler": network, "whole run": total}.items():
        print(f"  {name:<40}{seconds:>10.2f}{seconds / total:>9.1%}")
    share = adapter / total
    print(f"\n  adapter: {adapter:.2f} s, {share:.2%} of the run (goal: below {GOAL:.0%})")
    print(json.dumps({"benchmark": "adapter", **facts, **result, "adapter_s": adapter, "share": share, "goal": GOAL}))


def main() -> None:
    """Parse options, measure once, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="folder of a Qlib store; none: the synthetic market")
    parser.add_argument("--checkpoint", default="bundled:synthetic")
    parser.add_argument("--instruments", default="csi300")
    parser.add_argument("--start", default="2020-10-01", help="first day to score")
    parser.add_argument("--end", default="2020-12-31", help="last day to score")
    parser.add_argument("--handler-start", default="2012-01-01", help="first day of the handler's rows")
    parser.add_argument("--lookback", type=int, default=90)
    parser.add_argument("--horizon", type=int, default=10)
    parser.add_argument("--paths", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(options.store).expanduser() if options.store else synthetic_store(Path(folder) / "store")
        report(provenance(options), measure(options, store))


if __name__ == "__main__":
    main()
