"""Fast generation: one prefill per window, shared by its paths; fixed kernel shapes; keyed draws.

Four steps a chunk of windows: encode, prefill, draw and append, decode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .config import SamplingConfig
from .engine import ModelEngine, ModelState, TokenizerEngine, wide_dtype
from .inputs import GenerationInputs, prepare
from .plan import check_memory, chunk_bytes, windows_per_chunk
from .sampling import draw
from .threads import map_side_by_side, one_thread_kernels
from .tokenizer import KronosTokenizer
from .transformer import Kronos

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
TokenPair = tuple[Tensor, Tensor]
R = TypeVar("R", Tensor, tuple[Tensor, Tensor, Tensor, Tensor])


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

    def decode(coder: TokenizerEngine, context: TokenPair, paths: TokenPair) -> Tensor:
        # the last max_context tokens of context + paths, the shared part once per window
        first = max(0, context[0].shape[1] + paths[0].shape[2] - max_context)
        return coder.decode((context[0][:, first:], context[1][:, first:]), paths)

    bars = _map_chunks(model, tokenizer, (x, x_stamp, y_stamp), sampling, max_context, keys, dtype, decode)
    return torch.cat(bars).to(wide_dtype(bars[0].dtype))


@torch.inference_mode()
def generate_tokens(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tokens that :func:`generate` decodes, with the same parameters.

    Returns
    -------
    context_s1, context_s2, s1, s2
        Ids of the context, int64 (B, L) twice, and of the paths, int64 (B, n_paths, H) twice.
    """

    def keep(coder: TokenizerEngine, context: TokenPair, paths: TokenPair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (*context, *paths)

    parts = _map_chunks(model, tokenizer, (x, x_stamp, y_stamp), sampling, max_context, keys, dtype, keep)
    context_s1, context_s2, s1, s2 = (torch.cat(column) for column in zip(*parts, strict=True))
    return context_s1, context_s2, s1, s2


def _compute_dtype(dtype: str | None, weights: torch.dtype) -> torch.dtype:
    if dtype is None:
        return weights
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _map_chunks(
    model: Kronos,
    tokenizer: KronosTokenizer,
    windows: tuple[object, object, object],
    sampling: SamplingConfig,
    max_context: int,
    keys: object,
    dtype: str | None,
    finish: Callable[[TokenizerEngine, TokenPair, TokenPair], R],
) -> list[R]:
    """Draw the paths of every chunk of windows and apply ``finish`` to (context tokens, path tokens)."""
    device = next(model.parameters()).device
    with one_thread_kernels(device) as threads:
        inputs = prepare(model, tokenizer, *windows, sampling, max_context, keys)
        compute = _compute_dtype(dtype, inputs.dtype)
        engine, coder = ModelEngine(model, compute), TokenizerEngine(tokenizer, compute)
        count, length, horizon = len(inputs.x), inputs.x.shape[1], inputs.horizon
        size = windows_per_chunk(model.config, length, horizon, inputs.n_paths, device.type)
        starts = range(0, count, size)
        workers = min(threads, len(starts))
        need = chunk_bytes(model.config, tokenizer.config, size, length, horizon, inputs.n_paths)
        check_memory(workers * need, device)

        def run(start: int) -> R:
            with torch.inference_mode():
                # padded with the last window, so that kernel shapes stay fixed
                rows = torch.arange(start, start + size, device=device).clamp_(max=count - 1)
                context, paths = _generate_chunk(engine, coder, inputs, rows, sampling, max_context)
                return _first(finish(coder, context, paths), count - start)

        return map_side_by_side(run, starts, workers)


def _first(result: R, count: int) -> R:
    """Drop the rows of padding."""
    if isinstance(result, Tensor):
        return result[:count]
    return tuple(part[:count] for part in result)  # type: ignore[return-value]


def _generate_chunk(
    model: ModelEngine,
    coder: TokenizerEngine,
    inputs: GenerationInputs,
    rows: Tensor,
    sampling: SamplingConfig,
    max_context: int,
) -> tuple[TokenPair, TokenPair]:
    """Context and path tokens of the windows ``rows``."""
    stamps = torch.cat((inputs.x_stamp[rows], inputs.y_stamp[rows]), dim=1)
    # encode the whole context, also what lies before max_context
    context = coder.encode(inputs.x[rows])
    return context, _draw_paths(model, context, stamps, inputs.uniforms[rows], inputs, sampling, max_context)


def _draw_paths(
    model: ModelEngine,
    context: TokenPair,
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
    model: ModelEngine, context: TokenPair, times: Tensor, first: int, inputs: GenerationInputs
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
