"""The whole way, vendor file to scores, on 15-minute A-shares, daily US stocks and a market that never closes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import qlib
from other_bars import MARKETS, Market, make_bars
from qlib.backtest import backtest
from qlib.data import D
from qlib.workflow import R
from qlib.workflow.record_temp import SigAnaRecord, SignalRecord
from tiny_market import write_tiny_checkpoint

from kronos_qlib import KronosForecaster
from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.cli import main
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler
from kronos_qlib.market.ingest import ingest
from kronos_qlib.market.store import store_metadata
from kronos_qlib.model import KronosModel
from kronos_qlib.resources import workflow_path

LOOKBACK = 40
SAMPLING = {"n_paths": 2}
HALTED = "SH600004"  # trades until the morning of 2025-01-23, and not again
LIMIT_UP = "SH600005"  # closes every bar of 2025-01-23 at the limit of that day
LIMIT_DAY = pd.Timestamp("2025-01-23")
SESSION = 16  # bars


def vendor_bars(name: str) -> pd.DataFrame:
    """The market's bars, with a halt and a locked day among the A-shares."""
    bars = make_bars(name)
    if name != "ashare_15min":
        return bars
    bars = bars[(bars["instrument"] != HALTED) | (bars["datetime"] <= LIMIT_DAY + pd.Timedelta("11h30m"))]
    own = bars["instrument"] == LIMIT_UP
    previous = bars.loc[own & (bars["datetime"] < LIMIT_DAY), "close"].iloc[-1]
    locked = own & (bars["datetime"].dt.normalize() == LIMIT_DAY)
    prices = ["open", "high", "low", "close"]
    bars.loc[locked, prices] = round(previous * 1.1, 2)
    after = own & (bars["datetime"] > LIMIT_DAY + pd.Timedelta("1D"))
    bars.loc[after, prices] = (bars.loc[after, prices] * 1.1).round(2)
    mean = bars[prices].mean(axis=1).round(4)
    return bars.assign(amount=bars["volume"] * mean).reset_index(drop=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vendor files, the stores that the command makes of them, and a checkpoint."""
    folder = tmp_path_factory.mktemp("markets")
    for name, market in MARKETS.items():
        file = folder / f"{name}.parquet"
        vendor_bars(name).to_parquet(file)
        options = [word for key, value in market.options.items() for word in (f"--{key}", value)]
        with pytest.raises(SystemExit) as stop:
            main(["ingest", str(file), "--out", str(folder / name), *options])
        assert not stop.value.code
    write_tiny_checkpoint(folder / "checkpoint", lookback=LOOKBACK, max_context=128)
    return folder


def listed(market: Market) -> list[str]:
    """What ``all`` holds at the last bar: Qlib's list ends with each code's own last bar."""
    return [code for code in market.codes if code != HALTED]


def start(store: Path, market: Market, **settings: object) -> None:
    qlib.init(provider_uri=str(store), region=market.qlib_region, kernels=1, logging_level=40, **settings)


def make_dataset(market: Market, first: object, last: object, codes: object = "all", **options: object) -> KlineDataset:
    handler = KlineHandler(instruments=codes, start_time=first, end_time=last, freq=market.freq)
    jump = 0.3 if market.region == "cn" else None
    options = {"lookback": LOOKBACK, "max_jump": jump, **options}
    return KlineDataset(handler, segments={"test": (first, last)}, **options)


def make_model(checkpoint: Path | str, horizon: int = 5) -> KronosModel:
    return KronosModel(model=str(checkpoint), horizon=horizon, sampling=SAMPLING, device="cpu")


def check_last_bar(market: Market, dataset: KlineDataset, model: KronosModel, following: tuple[str, ...]) -> pd.Series:
    """Score a segment and check the scores of its last bar against one forecast an instrument, and its stamps."""
    model.fit(dataset)
    scores = model.predict(dataset)
    last = pd.DatetimeIndex(D.calendar(freq=market.freq))[-1]
    assert scores.index.get_level_values("datetime").max() == last
    future = dataset.handler.trading_calendar.future(last, len(following))
    assert list(future) == list(pd.DatetimeIndex(following))
    forecaster: KronosForecaster = model.forecaster
    panel, rows = dataset.panel, dataset.rows().xs(last, level="datetime")
    for code, row in rows.loc[rows["row"] >= 0, "row"].items():
        window = slice(max(row + 1 - LOOKBACK, panel.offsets[panel.instruments.index(code)]), row + 1)
        bars = pd.DataFrame(panel.values[window], columns=["open", "high", "low", "close", "volume", "amount"])
        bars.index = pd.DatetimeIndex(panel.timestamps[window])
        calendar = dataset.handler.trading_calendar
        paths = forecaster.forecast_frame(bars, model.horizon, SAMPLING, calendar=calendar, instrument=code)
        assert scores[last, code] == compute_signal("expected_return", paths, horizon=model.horizon)[0], code
        if rows.loc[code, "age"] == 0:
            assert list(paths.timestamps[0]) == list(pd.DatetimeIndex(following)[: model.horizon].as_unit("ns"))
    return scores


@pytest.mark.parametrize("name", MARKETS)
def test_command_and_python_write_the_same_store(name: str, place: Path, tmp_path: Path) -> None:
    market = MARKETS[name]
    result = ingest(place / f"{name}.parquet", tmp_path / "store", **market.options)
    found = store_metadata(place / name)
    assert found["fingerprint"] == result.store["fingerprint"]
    assert (found["calendar"], found["freq"], found["region"]) == (market.calendar, market.freq, market.region)
    assert found["last"] == str(pd.Timestamp(market.last))
    assert found["universes"] == {}


@pytest.mark.parametrize("name", MARKETS)
def test_the_last_bar_of_each_market_is_scored(name: str, place: Path) -> None:
    market = MARKETS[name]
    start(place / name, market)
    stamps = pd.DatetimeIndex(D.calendar(freq=market.freq))
    dataset = make_dataset(market, stamps[-3], stamps[-1])
    horizon = min(len(market.following), 17)
    scores = check_last_bar(market, dataset, make_model(place / "checkpoint", horizon), market.following)
    assert len(scores) == 3 * len(listed(market))
    assert scores.notna().all()
    assert scores.nunique() == len(scores)


@pytest.mark.parametrize("name", MARKETS)
def test_labels_count_bars(name: str, place: Path) -> None:
    market = MARKETS[name]
    start(place / name, market)
    label = make_dataset(market, market.first, None).prepare("test", col_set="label")["LABEL0"]
    code = market.codes[0]
    bars = vendor_bars(name)
    own = bars[bars["instrument"] == code].set_index("datetime")
    close = own.get("adj_close", own["close"]).astype(np.float32)
    expected = close.shift(-2) / close.shift(-1) - 1
    pd.testing.assert_series_equal(
        label.xs(code, level="instrument").astype(float), expected.astype(float), check_names=False, atol=1e-6,
        check_freq=False, check_index_type=False,
    )  # fmt: skip


def test_lunch_and_night_lie_between_neighbouring_bars(place: Path) -> None:
    market = MARKETS["ashare_15min"]
    start(place / "ashare_15min", market)
    calendar = make_dataset(market, "2025-01-24", "2025-01-24").handler.trading_calendar
    after = {"2025-01-24 11:30": "2025-01-24 13:15", "2025-01-24 15:00": "2025-01-27 09:45"}
    for stamp, expected in after.items():
        assert calendar.future(pd.Timestamp(stamp), 1)[0] == pd.Timestamp(expected)


def test_a_halted_stock_keeps_its_score_for_carry_days_not_bars(place: Path) -> None:
    market = MARKETS["ashare_15min"]
    start(place / "ashare_15min", market)
    rows = make_dataset(market, "2025-01-23", "2025-01-27", codes=[HALTED], carry=1).rows()
    halted = rows.xs(HALTED, level="instrument")["age"]
    assert halted["2025-01-23 11:30"] == 0
    assert halted["2025-01-23 15:00"] == 8
    assert halted["2025-01-24 15:00"] == 8 + SESSION
    assert (halted["2025-01-27":] == -1).all()  # the second trading day without a bar
    rows = make_dataset(market, "2025-01-23", "2025-01-27", codes=[HALTED], carry=0).rows()
    halted = rows.xs(HALTED, level="instrument")["age"]
    assert halted["2025-01-23 15:00"] == 8
    assert (halted["2025-01-24":] == -1).all()


def test_the_signal_command_scores_stores_without_members(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, market in MARKETS.items():
        out = tmp_path / f"{name}.csv"
        options = ["--checkpoint", place / "checkpoint", "--horizon", 3, "--paths", 2, "--out", out, "--device", "cpu"]
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in ["signal", "--store", place / name, *options]])
        assert not stop.value.code
        scores = pd.read_csv(out)
        assert sorted(scores["instrument"]) == listed(market)
        assert scores["score"].notna().all()
        assert (pd.DatetimeIndex(scores["datetime"]) == pd.Timestamp(market.last)).all()
        assert f"{len(scores)} of {len(scores)} members of all" in capsys.readouterr().out


def test_qlib_analyses_signals_bar_by_bar(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    market = MARKETS["ashare_15min"]
    monkeypatch.chdir(tmp_path)
    manager = {"uri": f"sqlite:///{tmp_path / 'mlruns.db'}", "default_exp_name": "Experiment"}
    manager = {"class": "MLflowExpManager", "module_path": "qlib.workflow.expm", "kwargs": manager}
    start(place / "ashare_15min", market, exp_manager=manager)
    dataset, model = make_dataset(market, "2025-01-22", "2025-01-22"), make_model(place / "checkpoint", 3)
    with R.start(experiment_name="intraday"):
        model.fit(dataset)
        SignalRecord(model, dataset, R.get_recorder()).generate()
        SigAnaRecord(R.get_recorder(), ana_long_short=False).generate()
        ic, scores = (R.get_recorder().load_object(name) for name in ("sig_analysis/ic.pkl", "pred.pkl"))
    assert list(ic.index) == list(scores.index.get_level_values("datetime").unique())
    assert len(ic) == SESSION
    label = dataset.prepare("test", col_set="label")["LABEL0"]
    at = pd.Timestamp("2025-01-22 13:15")
    assert ic[at] == pytest.approx(scores.loc[at, "score"].corr(label.loc[at]))


def run_backtest(market: Market, limits: object) -> dict[pd.Timestamp, set[str]]:
    """Hold the first two by a score that always prefers the stock that will be locked; codes held after each bar."""
    freq = market.freq
    codes = listed(market)
    closes = D.features(codes, ["$close"], "2025-01-20", "2025-01-27", freq=freq)["$close"]
    score = closes.swaplevel().sort_index() * 0.0
    name, time = score.index.get_level_values("instrument"), score.index.get_level_values("datetime")
    # from the last bar before the locked day on, it is first; before, it is last
    score += np.where(name == LIMIT_UP, np.where(time >= "2025-01-22 15:00", 9.0, -9.0), name.map(codes.index))
    returns = closes.groupby("instrument").pct_change().groupby("datetime").mean().fillna(0.0)
    metrics, _ = backtest(
        start_time="2025-01-21", end_time="2025-01-24 15:00", account=1e6, benchmark=returns,
        exchange_kwargs={"freq": freq, "deal_price": "close", "limit_threshold": limits, "codes": codes},
        executor={
            "class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
            "kwargs": {"time_per_step": freq, "generate_portfolio_metrics": True},
        },
        strategy={
            "class": "TopkDropoutStrategy", "module_path": "qlib.contrib.strategy",
            "kwargs": {"signal": score.rename("score"), "topk": 2, "n_drop": 1, "hold_thresh": SESSION},
        },
    )  # fmt: skip
    report, positions = metrics[freq]
    assert len(report) == 4 * SESSION
    assert np.isfinite(report["return"]).all()
    return {time: set(position.get_stock_list()) for time, position in positions.items()}


def any_of(*bits: int) -> str:
    """Qlib's expression for "the event is one of these"; Qlib has no bitwise operator on numbers."""
    expression = f"Eq($event, {bits[0]})"
    for bit in bits[1:]:
        expression = f"Or({expression}, Eq($event, {bit}))"
    return expression


# limit up (2) or down (4), with or without a resumption (1) and a gap (8)
DAY_LIMITS = (any_of(2, 3, 10, 11), any_of(4, 5, 12, 13))


def test_a_15_minute_backtest_keeps_to_the_limits_of_the_day_and_to_t_plus_one(place: Path) -> None:
    market = MARKETS["ashare_15min"]
    start(place / "ashare_15min", market)
    held = run_backtest(market, DAY_LIMITS)
    assert not any(LIMIT_UP in codes for time, codes in held.items() if time.normalize() <= LIMIT_DAY)
    assert LIMIT_UP in held[pd.Timestamp("2025-01-24 15:00")], "once it trades freely it is bought"
    loose = run_backtest(market, 0.095)
    assert LIMIT_UP in loose[LIMIT_DAY + pd.Timedelta("15h")], "Qlib's own limit reads a bar's change: not the day's"
    bought: dict[str, pd.Timestamp] = {}
    sales = 0
    for time, codes in sorted(held.items()):
        for code in set(bought) - codes:
            assert bought.pop(code).normalize() < time.normalize()
            sales += 1
        for code in codes - set(bought):
            bought[code] = time
    assert sales


REAL = {
    "ashare_15min": ("ashare_15min", ["SH600000", "SH600519", "SH601059"], ("2026-04-02 09:45", "2026-04-02 10:00")),
    "us_daily": ("us_daily", ["AAPL", "GE", "XOM"], ("2017-09-05", "2017-09-06")),
    "btc_5min": ("btcusdt_5min", ["BTCUSDT"], ("2026-01-31 04:40", "2026-01-31 04:45")),
}


@pytest.mark.parametrize("name", REAL)
def test_the_last_bar_of_real_data_is_scored(name: str, shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    market, (file, codes, following) = MARKETS[name], REAL[name]
    bars = pd.read_parquet(shared_file(f"market/{file}.parquet"))
    bars = bars[bars["instrument"].isin(codes)].assign(instrument=lambda frame: frame["instrument"].astype(str))
    bars.to_parquet(tmp_path / "bars.parquet")
    result = ingest(tmp_path / "bars.parquet", tmp_path / "store", **market.options)
    assert not result.contract.has_errors
    start(tmp_path / "store", market)
    stamps = pd.DatetimeIndex(D.calendar(freq=market.freq))
    dataset = make_dataset(market, stamps[-2], stamps[-1])
    model = make_model(write_tiny_checkpoint(tmp_path / "checkpoint", lookback=LOOKBACK, max_context=128), 2)
    scores = check_last_bar(market, dataset, model, following)
    assert len(scores) == 2 * len(codes)
    assert scores.notna().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_qrun_on_real_data(name: str, shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    market, workflow = MARKETS[name], f"kronos_zero_shot_{name}"
    ingest(shared_file(f"market/{REAL[name][0]}.parquet"), tmp_path / "store", **market.options)
    where = {"KRONOS_STORE": str(tmp_path / "store"), "KRONOS_CHECKPOINT": str(shared_file("checkpoints/nano"))}
    command = [sys.executable, "-m", "qlib.cli.run", str(workflow_path(workflow))]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    manager = {"uri": f"sqlite:///{tmp_path / 'mlruns.db'}", "default_exp_name": "Experiment"}
    manager = {"class": "MLflowExpManager", "module_path": "qlib.workflow.expm", "kwargs": manager}
    start(tmp_path / "store", market, exp_manager=manager)
    (saved,) = R.get_exp(experiment_name=workflow, create=False).list_recorders(rtype="list")
    assert saved.load_object("pred.pkl")["score"].notna().mean() > 0.95
    assert ("IC" in saved.list_metrics()) == (name != "btc_5min")
    assert ("1day.excess_return_with_cost.information_ratio" in saved.list_metrics()) == (name == "us_daily")
