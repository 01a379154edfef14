"""The original ``KronosPredictor``'s interface on our engine: change the import, keep the code.

What differs from the original, on purpose: networks are always in eval mode (trap 1); results repeat, since
draws come from a seed and the window's bars instead of torch's global generator (trap 13); ``top_k`` and
``top_p`` both apply, and ``T=0`` is greedy (trap 7); a DatetimeIndex is accepted beside a Series of times;
``predict_batch`` takes contexts of unequal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from kronos_qlib.forecast.devices import pick_device
from kronos_qlib.forecast.frames import complete_bars
from kronos_qlib.kronos import Kronos, KronosTokenizer, SamplingConfig, denormalise, generate_tokens, normalise
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.stamps import time_stamps

Times = pd.Series | pd.DatetimeIndex


class KronosPredictor:
    """Forecast single frames or lists of them, averaged over samples, as the original does.

    A mean over samples is no path: its high and low are no range (trap 6). ``KronosForecaster`` keeps the
    paths.

    Parameters
    ----------
    model, tokenizer : Kronos, KronosTokenizer
        Moved to the device and put in eval mode, in place.
    device : None: CUDA, else MPS, else CPU.
    max_context : bars that the model attends to.
    clip : z-scores of the context are clipped to ±clip.
    seed : of the sampled draws.
    """

    def __init__(
        self,
        model: Kronos,
        tokenizer: KronosTokenizer,
        device: str | torch.device | None = None,
        max_context: int = 512,
        clip: float = 5,
        *,
        seed: int = 0,
    ) -> None:
        self.device = pick_device("auto" if device is None else device)
        self.model = model.eval().to(self.device)
        self.tokenizer = tokenizer.eval().to(self.device)
        self.max_context = max_context
        self.clip = clip
        self.seed = seed

    def predict(
        self,
        df: pd.DataFrame,
        x_timestamp: Times,
        y_timestamp: Times,
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
    ) -> pd.DataFrame:
        """Forecast ``pred_len`` bars after those of ``df``.

        Parameters
        ----------
        df : open, high, low, close; volume and amount if there (see ``complete_bars``). No NaN.
        x_timestamp, y_timestamp : times of these bars and of those to come, Series or DatetimeIndex.
        pred_len : number of bars to come.
        T, top_k, top_p : sampling; T = 0 is greedy.
        sample_count : paths to average over.
        verbose : a progress bar, which stays off when the output is no terminal.

        Returns
        -------
        DataFrame, float32, columns ``BAR_FIELDS``, indexed by ``y_timestamp``, in the units of ``df``.

        Raises
        ------
        ValueError
            Not a frame, missing columns, NaN, lengths that do not fit, settings out of range.
        """
        batch = self.predict_batch([df], [x_timestamp], [y_timestamp], pred_len, T, top_k, top_p, sample_count, verbose)
        return batch[0]

    def predict_batch(
        self,
        df_list: Sequence[pd.DataFrame],
        x_timestamp_list: Sequence[Times],
        y_timestamp_list: Sequence[Times],
        pred_len: int,
        T: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.9,
        sample_count: int = 1,
        verbose: bool = True,
    ) -> list[pd.DataFrame]:
        """Forecast many frames; each result equals ``predict`` of that frame alone.

        Parameters are lists of those of ``predict``, of one length. The original refuses contexts of unequal
        lengths; here frames of one length are generated together, and the results come in the order of
        ``df_list``.
        """
        given = (df_list, x_timestamp_list, y_timestamp_list)
        if not all(isinstance(part, list | tuple) for part in given):
            raise ValueError("df_list, x_timestamp_list and y_timestamp_list must be lists or tuples")
        if len({len(part) for part in given}) != 1:
            raise ValueError(
                f"found {len(df_list)} frames, {len(x_timestamp_list)} and {len(y_timestamp_list)} series of times; "
                "expected equally many"
            )
        sampling = SamplingConfig(temperature=T, top_k=top_k, top_p=top_p, n_paths=sample_count, seed=self.seed)
        windows = [_window(*parts, pred_len, f"frame {i}") for i, parts in enumerate(zip(*given, strict=True))]
        lengths = np.array([len(values) for values, _, _ in windows], dtype=np.int64)
        results: dict[int, NDArray[np.float32]] = {}
        with tqdm(total=len(windows), desc="predict", unit="frame", disable=None if verbose else True) as bar:
            for length in np.unique(lengths):
                positions = np.flatnonzero(lengths == length)
                means = self._mean_forecast([windows[i] for i in positions], sampling)
                results.update(zip(positions.tolist(), means, strict=True))
                bar.update(len(positions))
        return [
            pd.DataFrame(results[i], columns=list(BAR_FIELDS), index=pd.Index(y_timestamp_list[i]))
            for i in range(len(windows))
        ]

    def _mean_forecast(self, windows: list[Any], sampling: SamplingConfig) -> NDArray[np.float32]:
        """Mean over paths of windows of one length, float32 (B, pred_len, 6)."""
        values, x_stamp, y_stamp = zip(*windows, strict=True)
        x, center, scale = (np.stack(parts) for parts in zip(*map(self._normalise, values), strict=True))
        tokens = generate_tokens(
            self.model, self.tokenizer, x, np.stack(x_stamp), np.stack(y_stamp), sampling, self.max_context
        )
        mean = np.stack([self._decode(*window) for window in zip(*tokens, strict=True)])
        return denormalise(mean, center, scale).astype(np.float32)

    @torch.inference_mode()
    def _decode(
        self, context_s1: torch.Tensor, context_s2: torch.Tensor, s1: torch.Tensor, s2: torch.Tensor
    ) -> NDArray[np.float32]:
        """Mean bars (pred_len, 6) of one window's paths, each decoded whole as the original does.

        The decoder behind ``generate`` shares the prefix and is faster, but rounds differently in the last bits, which
        show where a volume is small beside its window's mean.
        """
        n_paths, horizon = s1.shape
        whole = [
            torch.cat((context.expand(n_paths, -1), drawn), dim=1)[:, -self.max_context :]
            for context, drawn in ((context_s1, s1), (context_s2, s2))
        ]
        return self.tokenizer.decode(*whole)[:, -horizon:].cpu().numpy().mean(axis=0)

    def _normalise(self, values: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Z-score one window, columns contiguous as pandas gives them to the original: equal to the last bit."""
        return normalise(np.asfortranarray(values), clip=self.clip)


def _window(
    frame: pd.DataFrame, x_timestamp: Times, y_timestamp: Times, pred_len: int, where: str
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Values (L, 6), stamps of the context (L, 5) and of the bars to come (pred_len, 5)."""
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{where} is a {type(frame).__name__}; expected a pandas DataFrame")
    bars = complete_bars(frame, where)
    incomplete = ~np.isfinite(bars.to_numpy()).all(axis=1)
    if incomplete.any():
        raise ValueError(
            f"{where} has NaN or infinity in {int(incomplete.sum())} bars, first at row "
            f"{int(np.flatnonzero(incomplete)[0])}; drop or repair them first"
        )
    x_stamp, y_stamp = (_stamps(times, where) for times in (x_timestamp, y_timestamp))
    if len(x_stamp) != len(bars) or len(y_stamp) != pred_len:
        raise ValueError(
            f"{where} has {len(bars)} bars, {len(x_stamp)} times of them and {len(y_stamp)} to come; "
            f"expected one time a bar and pred_len={pred_len} to come"
        )
    return bars.to_numpy(dtype=np.float32), x_stamp, y_stamp


def _stamps(times: Times, where: str) -> NDArray[np.int64]:
    if not isinstance(times, pd.Series | pd.DatetimeIndex):
        raise ValueError(f"times of {where} are a {type(times).__name__}; expected a Series or a DatetimeIndex")
    try:
        return time_stamps(pd.DatetimeIndex(times))
    except (TypeError, ValueError) as error:
        raise ValueError(f"times of {where} cannot be read: {error}") from error
