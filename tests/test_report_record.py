"""The report as a record: of a run of Qlib, and of a rolling one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.evaluate import risk_analysis
from qlib.utils import init_instance_by_config
from qlib.workflow import R
from rolling_tasks import linear_task, workflow
from tiny_market import write_tiny_store

from kronos_qlib.record import save_frame
from kronos_qlib.report import contents
from kronos_qlib.report.page import NO_PATHS
from kronos_qlib.report_record import PIT_ARTIFACT, KronosReportRecord
from kronos_qlib.rolling import KronosRolling

RECORD = {"class": "KronosReportRecord", "module_path": "kronos_qlib.record", "kwargs": {"control_seeds": 2}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def recorder(place: Path) -> Any:
    """A rolling run on the synthetic market whose last record is the report."""
    write_tiny_store(place / "store")
    task = linear_task()
    task["record"].append(RECORD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return KronosRolling(workflow(task, place / "store", place), step=30, state=place / "state").run()


def page_of(recorder: Any) -> str:
    return Path(recorder.download_artifact("report/report.html")).read_text(encoding="utf-8")


def test_a_run_ends_with_its_page(recorder: Any) -> None:
    page = page_of(recorder)
    assert page.startswith("<!DOCTYPE html>")
    assert "Report of rolling" in page
    assert "<td>rolls</td>" in page.replace(' class="words"', "")
    assert NO_PATHS in page


def test_its_figures_are_those_of_qlibs_records(recorder: Any) -> None:
    inputs = KronosReportRecord(recorder).inputs()
    table = contents.headline(inputs)
    metrics = recorder.list_metrics()
    assert table.loc["IC", "value"] == pytest.approx(metrics["IC"])
    assert table.loc["Rank IC", "value"] == pytest.approx(metrics["Rank IC"])
    risk = risk_analysis(contents.net_excess(inputs.backtest), freq="day")["risk"]
    assert table.loc["Net excess return a year", "value"] == pytest.approx(risk["annualized_return"])
    assert table.loc["Information ratio after cost", "value"] == pytest.approx(risk["information_ratio"])
    assert table.loc["Deepest drawdown", "value"] == pytest.approx(risk["max_drawdown"])
    shown = f"{metrics['1day.excess_return_with_cost.annualized_return']:+.2%}"
    assert f"<td>{shown}</td>" in page_of(recorder)


def test_path_statistics_are_drawn_when_they_are_there(
    recorder: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    with R.start(experiment_name="calibrated"):
        again = R.get_recorder()
        for name in ("pred.pkl", "label.pkl"):
            again.save_objects(**{name: recorder.load_object(name)})
        save_frame(again, PIT_ARTIFACT, pd.DataFrame(np.random.default_rng(0).random((200, 3))).rename(columns=str))
        KronosReportRecord(again, title="With paths", control_seeds=1).generate()
        page = page_of(again)
    assert NO_PATHS not in page
    assert "200 windows" in page
    assert "No backtest was made" in page
    assert "<title>With paths</title>" in page


def test_an_unknown_setting_is_told(recorder: Any) -> None:
    with pytest.raises(ValueError, match="did you mean 'lags'"):
        KronosReportRecord(recorder, lag=3)
    made = init_instance_by_config(RECORD, recorder=recorder, try_kwargs={"model": None, "dataset": None})  # by qrun
    assert made.control_seeds == 2
