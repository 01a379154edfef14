"""Which dates each roll trains on and scores: Qlib's RollingGen, with its ends put right."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.data import D
from qlib.workflow.task.gen import RollingGen

from kronos_qlib import __version__
from kronos_qlib.forecast.store_catalog import content_fingerprint, fingerprints
from kronos_qlib.handler import store_path
from kronos_qlib.kept_features import store_state
from kronos_qlib.resources import BUNDLED, checkpoint_path

TEST = "test"
Segments = dict[str, tuple[pd.Timestamp, pd.Timestamp]]
WEIGHT_FILES = ("*.safetensors", "*.json")


@dataclass(frozen=True)
class Roll:
    """One roll: a task whose segments are those of its dates.

    Attributes
    ----------
    number : from 0, in the order of time.
    roll_id : first day of its test segment and a hash of the task, the dates, the store, the checkpoint and the
        factors; equal for equal work, so that an interrupted run finds what it had finished.
    segments : name → (first, last) session, both included.
    task : the model's and the dataset's configuration with these segments.
    """

    number: int
    roll_id: str
    segments: Segments
    task: dict[str, Any]

    @property
    def test(self) -> tuple[pd.Timestamp, pd.Timestamp]:
        """First and last session that this roll scores."""
        return self.segments[TEST]


def make_rolls(
    task: Mapping[str, Any], *, step: int, rolling_type: str, horizon: int, finetune: str | None = None
) -> tuple[Roll, ...]:
    """Cut a task into rolls.

    Parameters
    ----------
    task : a qrun task; its ``segments`` are those of the first roll, save that its test segment is divided.
    step : sessions in a test segment; the last one may be shorter.
    rolling_type : ``expanding`` or ``sliding``, see :class:`kronos_qlib.rolling_config.RollingOptions`.
    horizon : sessions after a date that its label reads. Of every segment but the test one, the last ``horizon``
        sessions before the next segment's first are dropped: no label of a training day reads a bar of the validation
        segment or a later one, none of a validation day a bar of the test segment.
    finetune : see :class:`kronos_qlib.rolling_config.RollingOptions`; it is part of the rolls' ids, and with
        ``previous`` so are all rolls before.

    Returns
    -------
    Rolls in the order of time; their test segments are adjacent, do not overlap, and end with the task's test segment
    or the store's last session, whichever comes first.

    Raises
    ------
    ValueError : no test segment, none or overlapping segments, a handler that is no configuration, too few sessions.
    """
    calendar = [pd.Timestamp(day) for day in D.calendar(freq="day")]
    plain = {"model": copy.deepcopy(task["model"]), "dataset": copy.deepcopy(task["dataset"])}
    if "reweighter" in task:
        plain["reweighter"] = copy.deepcopy(task["reweighter"])
    _handler(plain)
    segments = align_segments(plain["dataset"].get("kwargs", {}).get("segments"), calendar)
    last = segments[TEST][1]
    plain["dataset"]["kwargs"]["segments"] = purge(segments, calendar, horizon)
    inputs = [store_state(store_path()), _weights(plain)]
    rolls: list[Roll] = []
    for number, rolled in enumerate(_generator(calendar, step, rolling_type).generate(plain)):
        dates: Segments = dict(rolled["dataset"]["kwargs"]["segments"])
        dates[TEST] = (dates[TEST][0], min(dates[TEST][1], last))
        follow_segments(rolled, dates)
        before = rolls[-1].roll_id if finetune == "previous" and rolls else None
        rolls.append(Roll(number, roll_id(rolled, dates, inputs, [finetune, before]), dates, rolled))
    return tuple(rolls)


def plan_table(rolls: tuple[Roll, ...]) -> pd.DataFrame:
    """Return the dates as a table, one row a roll: ``roll``, then ``NAME_start`` and ``NAME_end`` of each segment."""
    rows = []
    for roll in rolls:
        row: dict[str, Any] = {"roll": roll.roll_id}
        for name, (first, last) in roll.segments.items():
            row |= {f"{name}_start": f"{first:%Y-%m-%d}", f"{name}_end": f"{last:%Y-%m-%d}"}
        rows.append(row)
    return pd.DataFrame(rows)


def align_segments(given: Any, calendar: list[pd.Timestamp]) -> Segments:
    """Move the ends of segments inwards to sessions of the store; an open end is the store's.

    Raises
    ------
    ValueError : no segments, none named ``test``, one without a session, two that overlap.
    """
    if not isinstance(given, Mapping) or TEST not in given:
        raise ValueError(f"rolling: the dataset needs segments with one named {TEST!r}, got {given!r}")
    index, aligned = pd.DatetimeIndex(calendar), {}
    for name, bounds in given.items():
        first, last = (bounds.start, bounds.stop) if isinstance(bounds, slice) else bounds
        begin = index[0] if first is None else pd.Timestamp(first)
        inside = index[(index >= begin) & (index <= (index[-1] if last is None else pd.Timestamp(last)))]
        if inside.empty:
            raise ValueError(
                f"rolling: segment {name!r} ({first} to {last}) holds no session of the store, whose sessions run from "
                f"{index[0]:%Y-%m-%d} to {index[-1]:%Y-%m-%d}"
            )
        aligned[str(name)] = (inside[0], inside[-1])
    ordered = sorted(aligned, key=lambda name: aligned[name][0])
    for before, after in itertools.pairwise(ordered):
        if aligned[before][1] >= aligned[after][0]:
            raise ValueError(
                f"rolling: segment {before!r} ends {aligned[before][1]:%Y-%m-%d}, after {after!r} has begun "
                f"({aligned[after][0]:%Y-%m-%d}); segments must not overlap"
            )
    if ordered[-1] != TEST:
        raise ValueError(f"rolling: segment {ordered[-1]!r} comes after {TEST!r}, which must be the last one")
    return {name: aligned[name] for name in ordered}


def purge(segments: Segments, calendar: list[pd.Timestamp], horizon: int) -> Segments:
    """Drop the last sessions of each segment whose labels would read bars of the next one."""
    position = {day: at for at, day in enumerate(calendar)}
    starts = sorted(first for first, _ in segments.values())
    purged = {}
    for name, (first, last) in segments.items():
        later = [start for start in starts if start > first]
        end = min(position[last], position[later[0]] - horizon - 1) if later else position[last]
        if end < position[first]:
            raise ValueError(
                f"rolling: segment {name!r} ({first:%Y-%m-%d} to {last:%Y-%m-%d}) has no session left once labels "
                f"that read {horizon} sessions ahead are kept out of the next segment; make it longer"
            )
        purged[name] = (first, calendar[end])
    return purged


def follow_segments(task: dict[str, Any], dates: Segments) -> None:
    """Write a roll's dates into its task: segments, the handler's end, and what processors are fitted on."""
    task["dataset"]["kwargs"]["segments"] = dates
    settings = _handler(task)["kwargs"]
    if settings.get("end_time") is not None:
        settings["end_time"] = dates[TEST][1]
    if "train" in dates:
        _move_fit(settings, *dates["train"])


def roll_id(task: Mapping[str, Any], dates: Segments, inputs: list[Any], start: Any = None) -> str:
    """Return a name for this work: the same for equal task, dates, ``inputs`` and ``start``, in any process."""
    content = [__version__, task, *inputs, start]
    text = json.dumps(content, sort_keys=True, default=str)
    return f"{dates[TEST][0]:%Y%m%d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _generator(calendar: list[pd.Timestamp], step: int, rolling_type: str) -> RollingGen:
    generator = RollingGen(step=step, rtype=rolling_type, ds_extra_mod_func=None)
    # Past the last session RollingGen has None for a date and fails or leaves a segment open; made-up days past the
    # end, which the caller clips, keep its arithmetic going until it stops by itself.
    generator.ta.cals = [*calendar, *(calendar[-1] + pd.Timedelta(days=day) for day in range(1, 2 * step + 1))]
    return generator


def _handler(task: Mapping[str, Any]) -> dict[str, Any]:
    handler = task["dataset"].get("kwargs", {}).get("handler")
    if not isinstance(handler, dict):
        raise ValueError(
            f"rolling: the dataset's handler must be a configuration (class, module_path, kwargs), got {handler!r}: "
            "each roll builds its own, and pickles of handlers go stale"
        )
    settings = handler.setdefault("kwargs", {})
    freq = settings.get("freq", "day")
    if freq != "day":
        raise ValueError(f"rolling: RollingGen counts trading days, the handler has freq {freq!r}; use a daily store")
    return handler


def _move_fit(settings: Any, first: pd.Timestamp, last: pd.Timestamp) -> None:
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key in ("fit_start_time", "fit_end_time") and value is not None:
                settings[key] = first if key == "fit_start_time" else last
            else:
                _move_fit(value, first, last)
    elif isinstance(settings, list):
        for part in settings:
            _move_fit(part, first, last)


def _weights(settings: Any) -> dict[str, str]:
    """Hash the weights or factors in every folder that a task names, so that a roll is done again when they change."""
    if isinstance(settings, Mapping):
        found: dict[str, str] = {}
        for part in settings.values():
            found |= _weights(part)
        return found
    if isinstance(settings, list | tuple):
        return {place: digest for part in settings for place, digest in _weights(part).items()}
    if not isinstance(settings, str) or not settings or len(settings) > 500:
        return {}
    place = checkpoint_path(settings) if settings.startswith(BUNDLED) else Path(settings).expanduser()
    if not place.is_dir():
        return {}
    if fingerprints(place):
        return {settings: content_fingerprint(place)}
    files = sorted(file for pattern in WEIGHT_FILES for file in (*place.glob(pattern), *place.glob(f"*/{pattern}")))
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(place)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return {settings: digest.hexdigest()} if files else {}
