"""A trained checkpoint on real A-share bars, adjusted: the true pipeline, end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.paths import KlinePaths
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy

CODES = ["SH600000", "SH600519", "SZ000001", "SZ300059"]
SAMPLING = SamplingConfig(n_paths=8, seed=1)


@pytest.fixture(scope="module")
def frames(shared_file: Callable[[str], Path]) -> dict[str, pd.DataFrame]:
    """Adjusted bars of a few stocks up to 2020-01-23, the last session before a long holiday."""
    wanted = [("instrument", "in", CODES), ("datetime", ">=", pd.Timestamp("2019-06-03"))]
    raw = pd.read_parquet(shared_file("market/ashare_daily.parquet"), filters=wanted)
    raw = raw[raw["datetime"] <= "2020-01-23"]
    prices = ["open", "high", "low", "close"]
    raw[prices] = raw[prices].mul(raw["factor"], axis=0)
    raw["volume"] = raw["volume"] / raw["factor"]
    raw["instrument"] = raw["instrument"].astype(str)
    return {code: part.set_index("datetime").drop(columns="instrument") for code, part in raw.groupby("instrument")}


@pytest.fixture(scope="module")
def nano(shared_file: Callable[[str], Path]) -> KronosForecaster:
    return KronosForecaster.from_pretrained(shared_file("checkpoints/nano"), lookback=90, device="cpu")


def test_paths_look_like_the_market(frames: dict[str, pd.DataFrame], nano: KronosForecaster) -> None:
    panel = BarPanel.from_frame(pd.concat(frames, names=["instrument", "datetime"]))
    rows = panel.rows_at(CODES, pd.DatetimeIndex(["2020-01-23"] * len(CODES)))
    batches = list(nano.forecast_batches(panel, rows, policy=WindowPolicy(), sampling=SAMPLING, progress=False))
    paths = KlinePaths.concat([part for _, part in batches])
    assert paths.values.shape == (4, 8, 10, 6)
    assert np.isfinite(paths.values).all()
    assert (paths.timestamps[:, 0] == np.datetime64("2020-02-03")).all()
    # ten days ahead, median path: within what these stocks ever did, and not a constant
    assert (np.abs(paths.returns()[..., -1]) < 0.6).all()
    assert (paths.returns()[..., -1].std(axis=1) > 0.005).all()
    repaired, counts = paths.repair(limit=0.1)
    assert counts.n_bars == 320
    assert repaired.impossible_bars(limit=0.1).impossible == 0
    assert np.isfinite(compute_signal("execution_return", repaired)).all()


def test_a_frame_and_the_panel_agree_on_real_bars(frames: dict[str, pd.DataFrame], nano: KronosForecaster) -> None:
    panel = BarPanel.from_frame(pd.concat(frames, names=["instrument", "datetime"]))
    row = panel.locate("SH600519", [pd.Timestamp("2020-01-23")])
    ((_, from_panel),) = nano.forecast_batches(panel, row, sampling=SAMPLING, progress=False)
    from_frame = nano.forecast_frame(frames["SH600519"], sampling=SAMPLING, instrument="SH600519")
    np.testing.assert_array_equal(from_frame.values, from_panel.values)
