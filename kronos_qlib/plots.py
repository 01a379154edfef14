"""Pictures of forecasts and backtests: candlesticks with a fan of futures, IC over time, cumulative return.

Every function returns a :class:`matplotlib.figure.Figure` of its own and leaves pyplot's global state alone,
so that a batch job without a screen and a notebook use the same code. Nothing here computes a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from kronos_qlib.market.fields import PRICE_FIELDS
from kronos_qlib.market.report import format_stamp

if TYPE_CHECKING:
    from kronos_qlib.forecast.paths import KlinePaths

RISE, FALL, FORECAST = "#c0392b", "#1e8449", "#1f4e79"  # red rises and green falls, as on Chinese screens
FAN = ((0.05, 0.95, 0.15), (0.25, 0.75, 0.30))  # lower quantile, upper quantile, opacity
BODY = 0.6  # width of a candle's body, in bars
MAX_TICKS = 8


def draw_candles(axes: Axes, bars: pd.DataFrame, positions: npt.NDArray[np.float64]) -> None:
    """Draw one candle a row of ``bars`` (columns open, high, low, close) at the given x positions."""
    missing = [name for name in PRICE_FIELDS if name not in bars.columns]
    if missing:
        raise ValueError(f"candlesticks need the columns {list(PRICE_FIELDS)}; missing: {missing}")
    opening, high, low, close = (bars[name].to_numpy(dtype=np.float64) for name in PRICE_FIELDS)
    rising = close >= opening
    for chosen, colour in ((rising, RISE), (~rising, FALL)):
        axes.vlines(positions[chosen], low[chosen], high[chosen], color=colour, linewidth=0.8)
        bottom = np.minimum(opening, close)[chosen]
        axes.bar(positions[chosen], np.abs(close - opening)[chosen], BODY, bottom=bottom, color=colour)


def draw_fan(axes: Axes, closes: npt.NDArray[np.float64], last_close: float, start: float) -> None:
    """Draw quantile bands, the median and each path of ``closes`` (path, step), from the last close on."""
    anchored = np.column_stack([np.full(len(closes), last_close), closes])
    positions = start + np.arange(anchored.shape[1])
    for lower, upper, opacity in FAN:
        low, high = np.quantile(anchored, [lower, upper], axis=0)
        label = f"{lower:.0%} to {upper:.0%} of paths"
        axes.fill_between(positions, low, high, color=FORECAST, alpha=opacity, linewidth=0, label=label)
    axes.plot(positions, anchored.T, color=FORECAST, alpha=0.12, linewidth=0.6)
    axes.plot(positions, np.median(anchored, axis=0), color=FORECAST, linewidth=1.6, label="median of paths")


def plot_forecast(
    history: pd.DataFrame,
    paths: KlinePaths,
    *,
    window: int = 0,
    shown_bars: int = 60,
    actual: pd.DataFrame | None = None,
    title: str = "",
) -> Figure:
    """Draw the last bars of an instrument as candlesticks and the sampled futures as a fan.

    Parameters
    ----------
    history : bars of one instrument up to the forecast's date, indexed by time, in the units of the paths.
    paths : forecast; window ``window`` of it is drawn.
    shown_bars : how many of the last bars to draw.
    actual : the bars that really followed (same columns), drawn as candles behind the fan; not needed.

    Raises
    ------
    ValueError : no bars, a missing price column, or a window that the forecast does not have.
    """
    if not len(history):
        raise ValueError("no bars to draw: history is empty")
    if not 0 <= window < len(paths.values):
        raise ValueError(f"window {window} does not exist: the forecast has {len(paths.values)} windows")
    shown = history.iloc[-shown_bars:]
    closes = np.asarray(paths.values[window, :, :, PRICE_FIELDS.index("close")], dtype=np.float64)
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    draw_candles(axes, shown, np.arange(len(shown), dtype=np.float64))
    if actual is not None and len(actual):
        followed = actual.iloc[: closes.shape[1]]
        draw_candles(axes, followed, len(shown) + np.arange(len(followed), dtype=np.float64))
    draw_fan(axes, closes, float(paths.last_close[window]), len(shown) - 1)
    stamps = pd.DatetimeIndex(np.concatenate([shown.index.to_numpy(), np.asarray(paths.timestamps[window])]))
    _label_times(axes, stamps)
    axes.axvline(len(shown) - 0.5, color="grey", linewidth=0.8, linestyle=":")
    when = pd.DatetimeIndex(paths.index.get_level_values("datetime"))[window]
    instrument = paths.index.get_level_values("instrument")[window]
    axes.set_title(title or f"{instrument}: {len(closes)} futures after {format_stamp(when)}")
    axes.set_ylabel("price")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def _label_times(axes: Axes, stamps: pd.DatetimeIndex) -> None:
    """Put dates (and times of intraday bars) under positions: bars are drawn without gaps for closed days."""
    intraday = bool((stamps != stamps.normalize()).any())
    chosen = np.unique(np.linspace(0, len(stamps) - 1, MAX_TICKS).round().astype(int))
    axes.set_xticks(chosen, [f"{stamps[i]:%m-%d %H:%M}" if intraday else f"{stamps[i]:%Y-%m-%d}" for i in chosen])
    axes.tick_params(axis="x", labelsize=8)


def plot_ic(daily: Mapping[str, pd.Series], *, cutoff: pd.Timestamp | None = None, window: int = 20) -> Figure:
    """Draw daily information coefficients: rolling mean above, running sum below.

    Parameters
    ----------
    daily : name → IC by day, in plain correlation units, indexed by date; NaN days are left out.
    cutoff : last day of the checkpoint's training data, drawn as a line when it lies inside the days.
    window : days in the rolling mean.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, series in daily.items():
        known = series.dropna()
        above.plot(known.index, known.rolling(window).mean(), label=f"{name}, mean {known.mean():.4f}")
        below.plot(known.index, known.cumsum(), label=name)
        if cutoff is not None and len(known) and known.index[0] <= cutoff <= known.index[-1]:
            for axes in (above, below):
                axes.axvline(cutoff.to_pydatetime(), color="grey", linestyle=":")
    above.axhline(0, color="black", linewidth=0.6)
    above.set_title(f"IC, rolling mean of {window} days")
    below.set_title("IC, running sum")
    above.legend(frameon=False)
    return figure


def plot_cumulative_return(returns: Mapping[str, pd.Series], title: str = "Cumulative return") -> Figure:
    """Draw the running sum of daily returns in percent (Qlib's figures add returns, they do not compound)."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, series in returns.items():
        total = series.fillna(0.0).cumsum() * 100
        axes.plot(total.index, total, label=name)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_title(title)
    axes.set_ylabel("%")
    axes.legend(frameon=False)
    return figure


def plot_coarse_tokens(
    counts: npt.NDArray[np.integer], bars: npt.NDArray[np.floating], title: str = "What the coarse token says"
) -> Figure:
    """Draw the bar that each coarse token (s1 id) decodes to as a candle, ordered by close, and its volume below.

    Parameters
    ----------
    counts : (V,) how many bars have each id; an id without bars is left out. Opaque is frequent: a candle's opacity
        grows with the logarithm of its count.
    bars : (V, 6) mean bar an id decodes to, in z units, in the order of ``BAR_FIELDS``.

    Raises
    ------
    ValueError : shapes that do not fit, or no id in use.
    """
    if counts.ndim != 1 or bars.shape != (len(counts), 6):
        raise ValueError(f"found counts {counts.shape} and bars {bars.shape}; expected (V,) and (V, 6)")
    used = np.flatnonzero(counts > 0)
    if len(used) == 0:
        raise ValueError("no token is in use: there is nothing to draw")
    order = used[np.argsort(bars[used, 3], kind="stable")]
    weight = np.log1p(counts[order].astype(np.float64))
    opacity = 0.15 + 0.85 * weight / weight.max()
    figure = Figure(figsize=(max(8.0, min(24.0, 0.09 * len(order))), 7), layout="constrained")
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=[4, 1, 1])
    opening, high, low, close, volume, _ = bars[order].T
    positions = np.arange(len(order), dtype=np.float64)
    hues = np.where(close >= opening, RISE, FALL)
    colours = [to_rgba(hue, alpha) for hue, alpha in zip(hues, opacity, strict=True)]
    above.vlines(positions, np.minimum(low, high), np.maximum(low, high), color=colours, linewidth=1.0)
    above.bar(positions, np.abs(close - opening), BODY, bottom=np.minimum(opening, close), color=colours)
    middle.bar(positions, volume, BODY, color=FORECAST)
    below.bar(positions, counts[order] / counts.sum() * 100, BODY, color="grey")
    above.set_title(f"{title}: {len(order)} of {len(counts)} ids in use, ordered by the close they decode to")
    above.set_ylabel("price, z units")
    middle.set_ylabel("volume, z")
    below.set_ylabel("% of bars")
    below.set_xlabel("s1 ids in use; opaque is frequent, red closes above its open")
    below.set_xlim(-1, len(order))
    for axes in (above, middle):
        axes.axhline(0, color="black", linewidth=0.5)
    return figure


def plot_curves(curves: Mapping[str, Mapping[str, Any]], title: str = "Training") -> Figure:
    """Draw what ``curves.json`` of a training says: loss on train and valid by step, and the rate below.

    Parameters
    ----------
    curves : network name -> ``entries`` (one mapping a validation, with ``step``, ``rate``, ``train_loss``,
        ``valid_loss``) and ``best_step``, which is marked.

    Raises
    ------
    ValueError : no network, or one without a validation.
    """
    if not curves or not all(history["entries"] for history in curves.values()):
        raise ValueError("there is no validation to draw: train at least one step")
    figure = Figure(figsize=(5.5 * len(curves), 5.5), layout="constrained")
    columns = figure.subplots(2, len(curves), sharex="col", height_ratios=[4, 1], squeeze=False).T
    for (name, history), (above, below) in zip(curves.items(), columns, strict=True):
        entries = pd.DataFrame(history["entries"])
        for part, colour in (("train", "grey"), ("valid", FORECAST)):
            above.plot(entries["step"], entries[f"{part}_loss"], color=colour, marker=".", label=part)
        above.axvline(history["best_step"], color=RISE, linewidth=0.8, linestyle=":", label="kept")
        above.set_title(f"{title}: {name}")
        above.set_ylabel("loss")
        above.legend(frameon=False)
        below.plot(entries["step"], entries["rate"], color="grey")
        below.set_ylabel("rate")
        below.set_xlabel("step")
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as PNG, creating the folder, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
