"""Drift: silent on the market the card was made of, a warning on another one, and never a part of the forecast."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_network import tiny_networks

from kronos_qlib.forecast.cutoff import before_cutoff, card_date
from kronos_qlib.forecast.drift import compare_tokens, count_tokens, measure_drift
from kronos_qlib.kronos.token_statistics import COLUMNS, TokenStatistics
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy

POLICY = WindowPolicy(lookback=40, min_bars=30)


def make_panel(seed: int, drift: float = 0.0, instruments: int = 5, bars: int = 200) -> BarPanel:
    """Random walks; with ``drift`` every price falls steadily and volume comes in rare bursts."""
    random = np.random.default_rng(seed)
    frames = []
    for i in range(instruments):
        steps = random.normal(-drift, 0.02 * (1 - 0.9 * (drift > 0)), bars)
        close = 100 * np.exp(np.cumsum(steps))
        volume = random.uniform(1e5, 2e5, bars)
        if drift:
            volume[::37] *= 1_000
        opens = close * np.exp(random.normal(0, 0.005, bars))
        frame = pd.DataFrame({"open": opens, "close": close, "volume": volume, "amount": volume * close})
        frame["high"], frame["low"] = np.maximum(opens, close) * 1.003, np.minimum(opens, close) * 0.997
        frames.append(frame.assign(instrument=f"S{i}", datetime=pd.bdate_range("2015-01-01", periods=bars)))
    return BarPanel.from_frame(pd.concat(frames, ignore_index=True))


def count(panel: BarPanel, **options: Any) -> TokenStatistics:
    counted = count_tokens(tiny_networks().tokenizer, panel, np.arange(len(panel)), POLICY, **options)
    assert counted is not None
    return counted


def test_the_same_market_is_silent_and_a_shifted_one_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    card = {"tokens": count(make_panel(0)).to_dict()}
    tokenizer = tiny_networks().tokenizer
    levels = {}
    for name, panel in (("same", make_panel(1)), ("shifted", make_panel(1, drift=0.01))):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="kronos_qlib.forecast.drift"):
            drift = measure_drift(card, tokenizer, panel, np.arange(len(panel)), POLICY)
        assert drift is not None
        warned = [record for record in caplog.records if record.levelno == logging.WARNING]
        levels[name] = (drift.level, len(warned))
        json.dumps(drift.to_dict(), allow_nan=False)
    assert levels == {"same": ("none", 0), "shifted": ("large", 1)}
    (record,) = warned
    assert "drifted away from what the weights know" in record.getMessage()
    assert f"s1 {drift.s1.psi - drift.s1.noise:.3f}" in record.getMessage()


def test_a_card_without_histograms_is_one_line_and_no_result(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kronos_qlib.forecast.drift"):
        drift = measure_drift({"cutoff": "2014-12-31"}, tiny_networks().tokenizer, make_panel(0), np.arange(9), POLICY)
    assert drift is None
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "no token histograms" in record.getMessage()


def test_a_broken_histogram_in_a_card_is_a_value_error() -> None:
    tokens = count(make_panel(0)).to_dict() | {"s1": [1] * 8}
    with pytest.raises(ValueError, match="histogram of s1 sums to 8"):
        measure_drift({"tokens": tokens}, tiny_networks().tokenizer, make_panel(0), np.arange(9), POLICY)


def test_the_sample_is_bounded_spread_and_not_random() -> None:
    panel = make_panel(0)
    every = count(panel)
    assert every.windows == 5 * (200 - 29)
    some = count(panel, sample=50)
    assert some.windows == 50
    assert some == count(panel, sample=50)
    drift = compare_tokens(every, some)
    assert drift.s1.psi - drift.s1.noise < 0.1
    assert count_tokens(tiny_networks().tokenizer, panel, np.arange(5), POLICY) is None


def test_clipping_is_compared_by_windows_and_one_window_among_few_is_no_warning() -> None:
    base = count(make_panel(0)).to_dict()
    assert base["clipped_windows"]["open"] == 0

    def with_opens(share: float, windows: int) -> TokenStatistics:
        shares = {name: share if name == "open" else base["clipped_windows"][name] for name in COLUMNS}
        s1 = [0] * 7 + [windows * 40]
        values = dict.fromkeys(COLUMNS, 0.0)
        return TokenStatistics(
            windows=windows, bars=windows * 40, lookback=40, s1=s1, s2=s1, clipped_values=values,
            clipped_windows=shares,
        )  # fmt: skip

    card = TokenStatistics(**base)
    assert compare_tokens(card, with_opens(0.2, 5)).clipped["open"].level != "large"  # one window of five
    assert compare_tokens(card, with_opens(0.2, 2_000)).clipped["open"].level == "large"
    assert compare_tokens(card, with_opens(0.2, 2_000)).clipped["high"].level == "none"


def test_dates_of_a_card_and_what_lies_before_them() -> None:
    assert card_date({}, "cutoff") is None
    cutoff = card_date({"cutoff": "2014-12-31"}, "cutoff")
    assert cutoff == pd.Timestamp("2014-12-31")
    stamps = pd.DatetimeIndex(["2014-12-30", "2014-12-31 15:00", "2015-01-01"])
    assert before_cutoff(stamps, cutoff).tolist() == [True, True, False]
    for broken in ("soon", "NaT"):
        with pytest.raises(ValueError, match="the checkpoint's card says cutoff="):
            card_date({"cutoff": broken}, "cutoff")
