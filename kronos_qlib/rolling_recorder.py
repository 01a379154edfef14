"""Qlib's recorder, on a plain folder: what a worker process writes instead of MLflow, for the parent to take over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qlib.utils.exceptions import LoadObjectError
from qlib.utils.serial import Serializable
from qlib.workflow import QlibRecorder, R
from qlib.workflow.exp import Experiment
from qlib.workflow.expm import ExpManager
from qlib.workflow.recorder import Recorder

ARTIFACTS = "artifacts"
LOG = "log.json"


class FolderRecorder(Recorder):
    """A recorder whose artifacts are files in ``folder/artifacts`` and whose figures are in ``folder/log.json``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(experiment_id="rolling", name=folder.name)
        self.id, self.folder = folder.name, folder
        self.params: dict[str, str] = {}
        self.metrics: dict[str, list[float]] = {}
        self.tags: dict[str, str] = {}
        (folder / ARTIFACTS).mkdir(parents=True, exist_ok=True)

    @property
    def artifact_uri(self) -> str:
        """Folder of the artifacts."""
        return str(self.folder / ARTIFACTS)

    def get_artifact_uri(self) -> str:
        """Return the folder of the artifacts."""
        return self.artifact_uri

    def get_local_dir(self) -> str:
        """Return the folder of the recorder."""
        return str(self.folder)

    def log_params(self, **given: Any) -> None:
        """Keep parameters as text, as MLflow does."""
        self.params |= {key: str(value) for key, value in given.items()}

    def log_metrics(self, step: int | None = None, **given: float) -> None:
        """Append values to the metrics' histories."""
        for key, value in given.items():
            self.metrics.setdefault(key, []).append(float(value))

    def set_tags(self, **given: Any) -> None:
        """Keep tags as text."""
        self.tags |= {key: str(value) for key, value in given.items()}

    def delete_tags(self, *keys: str) -> None:
        """Forget tags."""
        for key in keys:
            self.tags.pop(key, None)

    def save_objects(self, local_path: Any = None, artifact_path: str | None = None, **objects: Any) -> None:
        """Copy a file or folder, or pickle objects, into the artifacts."""
        place = Path(self.artifact_uri) / (artifact_path or "")
        place.mkdir(parents=True, exist_ok=True)
        if local_path is None:
            for name, content in objects.items():
                Serializable.general_dump(content, place / name)
        elif Path(local_path).is_dir():
            shutil.copytree(local_path, place, dirs_exist_ok=True)
        else:
            shutil.copy2(local_path, place)

    def log_artifact(self, local_path: str, artifact_path: str | None = None) -> None:
        """Copy a file into the artifacts."""
        self.save_objects(local_path=local_path, artifact_path=artifact_path)

    def load_object(self, name: str, unpickler: Any = None) -> Any:
        """Return an object that :meth:`save_objects` pickled."""
        import pickle

        try:
            with (Path(self.artifact_uri) / name).open("rb") as stream:
                return (unpickler or pickle.Unpickler)(stream).load()
        except OSError as error:
            raise LoadObjectError(str(error)) from error

    def download_artifact(self, path: str, dst_path: str | None = None) -> str:
        """Return where an artifact lies; with ``dst_path``, a copy of it there."""
        found = Path(self.artifact_uri) / path
        return str(found if dst_path is None else shutil.copy2(found, dst_path))

    def list_artifacts(self, artifact_path: str | None = None) -> list[str]:
        """Return the artifacts' names."""
        root = Path(self.artifact_uri)
        return sorted(str(place.relative_to(root)) for place in (root / (artifact_path or "")).glob("*"))

    def list_params(self) -> dict[str, str]:
        """Return the parameters."""
        return self.params

    def list_metrics(self) -> dict[str, float]:
        """Return the last value of each metric."""
        return {key: values[-1] for key, values in self.metrics.items()}

    def list_tags(self) -> dict[str, str]:
        """Return the tags."""
        return self.tags

    def start_run(self) -> None:
        """Begin."""
        self.status = Recorder.STATUS_R

    def end_run(self, status: str = Recorder.STATUS_S) -> None:
        """End, and write parameters, metrics and tags."""
        self.status = status
        content = {"params": self.params, "metrics": self.metrics, "tags": self.tags}
        (self.folder / LOG).write_text(json.dumps(content, indent=1), encoding="utf-8")


class _FolderManager(ExpManager):
    """The experiment manager of one recorder, always active."""

    def __init__(self, recorder: FolderRecorder) -> None:
        # not Qlib's own __init__, which would change the global tracking address
        self._active_exp_uri = recorder.artifact_uri
        self._default_exp_name = recorder.name
        self.active_experiment = Experiment(recorder.experiment_id, recorder.name)
        self.active_experiment.active_recorder = recorder

    def _start_exp(self, *_: Any, **__: Any) -> Experiment:
        raise ValueError("a model may log to the recorder of its roll, but not start one of its own (R.start)")

    def _end_exp(self, recorder_status: str = Recorder.STATUS_S, **_: Any) -> None:
        self.active_experiment = None


@contextmanager
def record_to(folder: Path) -> Iterator[FolderRecorder]:
    """Send whatever is logged to Qlib's ``R`` inside the block to a folder, and then give ``R`` back.

    Raises
    ------
    ValueError : an experiment is running already.
    """
    before = R._provider
    if before is not None and before.exp_manager.active_experiment is not None:
        raise ValueError("rolling: an experiment is running (R.start); a rolling run starts its own, so end that first")
    recorder = FolderRecorder(folder)
    manager = _FolderManager(recorder)
    R.register(QlibRecorder(manager))
    recorder.start_run()
    try:
        yield recorder
        recorder.end_run(Recorder.STATUS_FI)
    finally:
        manager.active_experiment = None
        R.register(before)
