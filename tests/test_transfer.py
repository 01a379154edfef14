"""The transfer benchmark on a small store: fine-tuned by a recipe, both examined on the same held-out rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_market import UNIVERSE, write_tiny_checkpoint, write_tiny_store
from typer.testing import CliRunner

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "transfer.py"


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("transfer", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_before_and_after_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", lookback=40, max_context=64, cutoff="2020-01-31")
    steps = {"steps": 2, "batch_size": 8, "rate": 1e-2, "valid_windows": 16}
    recipe = {
        "name": "tiny", "universe": "made up", "horizon": 4, "predictor": steps,
        "train": {"start": "2020-02-03", "end": "2020-05-29"}, "valid": {"start": "2020-06-01", "end": "2020-07-31"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    app = typer.Typer()
    app.command()(load_script().main)
    store = write_tiny_store(tmp_path / "store")
    arguments = [
        str(checkpoint), "--store", str(store), "--recipe", str(tmp_path / "recipe.yaml"), "--end", "2020-10-30",
        "--universe", UNIVERSE, "--every", "8", "--horizon", "2", "--paths", "2", "--windows", "16", "--device", "cpu",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    early = CliRunner().invoke(app, [*arguments, "--start", "2020-07-01"])
    assert "the held-out dates begin on 2020-07-01" in str(early.exception)
    done = CliRunner().invoke(app, [*arguments, "--start", "2020-08-03"], catch_exceptions=False)
    assert "zero-shot, then tuned" in done.output
    found = json.loads((tmp_path / "out" / "transfer.json").read_text())
    before, after = found["before"], found["after"]
    assert before["checkpoint"]["fingerprint"] != after["checkpoint"]["fingerprint"]
    assert before["settings"] == after["settings"]
    assert before["tokens"]["mse"] == after["tokens"]["mse"]  # the tokenizer stayed
    assert before["tokens"]["s1_after"] != after["tokens"]["s1_after"]
