"""Fast generation: one prefill per window, shared by its paths; fixed kernel shapes; keyed draws.

The four steps are those of :func:`_generate_chunk`: encode, prefill, draw and append, decode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .config import SamplingConfig
from .engine import ModelEngine, ModelState, TokenizerEngine
from .inputs import GenerationInputs, prepare
from .plan import windows_per_chunk
from .sampling import draw
from .tokenizer import KronosTokenizer
from .transformer import Kronos

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_threads_lock = threading.Lock()


@torch.inference_mode()
def generate(
    model: Kronos,
    tokenizer: KronosTokenizer,
    x: object,
    x_stamp: object,
    y_stamp: object,
    sampling: SamplingConfig,
    max_context: int = 512,
    *,
    keys: object = None,
    dtype: str | None = None,
) -> Tensor:
    """Draw possible futures of each window.

    Parameters
    ----------
    model, tokenizer : Kronos, KronosTokenizer
        In eval mode, on one device.
    x : array or tensor (B, L, 6)
        Normalised bars (:func:`kronos_qlib.kronos.normalise`), no NaN. L may exceed ``max_context``: all bars are
        encoded, the last ``max_context`` are attended to.
    x_stamp, y_stamp : integer arrays (B, L, 5), (B, H, 5)
        Minute, hour, weekday, day, month of the context and of the bars to come.
    sampling : SamplingConfig
    max_context : int
        Bars that the model attends to; the window slides past it and is recomputed exactly, the prefix once per
        window and step.
    keys : uint64 array (B,), optional
        Key of each window's randomness; default a hash of the window's bytes.
    dtype : {"float32", "bfloat16", "float64"}, optional
        Of the matrix products; the residual stream, norms, rotary tables and probabilities stay in float32 (float64).
        None: the dtype of the weights.

    Returns
    -------
    tensor (B, n_paths, H, 6), float32 (float64 for float64)
        Normalised bars on the model's device. The paths of a window depend on the window, its key, the settings, the
        device and the dtype, never on its batch mates or the number of threads.

    Raises
    ------
    ValueError
        Shapes that do not fit, NaN, a stamp out of range, networks in training mode or of different token widths.
    """
    inputs = prepare(model, tokenizer, x, x_stamp, y_stamp, sampling, max_context, keys)
    compute = inputs.dtype if dtype is None else _compute_dtype(dtype)
    engines = ModelEngine(model, compute), TokenizerEngine(tokenizer, compute)
    size = windows_per_chunk(model.config, inputs.x.shape[1], inputs.horizon, inputs.n_paths, inputs.x.device.type)
    starts = range(0, len(inputs.x), size)

    def run(start: int) -> Tensor:
        with torch.inference_mode():
            return _generate_chunk(*engines, inputs, sampling, max_context, start, size)

    return torch.cat(_map_chunks(run, starts, inputs.x.device)).to(inputs.out_dtype)


def _compute_dtype(dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _map_chunks(run: Callable[[int], Tensor], starts: range, device: torch.device) -> list[Tensor]:
    """Run chunks; on a CPU one thread each, so that no kernel's result depends on the number of threads."""
    if device.type != "cpu":
        return [run(start) for start in starts]
    with _threads_lock:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if threads == 1 or len(starts) == 1:
                return [run(start) for start in starts]
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(run, starts))
        finally:
            torch.set_num_threads(threads)


def _generate_chunk(
    model: ModelEngine,
    tokenizer: TokenizerEngine,
    inputs: GenerationInputs,
    sampling: SamplingConfig,
    max_context: int,
    start: int,
    size: int,
) -> Tensor:
    """Paths of ``size`` windows from ``start``, padded with the last window so that kernel shapes stay fixed."""
    rows = torch.arange(start, start + size, device=inputs.x.device).clamp(max=len(inputs.x) - 1)
    stamps = torch.cat((inputs.x_stamp[rows], inputs.y_stamp[rows]), dim=1)
    uniforms = inputs.uniforms[rows]
    # 1. encode the whole context, also what lies before max_context
    context = tokenizer.encode(inputs.x[rows])
    # 2. and 3. prefill, then draw and append
    paths = _draw_paths(model, context, stamps, uniforms, inputs, sampling, max_context)
    # 4. decode the last max_context tokens of context + paths
    length = context[0].shape[1]
    first = max(0, length + inputs.horizon - max_context)
    decoded = tokenizer.decode((context[0][:, first:], context[1][:, first:]), paths)
    return decoded[: len(inputs.x) - start]


def _draw_paths(
    model: ModelEngine,
    context: tuple[Tensor, Tensor],
    stamps: Tensor,
    uniforms: Tensor,
    inputs: GenerationInputs,
    sampling: SamplingConfig,
    max_context: int,
) -> tuple[Tensor, Tensor]:
    """Ids (W, n_paths, H) of every path."""
    length, horizon = context[0].shape[1], inputs.horizon
    shape = (len(uniforms), inputs.n_paths, horizon)
    times = model.embed_stamps(stamps)
    s1, s2 = context[0].new_empty(shape), context[1].new_empty(shape)
    hidden, state = _prefill(model, context, times, max(0, length - max_context), inputs)
    # before the paths part, one row of logits serves all of them
    hidden = hidden.unsqueeze(1)
    for step in range(horizon):
        if step > 0:
            new = slice(step - 1, step)
            if length + step > max_context:
                # past the limit the window slides and every cached state has seen a bar that is gone (trap 8)
                _, state = _prefill(model, context, times, length + step - max_context, inputs)
                new = slice(0, step)
            path_times = times[:, None, length + new.start : length + new.stop]
            hidden = model.advance(s1[:, :, new], s2[:, :, new], path_times, state)
        s1[:, :, step], s2[:, :, step] = _draw_token(model, hidden, state, uniforms[:, :, step], inputs, sampling)
    return s1, s2


def _prefill(
    model: ModelEngine, context: tuple[Tensor, Tensor], times: Tensor, first: int, inputs: GenerationInputs
) -> tuple[Tensor, ModelState]:
    """Run the context from bar ``first`` on."""
    length = context[0].shape[1]
    return model.start(
        context[0][:, first:], context[1][:, first:], times[:, first:length], inputs.n_paths, inputs.horizon
    )


def _draw_token(
    model: ModelEngine,
    hidden: Tensor,
    state: ModelState,
    uniforms: Tensor,
    inputs: GenerationInputs,
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor]:
    """Draw s1, then s2 given s1, for every path: ids (W, n_paths) twice."""
    shape = uniforms.shape[:2]
    # rows of logits: W while paths are together, W * n_paths after
    first = uniforms[..., 0].reshape(hidden.shape[0] * hidden.shape[1], -1)
    s1_logits = model.s1_logits(hidden).flatten(0, 1)
    s1 = draw(s1_logits, first, *sampling.filters("s1"), order=inputs.s1_order).view(shape)
    s2_logits = model.s2_logits(hidden, s1, state).flatten(0, 1)
    s2_order = None if inputs.s2_order is None else inputs.s2_order[s1.flatten()]
    s2 = draw(s2_logits, uniforms[..., 1].reshape(-1, 1), *sampling.filters("s2"), order=s2_order)
    return s1, s2.view(shape)
