"""What a user can get wrong when forecasting: each mistake is a ValueError that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_panel import bars, make_panel
from tiny_network import tiny_networks

from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.windows import WindowPolicy


@pytest.fixture(scope="module")
def forecaster() -> KronosForecaster:
    networks = tiny_networks()
    return KronosForecaster(networks.model, networks.tokenizer, lookback=40, max_context=64, device="cpu")


def with_value(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame = frame.copy()
        frame.iloc[-5, frame.columns.get_loc(column)] = value
        return frame

    return change


ZONES = ["UTC", "Asia/Shanghai"]
BAD_FRAMES: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "not a frame": (lambda f: f.to_numpy(), "found a ndarray; expected a pandas DataFrame"),
    "missing column": (lambda f: f.drop(columns="low"), "no column low; found open, high, close"),
    "misspelt column": (lambda f: f.rename(columns={"close": "Close"}), "Is 'Close' meant to be 'close'"),
    "strings": (lambda f: f.assign(close=f["close"].astype(str)), "column 'close'.*expected numbers"),
    "NaN": (with_value("open", np.nan), "1 of the 40 bars have NaN or infinite values, first 2020-01-17"),
    "inf": (with_value("volume", np.inf), "NaN or infinite values"),
    "zero price": (with_value("low", 0.0), "prices that are zero or negative"),
    "high below low": (with_value("high", 0.5), "a high below the low"),
    "negative volume": (with_value("volume", -1.0), "negative volume or amount"),
    "no times": (lambda f: f.reset_index(drop=True), "index is a RangeIndex.*DatetimeIndex"),
    "mixed zones": (
        lambda f: f.set_axis([t.tz_localize(zone) for t, zone in zip(f.index, ZONES * 25, strict=True)]),
        "expected a DatetimeIndex of one zone",
    ),
    "out of order": (lambda f: f.iloc[::-1], "strictly ascending.*sort"),
    "duplicates": (lambda f: pd.concat([f, f.iloc[-1:]]), "occurs twice"),
    "NaT": (lambda f: f.set_axis([pd.NaT, *f.index[1:]]), "NaT"),
    "empty": (lambda f: f.iloc[:0], "found 0 bars; expected at least 30"),
    "one bar": (lambda f: f.iloc[-1:], "found 1 bars; expected at least 30"),
    "too short": (lambda f: f.iloc[-29:], "found 29 bars; expected at least 30"),
    "two closes": (lambda f: pd.concat([f, f[["close"]]], axis=1), "2 columns named 'close'"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_FRAMES))
def test_bad_frames(forecaster: KronosForecaster, name: str) -> None:
    change, message = BAD_FRAMES[name]
    with pytest.raises(ValueError, match=message):
        forecaster.forecast_frame(change(bars(50)), calendar="XSHG")


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no calendar": ({}, "which market.*an unnamed instrument"),
    "no calendar, foreign code": ({"instrument": "AAPL"}, "bars of AAPL"),
    "unknown calendar": ({"calendar": "XSHGG"}, "found calendar 'XSHGG'"),
    "calendar of a wrong type": ({"calendar": 5}, "calendar of type int"),
    "too few explicit stamps": ({"calendar": pd.DatetimeIndex(["2020-02-03"])}, "found 1 stamps to come"),
    "explicit stamps of the past": (
        {"calendar": pd.date_range("2020-01-20", periods=10)},
        "later than the last bar 2020-01-23",
    ),
    "horizon 0": ({"calendar": "XSHG", "horizon": 0}, "found horizon=0"),
    "horizon 2.5": ({"calendar": "XSHG", "horizon": 2.5}, "found horizon=2.5"),
    "horizon beyond the context": ({"calendar": "XSHG", "horizon": 64}, "less than max_context=64"),
    "no path": ({"calendar": "XSHG", "sampling": {"n_paths": 0}}, "n_paths"),
    "negative temperature": ({"calendar": "XSHG", "sampling": {"temperature": -1.0}}, "temperature"),
    "sampling typo": ({"calendar": "XSHG", "sampling": {"temprature": 1.0}}, "did you mean 'temperature'"),
    "sampling of a wrong type": ({"calendar": "XSHG", "sampling": 10}, "sampling of type int"),
    "min_bars": ({"calendar": "XSHG", "min_bars": 1}, "found min_bars=1"),
}


@pytest.mark.parametrize("name", list(BAD_SETTINGS))
def test_bad_settings(forecaster: KronosForecaster, name: str) -> None:
    options, message = BAD_SETTINGS[name]
    with pytest.raises(ValueError, match=message):
        forecaster.forecast_frame(bars(50), **options)


def test_bars_stamped_off_the_calendar(forecaster: KronosForecaster) -> None:
    frame = bars(50)
    with pytest.raises(ValueError, match=r"stamped 2020-01-23 15:00:00, no stamp of calendar 'XSHG' .day."):
        forecaster.forecast_frame(frame.set_axis(frame.index + pd.Timedelta(hours=15)), calendar="XSHG")
    weekly = frame.set_axis(pd.date_range(end="2020-01-23", periods=50, freq="7D"))
    with pytest.raises(ValueError, match="only daily and intraday calendars are known"):
        forecaster.forecast_frame(weekly, calendar="XSHG")
    stamps = pd.date_range("2020-01-30", periods=10, freq="7D")
    assert forecaster.forecast_frame(weekly, calendar=stamps).timestamps[0, 0] == np.datetime64("2020-01-30")


def test_intraday_bars_take_their_slots_from_the_exchange(forecaster: KronosForecaster) -> None:
    slots = get_calendar("XSHG", "15min").future(pd.Timestamp("2020-01-20"), 50)
    frame = bars(50).set_axis(slots)
    found = forecaster.forecast_frame(frame, horizon=3, instrument="SH600000")
    expected = get_calendar("XSHG", "15min").future(slots[-1], 3)
    assert list(pd.DatetimeIndex(found.timestamps[0])) == list(expected)
    starts = frame.set_axis(slots - pd.Timedelta(minutes=15))
    with pytest.raises(ValueError, match=r"09:30|13:00|at their end"):
        forecaster.forecast_frame(starts.iloc[:49], horizon=3, instrument="SH600000")


def test_a_zoned_index_counts_with_its_wall_clock(forecaster: KronosForecaster) -> None:
    frame = bars(50)
    sampling = SamplingConfig(n_paths=2)
    plain = forecaster.forecast_frame(frame, sampling=sampling, calendar="XSHG")
    zoned = forecaster.forecast_frame(frame.tz_localize("Asia/Shanghai"), sampling=sampling, calendar="XSHG")
    np.testing.assert_array_equal(zoned.values, plain.values)


def test_batches_refuse_at_the_call(forecaster: KronosForecaster) -> None:
    panel = make_panel()
    rows = np.array([59])
    policy = WindowPolicy(lookback=40)
    for options, message in (
        ({"horizon": 0}, "found horizon=0"),
        ({"batch_size": 0}, "found batch_size=0"),
        ({"calendar": "NOPE"}, "found calendar 'NOPE'"),
        ({"sampling": {"paths": 3}}, "unknown key 'paths'"),
    ):
        with pytest.raises(ValueError, match=message):
            forecaster.forecast_batches(panel, rows, policy=policy, **options)
    with pytest.raises(ValueError, match="found rows from 9999"):
        forecaster.forecast_batches(panel, np.array([9999]), policy=policy)


def test_a_foreign_panel_needs_a_calendar_and_a_wrong_one_warns(forecaster: KronosForecaster) -> None:
    frame = bars(50)
    panel = make_panel({"AAPL": frame})
    with pytest.raises(ValueError, match="bars of AAPL"):
        forecaster.forecast_batches(panel, np.array([49]))
    holiday = panel.locate("AAPL", [pd.Timestamp("2020-01-20")])  # closed in New York
    with pytest.warns(UserWarning, match="1 bar stamps, first 2020-01-20.*none of calendar 'XNYS'"):
        forecaster.forecast_batches(panel, holiday, calendar="XNYS")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "found device 'gpu'"),
        ({"device": "cuda:77"}, "not available on this machine"),
        ({"dtype": "bfloat"}, "did you mean 'bfloat16'"),
        ({"dtype": "float16"}, "float32"),
        ({"lookback": 1}, "found lookback=1"),
        ({"max_context": 0}, "found max_context=0"),
        ({"lookback": True}, "found lookback=True"),
    ],
)
def test_bad_forecasters(options: dict[str, Any], message: str) -> None:
    networks = tiny_networks()
    with pytest.raises(ValueError, match=message):
        KronosForecaster(networks.model, networks.tokenizer, **{"device": "cpu", **options})


def test_networks_of_different_token_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="s1_bits"):
        KronosForecaster(tiny_networks(3).model, tiny_networks(2).tokenizer, device="cpu")
