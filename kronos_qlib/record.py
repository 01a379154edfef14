"""What the Qlib side writes into a Qlib recorder besides Qlib's own records."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from qlib.config import C
from qlib.log import get_module_logger
from qlib.workflow import R
from qlib.workflow.record_temp import SigAnaRecord
from qlib.workflow.recorder import Recorder

from kronos_qlib.evaluation.split import split_figures
from kronos_qlib.forecast.cutoff import card_date
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.report_record import OFFERED
from kronos_qlib.report_record import KronosReportRecord as KronosReportRecord

logger = get_module_logger("kronos_qlib.record")
CUTOFF_ARTIFACT, SIGNAL_ARTIFACT = "kronos_cutoff.json", "kronos_signal.json"
RECORD_KEYS = (
    "ana_long_short", "ann_scaler", "label_col", "skip_existing", "cutoff", "valid_end", "lags",
)  # fmt: skip


def active_recorder() -> Recorder | None:
    """Return the recorder of the experiment that is running now; None outside ``R.start`` or before ``qlib.init``."""
    if not C.registered or R.exp_manager.active_experiment is None:
        return None
    return R.exp_manager.active_experiment.active_recorder


def log_parameters(recorder: Recorder, prefix: str, values: Mapping[str, Any]) -> None:
    """Log flat parameters as ``prefix.key``; Qlib itself logs the task's configuration under other names."""
    recorder.log_params(**{f"{prefix}.{key}": value for key, value in values.items()})


def save_json(recorder: Recorder, name: str, content: Mapping[str, Any], folder_in_run: str = "") -> None:
    """Save a JSON artifact, readable without Python and without unpickling."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(json.dumps(content, indent=2, default=str, sort_keys=True), encoding="utf-8")
        recorder.save_objects(local_path=str(path), artifact_path=folder_in_run or None)


def save_frame(recorder: Recorder, name: str, frame: pd.DataFrame) -> None:
    """Save a frame as a parquet artifact, index included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        frame.to_parquet(path)
        recorder.save_objects(local_path=str(path))


def load_json(recorder: Recorder, name: str) -> dict[str, Any]:
    """Read a JSON artifact that :func:`save_json` wrote; ``{}`` when the recorder has none of that name."""
    if name not in recorder.list_artifacts():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        content: dict[str, Any] = json.loads(Path(recorder.download_artifact(name, folder)).read_text(encoding="utf-8"))
        return content


class KronosSignalRecord(SigAnaRecord):
    """Qlib's signal analysis, with every figure also for the rows on either side of the checkpoint's cutoff.

    Saves what ``SigAnaRecord`` saves, and ``sig_analysis/kronos_signal.json``: IC and Rank IC with ICIR and Newey–West
    t, of ``all`` rows, ``before_cutoff`` (which the network may have seen), ``after_cutoff``, and ``after_valid`` where
    the span that the weights were chosen by ends after the cutoff. The same figures are logged as metrics such as
    ``after_cutoff.rank_ic.mean``.

    Parameters
    ----------
    recorder : Recorder
        With the predictions and labels of a ``SignalRecord``.
    ana_long_short, ann_scaler, label_col, skip_existing : see Qlib's ``SigAnaRecord``.
    cutoff, valid_end : date-like, optional
        None: those that ``KronosModel.predict`` saved in this recorder (of the checkpoint's card, or of the alpha head
        in use, whichever is later). Without either there is only ``all``.
    lags : int, optional
        Newey–West lags; at least h - 1 for a label over h days. None: a rule by the number of days.

    Raises
    ------
    ValueError : unknown key, a cutoff that is no date.
    """

    def __init__(
        self,
        recorder: Recorder,
        ana_long_short: bool = False,
        ann_scaler: int = 252,
        label_col: int = 0,
        skip_existing: bool = False,
        cutoff: Any = None,
        valid_end: Any = None,
        lags: int | None = None,
        **unknown: Any,
    ) -> None:
        check_keys(unknown.keys() - OFFERED, RECORD_KEYS, "KronosSignalRecord")
        super().__init__(recorder, ana_long_short, ann_scaler, label_col, skip_existing)
        self.given = {"cutoff": cutoff, "valid_end": valid_end}
        self.lags = lags

    def _generate(self, label: pd.DataFrame | None = None, **kwargs: Any) -> dict[str, Any] | None:
        label = self.load("label.pkl") if label is None else label
        objects = super()._generate(label=label, **kwargs)
        if objects is None:  # Qlib has said that there are no labels
            return None
        score = self.load("pred.pkl").iloc[:, 0]
        cutoff, valid_end = self._dates()
        parts = split_figures(score, label.iloc[:, self.label_col], cutoff, valid_end, lags=self.lags)
        dates = {"cutoff": _iso(cutoff), "valid_end": _iso(valid_end)}
        save_json(self.recorder, SIGNAL_ARTIFACT, {**dates, "parts": parts}, self.get_path())
        self.recorder.log_metrics(**_metrics(parts))
        for name, part in parts.items():
            logger.info("%s: %d days, Rank IC %s", name, part["days"], part["rank_ic"]["mean"])
        return objects

    def _dates(self) -> tuple[pd.Timestamp | None, pd.Timestamp | None]:
        card = load_json(self.recorder, CUTOFF_ARTIFACT)
        chosen = {**card, **{name: value for name, value in self.given.items() if value is not None}}
        cutoff = card_date(chosen, "cutoff")
        if cutoff is None:
            logger.info("no cutoff is known (no card, or none in it): figures are not split")
        return cutoff, card_date(chosen, "valid_end")

    def list(self) -> list[str]:
        """Artifacts that this record saves."""
        return [*super().list(), SIGNAL_ARTIFACT]


def _metrics(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Flat names for MLflow: what is not defined is left out."""
    return {
        f"{part}.{kind}.{figure}": figures[kind][figure]
        for part, figures in parts.items()
        for kind in ("ic", "rank_ic")
        for figure in ("mean", "icir", "newey_west_t", "n_days")
        if figures[kind][figure] is not None
    }


def _iso(date: pd.Timestamp | None) -> str | None:
    return None if date is None else date.date().isoformat()
