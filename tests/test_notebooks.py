"""Notebooks run from top to bottom on the made-up market, define no logic, and keep outputs that name no machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 300  # a cell may take so long on a busy machine; seconds on an idle one
VARIABLES = ("KRONOS_BARS", "KRONOS_STORE")
# What a reader must find in the outputs, on any market.
SAID = {
    "01_bars_to_paths": ["no errors", "KlinePaths(1 windows, 50 paths, 10 steps)", "expected_return"],
    "02_factors_and_lightgbm": ["0 rows computed", "$kronos_token_drift", "ICSummary"],
    "03_rolling_and_distrust": [
        "valid_end", "newey_west_t", "scores shuffled within each day", "everything", "learner - reversal_5",
        "information_ratio", "lag", "adjusted_p_value",
    ],
}  # fmt: skip


def load_refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", FOLDER / "refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


refresh = load_refresh()


def told(notebook: NotebookNode) -> str:
    cells = refresh.code_cells(notebook)
    return "\n".join(
        refresh.output_text(output) for cell in cells for output in cell.outputs if not refresh.is_noise(output)
    )


def has_picture(notebook: NotebookNode) -> bool:
    pictures = [refresh.picture(output) for cell in refresh.code_cells(notebook) for output in cell.outputs]
    return any(picture.startswith(b"\x89PNG") for picture in pictures)


def test_every_notebook_is_known_here() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_with_outputs_of_real_data_and_defines_no_logic(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert refresh.source_faults(notebook) == []
    assert refresh.output_faults(notebook) == []
    text = told(notebook)
    assert "A real market" in text
    assert [words for words in SAID[path.stem] if words not in text] == []
    assert has_picture(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_on_the_made_up_market(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = path.read_bytes()
    notebook = refresh.execute(path, tmp_path, SECONDS)
    assert path.read_bytes() == before
    text = told(notebook)
    assert "A synthetic market" in text
    assert [words for words in SAID[path.stem] if words not in text] == []
    assert has_picture(notebook)
    assert refresh.output_faults(refresh.tidy(notebook)) == []


def small_notebook(source: str = "x = 1", **output: object) -> NotebookNode:
    cell = nbformat.v4.new_code_cell(source, execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", **{"name": "stdout", "text": "fine"} | output)]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("**Shows** **Data** **Takes**"), cell])


def test_the_small_notebook_of_these_tests_is_right() -> None:
    assert refresh.source_faults(small_notebook()) == []
    assert refresh.output_faults(small_notebook()) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    return 1",
        "class A:\n    pass",
        "for x in y:\n    z(x)",
        "f = lambda x: x",
        'read("/data/a.csv")',
    ],
)
def test_logic_and_places_in_a_cell_are_faults(source: str) -> None:
    assert len(refresh.source_faults(small_notebook(source))) == 1


@pytest.mark.parametrize(
    "output",
    [
        {"text": "wrote /home/someone/file.txt"},
        {"text": "store: PosixPath('/tmp/store')"},
        {"text": "C:\\Users\\someone"},
        {"text": "<object at 0x7f00aa>"},
        {"text": "Traceback (most recent call last)"},
        {"name": "stderr", "text": "a log"},
    ],
)
def test_what_an_output_must_not_show(output: dict[str, str]) -> None:
    assert len(refresh.output_faults(small_notebook(**output))) == 1


@pytest.mark.parametrize(
    "text", ["Ref($close, -2)/Ref($close, -1) - 1", "https://github.com/microsoft/qlib", "3/4 and/or", "</td></tr>"]
)
def test_what_is_no_place(text: str) -> None:
    assert refresh.places(text) == []


def test_missing_outputs_and_large_pictures_are_faults() -> None:
    notebook = small_notebook()
    notebook.cells[1].outputs, notebook.cells[1].execution_count = [], None
    assert len(refresh.output_faults(notebook)) == 2
    notebook = small_notebook()
    large = {"image/png": "A" * 4 * refresh.PICTURE_BYTES}
    notebook.cells[1].outputs = [nbformat.v4.new_output("display_data", data=large)]
    assert "draw it smaller" in refresh.output_faults(notebook)[0]
