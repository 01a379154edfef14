"""Our predictor training beside the original's, in one process, on networks of one shape and the same bars.

    python benchmarks/training.py --upstream FOLDER           # a checkout of the original, commit 67b630e
    python benchmarks/training.py --threads 1                 # ours alone

Runs the original's own loop (``finetune/train_predictor.py``, from data loading to the optimiser step) and ours, and
times from one step's forward pass to the next one's. Prints medians and ratios, and one JSON line last. The original's
model stands bare where it is wrapped in DistributedDataParallel as published, which spares it a copy of the gradients.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pickle
import platform
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, TokenizerConfig
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.objectives import PredictorObjective
from kronos_qlib.training.recipe import PredictorTraining
from kronos_qlib.training.stagnant import StretchFilter
from kronos_qlib.training.stream import TrainingBatch, WindowStream
from kronos_qlib.training.trainer import train

LOOKBACK, AHEAD, BATCH = 90, 11, 48
WINDOW = LOOKBACK + AHEAD
SHAPE = {"s1_bits": 8, "s2_bits": 8, "d_model": 128, "n_heads": 4, "ff_dim": 256, "attn_dropout_p": 0.0}
TOKENIZER = {
    **SHAPE,
    "n_enc_layers": 3,
    "n_dec_layers": 3,
    "group_size": 4,
    "ffn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
}
MODEL = {**SHAPE, "n_layers": 4, "ffn_dropout_p": 0.1, "resid_dropout_p": 0.1, "token_dropout_p": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "float32 compiled": {"compile": True},
    "bfloat16 compiled": {"dtype": "bfloat16", "compile": True},
}
WARM = 3


def bars(instruments: int = 40, sessions: int = 1_500) -> dict[str, pd.DataFrame]:
    """Random walks by instrument."""
    days = pd.bdate_range("2005-01-03", periods=sessions, name="datetime")
    random = np.random.default_rng(0)
    frames = {}
    for i in range(instruments):
        close = 10 * np.exp(np.cumsum(random.normal(0, 0.02, sessions)))
        opened = close * np.exp(random.normal(0, 0.01, sessions))
        volume = random.lognormal(10, 0.5, sessions)
        columns = {"open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close}
        frames[f"S{i:03d}"] = pd.DataFrame({**columns, "vol": volume, "amt": volume * close}, index=days)
    return frames


class Clock:
    """Moments at which steps began; in time of the process alone where the machine is not."""

    now = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.moments: list[float] = []

    def tick(self) -> None:
        self.moments.append(self.now())

    def seconds(self) -> list[float]:
        """Lengths of the steps, the first few left out."""
        return np.diff(self.moments)[WARM:].tolist()


class TimedModel(nn.Module):
    """The original's model where its loop expects a wrapped one."""

    def __init__(self, module: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.module, self.clock = module, clock

    def forward(self, *inputs: Any) -> Any:
        if self.training:
            self.clock.tick()
        return self.module(*inputs)


@contextmanager
def one_process_group(folder: Path) -> Iterator[None]:
    """The process group that the original's loop wants even when it is alone."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def original(upstream: Path, frames: dict[str, pd.DataFrame], steps: int, workers: int) -> list[float]:
    """Seconds of steps of the original's loop."""
    # its experiment tracker is imported at the top, and not used here
    sys.modules.setdefault("comet_ml", types.ModuleType("comet_ml"))
    for path in (upstream, upstream / "finetune"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    loop, data, networks = (importlib.import_module(name) for name in ("train_predictor", "dataset", "model.kronos"))
    published = data.Config
    clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"n_train_iter": steps * BATCH, "n_val_iter": BATCH, "batch_size": BATCH, "epochs": 1}
        settings |= {"dataset_path": name, "use_comet": False, "num_workers": workers}

        def configured() -> Any:
            config = published()
            config.__dict__.update(settings)
            return config

        for part in ("train", "val"):
            (folder / f"{part}_data.pkl").write_bytes(pickle.dumps(frames))
        torch.manual_seed(0)
        tokenizer = networks.KronosTokenizer(**TOKENIZER, beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05, d_in=6).eval()
        model = TimedModel(networks.Kronos(**MODEL, learn_te=True), clock)
        data.Config = configured
        try:
            with one_process_group(folder):
                cpu = torch.device("cpu")
                # no logger, and saving the best model is no part of a step
                model.module.save_pretrained = lambda path: None
                loop.train_model(model, tokenizer, cpu, vars(configured()), name, None, 0, 1)
        finally:
            data.Config = published
    return clock.seconds()


class TimedObjective(PredictorObjective):
    """Ours, with a clock."""

    clock: Clock

    def prepare(self, batch: TrainingBatch, device: torch.device) -> tuple[Tensor, ...]:
        self.clock.tick()
        return super().prepare(batch, device)


def ours(frames: dict[str, pd.DataFrame], steps: int, **settings: Any) -> list[float]:
    """Seconds of steps of our loop."""
    parts = [
        frame.rename(columns={"vol": "volume", "amt": "amount"}).assign(instrument=k) for k, frame in frames.items()
    ]
    panel = BarPanel.from_frame(pd.concat(parts).reset_index())
    torch.manual_seed(0)
    tokenizer = KronosTokenizer(TokenizerConfig(**TOKENIZER))
    model = Kronos(ModelConfig(**MODEL))
    config = PredictorTraining(steps=steps, batch_size=BATCH, valid_every=steps, **settings)
    objective = TimedObjective(tokenizer, context_weight=1.0, dtype=config.dtype)
    objective.clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        corpus = Corpus.from_panels(Path(name) / "corpus", {"walks": panel})
        ends = corpus.ends(LOOKBACK, AHEAD, filters=StretchFilter.off())
        stream = WindowStream(corpus, ends, lookback=LOOKBACK, horizon=AHEAD, batch_size=BATCH, seed=0)
        # the validation at the end is no part of a step
        train(model, objective, stream, lambda network: {"forecast": 0.0}, config, Path(name), name="ours")
    return objective.clock.seconds()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="folder of the original's checkout")
    parser.add_argument("--upstream-workers", type=int, default=2, help="its loader's processes (its own default: 2)")
    parser.add_argument("--steps", type=int, default=30, help=f"steps of each, {WARM} more to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="of ours")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time: one thread, no loader processes")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        Clock.now = staticmethod(time.process_time)
        arguments.threads, arguments.upstream_workers = 1, 0
    torch.set_num_threads(arguments.threads)
    frames, steps = bars(), arguments.steps + WARM + 1
    found: dict[str, list[float]] = {}
    if arguments.upstream is not None:
        found["original"] = original(arguments.upstream, frames, steps, arguments.upstream_workers)
    for name in arguments.variants:
        found[name] = ours(frames, steps, **VARIANTS[name])
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(f"{BATCH} windows of {WINDOW} bars a step, {arguments.threads} threads, {arguments.steps} steps each")
    for name, median in medians.items():
        tokens = BATCH * (WINDOW - 1) / median
        ratio = f", {medians['original'] / median:.2f} times the original" if "original" in medians else ""
        print(f"{name:>18}: {1e3 * median:7.1f} ms a step, {tokens:9,.0f} tokens/s{ratio}")
    facts = {
        "clock": Clock.now.__name__,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "cpu": platform.processor() or platform.machine(),
    }
    versions = {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__}
    shape = {"batch": BATCH, "window": WINDOW, "tokenizer": TOKENIZER, "model": MODEL}
    seconds = {name: {"median": medians[name], "min": min(s), "max": max(s)} for name, s in found.items()}
    print(json.dumps({**facts, "versions": versions, "shape": shape, "seconds_a_step": seconds}))


if __name__ == "__main__":
    main()
