"""One Qlib method, fitted and asked for scores, in a process of its own: memory goes back, and budgets can be kept.

A fit is kept as a pickle, the only form that all of Qlib's models have, in the state folder, and unpickled from there:
valid and test share one fit, and test may not be scored when valid is, so keeping predictions alone would not do. Who
can write into that folder (``--state``, ``KRONOS_BENCHMARK_STATE``) can run code as you: it must be yours alone.
Only a run and ``importance`` unpickle; figures, comparisons and the README's table are read from parquet, CSV and JSON.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import random
import shutil
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from qlib.data import D
from qlib.data.dataset.handler import DataHandlerLP
from qlib.model.base import Model
from qlib.utils import init_instance_by_config

from kronos_qlib.comparison.methods import fill
from kronos_qlib.comparison.state import FIT, FIT_COLUMNS, RAW, read_fit
from kronos_qlib.comparison.task import Span, Task
from kronos_qlib.examine import open_store
from kronos_qlib.kept_features import build_dataset
from kronos_qlib.market.swap import whole_file
from kronos_qlib.rolling_horizon import label_horizon
from kronos_qlib.rolling_recorder import record_to

ERROR, SECONDS = "error.txt", "cpu_seconds.txt"
POLL = 1.0
ONE_DAY = 2  # sessions that Qlib's label reads ahead


class NotRun(Exception):
    """A method that could not be run; the message is the reason that the table gives."""


def run_method(
    task: Task, given: Mapping[str, Any], fit_folder: Path, folder: Path, features: Path | None = None
) -> tuple[pd.Series, float]:
    """Run a Qlib method in a fresh process and return its raw scores and the CPU seconds it took.

    Parameters
    ----------
    task : of kind ``qlib``. given : values of its placeholders. fit_folder : a fitted model is kept in and taken from,
        as a pickle: of yours alone. folder : scratch. features : folder where expressions are kept for all methods.

    Raises
    ------
    NotRun : beyond the method's budget, or it failed; the last line of its error is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(task, dict(given), fit_folder, folder, features)
    )
    process.start()
    while process.is_alive():
        process.join(POLL)
        if process.is_alive() and _cpu_seconds(process.pid) > task.method.budget:
            process.terminate()
            process.join()
            raise NotRun(f"stopped after its budget of {task.method.budget:g} CPU seconds")
    if process.exitcode != 0:
        error = folder / ERROR
        text = error.read_text(encoding="utf-8").strip() if error.is_file() else f"exit code {process.exitcode}"
        raise NotRun(f"failed: {text.splitlines()[-1][:200]}")
    return pd.read_parquet(folder / RAW)["score"], float((folder / SECONDS).read_text(encoding="utf-8"))


def build(task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """The Qlib model and dataset of a task, placeholders filled and the protocol's dates, members and segments set.

    The segment to be scored is Qlib's ``test`` (some models score nothing else); ``valid`` is what learners stop on.
    A label that reads further ahead than Qlib's own costs as many of the last sessions of ``train`` and ``valid``.
    """
    protocol = task.protocol
    first, last = protocol.span(task.segment)
    names = {
        "SEED": task.seed, "THREADS": task.threads, "UNIVERSE": protocol.universe,
        "TRAIN_START": protocol.train[0], "TRAIN_END": protocol.train[1],
        "VALID_START": protocol.valid[0], "VALID_END": protocol.valid[1], "SEGMENT_START": first, "SEGMENT_END": last,
    }  # fmt: skip
    filled: dict[str, Any] = fill(task.method.task, names | dict(given))
    dataset = filled["dataset"]
    handler = dataset["kwargs"]["handler"]
    handler["kwargs"] = {
        "instruments": protocol.universe, "start_time": protocol.train[0], "end_time": last,
        "fit_start_time": protocol.train[0], "fit_end_time": protocol.train[1],
    } | handler.get("kwargs", {})  # fmt: skip
    later = label_horizon(handler) - ONE_DAY if handler["kwargs"].get("label") else 0
    learned = {"train": _purged(protocol.train, later), "valid": _purged(protocol.valid, later)}
    dataset["kwargs"]["segments"] = learned | {"test": (first, last)}
    return filled


def _purged(span: Span, sessions: int) -> Span:
    """A segment without its last ``sessions``; as it is for none."""
    if sessions <= 0:
        return span
    days = D.calendar(*span, freq="day")
    if len(days) <= sessions:
        raise ValueError(f"the segment {span} has {len(days)} sessions, the label takes its last {sessions}")
    return span[0], f"{days[-1 - sessions]:%Y-%m-%d}"


def compute_scores(
    task: Task, given: Mapping[str, Any], fit_folder: Path, folder: Path, features: Path | None = None
) -> pd.Series:
    """Fit (or take the kept fit of) a task's model in this process, and score its segment.

    Beside a LightGBM fit the names of its columns are noted, which Qlib does not tell it; where they are missing,
    scoring a kept fit notes them.
    """
    _seed(task.seed)
    log = folder / "log"
    shutil.rmtree(log, ignore_errors=True)
    filled = build(task, given)
    kept = fit_folder / FIT
    fresh = not kept.is_file()
    with record_to(log):
        dataset = build_dataset(filled["dataset"], features)
        if not fresh:
            model = read_fit(fit_folder)
        else:
            model = init_instance_by_config(filled["model"], accept_types=Model)
            model.fit(dataset)
        scores = model.predict(dataset)
    if isinstance(scores, pd.DataFrame):  # TRA gives its score among other columns
        scores = scores["score"] if "score" in scores else scores.iloc[:, 0]
    if fresh:
        fit_folder.mkdir(parents=True, exist_ok=True)
        with whole_file(kept) as partial:
            partial.write_bytes(pickle.dumps(model))
    if task.method.has_gain and (fresh or not (fit_folder / FIT_COLUMNS).is_file()):
        columns = dataset.handler.get_cols("feature", data_key=DataHandlerLP.DK_L)  # what LGBModel fits on
        with whole_file(fit_folder / FIT_COLUMNS) as partial:
            partial.write_text(json.dumps(columns, indent=0) + "\n", encoding="utf-8")
    return scores.rename("score")


def _work(task: Task, given: Mapping[str, Any], fit_folder: Path, folder: Path, features: Path | None) -> None:
    from kronos_qlib.forecast.pool_worker import start_worker

    logging.getLogger("kronos_qlib").setLevel(logging.WARNING)
    try:
        start_worker(task.threads)
        open_store(task.store)
        compute_scores(task, given, fit_folder, folder, features).to_frame().to_parquet(folder / RAW)
        (folder / SECONDS).write_text(f"{time.process_time():.1f}", encoding="utf-8")
    except Exception:
        (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _cpu_seconds(pid: int | None) -> float:
    """CPU seconds of a process and its children so far; 0 when it has just ended."""
    try:
        main = psutil.Process(pid)
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return float(sum(each.user + each.system for each in times))


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  Qlib's models draw from numpy's global generator
    torch.manual_seed(seed)
