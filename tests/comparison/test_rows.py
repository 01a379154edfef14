"""Rows: written and read back, replaced and not repeated, refused when they cannot be."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
from table_rows import NOT_RUN, ROW

from kronos_qlib.comparison.rows import COLUMNS, add_row, read_rows, write_rows


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "alpha.csv"
    write_rows(path, [ROW])
    assert read_rows(path) == [ROW]
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    assert read_rows(tmp_path / "none.csv") == []


def test_a_row_replaces_that_of_its_method_seed_and_segment(tmp_path: Path) -> None:
    path = tmp_path / "alpha.csv"
    add_row(path, NOT_RUN)
    add_row(path, ROW)
    add_row(path, replace(ROW, seed=1, key="k1"))
    add_row(path, replace(ROW, method="slow", key="now"))
    assert [(row.method, row.seed, row.status) for row in read_rows(path)] == [
        ("linear", 0, "done"), ("linear", 1, "done"), ("slow", 0, "done"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "maybe"}, "status"),
        ({"reason": "", "status": "not run"}, "without a reason"),
        ({"ic": float("nan")}, "no figure for ic"),
        ({"rank_ic": 1.2}, "outside -1 to 1"),
        ({"coverage": 1.2}, "cannot be"),
        ({"trained_on_segment": ""}, "flag"),
        ({"data": ""}, "fingerprint"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ROW, **change)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "alpha.csv"
    write_rows(path, [ROW])
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(",488,", ",many,"), encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: days is 'many'"):
        read_rows(path)
    path.write_text(text + text.splitlines()[1] + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="listed twice"):
        read_rows(path)
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected"):
        read_rows(path)


def _add_rows(path: Path, method: str) -> None:
    for seed in range(8):
        add_row(path, replace(ROW, method=method, seed=seed, key=f"{method}{seed}"))


def test_two_processes_lose_none_of_each_others_rows(tmp_path: Path) -> None:
    path = tmp_path / "results" / "alpha.csv"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_rows, args=(path, name)) for name in ("one", "two")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(read_rows(path)) == 16
