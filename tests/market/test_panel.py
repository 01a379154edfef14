"""The panel: order, what it refuses, and finding bars in it."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.market.panel import BarPanel

DAYS = pd.bdate_range("2024-01-01", periods=6)


def bars(instrument: str, days: pd.DatetimeIndex, base: float = 10.0) -> pd.DataFrame:
    close = base + np.arange(len(days))
    return pd.DataFrame(
        {
            "instrument": instrument,
            "datetime": days,
            "open": close,
            "high": close + 1,
            "low": close - 1,
            "close": close,
            "volume": 100.0,
            "amount": 1000.0,
        }
    )


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.concat([bars("B", DAYS[[0, 1, 4]]), bars("A", DAYS[1:4], 20.0)], ignore_index=True)


def assert_equal(one: BarPanel, other: BarPanel) -> None:
    assert one.instruments == other.instruments
    for name in ("offsets", "timestamps", "values", "session", "events"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.calendar.equals(other.calendar)


def test_bars_are_sorted_by_instrument_and_time(frame: pd.DataFrame) -> None:
    panel = BarPanel.from_frame(frame, calendar=DAYS)
    assert panel.instruments == ("A", "B")
    assert panel.offsets.tolist() == [0, 3, 6]
    assert panel.session.tolist() == [1, 2, 3, 0, 1, 4]
    assert panel.values[:, 3].tolist() == [20, 21, 22, 10, 11, 12]
    assert panel.values.dtype == np.float32
    assert panel.timestamps.dtype == np.dtype("datetime64[ns]")
    assert len(panel) == 6


@pytest.mark.parametrize("levels", [["datetime", "instrument"], ["instrument", "datetime"]])
def test_every_form_of_the_same_bars_gives_the_same_panel(frame: pd.DataFrame, levels: list[str]) -> None:
    expected = BarPanel.from_frame(frame)
    shuffled = frame.sample(frac=1.0, random_state=1)
    assert_equal(BarPanel.from_frame(shuffled), expected)
    assert_equal(BarPanel.from_frame(shuffled.set_index(levels)), expected)
    assert_equal(BarPanel.from_frame(shuffled.astype({"instrument": "category"})), expected)
    dollars = frame.rename(columns={name: f"${name}" for name in frame.columns[2:]})
    assert_equal(BarPanel.from_frame(dollars.set_index(levels).sort_index()), expected)


def test_unused_levels_and_categories_are_no_instruments(frame: pd.DataFrame) -> None:
    indexed = frame.set_index(["datetime", "instrument"])
    only_a = indexed[indexed.index.get_level_values("instrument") == "A"]
    assert BarPanel.from_frame(only_a).instruments == ("A",)
    assert len(BarPanel.from_frame(only_a).calendar) == 3


def test_suspended_rows_are_left_out(frame: pd.DataFrame) -> None:
    suspended = bars("B", DAYS[[2, 3]]).assign(open=np.nan, high=np.nan, low=np.nan, close=np.nan, volume=np.nan)
    panel = BarPanel.from_frame(pd.concat([frame, suspended]), calendar=DAYS)
    assert_equal(panel, BarPanel.from_frame(frame, calendar=DAYS))


def test_a_missing_amount_follows_the_originals_rule(frame: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    frame.loc[0, ["open", "high", "low", "close", "volume", "amount"]] = [1.0, 4.0, 1.0, 2.0, 10.0, np.nan]
    frame.loc[1, ["volume", "amount"]] = np.nan
    with caplog.at_level(logging.WARNING):
        values = BarPanel.from_frame(frame).values
    assert values[3].tolist() == [1.0, 4.0, 1.0, 2.0, 10.0, 20.0]  # 10 x mean(1, 4, 1, 2)
    assert values[4, 4:].tolist() == [0.0, 0.0]
    assert "volume is missing in 1 of 6 bars" in caplog.text
    assert "amount is missing in 2 of 6 bars" in caplog.text
    without = BarPanel.from_frame(frame.drop(columns=["amount", "volume"])).values
    assert np.all(without[:, 4:] == 0)


def test_events_are_kept_and_unknown_ones_are_zero(frame: pd.DataFrame) -> None:
    frame["event"] = [1.0, np.nan, 2.0, 8.0, 0.0, 16.0]
    assert BarPanel.from_frame(frame).events.tolist() == [8, 0, 16, 1, 0, 2]


def test_rows_at_finds_the_last_bar_at_or_before(frame: pd.DataFrame) -> None:
    panel = BarPanel.from_frame(frame, calendar=DAYS)
    assert panel.rows_at("B", DAYS).tolist() == [3, 4, 4, 4, 5, 5]
    assert panel.rows_at("A", DAYS).tolist() == [-1, 0, 1, 2, 2, 2]
    assert panel.locate("B", DAYS).tolist() == [3, 4, -1, -1, 5, -1]
    assert panel.rows_at("A", ["2023-01-01", "2030-01-01"]).tolist() == [-1, 2]
    assert panel.rows_at("A", pd.Timestamp("2024-01-02 12:00")).tolist() == [0]
    assert panel.rows_at("C", DAYS[:2]).tolist() == [-1, -1]
    names = np.array(["B", "C", "A"], dtype=object)
    assert panel.rows_at(names, DAYS[[5, 5, 1]]).tolist() == [5, -1, 0]
    assert panel.rows_at(pd.Series(["B", "A"]).astype("category"), DAYS[[0, 0]]).tolist() == [3, -1]
    assert panel.instrument_names(np.array([0, 5])) == ["A", "B"]
    with pytest.raises(ValueError, match="3 instruments for 2 times"):
        panel.rows_at(names, DAYS[:2])


def test_an_empty_panel_has_no_rows(frame: pd.DataFrame) -> None:
    panel = BarPanel.from_frame(frame.iloc[:0])
    assert panel.instruments == ()
    assert panel.rows_at("A", DAYS[:2]).tolist() == [-1, -1]
    assert panel.locate("A", DAYS[:2]).tolist() == [-1, -1]


def test_zoned_times_keep_their_wall_clock(frame: pd.DataFrame) -> None:
    zoned = frame.assign(datetime=frame["datetime"].dt.tz_localize("Asia/Shanghai"))
    assert_equal(BarPanel.from_frame(zoned), BarPanel.from_frame(frame))


def set_value(frame: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    frame = frame.astype({column: object}) if isinstance(value, str) else frame.copy()
    frame.loc[2, column] = value
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="close"), "no column 'close'"),
        (lambda f: f.drop(columns="instrument"), "no 'instrument'"),
        (lambda f: f.drop(columns="datetime"), "no 'datetime'"),
        (lambda f: pd.concat([f, f.iloc[[4]]]), "1 bars occur twice, first A at 2024-01-03"),
        (lambda f: set_value(f, "open", np.nan), "1 bars have a close but another price missing.*B at 2024-01-05"),
        (lambda f: set_value(f, "high", np.inf), "infinite value, first B"),
        (lambda f: set_value(f, "volume", -np.inf), "infinite value, first B"),
        (lambda f: set_value(f, "low", "ten"), "no numbers"),
        (lambda f: set_value(f, "datetime", pd.NaT), "1 of 6 bars have no time"),
        (lambda f: set_value(f, "instrument", None), "1 bars have no instrument"),
        (lambda f: f.assign(datetime=pd.DatetimeIndex(["2031-01-01"] * 5 + ["2032-01-01"])).iloc[[0, 4]], "outside"),
    ],
)
def test_bad_frames_are_refused(frame: pd.DataFrame, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BarPanel.from_frame(change(frame), calendar=DAYS)


def test_real_bars_keep_their_values(shared_file) -> None:
    path = shared_file("market/ashare_daily.parquet")
    frame = pd.read_parquet(path, filters=[("instrument", "in", ["SH600000", "SZ000001", "SH000300"])])
    panel = BarPanel.from_frame(frame)
    assert panel.instruments == ("SH000300", "SH600000", "SZ000001")
    assert len(panel) == len(frame)
    one = frame[frame["instrument"] == "SH600000"].sort_values("datetime")
    begin, end = panel.offsets[1:3]
    np.testing.assert_array_equal(panel.values[begin:end, 3], one["close"].to_numpy())
    np.testing.assert_array_equal(panel.locate("SH600000", one["datetime"]), np.arange(begin, end))
