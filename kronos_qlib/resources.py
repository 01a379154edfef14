"""Files that come with the package: workflow YAMLs and bundled checkpoints."""

from __future__ import annotations

import difflib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
BUNDLED = "bundled:"


def workflow_folder() -> Path:
    """Return the folder of the workflow YAMLs: inside an installed wheel, or beside the package in a clone.

    Raises
    ------
    FileNotFoundError : neither exists, so the installation is incomplete.
    """
    places = (PACKAGE / "workflows", PACKAGE.parent / "workflows")
    for place in places:
        if (place / "csi300_base.yaml").is_file():
            return place
    raise FileNotFoundError(
        f"The workflow files are in neither of {', '.join(map(str, places))}; reinstall, or run from a clone"
    )


def workflow_names() -> list[str]:
    """Return the names of the workflows, sorted, without ``.yaml``."""
    return sorted(path.stem for path in workflow_folder().glob("*.yaml"))


def workflow_path(name: str) -> Path:
    """Return the YAML file of a workflow, for ``qrun``.

    Parameters
    ----------
    name : with or without ``.yaml``, for example ``quickstart``.

    Raises
    ------
    ValueError : unknown name; the message names the nearest.
    """
    stem = name.removesuffix(".yaml")
    if stem not in workflow_names():
        raise ValueError(_unknown("workflow", stem, workflow_names()))
    return workflow_folder() / f"{stem}.yaml"


def checkpoint_names() -> list[str]:
    """Return the names of the checkpoints that come with the package."""
    return sorted(path.name for path in (PACKAGE / "checkpoints").glob("*") if path.is_dir())


def checkpoint_path(name: str) -> Path:
    """Return the folder of a bundled checkpoint, given as ``synthetic`` or ``bundled:synthetic``.

    Raises
    ------
    ValueError : unknown name; the message names the nearest.
    """
    plain = name.removeprefix(BUNDLED)
    if plain not in checkpoint_names():
        raise ValueError(_unknown("bundled checkpoint", plain, checkpoint_names()))
    return PACKAGE / "checkpoints" / plain


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}."
