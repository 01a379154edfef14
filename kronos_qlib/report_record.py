"""A run's report in its recorder: one HTML page, from what the other records saved."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.utils.exceptions import LoadObjectError
from qlib.workflow.record_temp import ACRecordTemp, SignalRecord
from qlib.workflow.recorder import Recorder

from kronos_qlib.kronos.config import check_keys
from kronos_qlib.report.contents import ReportInputs

REPORT = "report.html"
PIT_ARTIFACT = "path_pit.parquet"
REPORT_KEYS = ("title", "label_col", "lags", "control_seeds", "skip_existing")
OFFERED = {"model", "dataset"}  # qrun offers them to every record, and only a TypeError tells it that one has no use
SHOWN_PARAMETERS = {
    "kronos.checkpoint": "checkpoint", "kronos.fingerprint": "fingerprint", "kronos.cutoff": "trained on data up to",
    "kronos.signal": "signal", "rolling.n": "rolls", "rolling.step": "days a roll", "rolling.rolling_type": "window",
}  # fmt: skip


class KronosReportRecord(ACRecordTemp):
    """Save ``report/report.html``: a page that needs no other file and no script, readable on a phone.

    It shows the headline figures with Newey–West t, cumulative net excess return, drawdown, Rank IC over time with
    bands, returns by score, turnover, worst days, the controls that must fail and, where ``path_pit.parquet`` is in the
    recorder (PIT of the realised close among the paths, one column a step), calibration. What is missing is named.

    Must come after ``SignalRecord`` and, for the backtest's part, after ``PortAnaRecord``. Any model's run has what it
    needs, also a rolling one's.

    Parameters
    ----------
    recorder : Recorder
    title : str, optional
        None: the name of the experiment's recorder.
    label_col : int
        Column of the label to judge by, as in Qlib's ``SigAnaRecord``.
    lags : int, optional
        Newey–West lags; at least h - 1 for a label over h days. None: a rule by the number of days.
    control_seeds : int
        Shuffles of each control.
    skip_existing : bool
        Make no page when there is one.

    Raises
    ------
    ValueError : unknown key; a prediction and a label that share no day.
    """

    artifact_path = "report"
    depend_cls = SignalRecord

    def __init__(
        self,
        recorder: Recorder,
        title: str | None = None,
        label_col: int = 0,
        lags: int | None = None,
        control_seeds: int = 5,
        skip_existing: bool = False,
        **unknown: Any,
    ) -> None:
        check_keys(unknown.keys() - OFFERED, REPORT_KEYS, "KronosReportRecord")
        super().__init__(recorder=recorder, skip_existing=skip_existing)
        self.title, self.label_col, self.lags, self.control_seeds = title, label_col, lags, control_seeds

    def _generate(self, **_: Any) -> None:
        from kronos_qlib.report.page import render  # matplotlib only when a page is drawn

        page = render(self.inputs())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / REPORT
            path.write_text(page, encoding="utf-8")
            self.recorder.save_objects(local_path=str(path), artifact_path=self.get_path())

    def list(self) -> list[str]:
        """Names of what is saved, as Qlib asks for."""
        return [REPORT]

    def inputs(self) -> ReportInputs:
        """Collect what the page is made of from the recorder."""
        score, label = self.load("pred.pkl").iloc[:, 0], self.load("label.pkl").iloc[:, self.label_col]
        parameters = self.recorder.list_params()
        facts = {shown: str(parameters[name]) for name, shown in SHOWN_PARAMETERS.items() if name in parameters}
        return ReportInputs(
            score=score, label=label, backtest=self._backtest(), pit=self._pit(), facts=self._facts() | facts,
            title=self.title or f"Report of {self.recorder.name}", lags=self.lags, control_seeds=self.control_seeds,
        )  # fmt: skip

    def _facts(self) -> dict[str, str]:
        facts = {"recorder": str(self.recorder.id)}
        model = self.recorder.list_params().get("model.class")
        return facts | ({"model": str(model)} if model else {})

    def _backtest(self) -> pd.DataFrame | None:
        names = self.recorder.list_artifacts("portfolio_analysis")
        reports = sorted(name for name in names if re.search(r"report_normal_\w+\.pkl$", name))
        if not reports:
            return None
        try:
            return self.recorder.load_object(reports[0])
        except LoadObjectError as error:
            raise ValueError(f"report: {reports[0]} of recorder {self.recorder.id} cannot be read: {error}") from error

    def _pit(self) -> pd.DataFrame | None:
        if PIT_ARTIFACT not in self.recorder.list_artifacts():
            return None
        return pd.read_parquet(self.recorder.download_artifact(PIT_ARTIFACT))
