"""What the commands share: refusing a place that cannot be written, reading dates, and saying an error in one line."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output_folder(folder: Path) -> Path:
    """Return the folder that a command is to write, expanded, before it does any work; nothing is created yet.

    Raises
    ------
    ValueError : a file stands in its place, or in that of a folder above it.
    """
    folder = folder.expanduser()
    for place in (folder, *folder.parents):
        if place.is_dir():
            return folder
        if place.exists():
            raise ValueError(f"{place} is a file; --out needs a folder there, choose another place")
    return folder


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` to write files in; they move there together when the block ends well.

    Files of other names in ``folder`` stay. When the block raises (a full disk), nothing is left behind and ``folder``
    is as it was.
    """
    folder = Path(os.path.realpath(folder.expanduser()))
    above = next(place for place in (folder, *folder.parents) if place.exists())
    temporary = above / f".{folder.name}.partial-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
    except OSError as error:
        raise OSError(error.errno, f"{folder} cannot be written: {error}; nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def describe_error(error: Exception) -> str:
    """Return the message of an error; a failed validation as ``key: what is wrong; found value``."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for detail in error.errors(include_url=False):
        key = ".".join(map(str, detail["loc"])) or error.title
        lines.append(f"{key}: {detail['msg']}; found {detail['input']!r}")
    return "; ".join(lines)


def split_span(text: str) -> tuple[str, str] | None:
    """Return the two ends of a text like ``2015-01-01:2018-12-31``; None where one is missing."""
    first, _, last = text.partition(":")
    return (first, last) if first and last else None
