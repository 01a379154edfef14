"""The way of the data has no way back: imports point only down the layers of the design."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kronos_qlib"

# What each part may import of ours, itself aside. A part not named here is an adapter or the command line.
ALLOWED = {
    "kronos": set(),
    "market": set(),
    "alpha": {"market", "kronos"},
    "evaluation": {"market", "kronos"},
    "forecast": {"alpha", "evaluation", "market", "kronos"},
    "training": {"alpha", "evaluation", "market", "kronos"},
    "resources": set(),
    "plots": {"forecast", "evaluation", "market"},
    "report": {"evaluation", "market"},
}
QLIB_SIDE = {
    "model",
    "model_checkpoint",
    "model_head",
    "model_log",
    "model_marks",
    "model_pit",
    "model_settings",
    "model_training",
    "handler",
    "dataset",
    "loader",
    "record",
    "rolling",
    "examine",
    "sweep",
    "factors",
    "sweep_backtest",
    "kronos_alpha",
    "kept_features",
    "processor",
    "comparison",
    "report_record",
    "rolling_config",
    "rolling_horizon",
    "rolling_plan",
    "rolling_publish",
    "rolling_recorder",
    "rolling_worker",
}
TORCH_FREE = {"market", "alpha", "evaluation", "resources", "plots", "report"}


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Yield the absolute name of every module that ``tree`` imports, lazily or for types only as well."""
    parts = module.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            keep = len(parts) - node.level + (1 if is_package else 0)
            above = parts[:keep] if node.level else []
            base = ".".join(above + (node.module.split(".") if node.module else []))
            yield base
            # `from kronos_qlib import market` names a module in its second half
            yield from (f"{base}.{alias.name}" for alias in node.names)


def read_imports(root: Path) -> list[tuple[str, str]]:
    """Return (importing module, imported module) for every import below ``root``."""
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root.parent).with_suffix("")
        is_package = relative.name == "__init__"
        module = ".".join(relative.parent.parts if is_package else relative.parts)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        found += [(module, name) for name in imported_modules(tree, module, is_package)]
    return found


def part_of(module: str) -> str:
    """Return the part of the package a module belongs to: ``kronos_qlib.market.store`` → ``market``."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def is_command_line(part: str) -> bool:
    return part == "cli" or part.startswith("cli_")


def violations(imports: list[tuple[str, str]], parts: set[str]) -> list[str]:
    """Return one line for every import that the design forbids."""
    wrong = []
    for module, name in imports:
        here, root = part_of(module), name.split(".")[0]
        if root == "kronos_qlib":
            there = part_of(name)
            if here in ALLOWED and there in parts and there != here and there not in ALLOWED[here]:
                wrong.append(f"{module} imports {name}")
            if is_command_line(there) and not is_command_line(here):
                wrong.append(f"{module} imports {name}: the command line is on top")
            if here in ALLOWED and there and there not in parts and there != "__version__":
                wrong.append(f"{module} imports {name} from the package's top, which stands above it")
        elif root == "qlib" and here not in QLIB_SIDE and not is_command_line(here):
            if module != "kronos_qlib.market.store":
                wrong.append(f"{module} imports {name}: only the Qlib side may")
        elif root in {"torch", "safetensors"} and here in TORCH_FREE:
            wrong.append(f"{module} imports {name}: this part needs no network")
    return wrong


def package_parts() -> set[str]:
    return {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}


def test_imports_point_only_down() -> None:
    wrong = violations(read_imports(PACKAGE), package_parts())
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_every_part_has_its_place() -> None:
    known = set(ALLOWED) | QLIB_SIDE | {"compat", "__init__", "__pycache__", "checkpoints", "py"}
    unplaced = {part for part in package_parts() - known if not is_command_line(part)}
    assert not unplaced, f"say in tests/test_layers.py where these stand: {sorted(unplaced)}"


def test_the_command_line_imports_heavy_things_late() -> None:
    """Nothing that the command line's modules import at their top pulls in torch, Qlib or matplotlib."""
    import subprocess

    heavy = ("torch", "qlib", "matplotlib", "pandas")
    code = f"import sys, kronos_qlib.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("kronos_qlib.kronos.layers", "from kronos_qlib.market import panel", True),
        ("kronos_qlib.kronos.layers", "from ..market import panel", True),
        ("kronos_qlib.kronos.layers", "from .config import ModelConfig", False),
        ("kronos_qlib.kronos.layers", "from kronos_qlib import market", True),
        (
            "kronos_qlib.alpha.signals",
            "def f():\n    from kronos_qlib.forecast.paths import KlinePaths",
            True,
        ),
        ("kronos_qlib.forecast.forecaster", "from kronos_qlib.alpha.signals import SIGNALS", False),
        ("kronos_qlib.forecast.forecaster", "import qlib", True),
        ("kronos_qlib.handler", "from qlib.data import D", False),
        ("kronos_qlib.handler", "from kronos_qlib.cli import app", True),
        ("kronos_qlib.market.panel", "import torch", True),
        ("kronos_qlib.market.store", "from kronos_qlib import __version__", False),
        ("kronos_qlib.evaluation.ic", "from kronos_qlib import KronosForecaster", True),
        ("kronos_qlib.evaluation.ic", "import qlib.data", True),
    ],
)
def test_the_rule_itself(module: str, source: str, expected: bool) -> None:
    names = imported_modules(ast.parse(source), module, is_package=False)
    parts = {"kronos", "market", "alpha", "forecast", "evaluation", "training", "handler", "cli"}
    assert bool(violations([(module, name) for name in names], parts)) is expected
