"""``forecast``, ``signal`` and ``doctor`` on a small market and a small network with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_market

from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.cli import main
from kronos_qlib.cli_forecast import split_at
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.adjust import adjust_bars
from kronos_qlib.model import KronosModel

STOCK = "SH600001"
LOOKBACK = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``store``, ``checkpoint`` and ``bars.parquet``."""
    folder = tmp_path_factory.mktemp("command_line")
    tiny_market.write_tiny_store(folder / "store")
    tiny_market.write_tiny_checkpoint(folder / "checkpoint", lookback=LOOKBACK, max_context=128)
    tiny_market.bars().to_parquet(folder / "bars.parquet")
    return folder


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def run_forecast(place: Path, out: Path, *more: object) -> int:
    given = ["--checkpoint", place / "checkpoint", "--instrument", STOCK, "--horizon", 4, "--paths", 8, "--out", out]
    return run("forecast", place / "bars.parquet", *given, *more)


def test_forecast_writes_the_paths_that_python_gives(place: Path, tmp_path: Path) -> None:
    assert run_forecast(place, tmp_path / "new" / "out", "--until", "2020-09-25") == 0
    written = pd.read_parquet(tmp_path / "new" / "out" / "paths.parquet")
    bars = tiny_market.bars().query("instrument == @STOCK").set_index("datetime").loc[:"2020-09-25"]
    bars = adjust_bars(bars, base=float(bars["factor"].iloc[-1]))
    sampling = SamplingConfig(n_paths=8)
    forecaster = KronosForecaster.from_pretrained(place / "checkpoint")
    paths = forecaster.forecast_frame(bars, horizon=4, sampling=sampling, calendar="XSHG", instrument=STOCK)
    pd.testing.assert_frame_equal(written, paths.to_frame())
    # the holidays of October 2020 are left out
    assert [f"{day:%m-%d}" for day in written["timestamp"].unique()] == ["09-28", "09-29", "09-30", "10-09"]


def test_quantiles_and_picture_belong_to_the_paths(place: Path, tmp_path: Path) -> None:
    assert run_forecast(place, tmp_path) == 0
    paths = pd.read_parquet(tmp_path / "paths.parquet")
    quantiles = pd.read_csv(tmp_path / "quantiles.csv", parse_dates=["datetime"])
    assert len(quantiles) == 6 * 4  # fields × steps
    medians = quantiles[quantiles["field"] == "close"].set_index("datetime")["q50"]
    expected = paths.groupby("timestamp")["close"].median()
    np.testing.assert_allclose(medians.to_numpy(), expected.to_numpy(), rtol=1e-6)
    levels = quantiles[["q05", "q25", "q50", "q75", "q95"]].to_numpy()
    assert (np.diff(levels, axis=1) >= 0).all()
    assert (tmp_path / "forecast.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_traded_price_stays_as_traded(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_forecast(place, tmp_path) == 0
    last = tiny_market.bars().query("instrument == @STOCK")["close"].iloc[-1]
    assert f"close {last:g}" in capsys.readouterr().out


def test_a_date_that_the_weights_may_have_seen_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_market.write_tiny_checkpoint(tmp_path / "tiny", lookback=LOOKBACK, max_context=128, cutoff="2020-09-25")
    given = ["--checkpoint", tmp_path / "tiny", "--instrument", STOCK, "--paths", 2, "--out", tmp_path / "out"]
    for until, told in (("2020-09-25", True), ("2020-09-28", False)):
        assert run("forecast", place / "bars.parquet", *given, "--until", until) == 0
        assert ("training data end on 2020-09-25: it may have seen" in capsys.readouterr().out) is told


def test_what_followed_is_not_seen(place: Path, tmp_path: Path) -> None:
    """A file that ends on the day gives the same paths as one that goes on."""
    assert run_forecast(place, tmp_path / "longer", "--until", "2020-09-25") == 0
    bars = tiny_market.bars()
    bars[bars["datetime"] <= "2020-09-25"].to_csv(tmp_path / "bars.csv", index=False)
    given = ["--checkpoint", place / "checkpoint", "--instrument", STOCK, "--horizon", 4, "--paths", 8]
    assert run("forecast", tmp_path / "bars.csv", *given, "--out", tmp_path / "shorter") == 0
    longer, shorter = (pd.read_parquet(tmp_path / name / "paths.parquet") for name in ("longer", "shorter"))
    pd.testing.assert_frame_equal(longer, shorter)


def test_a_date_without_a_time_is_the_whole_day() -> None:
    stamps = pd.to_datetime(["2020-01-02 09:45", "2020-01-02 15:00", "2020-01-03 09:45"])
    bars = pd.DataFrame({"close": [1.0, 2.0, 3.0]}, index=stamps)
    history, followed = split_at(bars, "2020-01-02")
    assert history["close"].tolist() == [1.0, 2.0]
    assert followed["close"].tolist() == [3.0]
    assert split_at(bars, "2020-01-02 10:00")[0]["close"].tolist() == [1.0]


@pytest.mark.parametrize("date", [None, "2020-08-14"])
def test_signal_gives_the_scores_of_qrun(
    place: Path, tmp_path: Path, date: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One day on its own scores as it does inside a longer segment, the last day of the store included."""
    given = ["--store", place / "store", "--checkpoint", place / "checkpoint", "--horizon", 4, "--paths", 4]
    more = [] if date is None else ["--date", date]
    assert run("signal", *given, *more, "--signal", "probability_up", "--out", tmp_path / "scores.csv") == 0
    scores = pd.read_csv(tmp_path / "scores.csv", index_col="instrument")
    day = date or tiny_market.LAST
    assert set(scores["datetime"]) == {day}
    assert f"probability_up on {day}" in capsys.readouterr().out

    tiny_market.start_qlib(place / "store")
    handler = KlineHandler(instruments="csi300", start_time="2020-08-03", end_time=tiny_market.LAST)
    dataset = KlineDataset(handler=handler, segments={"test": (pd.Timestamp(day) - pd.Timedelta("9D"), day)})
    model = KronosModel(
        model=str(place / "checkpoint"), horizon=4, signal="probability_up", sampling={"n_paths": 4, "seed": 0}
    )
    expected = model.predict(dataset).xs(pd.Timestamp(day), level="datetime")
    assert expected.notna().sum() >= 4
    pd.testing.assert_series_equal(
        scores["score"].sort_index(), expected.sort_index(), check_names=False, check_exact=True
    )


def test_doctor_lists_what_it_finds_and_fails_on_what_is_missing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KRONOS_STORE", raising=False)
    found = ["--store", place / "store", "--checkpoint", place / "checkpoint"]
    assert run("doctor", *found) == 0
    text = capsys.readouterr().out
    assert "bundled:synthetic" in text
    assert f"{place / 'store'} (calendar XSHG, freq day" in text
    assert "torch" in text
    assert "bfloat16" in text
    assert run("doctor", "--store", place / "nowhere", "--json") == 1
    findings = json.loads(capsys.readouterr().out)
    assert [finding["topic"] for finding in findings if finding["state"] == "missing"] == ["store"]


def test_scores_of_the_command_are_signals_of_its_paths(place: Path) -> None:
    """The way over the store and the way over a file meet: same window, same score."""
    bars = tiny_market.bars().query("instrument == @STOCK").set_index("datetime")
    forecaster = KronosForecaster.from_pretrained(place / "checkpoint")
    paths = forecaster.forecast_frame(
        adjust_bars(bars), horizon=4, sampling=SamplingConfig(n_paths=4), calendar="XSHG", instrument=STOCK
    )
    tiny_market.start_qlib(place / "store")
    handler = KlineHandler(instruments="csi300", start_time=tiny_market.LAST, end_time=tiny_market.LAST)
    dataset = KlineDataset(handler=handler, segments={"test": (tiny_market.LAST, tiny_market.LAST)})
    model = KronosModel(model=str(place / "checkpoint"), horizon=4, sampling={"n_paths": 4})
    score = model.predict(dataset).xs(STOCK, level="instrument").iloc[0]
    # both ways bring the same float32 bars, and paths do not depend on the windows beside them
    assert score == compute_signal("expected_return", paths)[0]
