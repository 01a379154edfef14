"""How many windows one chunk holds: a fixed function of the model and the task, never of the batch or free memory.

Fixed kernel shapes are what makes a window's paths bit-identical in any batch.
"""

from __future__ import annotations

from .config import ModelConfig

_CPU_CONTEXT_TOKENS = 1536  # amortises reading the weights, fits a core's caches
_CPU_MIN_ROWS = 16
_GPU_CONTEXT_TOKENS = 1 << 16


def windows_per_chunk(config: ModelConfig, length: int, horizon: int, n_paths: int, device: str) -> int:
    """Windows per chunk; on a CPU at least 16 rows of decoding."""
    if device != "cpu":
        return max(1, _GPU_CONTEXT_TOKENS // max(length, n_paths))
    return max(-(-_CPU_MIN_ROWS // n_paths), min(16, _CPU_CONTEXT_TOKENS // length), 1)
