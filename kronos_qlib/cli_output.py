"""What the commands share: refusing a place that cannot be written, and saying an error in one line."""

from __future__ import annotations

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
