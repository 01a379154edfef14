"""What is installed: names, data files, pinned versions."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kronos_qlib
from kronos_qlib.resources import checkpoint_names, checkpoint_path, workflow_names, workflow_path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(requirements: list[str]) -> list[str]:
    return [normal(re.split(r"[\[<>=!~ ;]", text)[0]) for text in requirements]


def test_the_top_names_are_those_of_their_homes() -> None:
    from kronos_qlib.forecast.forecaster import KronosForecaster
    from kronos_qlib.forecast.paths import KlinePaths
    from kronos_qlib.kronos import SamplingConfig

    assert kronos_qlib.KronosForecaster is KronosForecaster
    assert kronos_qlib.KlinePaths is KlinePaths
    assert kronos_qlib.SamplingConfig is SamplingConfig
    assert set(kronos_qlib.__all__) <= set(dir(kronos_qlib))
    with pytest.raises(AttributeError, match="KronosForcaster"):
        _ = kronos_qlib.KronosForcaster


def test_importing_the_package_is_light() -> None:
    code = "import sys, kronos_qlib; print(sorted({'torch', 'qlib', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_installed_version_is_that_of_the_source() -> None:
    assert importlib.metadata.version("kronos-qlib") == kronos_qlib.__version__
    assert f"## {kronos_qlib.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_console_script_leads_to_main() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="kronos-qlib")
    from kronos_qlib.cli import main

    assert script.load() is main


def test_every_direct_requirement_is_pinned_and_nothing_local_is() -> None:
    wanted = requirement_names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
    missing = sorted(set(wanted) - set(pins()) - {"kronos-qlib"})
    assert not missing
    assert pins()["torch"] == "2.13.0"
    assert not [name for name, version in pins().items() if "+" in version]


def test_what_comes_with_the_package_is_found() -> None:
    assert {"quickstart", "csi300_base", "kronos_zero_shot_csi300", "lightgbm_alpha158_csi300"} <= set(workflow_names())
    assert workflow_path("quickstart").is_file()
    assert "synthetic" in checkpoint_names()
    folder = checkpoint_path("bundled:synthetic")
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert 0 < weights <= 2**20  # the bundled checkpoint is at most 1 MB


def test_names_that_do_not_exist_get_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="Did you mean 'quickstart'"):
        workflow_path("quickstat")
    with pytest.raises(ValueError, match="synthetic"):
        checkpoint_path("bundled:sinthetic")


@pytest.mark.slow
def test_a_wheel_carries_workflows_and_checkpoints(tmp_path: Path) -> None:
    """Build a wheel from the source and look inside."""
    import zipfile

    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "kronos_qlib/workflows/quickstart.yaml" in names
    assert "kronos_qlib/workflows/recipes/pretrain_ashare.yaml" in names
    assert "kronos_qlib/checkpoints/synthetic/model/model.safetensors" in names
    assert "kronos_qlib/checkpoints/ashare/model/model.safetensors" in names
    assert "kronos_qlib/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
