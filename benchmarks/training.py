"""Our predictor training beside the original's, in one process, on networks of one shape and the same bars.

    python benchmarks/training.py --upstream FOLDER           # a checkout of the original, commit 67b630e
    python benchmarks/training.py --threads 1                 # ours alone
    python benchmarks/training.py --upstream FOLDER --threads 2 --processes 2 --variants bfloat16 --rounds 3

Runs the original's own loop (``finetune/train_predictor.py``, from data loading to the optimiser step) and ours, and
times from one step's forward pass to the next one's. Prints medians and ratios, and one JSON line last. The original's
model stands bare where it is wrapped in DistributedDataParallel as published, which spares it a copy of the gradients.

``--processes 2`` also times ours in two processes of one thread each, the same batch split between them, joined by gloo
as ``torchrun --nproc-per-node 2 -m kronos_qlib.cli pretrain`` joins them, and the original on one thread. The original
can be started so as well and is not here; half its step on one thread, whose loader has the other core to itself, is
the least that its two processes could take, and stands beside ours.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
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
from kronos_qlib.training.distributed import Processes, processes_from_environment
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
ONE_THREAD = "original, 1 thread"


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def ours(
    frames: dict[str, pd.DataFrame], steps: int, processes: Processes | None = None, **settings: Any
) -> list[float]:
    """Seconds of steps of our loop, of this process where it is one of several."""
    parts = [
        frame.rename(columns={"vol": "volume", "amt": "amount"}).assign(instrument=k) for k, frame in frames.items()
    ]
    panel = BarPanel.from_frame(pd.concat(parts).reset_index())
    torch.manual_seed(0)
    tokenizer = KronosTokenizer(TokenizerConfig(**TOKENIZER))
    model = Kronos(ModelConfig(**MODEL))
    config = PredictorTraining(steps=steps, batch_size=BATCH, valid_every=steps, **settings)
    objective = TimedObjective(tokenizer, context_weight=1.0, dtype=config.dtype, compile=config.compile)
    objective.clock = Clock()
    with tempfile.TemporaryDirectory() as name:
        corpus = Corpus.from_panels(Path(name) / "corpus", {"walks": panel})
        ends = corpus.ends(LOOKBACK, AHEAD, filters=StretchFilter.off())
        stream = WindowStream(corpus, ends, lookback=LOOKBACK, horizon=AHEAD, batch_size=BATCH, seed=0)
        # the validation at the end is no part of a step
        train(
            model, objective, stream, lambda network: {"forecast": 0.0}, config, Path(name), name="ours",
            distributed=processes,
        )  # fmt: skip
    return objective.clock.seconds()


def in_processes(name: str, steps: int, count: int) -> list[float]:
    """Seconds of steps of our loop in several processes of one thread each, which wait for each other every step."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command += [str(Path(__file__).resolve()), "--variants", name, "--steps", str(steps), "--one-of", str(result)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, env=environment, check=True)
        return json.loads(result.read_text(encoding="utf-8"))


def be_one_of(arguments: argparse.Namespace) -> None:
    """One of the processes that ``in_processes`` starts; the first writes its seconds."""
    torch.set_num_threads(1)
    (name,) = arguments.variants
    with processes_from_environment(torch.device("cpu")) as processes:
        seconds = ours(bars(), arguments.steps + WARM + 1, processes, **VARIANTS[name])
        if processes.first:
            arguments.one_of.write_text(json.dumps(seconds), encoding="utf-8")


def measurements(arguments: argparse.Namespace) -> dict[str, Callable[[], list[float]]]:
    """What is timed, by the name of its row."""
    frames, steps = bars(), arguments.steps + WARM + 1
    upstream, workers, count = arguments.upstream, arguments.upstream_workers, arguments.processes

    def upstream_on_one_thread() -> list[float]:
        with threads(1):
            return original(upstream, frames, steps, workers)

    rows: dict[str, Callable[[], list[float]]] = {}
    if upstream is not None:
        rows["original"] = lambda: original(upstream, frames, steps, workers)
        if count > 1 and arguments.threads > 1:
            rows[ONE_THREAD] = upstream_on_one_thread
    for name in arguments.variants:
        rows[name] = lambda name=name: ours(frames, steps, **VARIANTS[name])
    if count > 1:
        for name in arguments.variants:
            rows[f"{name}, {count} processes"] = lambda name=name: in_processes(name, arguments.steps, count)
    return rows


def least_of_processes(medians: dict[str, float], count: int) -> float | None:
    """The least that a step of the original could take in several processes of one thread; None: not known."""
    alone = medians.get(ONE_THREAD, medians.get("original"))
    return None if alone is None or count == 1 else alone / count


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", type=Path, help="folder of the original's checkout")
    parser.add_argument("--upstream-workers", type=int, default=2, help="its loader's processes (its own default: 2)")
    parser.add_argument("--steps", type=int, default=30, help=f"steps of each, {WARM} more to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="of ours")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time: one thread, no loader processes")
    parser.add_argument("--processes", type=int, default=1, help="more than 1: ours also in so many, of a thread each")
    parser.add_argument(
        "--rounds", type=int, default=1, help="so many times everything in turn, so that all meet alike"
    )
    parser.add_argument("--one-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_of is not None:
        be_one_of(arguments)
        return
    if BATCH % arguments.processes:
        parser.error(f"--processes {arguments.processes} does not divide a batch of {BATCH}")
    if arguments.cpu_time:
        if arguments.processes > 1:
            parser.error("--cpu-time counts one process and leaves out how they wait; leave out --processes")
        Clock.now = staticmethod(time.process_time)
        arguments.threads, arguments.upstream_workers = 1, 0
    torch.set_num_threads(arguments.threads)
    rows = measurements(arguments)
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(arguments.rounds):
        for name, measure in rows.items():
            found[name] += measure()
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    least = least_of_processes(medians, arguments.processes)
    print(f"{BATCH} windows of {WINDOW} bars a step, {arguments.threads} threads, "
          f"{arguments.steps * arguments.rounds} steps each")  # fmt: skip
    for name, median in medians.items():
        tokens = BATCH * (WINDOW - 1) / median
        ratio = f", {medians['original'] / median:.2f} times the original" if "original" in medians else ""
        if least is not None and name.endswith(" processes"):
            ratio += f", {least / median:.2f} times the original's bound in {arguments.processes} processes"
        print(f"{name:>{max(map(len, medians))}}: {1e3 * median:7.1f} ms a step, {tokens:9,.0f} tokens/s{ratio}")
    if least is not None:
        print(f"the original in {arguments.processes} processes of one thread was not run: it would at best take "
              f"1/{arguments.processes} of its step on one thread, {1e3 * least:.1f} ms")  # fmt: skip
    facts = {
        "clock": Clock.now.__name__,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "processes": arguments.processes,
        "original_at_best_in_processes": least,
        "cpu": platform.processor() or platform.machine(),
    }
    versions = {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__}
    shape = {"batch": BATCH, "window": WINDOW, "tokenizer": TOKENIZER, "model": MODEL}
    seconds = {name: {"median": medians[name], "min": min(s), "max": max(s)} for name, s in found.items()}
    print(json.dumps({**facts, "versions": versions, "shape": shape, "seconds_a_step": seconds}))


if __name__ == "__main__":
    main()
