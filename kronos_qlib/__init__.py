"""Kronos, the foundation model of candlesticks, as a Qlib citizen."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kronos_qlib.forecast.forecaster import KronosForecaster
    from kronos_qlib.forecast.paths import KlinePaths
    from kronos_qlib.kronos.config import SamplingConfig

__version__ = "0.1.0"
__all__ = ["KlinePaths", "KronosForecaster", "SamplingConfig", "__version__"]

# Public names and where they live; imported on first use, so that `import kronos_qlib` pays for no torch.
_HOMES = {
    "KronosForecaster": "kronos_qlib.forecast.forecaster",
    "KlinePaths": "kronos_qlib.forecast.paths",
    "SamplingConfig": "kronos_qlib.kronos.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kronos_qlib' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
