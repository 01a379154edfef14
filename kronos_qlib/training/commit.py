"""Which code made a checkpoint."""

from __future__ import annotations

import subprocess
from pathlib import Path


def source_commit() -> str:
    """Return the commit of the package's own repository (``-changed`` when files differ), else its version."""
    from kronos_qlib import __version__

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"version {__version__}"
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "kronos_qlib").strip()
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return commit + ("-changed" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout
