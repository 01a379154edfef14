"""Runs of many methods on one segment: each once, each a row, with its scores kept for the statistics."""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.comparison.bench import Bench
from kronos_qlib.comparison.checkpoints import Weights, file_fingerprint, find_weights
from kronos_qlib.comparison.methods import Method, fill
from kronos_qlib.comparison.rows import FIGURES, Row, add_row, read_rows
from kronos_qlib.comparison.scores import blend, read_scores
from kronos_qlib.comparison.state import State
from kronos_qlib.comparison.task import Protocol, Task, fingerprint
from kronos_qlib.comparison.worker import NotRun, run_method
from kronos_qlib.evaluation.controls import shuffle_within_date
from kronos_qlib.evaluation.decay import lag_score
from kronos_qlib.forecast.store_lock import wait_for_lock
from kronos_qlib.loader import KronosFactorLoader

Report = Callable[[Row, bool], None]


@dataclass(frozen=True)
class RunConfig:
    """Where runs read and write.

    Attributes
    ----------
    store : Qlib store. results : CSV file of the rows. state : folder of scores, fits and kept
    expressions, outside git.
    given : values of the registry's placeholders, such as ``{"CHECKPOINT": "path"}``. threads : for learners.
    budget_scale : factor on every method's budget, for slower machines. seeds : instead of each seeded method's own.
    """

    store: Path
    results: Path
    state: Path
    protocol: Protocol = field(default_factory=Protocol)
    given: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    budget_scale: float = 1.0
    seeds: tuple[int, ...] | None = None


class Runner:
    """Runs tasks of one segment; the bench is read once."""

    def __init__(self, config: RunConfig, segment: str, methods: Mapping[str, Method]) -> None:
        self.config, self.segment, self.methods = config, segment, methods
        self.bench = Bench(config.protocol, config.store, segment)
        self.state = State(config.state)
        self.commit = current_commit()
        self._found_weights: dict[tuple[str, ...], Weights] = {}
        judged = self.bench.label.where(self.bench.judged)
        self.state.keep_bench(segment, judged, self.bench.columns[["size", "volatility"]])

    def tasks(self, method: Method) -> list[Task]:
        """One task a seed."""
        seeds = self.config.seeds if self.config.seeds and method.seeded else method.seeds
        return [self.task(method, seed) for seed in (seeds if method.seeded else (0,))]

    def task(self, method: Method, seed: int) -> Task:
        """The task of a method and seed, with the fingerprint of the weights it uses."""
        return Task(
            method, seed, self.segment, self.config.protocol, self.config.store, self.bench.store_fingerprint,
            self._weights(method).fingerprint, self.config.threads,
        )  # fmt: skip

    def run(self, method: Method, report: Report | None = None) -> list[Row]:
        """Run a method with each of its seeds, unless its row is there, and write the rows."""
        rows = []
        for task in self.tasks(method):
            row = self._found(task)
            finished = row is not None
            if row is None:
                row = self._run(task)
                add_row(self.config.results, row)
            if report is not None:
                report(row, finished)
            rows.append(row)
        return rows

    def _found(self, task: Task) -> Row | None:
        """The finished row of a task.

        Raises
        ------
        ValueError : test was read for this method with another configuration, or before its row on valid exists.
        """
        rows = read_rows(self.config.results)
        mine = [row for row in rows if (row.method, row.seed) == (task.method.name, task.seed) and row.status == "done"]
        for row in mine:
            if row.segment == self.segment and row.key == task.key:
                return row
        if self.segment != "test" or task.method.not_run:
            return None
        if any(row.segment == "test" for row in mine):
            raise ValueError(
                f"test was read for {task.method.name} (seed {task.seed}) with another configuration, store or "
                "checkpoint; a changed method is a new method: give it another name"
            )
        chosen = [row for row in mine if row.segment == "valid"]
        # scores made elsewhere: those of valid may be another file
        elsewhere = self._sources(task.method)[0].kind == "scores"
        if not any(
            row.configuration == task.configuration and (elsewhere or row.checkpoint == task.checkpoint)
            for row in chosen
        ):
            raise ValueError(
                f"{task.method.name} (seed {task.seed}) has no row on valid with this configuration and checkpoint; "
                "run it there before test is read"
            )
        return None

    def _run(self, task: Task) -> Row:
        began, own = time.perf_counter(), time.process_time()
        try:
            score, label, cpu = self._scores(task)
        except NotRun as reason:
            return self._row(task, str(reason), {}, time.perf_counter() - began, time.process_time() - own)
        figures, daily = self.bench.judge(score, label)
        described = {"method": task.method.configuration(), "name": task.method.name, "seed": task.seed,
                     "segment": task.segment, "protocol": task.protocol.to_dict(), "commit": self.commit}  # fmt: skip
        self.state.keep(task.key, described, score, daily)
        cpu += time.process_time() - own
        return self._row(task, "", figures, time.perf_counter() - began, cpu)

    def _scores(self, task: Task) -> tuple[pd.Series, pd.Series | None, float]:
        """Laid-out scores, the label to judge by where it is not the bench's, and CPU seconds of another process."""
        method = task.method
        if method.not_run:
            raise NotRun(method.not_run)
        if missing := method.missing_modules():
            raise NotRun(f"{', '.join(missing)} is not installed (pip install 'kronos-qlib[baselines]')")
        if absent := [name for name in method.placeholders() if name not in self.given(method)]:
            raise NotRun(f"needs --set {absent[0]}=VALUE")
        if method.kind == "column":
            return self.bench.lay_out(method.sign * self._column(method)), None, 0.0
        if method.kind == "factor":
            return self.bench.lay_out(method.sign * self._factor(method)), None, 0.0
        if method.kind == "scores":
            return self.bench.lay_out(read_scores(self._path(method))), None, 0.0
        if method.kind == "qlib":
            scaled = _with_budget(task, self.config.budget_scale)
            scratch = self.state.folder / "scratch" / task.key
            features = self.state.folder / "features"
            raw, cpu = run_method(scaled, self.given(method), self.state.fit(task.fit_key), scratch, features)
            return self.bench.lay_out(raw), None, cpu
        return *self._derived(task), 0.0

    def _kept(self, name: str) -> pd.Series:
        """Scores that a method's first task has left in the state folder."""
        key = self.tasks(self.methods[name])[0].key
        if not self.state.has(key):
            raise NotRun(f"takes the scores of {name}, which has not been run")
        return self.state.scores(key)

    def _derived(self, task: Task) -> tuple[pd.Series, pd.Series | None]:
        """Scores made of other methods'."""
        method = task.method
        kept = [self._kept(name) for name in method.made_of]
        if method.kind == "blend":
            return blend(kept), None
        (score,) = kept
        if method.kind == "lagged":
            return lag_score(score, method.lag, self.bench.sessions).reindex(self.bench.age.index), None
        if method.kind == "shuffled_scores":
            return shuffle_within_date(score), None
        return score, shuffle_within_date(self.bench.label.where(self.bench.judged))

    def _column(self, method: Method) -> pd.Series:
        columns = self.bench.columns
        if method.column not in columns:
            raise ValueError(f"method {method.name}: no column {method.column!r}; there are {list(columns)}")
        return columns[method.column]

    def _factor(self, method: Method) -> pd.Series:
        """One factor of a forecast store, on the segment's members; the row says whether its weights saw them."""
        loader = KronosFactorLoader(
            self._path(method), [method.column], None, allow_in_sample=True, carry=self.config.protocol.carry
        )
        return loader.load(self.config.protocol.universe, self.bench.start, self.bench.end)[method.column]

    def given(self, method: Method) -> dict[str, Any]:
        """Values of placeholders; ``RANDOM_CHECKPOINT`` is made from ``CHECKPOINT`` where a method asks for it."""
        values = dict(self.config.given)
        if "RANDOM_CHECKPOINT" in method.placeholders() and "CHECKPOINT" in values:
            from kronos_qlib.comparison.checkpoints import random_checkpoint

            values["RANDOM_CHECKPOINT"] = str(random_checkpoint(values["CHECKPOINT"], self.state.folder / "random"))
        return values

    def _weights(self, method: Method) -> Weights:
        sources, values = self._sources(method), self.given(method)
        names = sorted({name for source in sources for name in source.placeholders()})
        if any(name not in values for name in names):
            return Weights()  # it will not be run
        if sources[0].kind == "scores":
            found = [file_fingerprint(self._path(source)) for source in sources]
            return Weights(found[0] if len(found) == 1 else fingerprint({"files": found}))
        used = tuple(str(values[name]) for name in names)
        if used not in self._found_weights:
            self._found_weights[used] = find_weights(used)
        return self._found_weights[used]

    def _sources(self, method: Method) -> list[Method]:
        """The methods whose scores are judged."""
        return [self.methods[name] for name in method.made_of] or [method]

    def _path(self, method: Method) -> Path:
        return Path(str(fill(method.path, self.given(method)))).expanduser()

    def _row(self, task: Task, reason: str, figures: Mapping[str, Any], seconds: float, cpu: float) -> Row:
        empty: dict[str, Any] = dict.fromkeys(FIGURES, math.nan) | {
            "first": "", "last": "", "days": 0, "rows": 0, "coverage": 0.0,
        }  # fmt: skip
        sources = self._sources(task.method)
        weights = self._weights(task.method)
        told = [source.seen for source in sources if source.kind == "scores"]
        seen = max(told, key=("no", "unknown", "yes").index) if told else weights.seen(self.bench.start)
        on_valid = self.segment == "valid" and any(source.stops_on_valid for source in sources)
        return Row(
            method=task.method.name, family=task.method.family, configuration=task.configuration, seed=task.seed,
            segment=task.segment, key=task.key, status="not run" if reason else "done", reason=reason,
            commit=self.commit, data=task.store_fingerprint, checkpoint=task.checkpoint,
            trained_on_segment=seen, stopped_on_segment="yes" if on_valid else "no",
            variants=task.method.variants, **(empty | dict(figures)), seconds=round(seconds, 1),
            cpu_seconds=round(cpu, 1),
        )  # fmt: skip


def run_methods(
    config: RunConfig, segment: str, chosen: Sequence[Method], methods: Mapping[str, Method],
    report: Report | None = None,
) -> list[Row]:  # fmt: skip
    """Run the chosen methods on a segment; see :class:`Runner`."""
    runner = Runner(config, segment, methods)
    return [row for method in chosen for row in runner.run(method, report)]


def current_commit() -> str:
    """Commit of the code, with ``+`` when the working tree differs; ``unknown`` outside a clone."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "."], cwd=here.parent, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _with_budget(task: Task, scale: float) -> Task:
    from dataclasses import replace

    return replace(task, method=replace(task.method, budget=task.method.budget * scale))


def write_description(path: Path, config: RunConfig, methods: Sequence[Method]) -> None:
    """Write the configurations behind the hashes of the rows, beside them, as JSON."""
    with wait_for_lock(path.with_suffix(".lock")):
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        known |= {fingerprint(m.configuration()): {"method": m.name} | m.configuration() for m in methods}
        path.write_text(json.dumps(known, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
