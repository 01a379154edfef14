"""Sweeps: same scores as the model's, resumed without recomputing, the same in two processes, counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_market import UNIVERSE, write_tiny_checkpoint, write_tiny_store
from typer.testing import CliRunner

from kronos_qlib import sweep as sweep_module
from kronos_qlib.cli import app
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.evaluation.null_maximum import expected_null_maximum
from kronos_qlib.evaluation.probability import ensemble_coverage, ensemble_pit
from kronos_qlib.forecast.figures import pit_deviation
from kronos_qlib.forecast.grid import Setting, expand_grid
from kronos_qlib.forecast.reduction import CheckpointSource, ReductionPlan, reduce_forecasts
from kronos_qlib.forecast.sweep_table import multiplicity_note, sweep_table, to_markdown
from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.model import KronosModel
from kronos_qlib.sweep import SweepBench, SweepConfig, count_variants, run_setting, run_sweep
from kronos_qlib.sweep_backtest import YEAR, BacktestConfig, backtest_figures

START, END, LOOKBACK = "2020-07-27", "2020-09-30", 40
GRID = {"horizon": 3, "n_paths": 3, "temperature": [0.7, 1.0]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    folder = tmp_path_factory.mktemp("sweep")
    store = write_tiny_store(folder / "store")
    checkpoint = write_tiny_checkpoint(folder / "tiny", lookback=LOOKBACK, max_context=64)
    trades = BacktestConfig.of_workflow(topk=3, n_drop=1)
    return SweepConfig(
        CheckpointSource(str(checkpoint), device="cpu"), store, UNIVERSE, START, END,
        signals=("expected_return", "first_step"), backtest=trades,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bench(config: SweepConfig) -> SweepBench:
    return SweepBench(config, config.source.load())


@pytest.fixture(scope="module")
def swept(bench: SweepBench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("swept")
    return folder, run_sweep(bench, expand_grid(GRID), folder, progress=False)


def reduced(bench: SweepBench, setting: Setting, source: Any, jobs: int = 1) -> Any:
    plan = ReductionPlan(bench.policy, setting.horizon, setting.sampling, bench.calendar, bench.config.registered())
    truth = sweep_module.realised_returns(bench.panel, bench.rows, setting.horizon)
    return reduce_forecasts(source, bench.panel, bench.rows, truth, plan, jobs=jobs, progress=False)


def test_scores_are_those_of_the_model(bench: SweepBench) -> None:
    setting = expand_grid(GRID)[0]
    ours = bench.spread(reduced(bench, setting, bench.forecaster).signals["expected_return"])
    model = KronosModel(model=bench.config.source.model, horizon=3, sampling=setting.sampling.to_dict(), device="cpu")
    dataset = KlineDataset(KlineHandler(UNIVERSE, START, END), {"test": (START, END)})
    pd.testing.assert_series_equal(ours, model.predict(dataset))
    assert ours.isna().any()
    assert (bench.age > 0).any()


def test_figures_equal_a_direct_computation(bench: SweepBench, swept: tuple[Path, list[dict[str, Any]]]) -> None:
    setting, result = expand_grid(GRID)[1], swept[1][1]
    assert result["setting"] == setting.to_dict()
    plan_truth = sweep_module.realised_returns(bench.panel, bench.rows, 3)
    returns, score = np.full((len(bench.rows), 3, 3), np.nan), np.full(len(bench.rows), np.nan)
    batches = bench.forecaster.forecast_batches(
        bench.panel, bench.rows, policy=bench.policy, horizon=3, sampling=setting.sampling, calendar=bench.calendar,
        progress=False,
    )  # fmt: skip
    for positions, paths in batches:
        returns[positions] = paths.returns()
        score[positions] = paths.values[:, :, :, 3].astype(np.float64).mean(axis=(1, 2)) / paths.last_close - 1
    daily = daily_rank_ic(bench.spread(score), bench.labels["one_day"])
    row = next(r for r in result["signals"] if (r["signal"], r["label"]) == ("expected_return", "one_day"))
    assert row["rank_ic"] == pytest.approx(daily.mean())
    assert row["rank_ic_t"] == pytest.approx(ic_summary(daily).newey_west_t)
    assert list(result["daily_rank_ic"]["expected_return"].values()) == pytest.approx(daily.to_list(), nan_ok=True)
    kept = bench.judged
    coverage = ensemble_coverage(returns[kept], plan_truth[kept], 0.8).table["coverage"]
    pit = ensemble_pit(returns[kept], plan_truth[kept])
    for step in result["calibration"]:
        assert step["cover_80"] == pytest.approx(coverage[step["step"]])
        assert step["pit_deviation"] == pytest.approx(pit_deviation(pit[:, step["step"] - 1]))


def test_the_backtest_is_qlibs_with_the_projects_costs(bench: SweepBench, swept: tuple[Path, list[Any]]) -> None:
    from qlib.contrib.evaluate import backtest_daily
    from qlib.contrib.strategy import TopkDropoutStrategy

    setting, result = expand_grid(GRID)[0], swept[1][0]
    score = bench.spread(reduced(bench, setting, bench.forecaster).signals["expected_return"])
    report, _ = backtest_daily(
        bench.backtester.start, bench.backtester.end, TopkDropoutStrategy(signal=score, topk=3, n_drop=1),
        account=1e8, benchmark="SH000300",
        exchange_kwargs={"limit_threshold": 0.095, "deal_price": "close", "open_cost": 0.0005, "close_cost": 0.0015,
                         "min_cost": 5},
    )  # fmt: skip
    found = result["backtest"]["expected_return"]
    net = report["return"] - report["bench"] - report["cost"]
    assert found["net_excess_return"] == pytest.approx(net.mean() * YEAR)
    assert found["turnover"] == pytest.approx(report["turnover"].mean())
    assert found["turnover"] > 0
    assert found["cost"] > 0
    assert backtest_figures(report) == pytest.approx(found, nan_ok=True)


def test_finished_settings_are_not_computed_again(
    bench: SweepBench, swept: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, results = swept
    asked: list[Setting] = []

    def watched(bench: SweepBench, setting: Setting, **options: Any) -> dict[str, Any]:
        asked.append(setting)
        return run_setting(bench, setting, **options)

    monkeypatch.setattr(sweep_module, "run_setting", watched)
    seen: list[bool] = []
    again = run_sweep(
        bench, expand_grid(GRID | {"temperature": [0.7, 1.0, 1.3]}), folder, progress=False,
        report=lambda position, result, finished: seen.append(finished),
    )  # fmt: skip
    assert seen == [True, True, False]
    assert [setting.sampling.temperature for setting in asked] == [1.3]
    assert again[:2] == json.loads(json.dumps(results))
    assert count_variants(folder) == 6  # three settings, two signals each


def test_another_span_or_checkpoint_is_another_result(bench: SweepBench) -> None:
    context = bench.context()
    other = SweepConfig(**(vars(bench.config) | {"end": "2020-09-29"}))
    assert SweepBench(other, bench.forecaster).context() != context
    assert sweep_module.fingerprint_of(context) == sweep_module.fingerprint_of(dict(reversed(context.items())))


def test_two_processes_give_the_same_figures(bench: SweepBench) -> None:
    setting = expand_grid(GRID)[0]
    one = reduced(bench, setting, bench.forecaster)
    two = reduced(bench, setting, bench.config.source, jobs=2)
    for name in one.signals:
        np.testing.assert_array_equal(one.signals[name], two.signals[name])
    for name in set(vars(one)) - {"signals"}:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert np.isfinite(one.signals["first_step"]).all()


def test_table_and_note_count_every_variant(swept: tuple[Path, list[dict[str, Any]]]) -> None:
    results = swept[1]
    table = sweep_table(results, "one_day", n_tried=40)
    assert list(table["signal"]) == ["expected_return", "first_step"] * 2
    assert list(table["temperature"]) == [0.7, 0.7, 1.0, 1.0]
    few = sweep_table(results, "one_day")
    ratio = np.minimum(few["adjusted_p"].astype(float) * 10, 1.0)
    np.testing.assert_allclose(table["adjusted_p"].astype(float), ratio)
    note = multiplicity_note(table, 40)
    assert f"{expected_null_maximum(40):.2f}" in note
    assert note.startswith("40 variants")
    text = to_markdown(table, note)
    assert "| signal | temperature | rank_ic |" in text
    assert "n_paths 3" in text
    assert note in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": ("expected_retrun",)}, "Did you mean 'expected_return'"),
        ({"label": "1day"}, "found label='1day'"),
        ({"every": 0}, "every=0"),
        ({"signals": ()}, "no signal"),
    ],
)
def test_bad_settings_are_refused(config: SweepConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepConfig(**(vars(config) | changes))


def test_a_setting_that_the_signal_cannot_use_is_refused_before_any_is_run(bench: SweepBench) -> None:
    config = SweepConfig(**(vars(bench.config) | {"signals": ("execution_return",)}))
    with pytest.raises(ValueError, match="at least 2 forecast steps"):
        sweep_module.check_settings(config, [Setting(3, SamplingConfig()), Setting(1, SamplingConfig())])


def test_the_command_writes_tables_and_goes_on(config: SweepConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        "sweep", config.source.model, "--store", str(config.store), "--out", str(out), "--start", START, "--end", END,
        "--every", "3", "--set", "horizon=2", "--set", "n_paths=2,3", "--device", "cpu",
    ]  # fmt: skip
    first = CliRunner().invoke(app, command, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    assert "no backtest" in first.output
    assert "2 variants tried" in first.output
    table = pd.read_csv(out / "sweep.csv")
    assert list(table["n_paths"]) == [2, 3]
    assert table["net_excess_return"].isna().all()
    assert (out / "sweep.md").read_text().count("\n| expected_return") == 2
    second = CliRunner().invoke(app, command, catch_exceptions=False)
    assert second.output.count("(done before)") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "temprature=1"], "did you mean 'temperature'"),
        ([], "either by --grid FILE or by --set"),
        (["--set", "n_paths=2", "--segment", "vald"], "did you mean 'valid'"),
    ],
)
def test_the_command_refuses(config: SweepConfig, tmp_path: Path, options: list[str], message: str) -> None:
    command = ["sweep", config.source.model, "--store", str(config.store), "--out", str(tmp_path), *options]
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)
