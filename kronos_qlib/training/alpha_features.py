"""What the alpha head sees: hidden states of a frozen Kronos at the last bars of a window, computed once and kept.

A row's features use the bars of its window, all dated at or before the row, and nothing else: not the rows beside it,
not the batch size, not the number of threads.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from kronos_qlib.kronos import Kronos, KronosTokenizer, fingerprint, normalise
from kronos_qlib.kronos.engine import ModelEngine, SuffixCache, TokenizerEngine
from kronos_qlib.kronos.generate import DTYPES
from kronos_qlib.kronos.inputs import check_match
from kronos_qlib.kronos.plan import windows_per_chunk
from kronos_qlib.kronos.threads import map_side_by_side, one_thread_kernels
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.swap import whole_file
from kronos_qlib.market.windows import WindowBatch, WindowPolicy, iter_windows, window_lengths

POOLED_BARS = 10
BLOCK_ROWS = 8192
BATCH_WINDOWS = 1024
FEATURES_VERSION = "1"


@dataclass(frozen=True)
class FeatureSettings:
    """How hidden states become features.

    Attributes
    ----------
    policy : WindowPolicy
    max_context : bars that the model attends to; the z-score and the tokens use the whole window.
    pooled_bars : the second half of the features is the mean over this many last bars (fewer in a shorter window).
    dtype : of the matrix products, ``float32`` or ``bfloat16``; features come out as float32.
    """

    policy: WindowPolicy
    max_context: int = 512
    pooled_bars: int = POOLED_BARS
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"found dtype {self.dtype!r}; expected 'float32' or 'bfloat16'")
        for name in ("max_context", "pooled_bars"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"found {name}={value!r}; expected a whole number of at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types."""
        return {**asdict(self), "version": FEATURES_VERSION}


def feature_width(model: Kronos) -> int:
    """Columns of the features: the last hidden state, then the mean of the last ones."""
    return 2 * model.config.d_model


def hidden_features(
    model: Kronos,
    tokenizer: KronosTokenizer,
    panel: BarPanel,
    rows: npt.NDArray[np.int64],
    settings: FeatureSettings,
    *,
    progress: bool = False,
) -> npt.NDArray[np.float32]:
    """Compute the features of the windows that end at some rows of a panel.

    Parameters
    ----------
    model, tokenizer : in eval mode, on one device.
    panel, rows : bars, and the row of each window's last bar; -1 has no window.

    Returns
    -------
    float32 (n, 2 * d_model)
        Hidden state (after the last norm) of the last bar, and mean over the last ``pooled_bars`` bars. NaN where the
        policy gives no window.

    Raises
    ------
    ValueError : networks in training mode or of different token widths, rows outside the panel.
    """
    check_match(model, tokenizer)
    rows = np.asarray(rows, dtype=np.int64)
    out = np.full((len(rows), feature_width(model)), np.nan, dtype=np.float32)
    compute = DTYPES[settings.dtype]
    with torch.inference_mode():
        engines = ModelEngine(model, compute), TokenizerEngine(tokenizer, compute)
    count = int((window_lengths(panel, rows, settings.policy) > 0).sum())
    with tqdm(total=count, desc="hidden states", unit="window", disable=None if progress else True) as bar:
        for batch in iter_windows(panel, rows, settings.policy, BATCH_WINDOWS):
            out[batch.positions] = _batch_features(*engines, batch, settings)
            bar.update(len(batch.rows))
    return out


def _batch_features(
    model: ModelEngine, tokenizer: TokenizerEngine, batch: WindowBatch, settings: FeatureSettings
) -> npt.NDArray[np.float32]:
    device = model.norm.device
    bars, stamps = torch.from_numpy(normalise(batch.values)[0]).to(device), torch.from_numpy(batch.stamps).to(device)
    last = slice(-settings.max_context, None)

    def run(chosen: Tensor) -> Tensor:
        s1, s2 = tokenizer.encode(bars[chosen])
        return pool(last_hidden(model, s1[:, last], s2[:, last], stamps[chosen][:, last], settings.pooled_bars))

    return map_chunks(run, len(bars), windows_per_chunk(model.model.config, bars.shape[1], 1, 1, device.type), device)


def map_chunks(run: Callable[[Tensor], Tensor], count: int, size: int, device: torch.device) -> npt.NDArray[Any]:
    """Apply ``run`` to positions 0 ... count - 1, always ``size`` at a time, so that kernel shapes never vary."""

    def chunk(start: int) -> Tensor:
        with torch.inference_mode():
            # padded with the last window
            return run(torch.arange(start, start + size, device=device).clamp_(max=count - 1))[: count - start]

    with one_thread_kernels(device) as threads:
        starts = range(0, count, size)
        parts = map_side_by_side(chunk, starts, min(threads, len(starts)))
    return torch.cat(parts).cpu().numpy()


def last_hidden(model: ModelEngine, s1: Tensor, s2: Tensor, stamps: Tensor, bars: int) -> Tensor:
    """Hidden states of the last ``bars`` bars, (W, min(bars, L), d): the last block runs for these alone."""
    x = model.embed(s1, s2, model.embed_stamps(stamps))
    for block in model.blocks[:-1]:
        x, _ = block.prefix(x)
    first = x.shape[1] - bars
    if first <= 0:
        x, _ = model.blocks[-1].prefix(x)
    else:
        _, cache = model.blocks[-1].prefix(x[:, :first], keys_only=True)
        own = x[:, None, first:]
        x = model.blocks[-1].suffix(own, cache, SuffixCache.empty(cache, 1, bars), 0)[:, 0]
    return model._final_norm(x)


def pool(hidden: Tensor) -> Tensor:
    """Last state and mean over the states: (W, T, d) to (W, 2 d)."""
    return torch.cat((hidden[:, -1], hidden.mean(dim=1)), dim=-1).float()


def cached_features(
    folder: str | Path | None,
    model: Kronos,
    tokenizer: KronosTokenizer,
    panel: BarPanel,
    rows: npt.NDArray[np.int64],
    settings: FeatureSettings,
    *,
    progress: bool = False,
) -> npt.NDArray[np.float32]:
    """Features as :func:`hidden_features`, kept in a folder and read from there when everything agrees.

    The name is a hash of the weights, the settings, the panel's bars and the rows: nothing stale is ever read. Work
    is kept in blocks of rows, so a run that was killed goes on where it was.

    Parameters
    ----------
    folder : where features are kept; None: they are computed and not kept.

    Returns
    -------
    float32 (n, 2 * d_model), memory-mapped and read-only where a folder is given.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if folder is None:
        return hidden_features(model, tokenizer, panel, rows, settings, progress=progress)
    key = features_key(model, tokenizer, panel, rows, settings)
    place = Path(folder).expanduser()
    final, parts = place / f"{key}.npy", place / f"{key}.parts"
    if not final.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        starts = range(0, max(len(rows), 1), BLOCK_ROWS)
        blocks = [parts / f"{start:012d}.npy" for start in starts]
        with tqdm(total=len(rows), desc="hidden states", unit="row", disable=None if progress else True) as bar:
            for start, block in zip(starts, blocks, strict=True):
                some = rows[start : start + BLOCK_ROWS]
                if not block.is_file():
                    _write_array(block, hidden_features(model, tokenizer, panel, some, settings))
                bar.update(len(some))
        _join(final, blocks, len(rows), feature_width(model))
        shutil.rmtree(parts)
    return np.load(final, mmap_mode="r")


def features_key(
    model: Kronos,
    tokenizer: KronosTokenizer,
    panel: BarPanel,
    rows: npt.NDArray[np.int64],
    settings: FeatureSettings,
) -> str:
    """Hash of all that features depend on, 24 hex digits."""
    digest = hashlib.sha256(json.dumps(settings.to_dict(), sort_keys=True).encode())
    digest.update(f"{fingerprint(model)}-{fingerprint(tokenizer)}".encode())
    calendar = panel.calendar.to_numpy().astype("datetime64[ns]").view(np.int64)
    for array in (panel.offsets, panel.session, panel.values, calendar, rows):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:24]


def _write_array(path: Path, values: npt.NDArray[np.float32]) -> None:
    """Write beside the place and move there: a file that exists is whole."""
    with whole_file(path) as part, part.open("wb") as file:
        np.save(file, values)


def _join(path: Path, blocks: list[Path], count: int, width: int) -> None:
    with whole_file(path) as part:
        whole = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=(count, width))
        start = 0
        for block in blocks:
            values = np.load(block)
            whole[start : start + len(values)] = values
            start += len(values)
        whole.flush()
