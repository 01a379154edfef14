"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# a deadline would make a property fail on a busy machine, where nothing is wrong
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

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
