"""The parent's side of a rolling run: recorders of the rolls, the merged prediction, and the records made from it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from qlib.log import get_module_logger
from qlib.utils import flatten_dict, init_instance_by_config
from qlib.utils.mod import get_callable_kwargs
from qlib.workflow import R
from qlib.workflow.record_temp import SignalRecord
from qlib.workflow.recorder import Recorder

from kronos_qlib.record import save_json
from kronos_qlib.rolling_plan import Roll, plan_table
from kronos_qlib.rolling_recorder import ARTIFACTS, LOG
from kronos_qlib.rolling_worker import LABEL, METRICS, MODEL, PREDICTION

RECORDER = "recorder.json"
ROLLS_SUFFIX = "_rolls"
logger = get_module_logger("kronos_qlib.rolling")


def merge_rolls(rolls: Sequence[Roll], folders: Sequence[Path], name: str) -> pd.DataFrame:
    """Put the rolls' files of one name together.

    Returns
    -------
    DataFrame indexed (datetime, instrument), sorted.

    Raises
    ------
    ValueError : a row or a day that two rolls have, or a day outside its roll's test segment.
    """
    parts = [pd.read_parquet(folder / name) for folder in folders]
    owner: dict[pd.Timestamp, str] = {}
    for roll, part in zip(rolls, parts, strict=True):
        for day in part.index.unique("datetime"):
            if day in owner:
                raise ValueError(f"rolling: {day} is in the rolls {owner[day]} and {roll.roll_id}")
            if not roll.test[0] <= day.normalize() <= roll.test[1]:
                raise ValueError(f"rolling: {day} is outside the test segment of roll {roll.roll_id}")
            owner[day] = roll.roll_id
    return pd.concat(parts).sort_index()


def check_days(prediction: pd.DataFrame, sessions: pd.DatetimeIndex) -> None:
    """Refuse a merged prediction that lacks a session of the test segment."""
    missing = sessions.difference(pd.DatetimeIndex(prediction.index.unique("datetime")).normalize())
    if len(missing):
        raise ValueError(
            f"rolling: {len(missing)} test days have no score, first {missing[0]:%Y-%m-%d}: the handler has no row "
            "there; compare its instruments and its range with the test segment"
        )


def free_name(name: str) -> None:
    """Make an experiment's name usable again after ``R.delete_exp``, which keeps it taken for ever.

    MLflow deletes softly. The deleted experiment is renamed and stays deleted; its runs are not brought back.
    """
    client = getattr(R.exp_manager, "client", None)
    if client is None:
        return
    found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "deleted":
        return
    renamed = f"{name}.deleted-{time.strftime('%Y%m%d%H%M%S')}-{found.experiment_id}"
    client.restore_experiment(found.experiment_id)
    client.rename_experiment(found.experiment_id, renamed)
    client.delete_experiment(found.experiment_id)
    logger.info("the deleted experiment %r is now called %r", name, renamed)


def publish_roll(experiment: str, roll: Roll, folder: Path) -> str:
    """Give a finished roll its recorder, unless it has one that still exists; return the recorder's id."""
    known = folder / RECORDER
    if known.is_file():
        found = json.loads(known.read_text(encoding="utf-8"))
        if _exists(experiment, found["recorder"]):
            return str(found["recorder"])
    free_name(experiment)
    log = json.loads((folder / LOG).read_text(encoding="utf-8"))
    metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    with R.start(experiment_name=experiment, recorder_name=roll.roll_id):
        recorder = R.get_recorder()
        recorder.log_params(**flatten_dict(roll.task), **log["params"])
        recorder.log_metrics(**{key: values[-1] for key, values in log["metrics"].items()})
        recorder.log_metrics(**{key: value for key, value in metrics.items() if value == value})
        recorder.set_tags(roll=roll.roll_id, **log["tags"])
        recorder.save_objects(**{"pred.pkl": pd.read_parquet(folder / PREDICTION)})
        recorder.save_objects(**{"label.pkl": pd.read_parquet(folder / LABEL), "task": roll.task})
        recorder.save_objects(local_path=str(folder / LOG))
        recorder.save_objects(local_path=str(folder / MODEL))
        for place in sorted((folder / ARTIFACTS).iterdir()):
            target = place.name if place.is_dir() else None
            recorder.save_objects(local_path=str(place), artifact_path=target)
    known.write_text(json.dumps({"experiment": experiment, "recorder": recorder.id}), encoding="utf-8")
    return str(recorder.id)


def publish_merged(
    experiment: str, config: Mapping[str, Any], options: Mapping[str, Any], rolls: Sequence[Roll],
    recorders: Sequence[str], folders: Sequence[Path],
) -> Recorder:  # fmt: skip
    """Save the merged prediction and label in a recorder and make the task's records from them."""
    prediction, label = merge_rolls(rolls, folders, PREDICTION), merge_rolls(rolls, folders, LABEL)
    free_name(experiment)
    with R.start(experiment_name=experiment, recorder_name="rolling"):
        recorder = R.get_recorder()
        recorder.log_params(**{f"rolling.{key}": value for key, value in options.items()}, **{"rolling.n": len(rolls)})
        recorder.save_objects(**{"pred.pkl": prediction, "label.pkl": label, "config": dict(config)})
        table = plan_table(tuple(rolls)).assign(recorder=list(recorders))
        save_json(recorder, "rolls.json", {"rolls": table.to_dict("records"), **options})
        for place in common_artifacts(folders):
            recorder.save_objects(local_path=str(place))
        for record in usable_records(config["task"].get("record", [])):
            made = init_instance_by_config(record, recorder=recorder, default_module="qlib.workflow.record_temp")
            made.generate()
    return recorder


def common_artifacts(folders: Sequence[Path]) -> list[Path]:
    """Return the JSON artifacts that every roll has with the same content, such as the card of one checkpoint."""
    first, *others = [folder / ARTIFACTS for folder in folders]
    return [
        place
        for place in sorted(first.glob("*.json"))
        if all(
            (other / place.name).is_file() and (other / place.name).read_bytes() == place.read_bytes()
            for other in others
        )
    ]


def usable_records(records: Any) -> list[Any]:
    """Return the records that a merged prediction can feed; the others are named in a warning.

    A SignalRecord would predict again, and what asks for ``<MODEL>`` or ``<DATASET>`` asks for one that does not exist:
    a rolling run has one of each for every roll.
    """
    kept = []
    for record in [records] if isinstance(records, Mapping | str) else list(records):
        made, kwargs = get_callable_kwargs(record, "qlib.workflow.record_temp")
        if made is SignalRecord:
            continue
        if {"<MODEL>", "<DATASET>"} & {value for value in kwargs.values() if isinstance(value, str)}:
            logger.warning("%s asks for the model or the dataset; a rolling run has one a roll: left out", record)
            continue
        kept.append(record)
    return kept


def _exists(experiment: str, recorder: str) -> bool:
    client = getattr(R.exp_manager, "client", None)
    if client is None:
        return False
    try:
        run = client.get_run(recorder)
        found = client.get_experiment(run.info.experiment_id)
    except MlflowException:
        return False  # another tracking store, or a purged run
    return run.info.lifecycle_stage == "active" and run.info.status == "FINISHED" and found.name == experiment
