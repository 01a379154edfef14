"""Windows with the events of their bars, for the report on a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from kronos_qlib.kronos.normalise import normalise
from kronos_qlib.market.adjust import adjust_bars
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.events import event_bits
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.reading import read_bars
from kronos_qlib.market.store_files import without_indices
from kronos_qlib.market.windows import WindowPolicy, window_lengths


def read_event_panel(
    files: list[Path], *, calendar: str = "XSHG", freq: str = "day", region: str = "cn", instrument: str | None = None
) -> BarPanel:
    """Read bars of files in the vendor format with their events, indices left out, prices adjusted.

    Raises
    ------
    ValueError : a file that cannot be read, an unknown calendar or region, indices only.
    """
    bars = without_indices(read_bars(files, instrument=instrument), region).reset_index(drop=True)
    if bars.empty:
        raise ValueError(f"{', '.join(path.name for path in files)} hold no bar of an instrument that is no index")
    known = get_calendar(calendar, freq).between(bars["datetime"].min(), bars["datetime"].max())
    sessions = known.union(pd.DatetimeIndex(bars["datetime"].unique()).as_unit("ns"))
    bars["event"] = event_bits(bars, calendar=sessions, region=region)
    if "factor" in bars.columns:
        bars = adjust_bars(bars)
    return BarPanel.from_frame(bars, calendar=sessions)


def choose_ends(
    panel: BarPanel,
    policy: WindowPolicy,
    *,
    horizon: int,
    start: str | None = None,
    end: str | None = None,
    n_windows: int = 2_000,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Draw last rows of whole windows of lookback + horizon bars, whose last bar is dated ``start`` to ``end``.

    Returns
    -------
    int64 (n,), ascending, without repetition, at most ``n_windows``.

    Raises
    ------
    ValueError : no such window.
    """
    length = policy.lookback + horizon
    whole = policy.of_length(length)
    chosen = np.ones(len(panel), dtype=bool)
    if start is not None:
        chosen &= panel.timestamps >= np.datetime64(pd.Timestamp(start))
    if end is not None:  # the whole day
        chosen &= panel.timestamps < np.datetime64(pd.Timestamp(end).normalize() + pd.Timedelta(days=1))
    rows = np.flatnonzero(chosen)
    rows = rows[window_lengths(panel, rows, whole) == length]
    if len(rows) == 0:
        raise ValueError(
            f"no window of {length} bars ends between {start or 'the first bar'} and {end or 'the last'}; take a "
            "longer span, a shorter lookback or more bars"
        )
    if len(rows) > n_windows:
        rows = np.sort(np.random.default_rng(seed).choice(rows, n_windows, replace=False))
    return rows


def event_windows(
    panel: BarPanel, ends: NDArray[np.int64], *, lookback: int, horizon: int, batch_size: int = 256
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Yield windows (B, L + H, 6), normalised by their first L bars and clipped, and the event bits (B, L + H)."""
    for begin in range(0, len(ends), batch_size):
        index = ends[begin : begin + batch_size, None] + np.arange(1 - lookback - horizon, 1)
        x, _, _ = normalise(panel.values[index], context=lookback)
        yield torch.from_numpy(x), panel.events[index]
