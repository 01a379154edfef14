"""Where the network runs, and in which precision."""

from __future__ import annotations

import torch

from kronos_qlib.kronos.config import check_keys

DTYPES = ("float32", "bfloat16")


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to use.

    Parameters
    ----------
    device : ``"auto"`` (CUDA, else Apple's MPS, else the CPU), or a torch device such as ``"cuda:1"``.

    Raises
    ------
    ValueError : not a device, or one that this machine lacks.
    """
    if isinstance(device, str) and device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"found device {device!r}; expected 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (found.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(found.type, False):
        raise ValueError(f"device {str(found)!r} is not available on this machine; use 'auto' or 'cpu'")
    return found


def check_dtype(dtype: str) -> str:
    """Return ``dtype``, or raise a ValueError that names the known ones."""
    if not isinstance(dtype, str):
        raise ValueError(f"found dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    check_keys([dtype], DTYPES, "dtype of the forecaster")
    return dtype
