"""Notebooks run from top to bottom, call the package and define no logic of their own."""

from __future__ import annotations

import ast
import base64
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 300  # a cell may take so long on a busy machine; seconds on an idle one


def test_there_is_a_notebook() -> None:
    assert {"01_bars_to_paths", "02_factors_and_lightgbm"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs_and_defines_no_logic(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert not cell.outputs, "clear the outputs before committing"
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda)
        source = cell.source.replace("%matplotlib inline", "")
        found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, defined)]
        assert not found, f"put this into the package: {ast.unparse(found[0])[:80]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures, "the forecast is drawn"
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    told = "".join(output.get("text", "") for output in outputs)
    assert "no errors" in told
