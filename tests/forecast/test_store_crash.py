"""A killed build loses the batch in flight, and two builds share the work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from fake_factors import FakeSource, fake_panel, logged

from kronos_qlib.forecast import store_files
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.forecast.store_lock import try_lock

BATCH = 25


def run_build(folder: Path, log: Path, pause: float, jobs: int = 1) -> None:
    panel = fake_panel()
    source = FakeSource(panel, log, pause)
    ForecastStore(folder).build([(source, np.arange(len(panel)))], panel, batch_rows=BATCH, jobs=jobs, progress=False)


def start(folder: Path, log: Path, pause: float, jobs: int = 1) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=run_build, args=(folder, log, pause, jobs))
    process.start()
    return process


def wait_for(log: Path, rows: int) -> None:
    limit = time.monotonic() + 60
    while len(logged(log)) < rows:
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole_table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("whole")
    run_build(folder / "factors", folder / "log", 0)
    return ForecastStore(folder / "factors").read()


def test_a_killed_build_resumes_and_computes_nothing_twice_but_the_batch_in_flight(
    tmp_path: Path, whole_table: pd.DataFrame
) -> None:
    folder, log = tmp_path / "factors", tmp_path / "log"
    process = start(folder, log, 0.1)
    wait_for(log, 4 * BATCH)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    saved = len(ForecastStore(folder).read())  # what is there can be read before anyone resumes
    assert 0 < saved <= len(logged(log)) < 360
    run_build(folder, log, 0)
    twice = [row for row, count in Counter(logged(log)).items() if count > 1]
    assert len(twice) <= 60  # one batch: instruments are not cut
    assert len(logged(log)) == 360 + len(twice)
    pd.testing.assert_frame_equal(ForecastStore(folder).read(), whole_table, check_exact=True)
    assert not list(folder.rglob("*.tmp"))


def test_the_workers_of_a_killed_build_end_too(tmp_path: Path, whole_table: pd.DataFrame) -> None:
    folder, log = tmp_path / "factors", tmp_path / "log"
    process = start(folder, log, 0.1, jobs=2)
    wait_for(log, 2 * BATCH)
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in str(child.cmdline())
    ]
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive, "a worker without its build waits for ever"
    run_build(folder, log, 0)
    pd.testing.assert_frame_equal(ForecastStore(folder).read(), whole_table, check_exact=True)


@pytest.mark.parametrize("calls", range(1, 14))
def test_death_between_any_two_file_operations_loses_nothing(
    tmp_path: Path, whole_table: pd.DataFrame, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies at the n-th rename or deletion: parts written, months merged, parts half deleted."""
    panel = fake_panel()
    folder = tmp_path / "factors"
    tasks = [(FakeSource(panel), np.arange(len(panel)))]
    left = [calls]

    class DeathError(BaseException):
        pass

    def deadly(function):
        def call(*arguments, **options):
            if ".tmp" not in str(arguments[0]) or len(arguments) == 2:  # removing a temporary file is no step
                left[0] -= 1
                if left[0] == 0:
                    raise DeathError
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", deadly(os.replace))
        patch.setattr(Path, "unlink", deadly(Path.unlink))
        with pytest.raises(DeathError):
            ForecastStore(folder).build(tasks, panel, batch_rows=100, progress=False)
    ForecastStore(folder).build(tasks, panel, batch_rows=100, progress=False)
    pd.testing.assert_frame_equal(ForecastStore(folder).read(), whole_table, check_exact=True)
    assert not list(folder.rglob("parts/*/*.parquet"))


def test_two_builds_share_the_work_and_agree(tmp_path: Path, whole_table: pd.DataFrame) -> None:
    folder, log = tmp_path / "factors", tmp_path / "log"
    both = [start(folder, log, 0.1), start(folder, log, 0.1)]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert max(Counter(logged(log)).values()) == 1
    assert len(logged(log)) == 360
    pd.testing.assert_frame_equal(ForecastStore(folder).read(), whole_table, check_exact=True)


def test_a_source_in_use_is_not_removed(tmp_path: Path) -> None:
    folder, log = tmp_path / "factors", tmp_path / "log"
    process = start(folder, log, 0.2)
    wait_for(log, 1)
    store = ForecastStore(folder)
    with pytest.raises(ValueError, match="is being built by another process"):
        store.rm(store.ls()[0].fingerprint)
    process.kill()
    process.join()
    store.rm(store.ls()[0].fingerprint)  # no stale lock is left by the killed process
    assert store.ls() == []


def test_a_later_part_wins_whoever_wrote_it(tmp_path: Path) -> None:
    for year, bucket, expected in ((2020, 3, "000000-03"), (2020, 1, "000001-01"), (2019, 1, "000000-01")):
        path = store_files.part_path(tmp_path, year, bucket)
        assert path.stem == expected
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_lock_has_one_holder_or_several_sharers(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "one.lock"
    with try_lock(path) as held, try_lock(path) as again, try_lock(path, shared=True) as shared:
        assert (held, again, shared) == (True, False, False)
    with try_lock(path, shared=True) as one, try_lock(path, shared=True) as two, try_lock(path) as alone:
        assert (one, two, alone) == (True, True, False)
