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

# Looked up when first asked for, so that `import kronos_qlib` does not pay for torch.
_HOMES = {
    "KronosForecaster": "kronos_qlib.forecast.forecaster",
    "KlinePaths": "kronos_qlib.forecast.paths",
    "SamplingConfig": "kronos_qlib.kronos.config",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
