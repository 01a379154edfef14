"""Runs on a tiny market: same rows for all, once each, controls fail, test only after valid, statistics and table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from fake_factors import FakeSource, fake_panel
from table_rows import write_registry
from tiny_market import LONG_HALT, UNIVERSE, write_tiny_checkpoint, write_tiny_store

from kronos_qlib.comparison import run as run_module
from kronos_qlib.comparison.checkpoints import find_weights
from kronos_qlib.comparison.methods import Method, read_methods
from kronos_qlib.comparison.rows import Row, read_rows
from kronos_qlib.comparison.run import RunConfig, Runner
from kronos_qlib.comparison.scores import read_scores
from kronos_qlib.comparison.statistics import collect, compare, compare_pairs
from kronos_qlib.comparison.task import Protocol, Task
from kronos_qlib.comparison.worker import NotRun, compute_scores, run_method
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.evaluation.bootstrap import paired_bootstrap
from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.evaluation.multiplicity import romano_wolf
from kronos_qlib.examine import open_store
from kronos_qlib.factors import FactorSettings, FactorTable
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.forecast.store_cards import save_card
from kronos_qlib.handler import KlineHandler
from kronos_qlib.sweep_backtest import BacktestConfig

REGISTRY = """
learner:
    {title: Linear, family: baseline, task: {
        model: {class: LinearModel, module_path: qlib.contrib.model.linear, kwargs: {estimator: ols}},
        dataset: {class: DatasetH, module_path: qlib.data.dataset, kwargs: {handler: {
            class: KlineHandler, module_path: kronos_qlib.handler, kwargs: {
                feature: [["Ref($close, 5)/$close - 1", "Std($close, 5)/$close"], [A, B]],
                infer_processors: [{class: Fillna, kwargs: {fields_group: feature}}],
                learn_processors: [{class: DropnaLabel}, {class: CSRankNorm, kwargs: {fields_group: label}}]}}}}}}
reversal: {title: Reversal, family: reference, kind: column, column: reversal_5}
late: {title: Late, family: reference, kind: lagged, of: reversal, lag: 2}
mixed: {title: Mixed scores, family: control, kind: shuffled_scores, of: reversal}
mixed_labels: {title: Mixed labels, family: control, kind: shuffled_labels, of: reversal}
network:
    {title: Kronos, family: kronos, task: {
        model: {class: KronosModel, module_path: kronos_qlib.model, kwargs: {model: <CHECKPOINT>, horizon: 2,
            sampling: {n_paths: 2}, device: cpu}},
        dataset: {class: KlineDataset, module_path: kronos_qlib.dataset, kwargs: {handler: {
            class: KlineHandler, module_path: kronos_qlib.handler, kwargs: {start_time: <SEGMENT_START>}}}}}}
both: {title: Both, family: kronos, kind: blend, parts: [network, reversal]}
made: {title: Made elsewhere, family: kronos, kind: scores, path: <MADE>}
unseen: {title: The same and known, family: kronos, kind: scores, path: <MADE>, seen: "no"}
both_made: {title: Both made elsewhere, family: kronos, kind: blend, parts: [unseen, made]}
slow: {title: Slow, family: baseline, not_run: it takes a week}
greedy: {title: Greedy, family: baseline, budget: 0.001, task: {model: {}, dataset: {}}}
broken: {title: Broken, family: baseline, task: {
    model: {class: Nothing, module_path: nowhere}, dataset: {class: Nothing, module_path: nowhere,
    kwargs: {handler: {class: Nothing, module_path: nowhere}}}}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("table")
    protocol = Protocol(
        UNIVERSE, ("2019-12-02", "2020-06-30"), ("2020-07-01", "2020-09-30"), ("2020-10-09", "2020-12-15"),
        portfolio=BacktestConfig.of_workflow(topk=3, n_drop=1),
    )  # fmt: skip
    store = write_tiny_store(folder / "store")
    checkpoint = write_tiny_checkpoint(folder / "tiny", lookback=40, max_context=64, cutoff="2020-08-31")
    return RunConfig(store, folder / "results" / "alpha.csv", folder / "state", protocol,
                     {"CHECKPOINT": str(checkpoint), "MADE": str(folder / "valid.parquet")})  # fmt: skip


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Method]:
    return read_methods([write_registry(tmp_path_factory.mktemp("registry"), REGISTRY)])


@pytest.fixture(scope="module")
def runner(config: RunConfig, methods: dict[str, Method]) -> Runner:
    return Runner(config, "valid", methods)


def run_here(
    task: Task, given: Any, fit_folder: Path, folder: Path, features: Path | None = None
) -> tuple[pd.Series, float]:
    """What the process of a run does, in this one: importing torch and Qlib anew takes most of a small run's time."""
    folder.mkdir(parents=True, exist_ok=True)
    return compute_scores(task, given, fit_folder, folder, features), 0.0


@pytest.fixture(scope="module")
def rows(runner: Runner, methods: dict[str, Method]) -> Iterator[dict[str, Row]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "run_method", run_here)
        # one column of another name, levels turned round: what any tool may write
        made = runner.bench.columns["reversal_20"].swaplevel().to_frame("prediction").sample(frac=1.0, random_state=0)
        made.to_parquet(runner.config.given["MADE"])
        yield {name: runner.run(methods[name])[0] for name in methods if name not in ("greedy", "broken")}


def test_every_method_has_a_row_or_a_reason(rows: dict[str, Row], methods: dict[str, Method]) -> None:
    assert {name for name, row in rows.items() if row.status == "done"} == {
        "learner", "reversal", "late", "mixed", "mixed_labels", "network", "both", "made", "unseen", "both_made",
    }  # fmt: skip
    assert rows["slow"].reason == "it takes a week"


def test_a_factor_of_a_forecast_store_is_a_row_like_any_other(
    runner: Runner, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    span = ("2020-07-01", "2020-09-30")
    dataset = KlineDataset(KlineHandler(UNIVERSE, *span, init_data=False), {"all": span}, lookback=40)
    forecasters = [KronosForecaster.from_pretrained(config.given["CHECKPOINT"], device="cpu")]
    table = FactorTable(dataset, "all", forecasters, FactorSettings(factors=("surprise",), block=5))
    table.build(ForecastStore(tmp_path), progress=False)
    monkeypatch.setattr(runner, "config", replace(config, given={"FACTORS": str(tmp_path)}))
    method = Method("calm", "Little surprise", "kronos", "factor", path="<FACTORS>", column="surprise", sign=-1.0)
    (row,) = runner.run(method)
    values = -table.read(ForecastStore(tmp_path))["surprise"]
    figures, _ = runner.bench.judge(runner.bench.lay_out(values))
    assert row.rank_ic == pytest.approx(figures["rank_ic"], rel=1e-5)
    assert row.checkpoint
    assert row.trained_on_segment == "yes"  # the tiny card's cutoff lies inside


@pytest.mark.slow
def test_a_process_is_stopped_at_its_budget_and_its_error_is_the_reason(
    runner: Runner, methods: dict[str, Method], tmp_path: Path
) -> None:
    with pytest.raises(NotRun, match=r"budget of 0.001 CPU seconds"):
        run_method(runner.task(methods["greedy"], 0), {}, tmp_path, tmp_path / "greedy")
    with pytest.raises(NotRun, match=r"failed: ModuleNotFoundError.*nowhere"):
        run_method(runner.task(methods["broken"], 0), {}, tmp_path, tmp_path / "broken")


@pytest.mark.slow
def test_another_process_gives_the_same_scores(runner: Runner, methods: dict[str, Method], tmp_path: Path) -> None:
    task = runner.task(methods["learner"], 0)
    there, seconds = run_method(task, {}, tmp_path, tmp_path / "there")
    here, _ = run_here(task, {}, tmp_path / "unused", tmp_path / "here")
    pd.testing.assert_series_equal(there, here)
    assert 0.0 < seconds < 120.0


def test_the_figures_are_those_of_the_scores_on_the_judged_rows(runner: Runner, rows: dict[str, Row]) -> None:
    row = rows["reversal"]
    bench = runner.bench
    expected = bench.columns["reversal_5"][bench.judged]
    summary = ic_summary(daily_rank_ic(expected, bench.label[bench.judged]))
    assert row.rank_ic == pytest.approx(summary.mean)
    assert row.rank_ic_t == pytest.approx(summary.newey_west_t)
    assert row.rows == bench.judged.sum() == rows["learner"].rows == rows["network"].rows
    assert row.coverage == 1.0


def test_the_label_is_qlibs(runner: Runner) -> None:
    from qlib.data import D

    bench = runner.bench
    codes = sorted(set(bench.label.index.get_level_values("instrument")))
    qlib = D.features(codes, ["Ref($close, -2)/Ref($close, -1) - 1"], bench.start, bench.end).iloc[:, 0].swaplevel()
    mine = bench.label[bench.judged]
    assert len(mine) > 300
    assert mine.to_numpy() == pytest.approx(qlib.reindex(mine.index).to_numpy(), abs=1e-6)


def test_scores_made_elsewhere_are_judged_as_our_own(runner: Runner, rows: dict[str, Row]) -> None:
    ours = runner.bench.lay_out(runner.bench.columns["reversal_20"])
    pd.testing.assert_series_equal(runner.state.scores(rows["made"].key), ours, check_names=False)
    assert rows["made"].trained_on_segment == "unknown"
    assert len(rows["made"].checkpoint) == 16


def test_a_mean_of_scores_made_elsewhere_is_known_by_all_their_files(rows: dict[str, Row]) -> None:
    both = rows["both_made"]
    assert both.rank_ic == pytest.approx(rows["made"].rank_ic)
    assert rows["unseen"].trained_on_segment == "no"
    assert both.trained_on_segment == "unknown"
    assert both.checkpoint
    assert both.checkpoint != rows["made"].checkpoint


def test_scores_of_test_may_be_another_file_and_are_read_once(
    config: RunConfig, methods: dict[str, Method], rows: dict[str, Row], tmp_path: Path
) -> None:
    place = tmp_path / "test.parquet"
    runner = Runner(replace(config, given={"MADE": str(place)}), "test", methods)
    with pytest.raises(ValueError, match="cannot be read"):
        runner.run(methods["made"])
    frame = runner.bench.columns["reversal_20"].to_frame("score")
    frame.to_parquet(place)
    (row,) = runner.run(methods["made"])
    assert (row.status, row.segment) == ("done", "test")
    assert row.checkpoint != rows["made"].checkpoint
    assert [again.key for again in runner.run(methods["made"])] == [row.key]
    (-frame).to_parquet(place)
    with pytest.raises(ValueError, match="test was read for made"):
        runner.run(methods["made"])
    pd.concat([frame, frame]).to_parquet(place)
    with pytest.raises(ValueError, match="twice"):
        read_scores(place)
    frame.assign(other=1.0).rename(columns={"score": "one"}).to_parquet(place)
    with pytest.raises(ValueError, match="one named score"):
        read_scores(place)


def test_factors_are_known_by_what_their_folder_holds(tmp_path: Path) -> None:
    source, store = FakeSource(fake_panel()), ForecastStore(tmp_path)
    store.build([(source, np.arange(100))], source.panel, progress=False)
    some = find_weights([str(tmp_path)])
    assert some.seen("2020-01-01") == "unknown"  # no card
    save_card(tmp_path, "w0", {"cutoff": "2019-12-31"})
    assert find_weights([str(tmp_path)]).seen("2020-01-01") == "no"
    assert find_weights([str(tmp_path)]).seen("2019-12-31") == "yes"
    store.build([(source, np.arange(200))], source.panel, progress=False)
    assert find_weights([str(tmp_path)]).fingerprint != some.fingerprint


def test_a_suspended_name_has_the_same_rule_in_every_method(runner: Runner, rows: dict[str, Row]) -> None:
    """LONG_HALT is away for 30 sessions: kept for 20, then no score, for the network as for the learner."""
    code, first, last = LONG_HALT
    for name in ("learner", "network", "reversal"):
        score = runner.state.scores(rows[name].key).xs(code, level="instrument")
        away = score[first:last]
        assert away.notna().sum() == 20
        before = score[: pd.Timestamp(first) - pd.Timedelta(days=1)].iloc[-1]
        assert (away.dropna() == before).all()


def test_flags_say_what_the_weights_have_seen(rows: dict[str, Row]) -> None:
    assert rows["network"].trained_on_segment == "yes"  # cutoff in August, valid from July
    assert len(rows["network"].checkpoint) == 16
    assert rows["learner"].trained_on_segment == "no"


def test_the_late_signal_is_the_signal_of_two_sessions_before(runner: Runner, rows: dict[str, Row]) -> None:
    now = runner.state.scores(rows["reversal"].key).unstack("instrument")
    late = runner.state.scores(rows["late"].key).unstack("instrument")
    both = late["SH600001"].dropna()
    assert both.to_numpy() == pytest.approx(now["SH600001"].shift(2).reindex(both.index).to_numpy())
    assert rows["late"].coverage < 1.0


def test_a_blend_is_the_mean_of_its_parts_ranks_and_knows_their_weights(runner: Runner, rows: dict[str, Row]) -> None:
    parts = [runner.state.scores(rows[name].key).unstack("instrument") for name in ("network", "reversal")]
    standard = [part.sub(part.mean(axis=1), axis=0).div(part.std(axis=1), axis=0) for part in parts]
    mean = runner.state.scores(rows["both"].key).unstack("instrument")
    both = standard[0].notna() & standard[1].notna()
    assert both.to_numpy().mean() > 0.5
    half = ((standard[0] + standard[1]) / 2)[both]
    np.testing.assert_allclose(mean.reindex_like(half)[both], half)
    assert rows["both"].checkpoint == rows["network"].checkpoint
    assert rows["both"].trained_on_segment == rows["network"].trained_on_segment == "yes"


def test_controls_have_no_portfolio_of_shuffled_labels(rows: dict[str, Row]) -> None:
    assert np.isnan(rows["mixed_labels"].net_excess_return)
    assert np.isfinite(rows["mixed"].net_excess_return)
    # 60 days of 8 names: an IC of shuffled rows lies within 5 standard errors of 0
    for name in ("mixed", "mixed_labels"):
        assert abs(rows[name].rank_ic) < 5 / np.sqrt(60 * 7)
    assert rows["mixed"].rank_ic != rows["reversal"].rank_ic


def test_nothing_is_run_twice(
    runner: Runner, methods: dict[str, Method], rows: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_run", lambda task: pytest.fail(f"{task.method.name} ran again"))
    before = runner.config.results.read_text(encoding="utf-8")
    seen: list[bool] = []
    assert runner.run(methods["network"], lambda row, finished: seen.append(finished))[0].key == rows["network"].key
    assert seen == [True]
    assert runner.config.results.read_text(encoding="utf-8") == before
    assert len(read_rows(runner.config.results)) >= len(rows)


def test_a_kept_fit_scores_the_same(runner: Runner, rows: dict[str, Row], methods: dict[str, Method]) -> None:
    kept = runner.state.scores(rows["learner"].key)
    fit = runner.state.fit(runner.task(methods["learner"], 0).fit_key) / "params.pkl"
    assert fit.is_file()
    again, _, _ = runner._scores(runner.task(methods["learner"], 0))
    pd.testing.assert_series_equal(again, kept)


def test_test_is_read_after_valid_and_once(config: RunConfig, methods: dict[str, Method], rows: dict[str, Row]) -> None:
    runner = Runner(config, "test", methods)
    unseen = Method("unseen", "Unseen", "reference", "column", column="volatility")
    with pytest.raises(ValueError, match="no row on valid"):
        runner.run(unseen)
    assert runner.run(methods["reversal"])[0].segment == "test"
    changed = replace(methods["reversal"], sign=-1.0)
    with pytest.raises(ValueError, match="test was read for reversal"):
        runner.run(changed)


def test_a_learner_is_fitted_once_for_both_segments(runner: Runner, methods: dict[str, Method]) -> None:
    task = runner.task(methods["learner"], 0)
    other = replace(task, segment="test")
    assert task.fit_key == other.fit_key
    assert task.key != other.key
    assert replace(task, seed=1).fit_key != task.fit_key
    assert replace(task, checkpoint="other").key != task.key
    with pytest.raises(ValueError, match="segment"):
        replace(task, segment="train")


def test_pairs_are_compared_on_common_rows(runner: Runner, rows: dict[str, Row]) -> None:
    chosen = [rows[name] for name in ("learner", "reversal", "late", "network")]
    label = runner.state.label("valid")
    compared = collect(chosen, runner.state, label)
    assert compared.rows < rows["reversal"].rows  # the late signal lacks the first two sessions
    assert set(compared.daily["rank_ic"].columns) == {"learner", "reversal", "late", "network"}
    table = compare_pairs(compared, ["network"], ["learner", "reversal"], n_tried=1)
    assert len(table) == 6
    first = table[(table["measure"] == "rank_ic") & (table["rival"] == "learner")].iloc[0]
    daily = compared.daily["rank_ic"]
    direct = paired_bootstrap(daily["network"], daily["learner"], horizon=2)
    assert (first["difference"], first["lower"]) == pytest.approx((direct.estimate, direct.lower))
    ranks = table[table["measure"] == "rank_ic"]
    both = pd.DataFrame({name: daily["network"] - daily[name] for name in ("learner", "reversal")})
    family = romano_wolf(both, horizon=2).table
    assert ranks["adjusted_p_value"].tolist() == pytest.approx(family["adjusted_p_value"].tolist())
    # counting ten variants makes every adjusted p-value at least as large
    many = compare_pairs(compared, ["network"], ["learner", "reversal"], n_tried=10)
    assert (many["adjusted_p_value"] >= table["adjusted_p_value"]).all()
    assert many["adjusted_p_value"].sum() > table["adjusted_p_value"].sum()


def test_the_tables_of_a_segment_are_written(
    config: RunConfig, methods: dict[str, Method], rows: dict[str, Row]
) -> None:
    folder = config.results.parent
    lines = compare(folder, config.state, "valid", list(methods.values()), ["network"])
    assert any("network - learner" in line for line in lines)
    pairs = pd.read_csv(folder / "comparisons_valid.csv")
    # no control is a rival
    assert set(pairs["rival"]) == {"learner", "reversal", "late", "both", "made", "unseen", "both_made"}
    costs = pd.read_csv(folder / "costs_valid.csv")
    assert costs.groupby("method")["net_excess_return"].apply(lambda s: s.is_monotonic_decreasing).all()
    assert set(pd.read_csv(folder / "years_valid.csv")["year"]) == {2020}
    assert set(pd.read_csv(folder / "groups_valid.csv")["group"]) == {1, 2, 3}
    with pytest.raises(ValueError, match="slow"):
        compare(folder, config.state, "valid", list(methods.values()), ["slow"])


def test_the_packaged_configurations_can_be_built(config: RunConfig) -> None:
    """Placeholders, members, dates and segments of every packaged entry; nothing is loaded."""
    from qlib.data import D

    from kronos_qlib.comparison.worker import build

    open_store(config.store)
    for method in read_methods().values():
        if method.kind != "qlib":
            continue
        task = Task(method, 3, "valid", config.protocol, config.store, "d")
        built = build(task, dict.fromkeys(method.placeholders(), "x"))
        kwargs = built["dataset"]["kwargs"]
        assert kwargs["segments"]["test"] == config.protocol.valid
        last = D.calendar(*config.protocol.train, freq="day")
        purged = 4 if "Ref($close, -6)" in str(kwargs["handler"]) else 0  # the label reads 6 sessions ahead, Qlib's 2
        if purged:
            assert kwargs["segments"]["train"] == (config.protocol.train[0], f"{last[-1 - purged]:%Y-%m-%d}")
        else:
            assert kwargs["segments"]["train"] == config.protocol.train
        assert kwargs["handler"]["kwargs"]["end_time"] == config.protocol.valid[1]
        assert "<" not in yaml.safe_dump(built), method.name
