"""The examination of a checkpoint: every figure against what the pieces give directly on the same rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from tiny_market import SHORT_HALT, UNIVERSE, write_tiny_checkpoint, write_tiny_store
from typer.testing import CliRunner

from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.cli import app
from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.evaluation.probability import crps_ensemble, ensemble_coverage
from kronos_qlib.examine import ExamineConfig, examine, plain, prepare
from kronos_qlib.forecast.reduction import CheckpointSource
from kronos_qlib.forecast.token_quality import cut_windows, draw_window_ends
from kronos_qlib.kronos import SamplingConfig, normalise

START, END, LOOKBACK, HORIZON = "2020-07-20", "2020-09-30", 40, 3


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExamineConfig:
    folder = tmp_path_factory.mktemp("examine")
    store = write_tiny_store(folder / "store")
    checkpoint = write_tiny_checkpoint(folder / "tiny", lookback=LOOKBACK, max_context=64)
    return ExamineConfig(
        CheckpointSource(str(checkpoint), device="cpu"), store, UNIVERSE, START, END, 2, HORIZON,
        SamplingConfig(n_paths=4, seed=1), token_windows=20, reconstruction_windows=8,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(config: ExamineConfig) -> dict[str, Any]:
    return examine(config, progress=False)


def test_rows_are_members_that_traded_on_every_second_session(config: ExamineConfig, found: dict[str, Any]) -> None:
    prepared = prepare(config, LOOKBACK)
    dates = prepared.index.get_level_values("datetime").unique()
    sessions = prepared.panel.calendar
    assert set(np.diff(sessions.get_indexer(dates))) == {2}
    code, first, last = SHORT_HALT
    of_code = prepared.index[prepared.index.get_level_values("instrument") == code].get_level_values("datetime")
    assert not ((of_code >= first) & (of_code <= last)).any()
    assert found["settings"]["n_windows"] == len(prepared.rows)
    assert (prepared.panel.timestamps[prepared.rows] == prepared.index.get_level_values("datetime").to_numpy()).all()


def test_the_label_is_qlibs(config: ExamineConfig) -> None:
    from qlib.data import D

    prepared = prepare(config, LOOKBACK)
    codes = sorted(set(prepared.index.get_level_values("instrument")))
    theirs = D.features(codes, ["Ref($close, -2)/Ref($close, -1) - 1"], START, END).iloc[:, 0].swaplevel()
    ours = prepared.labels["one_day"]
    np.testing.assert_allclose(ours.to_numpy(), theirs.reindex(ours.index).to_numpy(), rtol=1e-5, atol=1e-7)
    assert ours.notna().sum() > 100


def test_signals_and_calibration_equal_a_direct_computation(config: ExamineConfig, found: dict[str, Any]) -> None:
    prepared = prepare(config, LOOKBACK)
    forecaster = config.source.load()
    returns = np.full((len(prepared.rows), 4, HORIZON), np.nan)
    score = np.full(len(prepared.rows), np.nan)
    batches = forecaster.forecast_batches(
        prepared.panel, prepared.rows, policy=prepared.policy, horizon=HORIZON, sampling=config.sampling,
        calendar=prepared.calendar, progress=False,
    )  # fmt: skip
    for positions, paths in batches:
        returns[positions] = paths.returns()
        score[positions] = compute_signal("execution_return", paths)
    daily = daily_rank_ic(pd.Series(score, prepared.index), prepared.labels["one_day"])
    row = next(r for r in found["signals"] if (r["signal"], r["label"]) == ("execution_return", "one_day"))
    summary = ic_summary(daily)
    assert row["rank_ic"] == pytest.approx(summary.mean)
    assert row["rank_ic_t"] == pytest.approx(summary.newey_west_t)
    assert row["rank_ic_error"] == pytest.approx(abs(summary.mean / summary.newey_west_t))
    coverage = ensemble_coverage(returns, prepared.truth, 0.9)
    linear = ensemble_coverage(returns, prepared.truth, 0.9, method="linear")
    crps = crps_ensemble(returns, prepared.truth)
    for step in found["calibration"]:
        assert step["cover_90"] == pytest.approx(coverage.table["coverage"][step["step"]])
        assert step["cover_90_linear"] == pytest.approx(linear.table["coverage"][step["step"]])
        assert step["crps"] == pytest.approx(np.nanmean(crps[:, step["step"] - 1]))
    assert found["calibrated_coverage"]["90"] == pytest.approx(coverage.calibrated)


def test_references_are_judged_on_the_same_rows(config: ExamineConfig, found: dict[str, Any]) -> None:
    prepared = prepare(config, LOOKBACK)
    direct = daily_rank_ic(prepared.references["reversal_5"], prepared.labels["ten_day"])
    row = next(r for r in found["signals"] if (r["signal"], r["label"]) == ("reversal_5", "ten_day"))
    assert row["rank_ic"] == pytest.approx(direct.mean())
    lags = ic_summary(direct, lags=4)  # ten sessions on every second: four neighbours overlap
    assert row["rank_ic_t"] == pytest.approx(lags.newey_west_t)


def test_token_figures_equal_a_direct_computation(config: ExamineConfig, found: dict[str, Any]) -> None:
    prepared, forecaster = prepare(config, LOOKBACK), config.source.load()
    length = LOOKBACK + HORIZON + 1
    ends = draw_window_ends(
        prepared.panel, START, END, lookback=LOOKBACK, horizon=HORIZON, n_windows=20, seed=0, policy=prepared.policy
    )
    times = prepared.panel.timestamps
    assert (times[ends - HORIZON] >= np.datetime64(START)).all()
    assert (times[ends] <= np.datetime64(END)).all()
    assert len(set(ends.tolist())) == 20
    x, stamps, _ = cut_windows(prepared.panel, ends, length, LOOKBACK)
    np.testing.assert_array_equal(
        x[:, :LOOKBACK], normalise(prepared.panel.values[ends[:, None] + np.arange(1 - length, -HORIZON)])[0]
    )
    bars = torch.from_numpy(x)
    with torch.inference_mode():
        s1, s2 = forecaster.tokenizer.encode(bars)
        logits = forecaster.model(s1[:, :-1], s2[:, :-1], torch.from_numpy(stamps[:, :-1]), s1[:, 1:])
        s1_loss = F.cross_entropy(logits[0].flatten(0, 1), s1[:, 1:].flatten())
        after = F.cross_entropy(logits[1][:, LOOKBACK - 1 :].flatten(0, 1), s2[:, LOOKBACK:].flatten())
        kept = np.linspace(0, 19, 8).round().astype(int)
        error = (forecaster.tokenizer.decode(s1[kept], s2[kept]) - bars[kept]) ** 2
    tokens = found["tokens"]
    assert tokens["s1"]["mean"] == pytest.approx(float(s1_loss), rel=1e-5)
    assert tokens["s2_after"]["mean"] == pytest.approx(float(after), rel=1e-5)
    assert tokens["mse"]["mean"] == pytest.approx(float(error.mean()), rel=1e-4)
    assert tokens["bits_per_bar"]["mean"] == pytest.approx((tokens["s1"]["mean"] + tokens["s2"]["mean"]) / np.log(2))
    assert tokens["s1_codes"] == len(np.unique(s1[kept]))
    assert tokens["n_bars"] == 8 * length


def test_random_weights_keep_the_tokenizer_and_change_the_model(config: ExamineConfig) -> None:
    source = CheckpointSource(config.source.model, device="cpu", random_seed=0)
    drawn, again, trained = source.load(), source.load(), config.source.load()
    assert drawn.fingerprint == again.fingerprint
    assert drawn.fingerprint.split("-")[1] == trained.fingerprint.split("-")[1]
    assert drawn.fingerprint.split("-")[0] != trained.fingerprint.split("-")[0]
    assert drawn.lookback == LOOKBACK


def test_the_pull_to_the_mean_and_the_width_of_cones_are_measured(config: ExamineConfig) -> None:
    """Traps 16 and 19: what knows nothing pulls to the window's mean, and says so; so does how much its cones hold."""
    source = CheckpointSource(config.source.model, device="cpu", random_seed=0)
    random = examine(replace(config, source=source), progress=False)
    assert random["correlation_with_mean_reversion"]["expected_return"] > 0.5
    for step in random["calibration"]:
        assert 0 <= step["cover_90"] <= 1
    # a frequency among four paths is no probability: what a calibrated four would cover stands beside it
    assert random["calibrated_coverage"]["90"] < 0.9


def test_the_report_is_json(found: dict[str, Any]) -> None:
    text = json.dumps(plain(found), allow_nan=False)
    assert json.loads(text)["settings"]["labels"]["one_day"] == "close[t+2] / close[t+1] - 1"


def test_the_command_prints_and_writes(config: ExamineConfig, tmp_path: Path, found: dict[str, Any]) -> None:
    out = tmp_path / "figures.json"
    command = [
        "examine", config.source.model, "--store", str(config.store), "--start", START, "--end", END, "--every", "2",
        "--horizon", "3", "--n-paths", "4", "--seed", "1", "--token-windows", "20", "--device", "cpu",
        "--out", str(out),
    ]  # fmt: skip
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "bits per bar" in done.output
    assert "reversal_5" in done.output
    written = json.loads(out.read_text())
    assert written["signals"] == json.loads(json.dumps(plain(found["signals"])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"every": 0}, "every=0"), ({"horizon": 1}, "at least 2"), ({"token_windows": True}, "token_windows")],
)
def test_bad_settings_are_refused(config: ExamineConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExamineConfig(**(vars(config) | changes))


def test_a_span_without_windows_is_refused(config: ExamineConfig) -> None:
    with pytest.raises(ValueError, match="no member of csi300 has a window"):
        prepare(ExamineConfig(**(vars(config) | {"start": "2019-09-02", "end": "2019-09-06"})), LOOKBACK)
