"""A folder appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kronos_qlib.market.swap import whole_folder

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
