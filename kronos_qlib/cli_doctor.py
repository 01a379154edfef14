"""``kronos-qlib doctor``: what is installed, what is found, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import typer

REQUIRED = (
    "pyqlib",
    "torch",
    "pandas",
    "numpy",
    "pyarrow",
    "safetensors",
    "lightgbm",
    "mlflow",
    "exchange_calendars",
)
OPTIONAL = {"ray": "ray", "onnx": "onnx", "nbclient": "notebooks", "pytest": "dev"}  # package → our extra
STORE_FOLDER = Path("~/.qlib/qlib_data")
SOMETHING_MISSING = 1


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``state`` is "ok", "missing" or "note"."""

    topic: str
    state: str
    text: str


def find_packages() -> list[Finding]:
    """Look up the installed version of every package that we ask for."""
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in REQUIRED:
        version = _version(name)
        text = version or f"not installed: pip install {name}"
        findings.append(Finding(name, "ok" if version else "missing", text))
    for name, extra in OPTIONAL.items():
        version = _version(name)
        text = version or f"not installed, not needed by the main path: pip install 'kronos-qlib[{extra}]'"
        findings.append(Finding(name, "ok" if version else "note", text))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def find_devices() -> list[Finding]:
    """List the devices that torch can use and whether they compute in bfloat16."""
    if _version("torch") is None:
        return [Finding("devices", "missing", "torch is not installed")]
    import torch

    findings = [
        Finding(
            "cpu",
            "ok",
            f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads, bfloat16: yes, but slowly",
        )
    ]
    if not torch.cuda.is_available():
        findings.append(Finding("cuda", "note", "no NVIDIA device is visible; everything runs on the CPU, more slowly"))
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        bfloat16 = "yes" if properties.major >= 8 else "no"
        memory = properties.total_memory / 2**30
        findings.append(Finding(f"cuda:{number}", "ok", f"{properties.name}, {memory:.0f} GiB, bfloat16: {bfloat16}"))
    if torch.backends.mps.is_available():
        findings.append(Finding("mps", "ok", "Apple GPU"))
    return findings


def find_stores(extra: list[Path]) -> list[Finding]:
    """List the Qlib stores in Qlib's usual folder, in $KRONOS_STORE and in ``extra``."""
    candidates = list(extra)
    if os.environ.get("KRONOS_STORE"):
        candidates.append(Path(os.environ["KRONOS_STORE"]))
    usual = STORE_FOLDER.expanduser()
    if usual.is_dir():
        candidates += sorted(path for path in usual.iterdir() if path.is_dir())
    findings = [_describe_store(path.expanduser()) for path in dict.fromkeys(candidates)]
    if not any(finding.state == "ok" for finding in findings):
        how = "kronos-qlib ingest BARS --members csi300=FILE --out ~/.qlib/qlib_data/kronos_csi300"
        findings.append(
            Finding("store", "note", f"no store found in $KRONOS_STORE or {STORE_FOLDER}; write one: {how}")
        )
    return findings


def _describe_store(path: Path) -> Finding:
    if not (path / "calendars").is_dir() or not (path / "features").is_dir():
        return Finding("store", "missing", f"{path} is no Qlib store: it has no calendars/ and features/")
    metadata = path / "kronos_store.json"
    if not metadata.is_file():
        return Finding(
            "store", "ok", f"{path} (not written by kronos-qlib: no events, no future sessions are promised)"
        )
    known = json.loads(metadata.read_text(encoding="utf-8"))
    told = ", ".join(
        f"{key} {known[key]}" for key in ("calendar", "freq", "region", "instruments", "rows") if key in known
    )
    return Finding("store", "ok", f"{path} ({told})")


def find_checkpoints(extra: list[Path]) -> list[Finding]:
    """List the bundled checkpoints, those in the Hugging Face cache and those in ``extra``."""
    from kronos_qlib import resources

    findings = [Finding("checkpoint", "ok", f"bundled:{name}") for name in resources.checkpoint_names()]
    for path in extra:
        whole = any((path / part).is_file() for part in ("config.json", "model/config.json"))
        text = str(path) if whole else f"{path} has neither config.json nor model/config.json"
        findings.append(Finding("checkpoint", "ok" if whole else "missing", text))
    cached = _cached_models()
    findings += [Finding("checkpoint", "ok", f"{name} (Hugging Face cache)") for name in cached]
    if not cached:
        how = "load_model('NeoQuasar/Kronos-small', revision=COMMIT) downloads them where the hub can be reached"
        findings.append(Finding("checkpoint", "note", f"no published Kronos weights in the Hugging Face cache: {how}"))
    return findings


def _cached_models() -> list[str]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return []
    return sorted(repo.repo_id for repo in cache.repos if "kronos" in repo.repo_id.lower())


def doctor(
    store: list[Path] = typer.Option([], help="A store to look at as well. May be given several times."),
    checkpoint: list[Path] = typer.Option(
        [], help="A checkpoint folder to look at as well. May be given several times."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON and nothing else."),
) -> None:
    """Say what is installed and found, what is missing and how to get it; exit 1 if something is missing.

    \b
    Examples:
      kronos-qlib doctor
      kronos-qlib doctor --store ~/data/my_store --checkpoint ~/weights/kronos-small
    """
    from kronos_qlib import __version__

    findings = [Finding("kronos-qlib", "ok", f"{__version__} at {Path(__file__).parent}")]
    findings += find_packages() + find_devices() + find_stores(store) + find_checkpoints(checkpoint)
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.state:8}{finding.topic:20}{finding.text}")
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(SOMETHING_MISSING)
