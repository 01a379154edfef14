"""Probability rows: naive and sampled distributions on the same windows, recalibrated by what came before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_market import UNIVERSE, write_tiny_checkpoint, write_tiny_store

from kronos_qlib.comparison.bench import Bench
from kronos_qlib.comparison.distributions import Distribution, histvol_distribution, log_returns
from kronos_qlib.comparison.probability import judge_probability, judged_windows, probability_table
from kronos_qlib.comparison.run import RunConfig
from kronos_qlib.comparison.task import Protocol
from kronos_qlib.evaluation.conformal import IntervalCalibration
from kronos_qlib.evaluation.outcomes import realised_returns
from kronos_qlib.sweep_backtest import BacktestConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("probability")
    protocol = Protocol(
        UNIVERSE, ("2019-12-02", "2020-08-31"), ("2020-09-15", "2020-11-13"), ("2020-11-16", "2020-12-22"),
        portfolio=BacktestConfig.of_workflow(topk=3, n_drop=1),
    )  # fmt: skip
    store = write_tiny_store(folder / "store")
    checkpoint = write_tiny_checkpoint(folder / "tiny", lookback=40, max_context=64, cutoff="2020-08-31")
    return RunConfig(store, folder / "results" / "alpha.csv", folder / "state", protocol,
                     {"CHECKPOINT": str(checkpoint)})  # fmt: skip


def test_log_returns_do_not_cross_instruments(config: RunConfig) -> None:
    bench = Bench(config.protocol, config.store, "valid")
    returns = log_returns(bench.panel)
    firsts = bench.panel.offsets[:-1]
    assert np.isnan(returns[firsts[firsts < len(returns)]]).all()
    assert np.isfinite(np.delete(returns, firsts[firsts < len(returns)])).all()


def test_histvol_is_of_the_last_twenty_returns(config: RunConfig) -> None:
    bench = Bench(config.protocol, config.store, "valid")
    rows, index = judged_windows(bench, 1)
    truth = realised_returns(bench.panel, rows, 3)
    found = histvol_distribution(bench.panel, rows, truth)
    row = rows[7]
    volatility = np.sqrt((log_returns(bench.panel)[row - 19 : row + 1] ** 2).mean())
    assert np.log1p(found.upper[7, 2, 1]) == pytest.approx(1.6448536 * volatility * np.sqrt(2))
    assert len(rows) == len(index) == (bench.age == 0).sum()


def test_the_rows_of_a_table_by_hand() -> None:
    """Two methods of known width on 40 days of 4 names; intervals that hold always, half of the time, recalibrated."""
    days, names, steps = 40, 4, 2
    n = days * names
    dates = pd.DatetimeIndex(np.repeat(pd.date_range("2020-01-01", periods=days), names))
    truth = np.tile(np.array([1.0, -1.0, 3.0, -3.0])[:, None], (days, steps))

    def distribution(reach: float, crps: float) -> Distribution:
        ends = np.full((n, 3, steps), reach)
        return Distribution(np.full((n, steps), crps), np.full((n, steps), 0.25), -ends, np.zeros((n, steps)), ends)

    found = {"histvol20": distribution(5.0, 2.0), "other": distribution(2.0, 1.5)}
    found["other"].crps[:4] = np.nan  # the first day is judged for nobody
    groups = pd.DataFrame({"size": np.tile([1, 2, 3, 0], days)})
    twice = IntervalCalibration(0.9, "scale", np.array([2.0, 2.0]), np.array([9, 9]))
    table = probability_table(found, truth, dates, groups, {"other": twice}, np.ones(n, dtype=bool), steps)
    whole = table[(table["group"] == "all") & (table["step"] == 0)].set_index("method")
    assert whole.loc["other", "skill"] == pytest.approx(0.25)
    assert whole["coverage_90"].tolist() == [1.0, 0.5]
    assert whole["width_90"].tolist() == [10.0, 4.0]
    assert whole["days"].tolist() == [39, 39]
    assert whole.loc["other", "recalibrated_90"] == 1.0
    assert whole.loc["other", "pit_2"] == 1.0
    sizes = table[(table["method"] == "other") & table["group"].str.startswith("size")].set_index("group")
    assert sizes["coverage_90"].tolist() == [1.0, 1.0, 0.0]
    assert set(table["step"]) == {0, 1, 2}


@pytest.mark.slow
def test_valid_teaches_what_test_uses(config: RunConfig) -> None:
    with pytest.raises(ValueError, match="learned on valid"):
        judge_probability(config, "test", n_paths=8, horizon=3)
    lines = judge_probability(config, "valid", n_paths=8, horizon=3)
    assert any(line.startswith("garch_t: CRPS") for line in lines)
    judge_probability(config, "test", n_paths=8, horizon=3)
    table = pd.read_csv(Path(config.results).with_name("probability_test.csv"))
    assert set(table["method"]) == {"histvol20", "garch_t", "kronos"}
    whole = table[(table["group"] == "all") & (table["step"] == 0)]
    assert whole["windows"].nunique() == 1  # the same windows for all
    assert (whole["crps"] > 0).all()
    assert whole["recalibrated_90"].between(0.3, 1.0).all()
    shares = whole[[f"pit_{number}" for number in range(10)]].sum(axis=1)
    assert shares.to_numpy() == pytest.approx(np.ones(3), abs=1e-4)
    with pytest.raises(ValueError, match="learned on valid"):
        judge_probability(config, "test", n_paths=16, horizon=3)
