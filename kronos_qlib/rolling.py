"""Rolling runs: train on the past, score the next weeks, move on, and judge the joined scores as one prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import qlib
import torch
from qlib.config import C
from qlib.data import D
from qlib.log import get_module_logger
from qlib.workflow.recorder import Recorder
from tqdm import tqdm

from kronos_qlib.forecast.pool_worker import start_worker
from kronos_qlib.rolling_config import RollingOptions, load_workflow, with_segments
from kronos_qlib.rolling_horizon import label_horizon
from kronos_qlib.rolling_plan import Roll, make_rolls, plan_table
from kronos_qlib.rolling_publish import ROLLS_SUFFIX, check_days, merge_rolls, publish_merged, publish_roll
from kronos_qlib.rolling_worker import DONE, PREDICTION, run_roll, run_roll_in_process

logger = get_module_logger("kronos_qlib.rolling")


class KronosRolling:
    """Roll any Qlib model on any daily handler, given as a workflow for qrun.

    The task's segments are those of the first roll; its test segment is divided into pieces of ``step`` sessions, and
    each piece is scored by a model of its own. The last sessions before a later segment are dropped from training and
    validation, as many as the label looks ahead. Each test day is scored exactly once. What processors are fitted on
    (``fit_start_time``, ``fit_end_time``) follows the training segment, and a handler loads nothing after its roll.

    Every finished roll is a folder below ``state``; a run that was interrupted goes on at the roll it was in, and one
    that was finished only makes the records again. Each roll keeps a recorder in the experiment ``NAME_rolls``; the
    joined prediction, its label and the records of the task go to the experiment ``NAME``. The joined prediction is
    also ``prediction.parquet`` in ``state``. All rolls read the same forecast store, where the handler has one, and are
    done again when its content changes. Expressions such as Alpha158's are computed once and kept in ``state/features``
    (:class:`kronos_qlib.kept_features.KeptLoader`), which may be deleted afterwards.

    Parameters
    ----------
    config : YAML file, read as qrun reads it, or a mapping of the same form: ``qlib_init``, ``task``,
        ``experiment_name`` and, optional, ``rolling``. Without ``qlib_init``, Qlib must be initialised already.
    step, rolling_type, jobs, finetune, horizon, keep_features : optional
        Come before those of the ``rolling`` block; see :class:`kronos_qlib.rolling_config.RollingOptions`.
    segments : mapping of names to (first, last) dates, optional
        Instead of the workflow's, for another period; backtests then span its ``test``.
    state : path-like, optional
        Folder of the finished rolls; None: ``rolling/NAME`` in the working folder.
    experiment_name : str, optional
        None: that of the workflow.

    Raises
    ------
    ValueError : unknown key, a workflow without a task, segments that overlap or that the store does not hold, a label
        that cannot be read, an intraday handler.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any],
        *,
        step: int | None = None,
        rolling_type: str | None = None,
        jobs: int | None = None,
        finetune: str | None = None,
        horizon: int | None = None,
        keep_features: bool | None = None,
        segments: Mapping[str, tuple[str, str]] | None = None,
        state: str | Path | None = None,
        experiment_name: str | None = None,
    ) -> None:
        loaded = load_workflow(config)
        self.config = with_segments(loaded, segments) if segments else loaded
        self.options = RollingOptions.from_block(
            self.config.get("rolling"), step=step, rolling_type=rolling_type, jobs=jobs, finetune=finetune,
            horizon=horizon, keep_features=keep_features,
        )  # fmt: skip
        self.experiment_name = str(experiment_name or self.config.get("experiment_name") or "rolling")
        self.state = Path(state or Path("rolling") / self.experiment_name).expanduser().resolve()

    @cached_property
    def rolls(self) -> tuple[Roll, ...]:
        """The rolls in the order of time; asking for them initialises Qlib."""
        self._init_qlib()
        handler = self.config["task"]["dataset"].get("kwargs", {}).get("handler")
        horizon = self.options.horizon
        if horizon is None:
            horizon = label_horizon(handler) if isinstance(handler, Mapping) else 0  # make_rolls refuses the latter
        return make_rolls(
            self.config["task"], step=self.options.step, rolling_type=self.options.rolling_type, horizon=horizon,
            finetune=self.options.finetune,
        )  # fmt: skip

    def plan(self) -> pd.DataFrame:
        """Return the dates of every roll, one row each, and whether it is done (``done``)."""
        return plan_table(self.rolls).assign(done=[self._is_done(roll) for roll in self.rolls])

    def run(self) -> Recorder:
        """Run what is not done yet, join the predictions, make the records, and return their recorder."""
        rolls = self.rolls
        self.state.mkdir(parents=True, exist_ok=True)
        self._write_plan()
        recorders = self._run_rolls()
        sessions = pd.DatetimeIndex(D.calendar(rolls[0].test[0], rolls[-1].test[1], freq="day"))
        joined = self.predictions()
        check_days(joined, sessions)
        joined.to_parquet(self.state / PREDICTION)
        options = {**asdict(self.options), "state": str(self.state)}
        folders = [self.folder(roll) for roll in rolls]
        ordered = [recorders[roll.roll_id] for roll in rolls]
        return publish_merged(self.experiment_name, self.config, options, rolls, ordered, folders)

    def predictions(self) -> pd.DataFrame:
        """Return the joined prediction of finished rolls: column ``score``, indexed (datetime, instrument), sorted."""
        done = [roll for roll in self.rolls if self._is_done(roll)]
        if not done:
            raise ValueError(f"rolling: no roll is finished in {self.state}; call run()")
        return merge_rolls(done, [self.folder(roll) for roll in done], PREDICTION)

    def folder(self, roll: Roll) -> Path:
        """Folder of a roll's files."""
        return self.state / "rolls" / roll.roll_id

    @property
    def _features(self) -> Path | None:
        return self.state / "features" if self.options.keep_features else None

    def _run_rolls(self) -> dict[str, str]:
        experiment = self.experiment_name + ROLLS_SUFFIX
        todo = [roll for roll in self.rolls if not self._is_done(roll)]
        recorders = {
            roll.roll_id: publish_roll(experiment, roll, self.folder(roll)) for roll in self.rolls if roll not in todo
        }
        logger.info("%d rolls, %d of them done before", len(self.rolls), len(recorders))
        with tqdm(total=len(self.rolls), initial=len(recorders), desc="rolls", disable=None) as bar:
            for roll in self._finish(todo):
                recorders[roll.roll_id] = publish_roll(experiment, roll, self.folder(roll))
                bar.update()
        return recorders

    def _finish(self, todo: list[Roll]) -> Any:
        """Yield rolls as they finish; the first failure ends the run, what is finished stays."""
        if self.options.jobs == 1:
            for roll in todo:
                before = self.folder(self.rolls[roll.number - 1]) if roll.number else None
                run_roll(roll, self.folder(roll), self.options.finetune, before, self._features)
                yield roll
            return
        # spawn: a forked child would share torch's threads and Qlib's open files
        jobs, threads = min(self.options.jobs, max(len(todo), 1)), max(1, torch.get_num_threads() // self.options.jobs)
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=start_worker, initargs=(threads,)) as pool:
            settings, finetune = self._worker_settings(), self.options.finetune
            futures = {
                pool.submit(run_roll_in_process, settings, roll, self.folder(roll), finetune, self._features): roll
                for roll in todo
            }
            try:
                for future in as_completed(futures):
                    future.result()
                    yield futures[future]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _is_done(self, roll: Roll) -> bool:
        return (self.folder(roll) / DONE).is_file()

    def _init_qlib(self) -> None:
        settings = self.config.get("qlib_init")
        if settings:
            qlib.init(**settings)
        elif not C.registered:
            raise ValueError("rolling: the workflow has no qlib_init and Qlib is not initialised; do one of them")

    def _worker_settings(self) -> dict[str, Any]:
        given = dict(self.config.get("qlib_init") or {"provider_uri": C["provider_uri"], "region": C["region"]})
        kernels = max(1, int(C.get_kernels("day")) // self.options.jobs)
        return {**given, "kernels": kernels, "logging_level": C["logging_level"]}

    def _write_plan(self) -> None:
        content = {"experiment": self.experiment_name, **asdict(self.options), "rolls": self.plan().to_dict("records")}
        (self.state / "plan.json").write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
