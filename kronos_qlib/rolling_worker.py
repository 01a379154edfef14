"""One roll, in any process: fit, predict, and leave files; MLflow is the parent's."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data.dataset import Dataset
from qlib.data.dataset.weight import Reweighter
from qlib.model.base import Model
from qlib.utils import auto_filter_kwargs, init_instance_by_config
from qlib.workflow.record_temp import SignalRecord

from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic, ic_summary
from kronos_qlib.kept_features import build_dataset
from kronos_qlib.market.swap import whole_file
from kronos_qlib.rolling_plan import TEST, Roll
from kronos_qlib.rolling_recorder import record_to

PREDICTION, LABEL = "prediction.parquet", "label.parquet"
METRICS, MODEL, DONE = "metrics.json", "params.pkl", "done.json"


def run_roll(
    roll: Roll, folder: Path, finetune: str | None = None, previous: Path | None = None,
    features: Path | None = None,
) -> str:  # fmt: skip
    """Run a roll and write ``folder``; ``done.json`` comes last, so that a folder without it is unfinished.

    Files
    -----
    ``prediction.parquet``: column ``score``, float64, and ``label.parquet``: Qlib's raw label, both indexed (datetime,
    instrument), sorted and clipped to the roll's test segment. ``metrics.json``: ICs of the roll and seconds taken.
    ``params.pkl``: the Qlib model (a Kronos model pickles its checkpoint's location). ``log.json``, ``artifacts/``:
    what the model logged. No handler and no dataset is pickled.

    Parameters
    ----------
    roll : what to do.
    folder : of this roll; an unfinished one is removed first.
    finetune : see :class:`kronos_qlib.rolling_config.RollingOptions`.
    previous : folder of the roll before, for ``finetune="previous"``; None for the first.
    features : folder where expressions are kept for all rolls; None: computed anew.

    Returns
    -------
    The roll's id.

    Raises
    ------
    ValueError : the model has no ``finetune``, scores no row, or scores a row twice.
    """
    began = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _seed(roll.roll_id)
    with record_to(folder):
        dataset = build_dataset(roll.task["dataset"], features)
        model = _train(roll, dataset, finetune, previous)
        score = clip(_scores(model.predict(dataset), roll), roll)
        label = clip(SignalRecord.generate_label(dataset), roll)
    score.to_parquet(folder / PREDICTION)
    label.to_parquet(folder / LABEL)
    with (folder / MODEL).open("wb") as stream:
        pickle.dump(model, stream)
    figures = roll_figures(score["score"], label.iloc[:, 0]) | {"seconds": round(time.monotonic() - began, 2)}
    _write_json(folder / METRICS, figures)
    _write_json(folder / DONE, {"roll": roll.roll_id, "rows": len(score)})
    return roll.roll_id


def run_roll_in_process(
    settings: Mapping[str, Any], roll: Roll, folder: Path, finetune: str | None, features: Path | None
) -> str:
    """Run a roll in a worker process, which initialises Qlib first and never opens the parent's tracking store."""
    import qlib

    if not C.registered:
        qlib.init(**settings)
    return run_roll(roll, folder, finetune, features=features)


def clip(frame: pd.DataFrame, roll: Roll) -> pd.DataFrame:
    """Return the rows of the test segment, with levels datetime, instrument, sorted."""
    ordered = frame.reorder_levels(["datetime", "instrument"]).sort_index()
    first, last = roll.test
    days = pd.DatetimeIndex(ordered.index.get_level_values("datetime")).normalize()
    return ordered[(days >= first) & (days <= last)]


def roll_figures(score: pd.Series, label: pd.Series) -> dict[str, float]:
    """Return mean IC and Rank IC of a roll, its rows and days."""
    return {
        "IC": ic_summary(daily_ic(score, label)).mean,
        "Rank IC": ic_summary(daily_rank_ic(score, label)).mean,
        "rows": float(len(score)),
        "days": float(score.index.get_level_values("datetime").nunique()),
    }


def _train(roll: Roll, dataset: Dataset, finetune: str | None, previous: Path | None) -> Model:
    if finetune == "previous" and previous is not None:
        with (previous / MODEL).open("rb") as stream:
            model = pickle.load(stream)
    else:
        model = init_instance_by_config(roll.task["model"], accept_types=Model)
    if finetune == "base" or (finetune == "previous" and previous is not None):
        if not hasattr(model, "finetune"):
            raise ValueError(
                f"rolling: finetune is {finetune!r}, but {type(model).__name__} has no finetune method; leave it out"
            )
        model.finetune(dataset)
    else:
        given = roll.task.get("reweighter")
        reweighter = None if given is None else init_instance_by_config(given, accept_types=Reweighter)
        auto_filter_kwargs(model.fit)(dataset, reweighter=reweighter)
    return model


def _scores(given: Any, roll: Roll) -> pd.DataFrame:
    frame = given.to_frame("score") if isinstance(given, pd.Series) else given.iloc[:, :1].set_axis(["score"], axis=1)
    if frame.empty:
        raise ValueError(f"rolling: roll {roll.roll_id} scored no row of its segment {TEST!r}")
    if not frame.index.is_unique:
        twice = frame.index[frame.index.duplicated()][0]
        raise ValueError(f"rolling: roll {roll.roll_id} scored {twice} twice")
    return frame.astype(np.float64)


def _seed(roll: str) -> None:
    # A model that draws without a seed of its own must not depend on which rolls ran before it in this process.
    import torch

    seed = int(roll.rsplit("-", 1)[-1][:8], 16)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 — the models of Qlib draw from the global generator
    torch.manual_seed(seed)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as beside:
        beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
