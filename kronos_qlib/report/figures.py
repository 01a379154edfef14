"""The pictures of a report, sized to be read on a phone. Nothing here computes a result."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

WIDTH, HEIGHT = 5.0, 2.7
LINE, BAND, LOSS, MUTED = "#1f4e79", "#9dbcd8", "#b03a2e", "#7f8c8d"
FONT = 9


def as_svg(figure: Figure) -> str:
    """Return a figure as a data address of an SVG, the same bytes for the same figure: no date, no random names."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kronos_qlib", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def draw_cumulative(net: pd.Series, gross: pd.Series) -> Figure:
    """Running sums of daily excess returns, after and before cost."""
    figure, axes = _figure()
    axes.plot(gross.index, gross.fillna(0).cumsum(), color=MUTED, linewidth=1.0, label="before cost")
    axes.plot(net.index, net.fillna(0).cumsum(), color=LINE, linewidth=1.5, label="after cost")
    _dates(axes)
    _percent(axes)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.legend(frameon=False, fontsize=FONT)
    return figure


def draw_drawdown(below: pd.Series) -> Figure:
    """How far the running sum is below its highest value so far."""
    figure, axes = _figure(0.75)
    axes.fill_between(below.index, below, 0, color=LOSS, alpha=0.6, linewidth=0)
    _dates(axes)
    _percent(axes)
    return figure


def draw_ic(band: pd.DataFrame, daily: pd.Series) -> Figure:
    """Rolling mean of daily ICs with its band, and the mean of all days as a line."""
    figure, axes = _figure()
    axes.fill_between(band.index, band["low"], band["high"], color=BAND, alpha=0.6, linewidth=0, label="± 2 errors")
    axes.plot(band.index, band["mean"], color=LINE, linewidth=1.4, label="rolling mean")
    axes.axhline(float(daily.mean()), color=LOSS, linewidth=0.9, linestyle="--", label="mean of all days")
    axes.axhline(0, color="black", linewidth=0.6)
    _dates(axes)
    axes.legend(frameon=False, fontsize=FONT, ncols=2)
    return figure


def draw_quantiles(table: pd.DataFrame) -> Figure:
    """One bar a group of scores, with two standard errors."""
    figure, axes = _figure()
    colours = [LINE if value >= 0 else LOSS for value in table["mean"]]
    axes.bar(table.index.astype(str), table["mean"] * 1e4, yerr=2 * table["error"] * 1e4, color=colours, capsize=4)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlabel("group of names, from the lowest to the highest scores", fontsize=FONT)
    axes.set_ylabel("basis points", fontsize=FONT)
    return figure


def draw_turnover(turnover: pd.Series | None, persistence: pd.Series) -> Figure:
    """Rolling means of the portfolio's turnover and of the scores' rank autocorrelation."""
    figure, axes = _figure()
    window = max(1, min(20, len(persistence) // 3))
    axes.plot(
        persistence.index, persistence.rolling(window).mean(), color=MUTED, label="rank autocorrelation of scores"
    )
    if turnover is not None:
        axes.plot(turnover.index, turnover.rolling(window).mean(), color=LINE, label="turnover of the portfolio")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _dates(axes)
    _percent(axes)
    axes.legend(frameon=False, fontsize=FONT)
    return figure


def draw_pit(shares: pd.DataFrame) -> Figure:
    """PIT histograms of the first, a middle and the last step; flat is calibrated."""
    figure, axes = _figure()
    bins = shares.shape[1]
    steps = sorted({0, (len(shares) - 1) // 2, len(shares) - 1})
    for step, colour in zip(steps, (BAND, LINE, LOSS), strict=False):
        edges = np.linspace(0, 1, bins + 1)
        axes.stairs(
            shares.iloc[step].to_numpy(), edges, color=colour, linewidth=1.5, label=f"step {shares.index[step]}"
        )
    axes.axhline(1 / bins, color="black", linewidth=0.8, linestyle="--", label="calibrated")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("where the outcome fell among the paths", fontsize=FONT)
    _percent(axes)
    axes.legend(frameon=False, fontsize=FONT, ncols=2)
    return figure


def draw_coverage(table: pd.DataFrame) -> Figure:
    """Coverage of central intervals by step; dashed: what it should be."""
    figure, axes = _figure()
    for level, colour in zip(table.columns, (MUTED, LINE, LOSS), strict=False):
        axes.plot(table.index, table[level], color=colour, marker="o", markersize=3, label=f"{level:.0%} interval")
        axes.axhline(float(level), color=colour, linewidth=0.8, linestyle="--")
    axes.set_ylim(0, 1)
    axes.set_xlabel("step", fontsize=FONT)
    _percent(axes)
    axes.legend(frameon=False, fontsize=FONT, ncols=3)
    return figure


def _figure(height: float = 1.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT * height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=FONT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _dates(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set_fontsize(FONT)


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
