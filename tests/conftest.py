"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("KRONOS_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Return ``shared_file(name)``: a path of real data beside the repo, or a skip that names what is missing."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"real data is missing: {name} is not in the shared folder (set KRONOS_SHARED to its place)")
        return path

    return find
