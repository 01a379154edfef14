"""The README's commands, files and names exist. (That its two set-up commands run is shown by a fresh clone.)"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from kronos_qlib.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUPS = {"factors", "benchmark"}
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "workflows/README.md"]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def commands() -> list[list[str]]:
    """Every command line of the documents, by its words, without settings of the environment before it."""
    found = []
    for document in DOCUMENTS:
        for language, block in BLOCK.findall((ROOT / document).read_text(encoding="utf-8")):
            if language not in ("", "bash"):
                continue
            for line in block.strip().replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words.pop(0)
                    if words:
                        found.append(words)
    return found


def named(program: str) -> list[list[str]]:
    return [words for words in commands() if words[0].removeprefix(".venv/bin/") == program]


def test_there_are_exactly_two_set_up_commands() -> None:
    section = README.split("## Set up")[1].split("\n## ")[0]
    blocks = [block.strip() for language, block in BLOCK.findall(section) if language == "bash"]
    assert len(blocks) == 2
    assert all(len(block.splitlines()) == 1 for block in blocks)
    assert blocks[0].endswith("kronos-qlib quickstart")
    assert blocks[1].endswith("-m pytest")
    assert "-c constraints.txt" in blocks[0]


def test_ci_runs_the_tests_as_the_readme_does() -> None:
    section = README.split("## Set up")[1]
    tests = BLOCK.findall(section)[1][1].strip()
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", named("kronos-qlib"), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        # a group of commands (factors, benchmark) keeps the options with its members
        main([*words[1 : 3 if words[1] in GROUPS else 2], "--help"])
    assert not stop.value.code
    options = set(re.findall(r"^\s+(--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    assert {word for word in words if word.startswith("--")} <= options


def test_workflows_that_are_run_exist() -> None:
    files = [words[1] for words in named("qrun")]
    assert files
    assert all((ROOT / file).is_file() for file in files), files


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def test_files_and_folders_that_are_named_exist() -> None:
    named_paths = set(re.findall(r"`((?:kronos_qlib|tests|workflows|benchmarks|notebooks)/[\w./]*)`", README))
    assert len(named_paths) > 10
    missing = sorted(name for name in named_paths if not (ROOT / name).exists())
    assert not missing


def test_classes_that_are_named_exist() -> None:
    for module, name in re.findall(r"`(kronos_qlib(?:\.\w+)+)\.([A-Z]\w+)`", README):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_python_example_imports_and_calls_what_exists() -> None:
    source = next(block for language, block in BLOCK.findall(README) if language == "python")
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_nothing_is_left_to_fill_in() -> None:
    for document in [*DOCUMENTS, "CHANGELOG.md"]:
        text = (ROOT / document).read_text(encoding="utf-8")
        assert not re.findall(r"\b(?:TODO|TBD|FIXME|XXX|RUNTIME_\w+)\b", text), document
