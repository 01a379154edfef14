"""Run notebooks and keep their outputs: ``python notebooks/refresh.py 03_rolling_and_distrust``, without a name all.

``KRONOS_STORE`` (a Qlib store) and ``KRONOS_BARS`` (a file of daily bars) name real data; unset, the market is made up.
Each notebook runs in an empty folder of its own. Logs and progress bars are not kept. A notebook
that fails, or whose outputs name a place on this machine, is left as it was.
"""

from __future__ import annotations

import argparse
import ast
import base64
import re
import socket
import subprocess
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
SECONDS = 7_200  # for one cell, on a busy machine
PICTURE_BYTES = 80_000
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.AsyncFor, ast.While, ast.Lambda)
PLACE = re.compile(r"(?<![\w.:/~$<])/(?:[\w.+-]+/)+[\w.+-]*|\b[A-Za-z]:\\\w+")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")
WIDGET = "application/vnd.jupyter.widget-view+json"
OPENING = ("**Shows**", "**Data**", "**Takes**")


def execute(path: Path, folder: Path, seconds: int = SECONDS) -> NotebookNode:
    """Run a copy of a notebook from top to bottom in ``folder``; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources=resources)
    client.execute(stderr=subprocess.DEVNULL)  # git's complaints that the folder is no clone of it, which Qlib causes
    return notebook


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leave out, in place, what differs from run to run: stderr, progress bars, times, the kernel's version."""
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if not is_noise(output)]
        cell.metadata.pop("execution", None)
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def is_noise(output: NotebookNode) -> bool:
    """Whether an output is a log or a progress bar."""
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def source_faults(notebook: NotebookNode) -> list[str]:
    """What is wrong with the cells: the opening, logic of their own, places on a machine."""
    opening = notebook.cells[0].source
    faults = [f"the first cell lacks {name}" for name in OPENING if name not in opening]
    for cell in notebook.cells:
        faults += [f"{cell.id} names {found}" for found in places(cell.source)]
    for cell in code_cells(notebook):
        tree = ast.parse(cell.source.replace("%matplotlib inline", ""))
        defined = [ast.unparse(node)[:60] for node in ast.walk(tree) if isinstance(node, LOGIC)]
        faults += [f"{cell.id}: put this into the package: {found}" for found in defined]
    return faults


def output_faults(notebook: NotebookNode) -> list[str]:
    """What is wrong with the kept outputs: none, an error, a log, a place on a machine, a large picture."""
    cells = code_cells(notebook)
    faults = [] if any(cell.outputs for cell in cells) else ["there are no outputs"]
    faults += [f"{cell.id} has not been run" for cell in cells if cell.execution_count is None]
    for cell in cells:
        for output in cell.outputs:
            text = output_text(output)
            if output.output_type == "error" or is_noise(output) or "Traceback" in text:
                faults.append(f"{cell.id} has an error or a log among its outputs")
            faults += [f"{cell.id} shows {found}" for found in places(text) + ADDRESS.findall(text)]
            size = len(picture(output))
            if size > PICTURE_BYTES:
                faults.append(f"{cell.id} has a picture of {size} bytes; at most {PICTURE_BYTES}, so draw it smaller")
    return faults


def places(text: str) -> list[str]:
    """Absolute paths in a text."""
    return PLACE.findall(text)


def output_text(output: NotebookNode) -> str:
    """All that an output says in words."""
    data = output.get("data", {})
    said = [value for kind, value in data.items() if kind.startswith("text/")]
    return "\n".join([output.get("text", ""), *said])


def picture(output: NotebookNode) -> bytes:
    """The PNG of an output, empty where it has none."""
    return base64.b64decode(output.get("data", {}).get("image/png", ""))


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def main() -> None:
    """Run the named notebooks, or all, and write them back with their outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="without .ipynb; none: all")
    known = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    names = parser.parse_args().names or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"there is no notebook {', '.join(unknown)}; known: {', '.join(known)}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            notebook = tidy(execute(known[name], Path(folder)))
        faults = source_faults(notebook) + output_faults(notebook)
        said = "\n".join(output_text(output) for cell in code_cells(notebook) for output in cell.outputs)
        if re.search(rf"\b{re.escape(socket.gethostname())}\b", said):
            faults.append("it names this machine")
        if faults:
            raise SystemExit(f"{name} was not written:\n" + "\n".join(faults))
        nbformat.write(notebook, known[name])
        print(f"{name}: run and written")


if __name__ == "__main__":
    main()
