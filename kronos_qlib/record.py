"""What the Qlib side writes into a Qlib recorder besides Qlib's own records."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.config import C
from qlib.workflow import R
from qlib.workflow.recorder import Recorder


def active_recorder() -> Recorder | None:
    """Return the recorder of the experiment that is running now; None outside ``R.start`` or before ``qlib.init``."""
    if not C.registered or R.exp_manager.active_experiment is None:
        return None
    return R.exp_manager.active_experiment.active_recorder


def log_parameters(recorder: Recorder, prefix: str, values: Mapping[str, Any]) -> None:
    """Log flat parameters as ``prefix.key``; Qlib itself logs the task's configuration under other names."""
    recorder.log_params(**{f"{prefix}.{key}": value for key, value in values.items()})


def save_json(recorder: Recorder, name: str, content: Mapping[str, Any]) -> None:
    """Save a JSON artifact, readable without Python and without unpickling."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(json.dumps(content, indent=2, default=str, sort_keys=True), encoding="utf-8")
        recorder.save_objects(local_path=str(path))


def save_frame(recorder: Recorder, name: str, frame: pd.DataFrame) -> None:
    """Save a frame as a parquet artifact, index included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        frame.to_parquet(path)
        recorder.save_objects(local_path=str(path))
