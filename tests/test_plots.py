"""Pictures: what is drawn is what was given."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.plots import plot_cumulative_return, plot_forecast, plot_ic, save_figure


def history(bars: int = 30) -> pd.DataFrame:
    dates = pd.bdate_range("2020-02-03", periods=bars)
    close = np.linspace(10.0, 11.0, bars)
    return pd.DataFrame({"open": close - 0.1, "high": close + 0.2, "low": close - 0.3, "close": close}, index=dates)


def futures(paths: int = 5, steps: int = 3) -> Any:
    dates = pd.bdate_range("2020-03-16", periods=steps)
    values = np.full((1, paths, steps, 6), 11.0)
    values[0, :, :, 3] += np.arange(paths)[:, None]  # closes 11, 12, 13, 14, 15
    index = pd.MultiIndex.from_tuples([(pd.Timestamp("2020-03-13"), "SH600000")], names=["datetime", "instrument"])
    return SimpleNamespace(values=values, index=index, last_close=np.array([11.0]), timestamps=dates.to_numpy()[None])


def test_the_fan_starts_at_the_last_close_and_its_median_is_the_paths_median(tmp_path: Path) -> None:
    figure = plot_forecast(history(), futures())
    axes = figure.axes[0]
    median = next(line for line in axes.lines if line.get_label() == "median of paths")
    assert median.get_xdata().tolist() == [29, 30, 31, 32]
    assert median.get_ydata().tolist() == [11.0, 13.0, 13.0, 13.0]
    assert len(axes.patches) == 30  # one body a bar
    assert "SH600000" in axes.get_title()
    assert save_figure(figure, tmp_path / "new" / "fan.png").stat().st_size > 5_000


def test_only_the_last_bars_are_drawn_and_what_followed_stands_behind_the_fan() -> None:
    actual = history(4).set_axis(pd.bdate_range("2020-03-16", periods=4))
    figure = plot_forecast(history(), futures(), shown_bars=10, actual=actual)
    assert len(figure.axes[0].patches) == 10 + 3  # no more than the horizon of what followed


def test_falling_and_rising_candles_differ() -> None:
    bars = history(2).assign(open=[11.0, 9.0], close=[10.0, 10.0])
    colours = {patch.get_facecolor() for patch in plot_forecast(bars, futures()).axes[0].patches}
    assert len(colours) == 2


@pytest.mark.parametrize(
    ("bars", "window", "message"),
    [
        (history().iloc[:0], 0, "history is empty"),
        (history().drop(columns="low"), 0, "missing: \\['low'\\]"),
        (history(), 1, "window 1 does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_said(bars: pd.DataFrame, window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot_forecast(bars, futures(), window=window)


def test_ic_and_returns_add_up() -> None:
    dates = pd.bdate_range("2020-01-01", periods=60)
    daily = pd.Series(0.05, index=dates)
    daily.iloc[3] = np.nan
    running = plot_ic({"IC": daily}, cutoff=dates[10]).axes[1].lines[0]
    assert running.get_ydata()[-1] == pytest.approx(59 * 0.05)
    total = plot_cumulative_return({"after cost": pd.Series(0.001, index=dates)}).axes[0].lines[0]
    assert total.get_ydata()[-1] == pytest.approx(6.0)
