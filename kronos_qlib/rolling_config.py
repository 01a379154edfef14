"""Read a workflow as qrun does, and the ``rolling:`` block beside its task."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qlib.cli.run import get_path_list, render_template
from qlib.utils.data import update_config
from ruamel.yaml import YAML

from kronos_qlib.kronos.config import check_keys

ROLLING_TYPES = ("expanding", "sliding")
FINETUNE = (None, "base", "previous")
WORKFLOW_KEYS = ("qlib_init", "experiment_name", "task", "rolling", "sys", "BASE_CONFIG_PATH", "market", "benchmark")


@dataclass(frozen=True)
class RollingOptions:
    """How a task is rolled.

    Attributes
    ----------
    step : trading days in a roll's test segment; a new roll begins every ``step`` days.
    rolling_type : ``expanding``: the training segment keeps its start; ``sliding``: it keeps its length. The other
        segments keep their length in both.
    jobs : rolls that run at once, each in a process of its own; 1: in this process.
    finetune : None: ``model.fit`` on each roll, from the configuration. ``base``: ``model.finetune`` on each roll, from
        the configuration's weights. ``previous``: ``model.fit`` on the first roll, then ``finetune`` of the previous
        roll's model; rolls then wait for each other.
    horizon : sessions after a date that its label reads; None: read from the label's expression.
    keep_features : compute a handler's expressions once for all rolls; no figure depends on it.
    """

    step: int = 63
    rolling_type: str = "expanding"
    jobs: int = 1
    finetune: str | None = None
    horizon: int | None = None
    keep_features: bool = True

    def __post_init__(self) -> None:
        for name, least in (("step", 1), ("jobs", 1), ("horizon", 0)):
            value = getattr(self, name)
            if name == "horizon" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"rolling: {name} must be a whole number >= {least}, got {value!r}")
        if not isinstance(self.keep_features, bool):
            raise ValueError(f"rolling: keep_features must be true or false, got {self.keep_features!r}")
        if self.rolling_type not in ROLLING_TYPES:
            raise ValueError(f"rolling: rolling_type must be one of {list(ROLLING_TYPES)}, got {self.rolling_type!r}")
        if self.finetune not in FINETUNE:
            raise ValueError(f"rolling: finetune must be one of {list(FINETUNE)}, got {self.finetune!r}")
        if self.finetune == "previous" and self.jobs > 1:
            raise ValueError(
                f"rolling: finetune: previous builds each roll on the one before, so that {self.jobs} jobs cannot run "
                "at once; set jobs: 1"
            )

    @classmethod
    def from_block(cls, block: Any, **given: Any) -> RollingOptions:
        """Return the options of a YAML block; what is given and not None comes before it."""
        if block is not None and not isinstance(block, Mapping):
            raise ValueError(f"rolling: expected a mapping such as step: 63, got {block!r}")
        known = [field.name for field in fields(cls)]
        check_keys(block or {}, known, "rolling")
        check_keys(given, known, "KronosRolling")
        return replace(cls(**(block or {})), **{key: value for key, value in given.items() if value is not None})


def load_workflow(config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return a workflow's configuration: a mapping as it is, a YAML file rendered and merged into its base as by qrun.

    Raises
    ------
    ValueError : no such file, a YAML that does not parse or holds no mapping, an unknown key, no task.
    """
    loaded = copy.deepcopy(dict(config)) if isinstance(config, Mapping) else _load_yaml(Path(config).expanduser())
    check_keys(loaded, WORKFLOW_KEYS, "workflow")
    task = loaded.get("task")
    if not isinstance(task, Mapping) or not {"model", "dataset"} <= set(task):
        raise ValueError("the workflow has no task with a model and a dataset; it must look like one for qrun")
    return loaded


def with_segments(config: Mapping[str, Any], segments: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return a workflow whose dataset has these segments (of the first roll) and whose backtests span its ``test``.

    Parameters
    ----------
    config : of :func:`load_workflow`. segments : name → (first, last) date, both included.

    Raises
    ------
    ValueError : no ``test`` among the segments.
    """
    if "test" not in segments:
        raise ValueError(f"rolling: segments need one named 'test', got {sorted(segments)}")
    changed = copy.deepcopy(dict(config))
    given = {name: list(span) for name, span in segments.items()}
    changed["task"]["dataset"].setdefault("kwargs", {})["segments"] = given
    records = changed["task"].get("record", [])
    for record in [records] if isinstance(records, Mapping) else records:
        settings = record.get("kwargs", {}).get("config") if isinstance(record, Mapping) else None
        backtest = settings.get("backtest") if isinstance(settings, Mapping) else None
        if isinstance(backtest, dict):
            backtest["start_time"], backtest["end_time"] = segments["test"]
    return changed


def _load_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no workflow file {path}; the packaged ones: kronos_qlib.resources.workflow_names()")
    config = _parse(render_template(str(path)), path)
    base = config.get("BASE_CONFIG_PATH")
    if base:
        place = Path(base) if Path(base).exists() else path.absolute().parent / base
        if not place.is_file():
            raise ValueError(f"{path} builds on {base}, which is neither here nor beside it")
        # qrun does not render a base either
        config = update_config(_parse(place.read_text(encoding="utf-8"), place), config)
    search = config.get("sys", {})
    sys.path.extend(get_path_list(search.get("path", [])))
    sys.path.extend(str(path.absolute().parent / part) for part in get_path_list(search.get("rel_path", [])))
    return config


def _parse(text: str, path: Path) -> dict[str, Any]:
    loaded = YAML(typ="safe", pure=True).load(text)
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds {type(loaded).__name__}, expected a mapping with qlib_init and task")
    return loaded
