"""KronosForecaster: windows of bars in, KlinePaths out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from kronos_qlib.forecast.calendar_choice import choose_calendar, frame_future, warn_off_calendar
from kronos_qlib.forecast.devices import check_dtype, pick_device
from kronos_qlib.forecast.frames import read_frame
from kronos_qlib.forecast.keys import window_keys
from kronos_qlib.forecast.paths import KlinePaths, window_index
from kronos_qlib.forecast.pretrained import load_pretrained
from kronos_qlib.kronos import Kronos, KronosTokenizer, SamplingConfig, denormalise, fingerprint, generate, normalise
from kronos_qlib.kronos.inputs import check_match
from kronos_qlib.kronos.plan import windows_per_chunk
from kronos_qlib.market.calendars import TradingCalendar, future_times
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.windows import WindowBatch, WindowPolicy, iter_windows, window_lengths

MIN_BARS = WindowPolicy.min_bars
_BATCH = 256
_CLOSE = BAR_FIELDS.index("close")
_logger = logging.getLogger(__name__)


class KronosForecaster:
    """A model, its tokenizer, and how to apply them to bars.

    Forecasts are made in eval mode, always (trap 1). The paths of a window depend on its bars, its instrument
    and date, the sampling, the device and the dtype; never on the windows beside it, their order, or the
    batch size.

    Parameters
    ----------
    model, tokenizer : Kronos, KronosTokenizer
        Moved to the device and put in eval mode, in place.
    lookback : int
        Most bars of a window. The z-score and the tokens use all of them.
    max_context : int
        Bars that the model attends to. Faster while lookback + horizon <= max_context; exact beyond as well.
    device : str
        ``"auto"``: CUDA, else MPS, else CPU.
    dtype : {"float32", "bfloat16"}
        Of the matrix products; bars come out as float32.
    card : mapping, optional
        The checkpoint's card: training span, cutoff, ...

    Raises
    ------
    ValueError
        Lengths that are no whole numbers >= 2, an unknown device or dtype, networks of different token
        widths.
    """

    def __init__(
        self,
        model: Kronos,
        tokenizer: KronosTokenizer,
        lookback: int = 512,
        max_context: int = 512,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        *,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        self.lookback = _whole(lookback, "lookback", 2)
        self.max_context = _whole(max_context, "max_context", 2)
        self.device = pick_device(device)
        self.dtype = check_dtype(dtype)
        self.card = dict(card or {})
        if model.training or tokenizer.training:
            _logger.warning("the networks were in training mode; they are in eval mode now, dropout is off")
        self.model = model.eval().to(self.device)
        self.tokenizer = tokenizer.eval().to(self.device)
        check_match(self.model, self.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        lookback: int | None = None,
        max_context: int | None = None,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        *,
        tokenizer_revision: str | None = None,
    ) -> Self:
        """Load a checkpoint.

        Parameters
        ----------
        model : folder, ``bundled:NAME`` or hub id.
        tokenizer : the same; None: the folder ``tokenizer`` in the model's folder, or beside it.
        revision, tokenizer_revision : commits to pin, for hub ids.
        lookback, max_context : None: the checkpoint's card, else a known checkpoint's name (Kronos-mini 2048;
            Kronos-small and Kronos-base 512), else 512 (trap 20).
        device, dtype : as in the constructor.

        Raises
        ------
        ValueError
            No such checkpoint, files that do not fit, no tokenizer found, settings out of range.
        """
        pick_device(device)
        check_dtype(dtype)
        found = load_pretrained(model, tokenizer, revision, tokenizer_revision)
        return cls(
            found.model,
            found.tokenizer,
            lookback=found.lookback if lookback is None else lookback,
            max_context=found.max_context if max_context is None else max_context,
            device=device,
            dtype=dtype,
            card=found.card,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of both networks' weights and configurations: ``"<model>-<tokenizer>"``."""
        return f"{fingerprint(self.model)}-{fingerprint(self.tokenizer)}"

    def forecast_frame(
        self,
        df: pd.DataFrame,
        horizon: int = 10,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        calendar: TradingCalendar | pd.DatetimeIndex | str | None = None,
        instrument: str = "",
        *,
        min_bars: int = MIN_BARS,
    ) -> KlinePaths:
        """Forecast one instrument from its last ``lookback`` bars.

        Parameters
        ----------
        df : DataFrame
            Bars, oldest first: open, high, low, close, and volume and amount if there (missing ones by the
            original's rule, :func:`kronos_qlib.forecast.frames.complete_bars`); strictly ascending
            DatetimeIndex.
        horizon : bars to forecast, below ``max_context``.
        sampling : None: the defaults of SamplingConfig.
        calendar : a calendar, its name (``"XSHG"``, ``"XNYS"``, ``"24/7"``), or the stamps to come as a
        DatetimeIndex.
            None: Shanghai's if ``instrument`` is a Chinese code, else an error.
        instrument : name in the result's index; also part of the randomness' key.
        min_bars : fewest bars to forecast from.

        Returns
        -------
        KlinePaths with one window, dated the last bar.

        Raises
        ------
        ValueError
            Bad bars (see :func:`kronos_qlib.forecast.frames.read_frame`), no calendar, settings out of range.
        """
        horizon, sampling = self.check_request(horizon, sampling)
        min_bars = min(_whole(min_bars, "min_bars", 2), self.lookback)
        values, times = read_frame(df, lookback=self.lookback, min_bars=min_bars)
        future = frame_future(calendar, times, instrument, horizon)
        stamps = time_stamps(times)
        return self._forecast(values[None], stamps[None], future[None], times[-1:], [instrument], sampling)

    def forecast_batches(
        self,
        panel: BarPanel,
        rows: NDArray[np.int64],
        *,
        policy: WindowPolicy | None = None,
        horizon: int = 10,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        calendar: TradingCalendar | str | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Iterator[tuple[NDArray[np.int64], KlinePaths]]:
        """Forecast many windows of a panel, batch by batch; memory is bounded by the batch.

        Parameters
        ----------
        panel : bars of all instruments.
        rows : int64 (n,), panel row of each window's last bar; -1 (no bar) is left out.
        policy : None: WindowPolicy with this forecaster's lookback.
        horizon, sampling : as in ``forecast_frame``.
        calendar : a calendar or its name; None: Shanghai's if all instruments are Chinese codes, else an
        error. batch_size : windows a batch; None: about 256, a multiple of what the generator works on at
        once. progress : a progress bar, which stays off when the output is no terminal.

        Yields
        ------
        positions, paths : int64 (B,), where the windows stand in ``rows``; their KlinePaths.
            Windows of one length come together, longest first. Positions of rows without a window never
            appear.

        Raises
        ------
        ValueError
            At the call: settings out of range, no calendar, rows outside the panel.
        """
        horizon, sampling = self.check_request(horizon, sampling)
        policy = WindowPolicy.up_to(self.lookback) if policy is None else policy
        rows = np.asarray(rows, dtype=np.int64)
        n_windows = int((window_lengths(panel, rows, policy) > 0).sum())
        if n_windows == 0:
            return iter(())
        chosen = choose_calendar(calendar, plain_calendar(panel), list(panel.instruments))
        warn_off_calendar(chosen, panel.timestamps[rows[rows >= 0]])
        size = self._batch_size(policy.lookback, horizon, sampling) if batch_size is None else batch_size
        batches = iter_windows(panel, rows, policy, _whole(size, "batch_size", 1))
        return self._forecast_all(batches, n_windows, horizon, sampling, chosen, progress)

    def _forecast_all(
        self,
        batches: Iterator[WindowBatch],
        n_windows: int,
        horizon: int,
        sampling: SamplingConfig,
        calendar: TradingCalendar,
        progress: bool,
    ) -> Iterator[tuple[NDArray[np.int64], KlinePaths]]:
        with tqdm(total=n_windows, desc="forecast", unit="window", disable=None if progress else True) as bar:
            for batch in batches:
                future = future_times(calendar, batch.timestamps, horizon)
                paths = self._forecast(
                    batch.values, batch.stamps, future, batch.timestamps, batch.instruments, sampling
                )
                bar.update(len(paths))
                yield batch.positions, paths

    def _forecast(
        self,
        values: NDArray[np.float32],
        stamps: NDArray[np.int64],
        future: NDArray[np.datetime64],
        timestamps: NDArray[np.datetime64],
        instruments: list[str],
        sampling: SamplingConfig,
    ) -> KlinePaths:
        """Normalise by the context alone (trap 5), generate, go back to the bars' units."""
        x, center, scale = normalise(values)
        future_stamps = time_stamps(future.reshape(-1)).reshape(*future.shape, -1)
        drawn = generate(
            self.model,
            self.tokenizer,
            x,
            stamps,
            future_stamps,
            sampling,
            self.max_context,
            keys=window_keys(instruments, timestamps),
            dtype=self.dtype,
        )
        z = drawn.cpu().numpy()
        return KlinePaths(
            values=denormalise(z, center[:, None], scale[:, None]),
            index=window_index(timestamps, instruments),
            last_close=values[:, -1, _CLOSE].copy(),
            center=center[:, 0],
            scale=scale[:, 0],
            timestamps=future,
        )

    def check_request(
        self, horizon: int, sampling: SamplingConfig | Mapping[str, Any] | None
    ) -> tuple[int, SamplingConfig]:
        """Return both checked and complete; a ``ValueError`` where they are not possible with this forecaster."""
        steps = _whole(horizon, "horizon", 1)
        if steps >= self.max_context:
            raise ValueError(f"found horizon={steps}; expected less than max_context={self.max_context}")
        if sampling is None:
            return steps, SamplingConfig()
        if isinstance(sampling, Mapping):
            return steps, SamplingConfig(**sampling)
        if not isinstance(sampling, SamplingConfig):
            raise ValueError(
                f"found sampling of type {type(sampling).__name__}; expected a SamplingConfig or a mapping of its keys"
            )
        return steps, sampling

    def _batch_size(self, lookback: int, horizon: int, sampling: SamplingConfig) -> int:
        """Windows that keep every thread busy with whole chunks; no result depends on it."""
        chunk = windows_per_chunk(self.model.config, lookback, horizon, sampling.n_paths, self.device.type)
        at_once = chunk * (torch.get_num_threads() if self.device.type == "cpu" else 1)
        return at_once * max(1, _BATCH // at_once)


def plain_calendar(panel: BarPanel) -> NDArray[np.datetime64]:
    """Return the panel's calendar as datetime64[ns]."""
    return panel.calendar.to_numpy().astype("datetime64[ns]")


def _whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"found {name}={value!r}; expected a whole number of at least {least}")
    return int(value)
