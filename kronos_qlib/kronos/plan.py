"""How many windows one chunk holds: a fixed function of the model and the task, never of the batch or free memory.

Fixed kernel shapes are what makes a window's paths bit-identical in any batch; free memory may only refuse.
"""

from __future__ import annotations

import psutil
import torch

from .config import ModelConfig, TokenizerConfig

_CPU_CONTEXT_TOKENS = 1536  # amortises reading the weights, fits a core's caches
_CPU_MIN_ROWS = 16
_GPU_CONTEXT_TOKENS = 1 << 16
_WIDE_BYTES = 4


class NotEnoughMemoryError(ValueError, MemoryError):
    """Generation would not fit into the free memory; the message has the numbers and what to change."""


def windows_per_chunk(config: ModelConfig, length: int, horizon: int, n_paths: int, device: str) -> int:
    """Windows per chunk; on a CPU at least 16 rows of decoding."""
    if device != "cpu":
        return max(1, _GPU_CONTEXT_TOKENS // max(length, n_paths))
    return max(-(-_CPU_MIN_ROWS // n_paths), min(16, _CPU_CONTEXT_TOKENS // length), 1)


def chunk_bytes(
    model: ModelConfig, tokenizer: TokenizerConfig, windows: int, length: int, horizon: int, n_paths: int
) -> int:
    """Upper estimate of the memory of one chunk at its peak: caches, activations, attention weights, logits."""
    width = max(model.d_model, tokenizer.d_model)
    inner = max(model.ff_dim, tokenizer.ff_dim)
    heads = max(model.n_heads, tokenizer.n_heads)
    paths = windows * n_paths
    layers = max(model.n_layers + 1, tokenizer.n_dec_layers)
    caches = 2 * layers * width * (windows * length + paths * horizon)
    activations = (8 * width + 4 * inner) * max(windows * length, paths * horizon)
    attention = 4 * heads * paths * horizon * (length + horizon)
    logits = 6 * paths * 2 ** max(model.s1_bits, model.s2_bits)
    return _WIDE_BYTES * (caches + activations + attention + logits)


def check_memory(need: int, device: torch.device) -> None:
    """Raise a NotEnoughMemoryError when ``need`` bytes would not fit; memory never changes the plan."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = psutil.virtual_memory().available
    if need > free:
        raise NotEnoughMemoryError(
            f"generation needs about {need / 2**30:.1f} GiB at once and {free / 2**30:.1f} GiB are free on {device}; "
            "use fewer paths, a shorter lookback or horizon, or fewer threads (torch.set_num_threads)"
        )
