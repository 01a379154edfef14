"""Probability rows: naive and sampled distributions on the same windows, recalibrated by what came before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_market import UNIVERSE, write_tiny_checkpoint, write_tiny_store

from kronos_qlib.comparison.bench import Bench
from kronos_qlib.comparison.distributions import (
    Distribution,
    GarchFigures,
    histvol_distribution,
    log_returns,
    recent_volatility,
)
from kronos_qlib.comparison.kept import kept_array
from kronos_qlib.comparison.probability import judge_probability, judged_windows
from kronos_qlib.comparison.probability_table import probability_table
from kronos_qlib.comparison.run import RunConfig
from kronos_qlib.comparison.sampled import Forecast, SampledReturns, describe_windows
from kronos_qlib.comparison.task import Protocol
from kronos_qlib.evaluation.conformal import IntervalCalibration
from kronos_qlib.evaluation.outcomes import realised_returns
from kronos_qlib.forecast.reduction import CheckpointSource, choose_estimator
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.sweep_backtest import BacktestConfig

SAMPLING = SamplingConfig(n_paths=8, top_p=1.0)


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
    found = histvol_distribution(recent_volatility(bench.panel, rows), truth)
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
    table = probability_table(found, truth, dates, groups, {"other": twice})
    whole = table[(table["group"] == "all") & (table["step"] == 0)].set_index("method")
    assert whole.loc["other", "skill"] == pytest.approx(0.25)
    assert whole.loc["histvol20", "skill"] == 0.0
    assert np.isnan(whole["skill_garch"]).all()
    against = probability_table(found | {"garch_t": distribution(2.0, 3.0)}, truth, dates, groups, {}, overlap=2)
    row = against[(against["group"] == "all") & (against["step"] == 1)].set_index("method").loc["other"]
    assert [row["skill"], row["skill_garch"], row["skill_garch_lower"], row["skill_garch_upper"]] == pytest.approx(
        [0.25, 0.5, 0.5, 0.5]
    )
    assert whole["coverage_90"].tolist() == [1.0, 0.5]
    assert whole["width_90"].tolist() == [10.0, 4.0]
    assert whole["days"].tolist() == [39, 39]
    assert whole.loc["other", "recalibrated_90"] == 1.0
    assert whole.loc["other", "pit_2"] == 1.0
    sizes = table[(table["method"] == "other") & table["group"].str.startswith("size")].set_index("group")
    assert sizes["coverage_90"].tolist() == [1.0, 1.0, 0.0]
    assert set(table["step"]) == {0, 1, 2}


def sampled(
    config: RunConfig, chunk: int, monkeypatch: pytest.MonkeyPatch, **sampling: object
) -> tuple[Bench, SampledReturns]:
    monkeypatch.setattr("kronos_qlib.comparison.sampled.CHUNK_WINDOWS", chunk)
    bench = Bench(config.protocol, config.store, "valid")
    rows, _ = judged_windows(bench, 8)
    source = CheckpointSource(str(config.given["CHECKPOINT"]), device="cpu")
    forecast = Forecast.on_bench(bench, source, 3, SamplingConfig(**SAMPLING.to_dict() | sampling))
    return bench, SampledReturns(forecast, rows, describe_windows(bench, rows))


def test_chunks_are_consecutive_dates_and_change_no_path(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, work = sampled(config, 10, monkeypatch)
    chunks = work.chunks(bench.panel)
    dates = bench.panel.timestamps[work.rows]
    assert len(chunks) >= 3
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(work.rows)))
    spans = [(dates[part].min(), dates[part].max()) for part in chunks]
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    found = kept_array(tmp_path, work, bench.panel)
    assert np.isfinite(found).all()
    _, whole = sampled(config, 10**6, monkeypatch)
    assert len(whole.chunks(bench.panel)) == 1
    assert whole.compute(bench.panel, np.arange(len(work.rows))).tobytes() == found.tobytes()


def test_a_killed_run_goes_on_at_the_chunk_it_was_in(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, work = sampled(config, 10, monkeypatch)
    expected = kept_array(tmp_path / "whole", work, bench.panel)
    asked: list[int] = []
    compute = SampledReturns.compute

    def dying(self: SampledReturns, panel: object, positions: np.ndarray) -> np.ndarray:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(int(positions[0]))
        return compute(self, panel, positions)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SampledReturns, "compute", dying)
        with pytest.raises(KeyboardInterrupt):
            kept_array(tmp_path / "killed", work, bench.panel)

    def counting(self: SampledReturns, panel: object, positions: np.ndarray) -> np.ndarray:
        asked.append(int(positions[0]))
        return compute(self, panel, positions)  # type: ignore[arg-type]

    monkeypatch.setattr(SampledReturns, "compute", counting)
    again = kept_array(tmp_path / "killed", work, bench.panel)
    assert again.tobytes() == expected.tobytes()
    assert asked == [int(part[0]) for part in work.chunks(bench.panel)]  # each once
    kept_array(tmp_path / "killed", work, bench.panel)
    assert len(asked) == len(work.chunks(bench.panel))


def test_anything_else_begins_anew_and_strange_files_are_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, work = sampled(config, 10**6, monkeypatch)
    kept_array(tmp_path, work, bench.panel)
    _, other = sampled(config, 10**6, monkeypatch, seed=1)
    kept_array(tmp_path, other, bench.panel)
    first, second = sorted(tmp_path.iterdir())
    assert (first / "00000.npy").read_bytes() != (second / "00000.npy").read_bytes()
    np.save(first / "00000.npy", np.zeros((2, 2)))
    (second / "00000.npy").write_bytes(b"half a chu")
    for wrong in (work, other):
        with pytest.raises(ValueError, match="computes it again"):
            kept_array(tmp_path, wrong, bench.panel)
    (first / "note.json").write_text("{}")
    (second / "note.json").write_text("{}")
    with pytest.raises(ValueError, match="describes another array"):
        kept_array(tmp_path, work, bench.panel)
    with pytest.raises(ValueError, match="jobs=0"):
        kept_array(tmp_path, work, bench.panel, jobs=0)


def test_garch_does_not_depend_on_its_chunks(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(config.protocol, config.store, "valid")
    rows, _ = judged_windows(bench, 8)
    truth = realised_returns(bench.panel, rows, 3)
    work = GarchFigures(rows, truth, describe_windows(bench, rows))
    monkeypatch.setattr("kronos_qlib.comparison.distributions.CHUNK_INSTRUMENTS", 2)
    chunks = work.chunks(bench.panel)
    assert len(chunks) > 2
    values = np.empty(work.shape)
    for part in chunks:
        values[part] = work.compute(bench.panel, part)
    whole = work.compute(bench.panel, np.arange(len(rows)))
    assert values.tobytes() == whole.tobytes()
    read = GarchFigures.read(whole)
    assert read.lower.shape == (len(rows), 3, 3)
    ends = (read.lower[:, 2], read.lower[:, 0], read.centre, read.upper[:, 0], read.upper[:, 2])
    known = np.isfinite(read.centre).all(axis=1)
    assert known.any()
    assert all((low[known] < high[known]).all() for low, high in pairwise(ends))


def test_only_independent_draws_are_scored_as_such() -> None:
    schemes = ("independent", "antithetic", "stratified", "sobol")
    found = {scheme: choose_estimator(SamplingConfig(scheme=scheme)) for scheme in schemes}
    assert found.pop("independent") == "fair"
    assert set(found.values()) == {"standard"}


@pytest.mark.slow
def test_valid_teaches_what_test_uses(config: RunConfig) -> None:
    with pytest.raises(ValueError, match="learned on valid"):
        judge_probability(config, "test", sampling=SAMPLING, horizon=3)
    lines = judge_probability(config, "valid", sampling=SAMPLING, horizon=3)
    assert any(line.startswith("garch_t: CRPS") for line in lines)
    assert any(line.startswith("kronos_recalibrated, step 3: spread x") for line in lines)
    valid = pd.read_csv(config.results.with_name("probability_valid.csv"))
    whole = valid[(valid["group"] == "all") & (valid["step"] == 0)].set_index(["part", "method"])
    assert set(whole.loc["all"].index) == {"histvol20", "garch_t", "kronos"}
    later = whole.loc["second_half"]
    assert set(later.index) == {"histvol20", "garch_t", "kronos", "kronos_recalibrated"}
    assert later["windows"].nunique() == 1
    assert later.loc["kronos_recalibrated", "crps"] < later.loc["kronos", "crps"]  # random weights: much to repair
    judge_probability(config, "test", sampling=SAMPLING, horizon=3)
    table = pd.read_csv(config.results.with_name("probability_test.csv"))
    assert set(table["part"]) == {"all"}
    assert set(table["method"]) == {"histvol20", "garch_t", "kronos", "kronos_recalibrated"}
    whole = table[(table["group"] == "all") & (table["step"] == 0)]
    assert whole["windows"].nunique() == 1  # the same windows for all
    assert (whole["crps"] > 0).all()
    assert whole["recalibrated_90"].between(0.3, 1.0).all()
    shares = whole[[f"pit_{number}" for number in range(10)]].sum(axis=1)
    assert shares.to_numpy() == pytest.approx(np.ones(4), abs=1e-4)
    for other in ({"sampling": SamplingConfig(n_paths=16, top_p=1.0)}, {"sampling": SAMPLING, "dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="learned on valid"):
            judge_probability(config, "test", horizon=3, **other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 4"):
        judge_probability(config, "valid", sampling=SamplingConfig(n_paths=3), horizon=3)


@pytest.mark.slow
def test_two_processes_and_a_second_run_give_the_same_table(config: RunConfig, tmp_path: Path) -> None:
    tables = []
    for state, jobs in (("one", 1), ("two", 2), ("two", 1)):
        mine = replace(config, state=tmp_path / state, results=tmp_path / f"{state}{jobs}" / "alpha.csv")
        judge_probability(mine, "valid", every=2, sampling=SAMPLING, horizon=3, jobs=jobs)
        tables.append(mine.results.with_name("probability_valid.csv").read_bytes())
    assert tables[0] == tables[1] == tables[2]
