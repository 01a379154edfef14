"""Fine-tuning on the Qlib side: from a dataset's segments to a checkpoint that is kept with the run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import field_validator
from qlib.log import get_module_logger
from qlib.workflow.recorder import Recorder

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.kronos.checkpoint import CARD_FILE
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.model_log import training_lines
from kronos_qlib.plots import plot_curves, save_figure
from kronos_qlib.record import save_json
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.distributed import Processes
from kronos_qlib.training.finetune import Start, finetune
from kronos_qlib.training.finetune_recipe import FinetuneRecipe, Tuning
from kronos_qlib.training.run_folder import CURVES_FILE

CHECKPOINT = "checkpoint"
logger = get_module_logger("kronos_qlib.model_training")


class ModelTraining(Tuning):
    """The ``training`` block of :class:`kronos_qlib.model.KronosModel`.

    Attributes
    ----------
    name, horizon, tokenizer, predictor, augmentation, filters, weights_dtype, parent_cutoff, parent_train_start
        See :class:`kronos_qlib.training.finetune_recipe.Tuning`. The spans are the dataset's segments train and valid,
        the windows those of the dataset.
    out : str or None
        Folder that keeps the checkpoint, and from which an interrupted ``fit`` goes on; it is refused for another run.
        None: the recorder's artifacts alone. ``finetune`` writes into a subfolder named by the end of train.
    """

    out: str | None = None

    @field_validator("out", mode="before")
    @classmethod
    def _empty_is_none(cls, given: Any) -> Any:
        # an empty text is what a workflow's unset environment variable leaves
        return given or None

    def recipe(self, **windows: Any) -> FinetuneRecipe:
        """Return the recipe for some windows."""
        return FinetuneRecipe(**{key: value for key, value in self if key != "out"}, **windows)


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned checkpoint: the loaded networks, and the local folder they can be read from again, if any."""

    forecaster: KronosForecaster
    folder: str | None


def check_training(given: Any) -> ModelTraining | None:
    """Read the ``training`` of a model: a mapping, or None for zero-shot."""
    if given is None or isinstance(given, ModelTraining):
        return given
    if isinstance(given, Mapping):
        return ModelTraining(**given)
    raise ValueError(
        f"KronosModel: training must be a mapping of settings such as predictor: {{epochs: 1}}, got {given!r}"
    )


def train_on(
    dataset: KlineDataset,
    policy: WindowPolicy,
    training: ModelTraining,
    forecaster: KronosForecaster,
    recorder: Recorder | None,
    *,
    apart: bool = False,
) -> Tuned:
    """Fine-tune a forecaster's networks on a dataset's segments train and valid.

    Training windows are those of every code that was a member on some session up to the end of train, with its history
    from the panel's first bar: no bar and no membership after the segment. Windows of valid choose the step.

    Parameters
    ----------
    policy : which windows are cut.
    forecaster : the weights to begin with; it stays as it is.
    recorder : gets the checkpoint as the artifact ``checkpoint/``, ``curves.json``, ``curves.png``, and the curves as
        metrics such as ``predictor.valid_forecast`` by step.
    apart : write into a subfolder of ``out`` named by the end of train, as one of several runs.

    Raises
    ------
    ValueError : a segment is missing or holds no window, a cutoff that is not known, or as
        :func:`kronos_qlib.training.finetune.finetune`.
    """
    spans = {name: segment_days(dataset, name) for name in ("train", "valid")}
    recipe = training.recipe(
        universe=f"{dataset.handler.instruments} of a Qlib store",
        lookback=policy.lookback,
        forecast_horizon=int(forecaster.card.get("horizon") or training.horizon),
        max_context=forecaster.max_context,
        max_gap=policy.max_gap,
        max_jump=policy.max_jump,
        **{name: {"start": first, "end": last} for name, (first, last) in spans.items()},
    )
    bars = known_bars(dataset, spans["train"][1], spans["valid"][1])
    with training_lines(), _workplace(training.out, spans["train"][1] if apart else None) as place:
        corpus = Corpus.from_panels(place / "corpus", {"handler": bars}, recipe.policy())
        finetune(
            Start(forecaster.model, forecaster.tokenizer, forecaster.card), corpus, recipe, place,
            command="KronosModel.finetune" if apart else "KronosModel.fit",
            processes=Processes(device=forecaster.device), on_metrics=_log_to(recorder),
        )  # fmt: skip
        tuned = KronosForecaster.from_pretrained(
            place, lookback=policy.lookback, max_context=forecaster.max_context, device=forecaster.device,
            dtype=forecaster.dtype,
        )  # fmt: skip
        kept = str(place) if training.out is not None else None
        if recorder is not None:
            artifact = keep_checkpoint(place, recorder)
            kept = kept or artifact
            _keep_curves(place, recorder)
    if kept is None:
        logger.warning(
            "the fine-tuned weights are kept in memory only: no recorder with a local store is active, and training "
            "has no out; a pickle of this model cannot be used"
        )
    return Tuned(tuned, kept)


def segment_days(dataset: KlineDataset, name: str) -> tuple[pd.Timestamp, pd.Timestamp]:
    """First and last day of a segment that holds members; a ValueError where it is missing or empty."""
    days = pd.DatetimeIndex(dataset.members(name).get_level_values("datetime"))
    return days.min().normalize(), days.max().normalize()


def known_bars(dataset: KlineDataset, train_end: pd.Timestamp, valid_end: pd.Timestamp) -> BarPanel:
    """Return the panel's bars up to the end of valid, of codes that were members up to the end of train."""
    spans = dataset.handler.member_spans()
    day_end = train_end + pd.Timedelta(days=1)
    chosen = {code for code, periods in spans.items() if any(first < day_end for first, _ in periods)}
    return cut_panel(dataset.panel, chosen, valid_end)


def cut_panel(panel: BarPanel, codes: set[str], last_day: pd.Timestamp) -> BarPanel:
    """Return the rows of some instruments up to a day, included."""
    sessions = int(panel.calendar.searchsorted(last_day.normalize() + pd.Timedelta(days=1)))
    wanted = np.array([name in codes for name in panel.instruments])
    kept = wanted[panel.codes] & (panel.session < sessions)
    counts = np.bincount(panel.codes[kept], minlength=len(panel.instruments))[wanted]
    present = counts > 0
    names = [name for name, there in zip(np.array(panel.instruments)[wanted], present, strict=True) if there]
    return BarPanel(
        tuple(str(name) for name in names), np.concatenate([[0], np.cumsum(counts[present])]).astype(np.int64),
        panel.timestamps[kept], panel.values[kept], panel.session[kept], panel.calendar[:sessions], panel.events[kept],
    )  # fmt: skip


def keep_checkpoint(place: Path, recorder: Recorder) -> str | None:
    """Save both networks, card and curves as the artifact ``checkpoint/``; returns its local folder, if it has one."""
    for name in ("model", "tokenizer"):
        recorder.save_objects(local_path=str(place / name), artifact_path=f"{CHECKPOINT}/{name}")
    for name in (CARD_FILE, CURVES_FILE):
        recorder.save_objects(local_path=str(place / name), artifact_path=CHECKPOINT)
    try:
        local = Path(recorder.get_local_dir()) / "artifacts" / CHECKPOINT
    except (RuntimeError, ValueError):
        return None  # a remote store
    return str(local.resolve()) if (local / "model").is_dir() else None


def _keep_curves(place: Path, recorder: Recorder) -> None:
    curves = json.loads((place / CURVES_FILE).read_text(encoding="utf-8"))
    save_json(recorder, CURVES_FILE, curves)
    with tempfile.TemporaryDirectory() as folder:
        picture = save_figure(plot_curves(curves), Path(folder) / "curves.png")
        recorder.save_objects(local_path=str(picture))


def _log_to(recorder: Recorder | None) -> Callable[[str, dict[str, float]], None] | None:
    if recorder is None:
        return None

    def log(network: str, entry: dict[str, float]) -> None:
        figures = {f"{network}.{key}": value for key, value in entry.items() if key != "step"}
        recorder.log_metrics(step=int(entry["step"]), **figures)

    return log


@contextmanager
def _workplace(out: str | None, run: pd.Timestamp | None) -> Iterator[Path]:
    """Give the folder to train in: below ``out``, or one that is gone afterwards."""
    if out is not None:
        place = Path(out).expanduser().resolve()
        yield place if run is None else place / str(run.date())
        return
    with tempfile.TemporaryDirectory(prefix="kronos_finetune_") as folder:
        yield Path(folder)
