"""Put a folder in place whole or not at all."""

from __future__ import annotations

import glob
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(out: Path, marker: str) -> Iterator[Path]:
    """Give a temporary folder beside ``out`` to fill; when the block ends well, it takes the place of ``out``.

    Until then ``out`` is untouched; when the block raises, the temporary folder is removed. The files are on
    disk (fsync) before the move. An existing ``out`` is moved aside, replaced, then deleted. A process that dies
    between the two moves leaves ``out`` aside: whoever opens it says so (:func:`left_aside`).

    Parameters
    ----------
    out : Path
    marker : str
        A file that a folder must hold to be replaced; an empty folder may be replaced as well.

    Raises
    ------
    ValueError
        ``out`` is something else than such a folder, or its place cannot be written.
    OSError
        Writing fails on the way (a full disk); the message names ``out``.
    """
    out = Path(os.path.realpath(Path(out).expanduser()))
    refuse_foreign(out, marker)
    temporary = out.with_name(f".{out.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise ValueError(f"{out} cannot be written: {error}; choose a place where you may write") from error
    try:
        yield temporary
        sync_tree(temporary)
        refuse_foreign(out, marker)
        _move_in(temporary, out)
    except OSError as error:
        raise OSError(error.errno, f"{out} cannot be written: {error}; what stood there before is untouched") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a place beside ``path``, moved there when the block ends; a failure leaves what stood there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def changed_folder(out: Path, marker: str) -> Iterator[Path]:
    """As ``whole_folder``, the temporary folder holding all that ``out`` holds, at no cost: files are hard links.

    The block must replace files (``os.replace``) and never write into them, or it would write into ``out``.
    """
    source = Path(os.path.realpath(Path(out).expanduser()))
    with whole_folder(source, marker) as folder:
        shutil.copytree(source, folder, copy_function=_link, dirs_exist_ok=True)
        yield folder


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def refuse_foreign(out: Path, marker: str) -> None:
    """Raise ``ValueError`` if ``out`` holds anything that is not ours to replace."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: expected a folder to write, or a place where nothing is yet")
    if any(out.iterdir()) and not (out / marker).is_file():
        raise ValueError(
            f"{out} is a folder without {marker}, so it was not written by kronos_qlib and is left alone: "
            "choose another place, or move it away yourself"
        )


def left_aside(out: Path) -> str:
    """Say how to put back what a replacement that was killed between its two moves left of ``out``.

    Returns
    -------
    A sentence with the command; empty where ``out`` exists, or where not exactly one folder was left aside.
    """
    out = Path(os.path.realpath(Path(out).expanduser()))
    aside = [] if out.exists() else sorted(out.parent.glob(f"{glob.escape(_aside(out, ''))}*"))
    if len(aside) != 1:
        return ""
    command = f"mv {shlex.quote(str(aside[0]))} {shlex.quote(str(out))}"
    return f"A replacement of it was killed half way; what stood there is whole: put it back with `{command}`"


def sync_tree(folder: Path) -> None:
    """Ask the system to put all files and folders below ``folder`` on disk."""
    paths = [os.path.join(root, name) for root, _, files in os.walk(folder) for name in [*files, ""]]
    # Requests that wait together share one journal commit: thousands of files in a second instead of a minute.
    with ThreadPoolExecutor(max_workers=32) as pool:
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: str | Path) -> None:
    if os.name == "nt" and os.path.isdir(path):  # Windows cannot open a folder to sync it
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_in(temporary: Path, out: Path) -> None:
    old = out.with_name(_aside(out, uuid.uuid4().hex[:8]))
    replaced = out.exists()
    if replaced:
        os.rename(out, old)
    try:
        os.rename(temporary, out)
    except BaseException:
        if replaced:
            os.rename(old, out)
        raise
    _sync(out.parent)
    if replaced:
        shutil.rmtree(old)


def _aside(out: Path, unique: str) -> str:
    """Name of the folder that ``out`` becomes while it is replaced."""
    return f".{out.name}.old-{unique}"
