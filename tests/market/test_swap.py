"""A folder appears whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kronos_qlib.market.store import store_metadata
from kronos_qlib.market.swap import left_aside, whole_folder

MARKER = "marker.json"


def fill(out: Path, text: str) -> None:
    with whole_folder(out, MARKER) as folder:
        (folder / MARKER).write_text(text)
        assert not (out / MARKER).exists() or (out / MARKER).read_text() != text


def test_a_new_folder_appears_and_an_old_one_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "store"
    fill(out, "one")
    (out / "leftover").write_text("of the first")
    fill(out, "two")
    assert (out / MARKER).read_text() == "two"
    assert os.listdir(out) == [MARKER]
    assert os.listdir(out.parent) == ["store"]


def fill_and_stop(out: Path, stop: type[BaseException]) -> None:
    with whole_folder(out, MARKER) as folder:
        (folder / MARKER).write_text("two")
        raise stop


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_folder_and_nothing_else(tmp_path: Path, stop: type[BaseException]) -> None:
    out = tmp_path / "store"
    fill(out, "one")
    with pytest.raises(stop):
        fill_and_stop(out, stop)
    assert (out / MARKER).read_text() == "one"
    assert os.listdir(tmp_path) == ["store"]


def test_a_failed_move_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "store"
    fill(out, "one")
    rename = os.rename

    def fail_on_the_new(source: Path, target: Path) -> None:
        if ".partial-" in str(source):
            raise OSError("disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_on_the_new)
    with pytest.raises(OSError, match="disk is gone"):
        fill(out, "two")
    assert (out / MARKER).read_text() == "one"
    assert os.listdir(tmp_path) == ["store"]


def test_a_kill_between_the_moves_can_be_mended_with_the_command_it_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my store"
    fill(out, "one")
    rename = os.rename

    def die_after_the_first(source: Path, target: Path) -> None:
        if ".partial-" in str(source) or ".old-" in str(source):  # the process is gone: nothing is moved back either
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            fill(out, "two")
    assert not out.exists()
    with pytest.raises(ValueError, match="put it back with `mv '"):
        store_metadata(out)
    command = left_aside(out).split("`")[1]
    subprocess.run(command, shell=True, check=True)
    assert (out / MARKER).read_text() == "one"
    assert left_aside(out) == ""


def test_two_folders_left_aside_are_no_answer(tmp_path: Path) -> None:
    assert left_aside(tmp_path / "store") == ""
    for name in (".store.old-1", ".store.old-2"):
        (tmp_path / name).mkdir()
    assert left_aside(tmp_path / "store") == ""


def test_an_empty_folder_is_taken_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    out = tmp_path / "store"
    out.mkdir()
    fill(out, "one")
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"a folder without marker\.json"):
        fill(foreign, "two")
    assert os.listdir(foreign) == ["chapter1.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        fill(tmp_path / "file", "two")
    with pytest.raises(ValueError, match=r"cannot be written.*choose a place"):
        fill(tmp_path / "file" / "below", "two")
    assert sorted(os.listdir(tmp_path)) == ["file", "store", "thesis"]


def test_a_link_keeps_pointing_at_the_new_folder(tmp_path: Path) -> None:
    fill(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / MARKER).read_text() == "two"
