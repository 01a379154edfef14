"""Grids of forecast settings: what to sweep, read from YAML or ``key=values`` texts, and multiplied out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kronos_qlib.kronos import SamplingConfig, check_keys

GRID_KEYS = ("horizon", *SamplingConfig.model_fields)
DEFAULT_HORIZON = 10


@dataclass(frozen=True)
class Setting:
    """One point of a grid."""

    horizon: int
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        if isinstance(self.horizon, bool) or not isinstance(self.horizon, int) or self.horizon < 1:
            raise ValueError(f"grid: horizon must be a whole number >= 1, got {self.horizon!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return every key of :data:`GRID_KEYS` with its value."""
        return {"horizon": self.horizon, **self.sampling.to_dict()}


def read_grid(path: Path) -> list[Setting]:
    """Read a YAML file: a mapping of keys to a value or a list of values, or a list of such mappings (joined).

    Raises
    ------
    ValueError : no such form, an unknown key (the nearest known one is named), a value out of range.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    return expand_grid(found, str(path))


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Read texts such as ``temperature=0.8,1.0`` to a mapping of keys to lists of values.

    Raises
    ------
    ValueError : no ``=``, a key given twice, values that YAML does not read.
    """
    grid: dict[str, Any] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not values.strip():
            raise ValueError(f"found {text!r}; expected a key and its values, such as temperature=0.8,1.0")
        if key in grid:
            raise ValueError(f"{key} is given twice; put its values in one list, such as {key}=0.8,1.0")
        try:
            grid[key] = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError as error:
            raise ValueError(f"found {text!r}, whose values are not readable: {error}") from error
    return grid


def expand_grid(grid: Any, where: str = "grid") -> list[Setting]:
    """Multiply out a grid; keys that it leaves out have their defaults (horizon 10, and SamplingConfig's).

    Returns
    -------
    list of different settings, in the grid's order, the last key running fastest.

    Raises
    ------
    ValueError : as :func:`read_grid`.
    """
    parts = grid if isinstance(grid, Sequence) and not isinstance(grid, str) else [grid]
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        raise ValueError(f"{where} must map keys to values, such as temperature: [0.8, 1.0]; found {grid!r}")
    settings: dict[Setting, None] = {}
    for part in parts:
        check_keys([str(key) for key in part], GRID_KEYS, where)
        lists = [value if isinstance(value, list) else [value] for value in part.values()]
        for key, values in zip(part, lists, strict=True):
            if not values:
                raise ValueError(f"{where}: {key} has no value; give at least one, or leave the key out")
        for chosen in itertools.product(*lists):
            point = dict(zip(map(str, part), chosen, strict=True))
            horizon = point.pop("horizon", DEFAULT_HORIZON)
            settings[Setting(horizon, SamplingConfig(**point))] = None
    return list(settings)


def describe_differences(settings: Sequence[Setting]) -> list[str]:
    """Name each setting by the keys that differ within the list; ``default`` keys are left out."""
    tables = [setting.to_dict() for setting in settings]
    varied = [key for key in GRID_KEYS if len({repr(table[key]) for table in tables}) > 1]
    return [", ".join(f"{key}={table[key]}" for key in varied) or "the only setting" for table in tables]
