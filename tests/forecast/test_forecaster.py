"""KronosForecaster on a small network: the same paths whatever the batch, from the context alone, with true stamps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
from small_panel import LAST, bars, instrument_bars, make_panel
from tiny_network import tiny_networks

from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.keys import window_keys
from kronos_qlib.forecast.paths import KlinePaths
from kronos_qlib.kronos import SamplingConfig, denormalise, generate, normalise
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.windows import WindowPolicy

SAMPLING = SamplingConfig(n_paths=3, seed=7)
POLICY = WindowPolicy(lookback=40, min_bars=30)
HORIZON = 4


@pytest.fixture(scope="module")
def forecaster() -> KronosForecaster:
    networks = tiny_networks()
    return KronosForecaster(networks.model, networks.tokenizer, lookback=40, max_context=64, device="cpu")


@pytest.fixture(scope="module")
def panel() -> BarPanel:
    return make_panel()


def last_rows(panel: BarPanel, days: int = 3) -> np.ndarray:
    """Panel rows of the last sessions of every instrument."""
    ends = panel.offsets[1:]
    return np.sort(np.concatenate([ends - 1 - i for i in range(days)]))


def collect(batches: Iterable[tuple[np.ndarray, KlinePaths]], n: int) -> list[KlinePaths | None]:
    """One forecast per given row, None where there was none."""
    found: list[KlinePaths | None] = [None] * n
    for positions, paths in batches:
        for i, position in enumerate(positions):
            assert found[position] is None
            found[position] = paths.select([i])
    return found


def run(forecaster: KronosForecaster, panel: BarPanel, rows: np.ndarray, **options: object) -> list[KlinePaths | None]:
    settings = {"policy": POLICY, "horizon": HORIZON, "sampling": SAMPLING, "progress": False} | options
    return collect(forecaster.forecast_batches(panel, rows, **settings), len(rows))


def assert_same(left: KlinePaths | None, right: KlinePaths | None) -> None:
    assert left is not None
    assert right is not None
    assert left.index.equals(right.index)
    for name in ("values", "last_close", "center", "scale", "timestamps"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_trap_10_and_13_paths_do_not_depend_on_batch_mates_or_order(
    forecaster: KronosForecaster, panel: BarPanel
) -> None:
    rows = last_rows(panel)
    whole = run(forecaster, panel, rows)
    order = np.random.default_rng(1).permutation(len(rows))
    for options in ({"batch_size": 1}, {"batch_size": 2}, {"batch_size": 5}):
        shuffled = run(forecaster, panel, rows[order], **options)
        for position, row in enumerate(order):
            if whole[row] is None:
                assert shuffled[position] is None
            else:
                assert_same(shuffled[position], whole[row])


def test_a_frame_gives_what_the_panel_gives(forecaster: KronosForecaster, panel: BarPanel) -> None:
    rows = panel.locate("SH600001", [LAST])
    from_panel = run(forecaster, panel, rows)[0]
    frame = instrument_bars()["SH600001"]
    assert_same(
        forecaster.forecast_frame(frame, HORIZON, SAMPLING, instrument="SH600001"),
        from_panel,
    )


def test_it_is_normalise_generate_denormalise(forecaster: KronosForecaster) -> None:
    frame = bars(50, seed=3)
    found = forecaster.forecast_frame(frame, HORIZON, SAMPLING, calendar="XSHG", instrument="X")
    window = frame.iloc[-40:]
    x, center, scale = normalise(np.ascontiguousarray(window, dtype=np.float32)[None])
    future = get_calendar("XSHG").future(LAST, HORIZON)
    drawn = generate(
        forecaster.model, forecaster.tokenizer, x, time_stamps(window.index)[None], time_stamps(future)[None], SAMPLING,
        64, keys=window_keys(["X"], window.index[-1:]),
    )  # fmt: skip
    np.testing.assert_array_equal(found.values, denormalise(drawn.numpy(), center[:, None], scale[:, None]))
    np.testing.assert_array_equal(found.timestamps[0], future.to_numpy())
    np.testing.assert_array_equal(found.last_close, window["close"].to_numpy(dtype=np.float32)[-1:])
    np.testing.assert_allclose(found.center[0], window.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.scale[0], window.std(ddof=0) + 1e-5, rtol=1e-4)
    assert list(found.index) == [(LAST, "X")]
    assert found.values.shape == (1, 3, HORIZON, 6)
    assert found.values.dtype == np.float32


def test_trap_5_bars_after_t_change_nothing_dated_t(forecaster: KronosForecaster) -> None:
    frames = instrument_bars()
    cut = {code: frame.iloc[:-3] for code, frame in frames.items()}
    altered = {code: pd.concat([cut[code], frame.iloc[-3:] * 7.0]) for code, frame in frames.items()}
    calendar = get_calendar("XSHG")
    day = frames["SH600000"].index[-4]
    found = []
    for version in (frames, cut, altered):
        panel = make_panel(version)
        rows = np.array([panel.locate(code, [day])[0] for code in frames])
        found.append(run(forecaster, panel, rows, calendar=calendar))
    for original, shorter, other in zip(*found, strict=True):
        if original is not None:
            assert_same(shorter, original)
            assert_same(other, original)
    assert sum(one is not None for one in found[0]) == 4


def test_trap_12_the_last_day_is_forecast_and_its_future_skips_the_holiday(
    forecaster: KronosForecaster, panel: BarPanel
) -> None:
    found = run(forecaster, panel, panel.locate("SH600000", [LAST]))[0]
    assert found is not None
    assert list(pd.DatetimeIndex(found.timestamps[0])) == list(
        pd.to_datetime(["2020-02-03", "2020-02-04", "2020-02-05", "2020-02-06"])
    )


def test_trap_1_networks_in_training_mode_are_put_in_eval_mode(caplog: pytest.LogCaptureFixture) -> None:
    networks = tiny_networks()
    frame = bars(50)
    expected = KronosForecaster(networks.model, networks.tokenizer, 40, 64, "cpu").forecast_frame(
        frame, HORIZON, SAMPLING, "XSHG"
    )
    networks.model.train()
    forecaster = KronosForecaster(networks.model, networks.tokenizer, 40, 64, "cpu")
    assert not networks.model.training
    assert "were in training mode" in caplog.text
    assert_same(forecaster.forecast_frame(frame, HORIZON, SAMPLING, "XSHG"), expected)


def test_rows_without_a_window_are_left_out(forecaster: KronosForecaster, panel: BarPanel) -> None:
    rows = np.array([-1, panel.locate("SH600003", [LAST])[0], panel.locate("SH600002", [LAST])[0]])
    found = run(forecaster, panel, rows)
    assert [one is not None for one in found] == [False, False, True]
    assert list(forecaster.forecast_batches(panel, rows[:2], policy=POLICY, horizon=HORIZON)) == []


def test_memory_is_bounded_by_the_batch(forecaster: KronosForecaster, panel: BarPanel) -> None:
    batches = forecaster.forecast_batches(
        panel, last_rows(panel, 5), policy=POLICY, horizon=HORIZON, sampling=SAMPLING, batch_size=4, progress=False
    )
    sizes = [len(paths) for _, paths in batches]
    assert max(sizes) == 4
    assert sum(sizes) == 20


def test_instrument_and_seed_are_part_of_the_randomness(forecaster: KronosForecaster) -> None:
    frame = bars(50)
    first = forecaster.forecast_frame(frame, HORIZON, SAMPLING, "XSHG", "A").values
    assert not np.array_equal(first, forecaster.forecast_frame(frame, HORIZON, SAMPLING, "XSHG", "B").values)
    other = {"n_paths": 3, "seed": 8}
    assert not np.array_equal(first, forecaster.forecast_frame(frame, HORIZON, other, "XSHG", "A").values)
    again = {"n_paths": 3, "seed": 7}
    np.testing.assert_array_equal(first, forecaster.forecast_frame(frame, HORIZON, again, "XSHG", "A").values)


def test_missing_volume_and_amount_follow_the_originals_rule(forecaster: KronosForecaster) -> None:
    frame = bars(50)
    prices = frame[["open", "high", "low", "close"]]
    settings = (HORIZON, SAMPLING, "XSHG")
    assert_same(
        forecaster.forecast_frame(prices, *settings),
        forecaster.forecast_frame(prices.assign(volume=0.0, amount=0.0), *settings),
    )
    typical = prices.mean(axis=1)
    assert_same(
        forecaster.forecast_frame(frame.drop(columns="amount"), *settings),
        forecaster.forecast_frame(frame.assign(amount=frame["volume"] * typical), *settings),
    )


def test_only_the_lookback_counts(forecaster: KronosForecaster) -> None:
    frame = bars(60)
    settings = (HORIZON, SAMPLING, "XSHG")
    earlier = frame.copy()
    earlier.iloc[:20] = np.nan
    expected = forecaster.forecast_frame(frame, *settings)
    assert_same(forecaster.forecast_frame(earlier, *settings), expected)
    assert_same(forecaster.forecast_frame(frame.iloc[-40:], *settings), expected)


def test_bfloat16_stays_near_float32() -> None:
    networks = tiny_networks()
    greedy = SamplingConfig(temperature=0.0, n_paths=1)
    low, high = (
        KronosForecaster(networks.model, networks.tokenizer, 40, 64, "cpu", dtype).forecast_frame(
            bars(50), 1, greedy, "XSHG"
        )
        for dtype in ("bfloat16", "float32")
    )
    assert low.values.dtype == np.float32
    assert not np.array_equal(low.values, high.values)
    z = np.abs(low.values - high.values) / high.scale[:, None, None]
    assert z.max() < 0.3


def test_bar_fields_are_those_of_the_network() -> None:
    assert BAR_FIELDS == ("open", "high", "low", "close", "volume", "amount")


def test_fingerprint_names_both_networks() -> None:
    networks, other = tiny_networks(), tiny_networks(sharpness=1.0)
    first = KronosForecaster(networks.model, networks.tokenizer, device="cpu").fingerprint
    second = KronosForecaster(other.model, other.tokenizer, device="cpu").fingerprint
    assert first.split("-")[0] != second.split("-")[0]
    assert first.split("-")[1] == second.split("-")[1]
