"""Kronos as a Qlib model: forecast paths of each window, reduced to one score a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.log import get_module_logger
from qlib.model.base import ModelFT

from kronos_qlib.alpha.signals import check_signal, compute_signal
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.drift import TokenDrift, measure_drift
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.kronos.config import check_keys
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.model_checkpoint import open_fitted_head, open_forecaster
from kronos_qlib.model_head import SIGNAL as HEAD_SIGNAL
from kronos_qlib.model_head import check_head, check_windows, fit_head, keep_head
from kronos_qlib.model_log import ForecastLines
from kronos_qlib.model_marks import last_day, mark_cutoff, record_rows, warn_of_cutoff
from kronos_qlib.model_pit import PathOutcomes
from kronos_qlib.model_settings import (
    check_context,
    kline_dataset,
    lasting_location,
    read_sampling,
    record_run,
    whole_number,
    window_policy,
)
from kronos_qlib.model_training import ModelTraining, check_training, train_on
from kronos_qlib.record import active_recorder, save_frame
from kronos_qlib.report_record import PIT_ARTIFACT
from kronos_qlib.training.alpha_files import TrainedHead
from kronos_qlib.training.alpha_head import HeadTraining

MODEL_KEYS = (
    "model", "tokenizer", "revision", "lookback", "horizon", "signal", "signal_kwargs", "sampling", "max_context",
    "device", "dtype", "tokenizer_revision", "alpha_head", "training",
)  # fmt: skip
logger = get_module_logger("kronos_qlib.model")


class KronosModel(ModelFT):
    """Kronos, zero-shot or fine-tuned: ``fit`` checks and records, ``predict`` forecasts every window and scores it.

    With ``training`` settings ``fit`` fine-tunes the checkpoint on the dataset's segments train and valid first.

    A score dated t uses bars up to and including t and is tradable from the next session on.

    Parameters
    ----------
    model : str
        Checkpoint: a folder (with ``model/`` and ``tokenizer/`` in it, or a model's own), ``bundled:NAME`` or a hub id.
    tokenizer : str, optional
        Tokenizer, where it is not beside the model.
    revision, tokenizer_revision : str, optional
        Pinned commits, for hub ids. An empty text is None, here and for the tokenizer.
    lookback : int, optional
        Most bars in a window, where the dataset sets none (both must agree); None: the checkpoint's card, else a known
        checkpoint's, else 512.
    horizon : int
        Forecast steps H.
    signal, signal_kwargs : str, dict
        A name of ``kronos_qlib.alpha.signals.SIGNALS`` and its options; or ``alpha_head``: the score of a small head on
        the hidden states, trained for rank. No path is drawn then, and ``horizon`` and ``sampling`` count for nothing.
    sampling : dict or SamplingConfig
        How paths are drawn, see :class:`kronos_qlib.kronos.SamplingConfig`.
    max_context : int, optional
        Longest context of the network. None: the checkpoint's card, else a known checkpoint's, else 512.
    device, dtype : str
        ``auto``, ``cpu``, ``cuda`` …; ``float32``, ``bfloat16``.
    alpha_head : str or dict, optional
        With ``signal: alpha_head``: the head's folder; or settings
        (:class:`kronos_qlib.training.alpha_head.HeadTraining`), with which ``fit`` trains one on the dataset's segments
        train and valid. None: the folder ``alpha_head`` beside the checkpoint.
    training : dict, optional
        With it, ``fit`` fine-tunes the checkpoint, and :meth:`finetune` goes on from there; see
        :class:`kronos_qlib.model_training.ModelTraining`. None: zero-shot.

    Raises
    ------
    ValueError : unknown key (the nearest known one is named), unknown signal, a value out of range.

    Notes
    -----
    A pickle holds the checkpoint's location and fingerprint, never weights; they are loaded when first needed, and a
    checkpoint that has changed since is refused.
    """

    # Names with an underscore are left out of pickles; an unpickled model finds these and loads again.
    # A pickle of before there was training finds the first two.
    training: ModelTraining | None = None
    tuned_folder: str | None = None
    _forecaster: KronosForecaster | None = None
    _score_age: pd.DataFrame | None = None
    _before_cutoff: pd.Series | None = None
    _token_drift: TokenDrift | None = None
    _warned_cutoff: bool = False
    _head: TrainedHead | None = None
    _recorded: str | None = None

    def __init__(
        self,
        model: str = "",
        tokenizer: str | None = None,
        revision: str | None = None,
        lookback: int | None = None,
        horizon: int = 10,
        signal: str = "expected_return",
        signal_kwargs: dict[str, Any] | None = None,
        sampling: dict[str, Any] | SamplingConfig | None = None,
        max_context: int | None = None,
        device: str = "auto",
        dtype: str = "float32",
        tokenizer_revision: str | None = None,
        alpha_head: str | dict[str, Any] | HeadTraining | None = None,
        training: dict[str, Any] | ModelTraining | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_keys(unknown, MODEL_KEYS, "KronosModel")
        if not model:
            raise ValueError(
                "KronosModel: no checkpoint; set model to a folder, bundled:NAME or a hub id "
                "(the workflows take it from the environment variable KRONOS_CHECKPOINT)"
            )
        self.model = lasting_location(model)
        # an empty text is what a workflow's unset environment variable leaves
        self.tokenizer = lasting_location(tokenizer) if tokenizer else None
        self.revision, self.tokenizer_revision = revision or None, tokenizer_revision or None
        self.lookback = whole_number("lookback", lookback)
        self.horizon = whole_number("horizon", horizon) or 10
        self.signal = signal
        self.signal_kwargs = dict(signal_kwargs or {})
        self.sampling = read_sampling(sampling)
        self.max_context = whole_number("max_context", max_context)
        self.device, self.dtype = device, dtype
        if signal != HEAD_SIGNAL:
            check_signal(signal, horizon=self.horizon, n_paths=self.sampling.n_paths, options=self.signal_kwargs)
        elif self.signal_kwargs:
            raise ValueError(f"KronosModel: signal {HEAD_SIGNAL} takes no signal_kwargs, got {self.signal_kwargs}")
        self.alpha_head = check_head(signal, alpha_head)
        self.head_folder = self.alpha_head if isinstance(self.alpha_head, str) else None
        self.head_fingerprint: str | None = None
        self.training = check_training(training)
        self.tuned_folder = None
        self.fingerprint: str | None = None

    @property
    def forecaster(self) -> KronosForecaster:
        """The loaded network; ``model_checkpoint.CheckpointChangedError`` when it is not the one of :meth:`fit`."""
        if self._forecaster is None:
            self._forecaster = open_forecaster(self)
        return self._forecaster

    @property
    def head(self) -> TrainedHead:
        """The alpha head: trained by :meth:`fit`, else loaded; strictly, and only for its own checkpoint."""
        if self._head is None:
            self._head = open_fitted_head(self)
        return self._head

    def fit(self, dataset: KlineDataset, reweighter: Any = None) -> None:
        """Check that the run can work, and record what will be run; train only what the settings say.

        The checkpoint is loaded, the dataset's windows must fit it, and the test segment must hold rows. With a Qlib
        recorder active, parameters are logged as ``kronos.*`` and the card is saved as ``kronos_card.json``.
        With ``training`` settings the checkpoint is fine-tuned on the segments train and valid; it is saved as the
        artifact ``checkpoint/`` (and to ``out``) with its curves, and scores and a pickle of this model refer to it.
        With ``alpha_head`` settings a head is trained on the same segments; it is saved as the artifact
        ``alpha_head/`` (and to ``out``), and a pickle of this model refers to it.

        Raises
        ------
        ValueError : the checkpoint does not load, does not fit, or the dataset is of another kind.
        """
        if reweighter is not None:
            raise ValueError("KronosModel weighs every window alike and takes no reweighter; remove it")
        if self.training is not None:
            self._forecaster, self.tuned_folder, self.fingerprint = None, None, None
        self._prepare(dataset, tune=self.training is not None)

    def finetune(self, dataset: KlineDataset) -> None:
        """Go on from the weights of now (of the last ``fit`` or ``finetune``, else the checkpoint's) on a dataset.

        As :meth:`fit` with ``training`` settings, which must be there; Qlib's protocol ``ModelFT``, for rolling runs.
        """
        if self.training is None:
            raise ValueError(
                "KronosModel.finetune: there are no training settings; set training, such as predictor: {epochs: 1}"
            )
        self._prepare(dataset, tune=True, again=True)

    def _prepare(self, dataset: KlineDataset, *, tune: bool, again: bool = False) -> None:
        dataset, recorder = kline_dataset(dataset), active_recorder()
        self._policy(dataset)
        dataset.members("test")
        if tune and self.training is not None:
            tuned = train_on(dataset, self._policy(dataset), self.training, self.forecaster, recorder, apart=again)
            self._forecaster, self.tuned_folder = tuned.forecaster, tuned.folder
            self._warned_cutoff = False
        self.fingerprint = self.forecaster.fingerprint
        check_context(self._policy(dataset), self.horizon, self.forecaster)
        if recorder is not None:
            # MLflow takes a parameter once: what a second training in the same run changes is in the card
            record_run(self, dataset, self._policy(dataset), recorder, parameters=self._recorded != recorder.id)
            self._recorded = recorder.id
        if self.signal == HEAD_SIGNAL:
            self._fit_head(dataset)

    def _fit_head(self, dataset: KlineDataset) -> None:
        if isinstance(self.alpha_head, HeadTraining):
            self._head = fit_head(self.forecaster, dataset, self._policy(dataset), self.alpha_head)
            self.head_folder = keep_head(self._head, self.alpha_head.out, active_recorder())
        check_windows(self.head, self._policy(dataset), self.forecaster.max_context)
        self.head_fingerprint = self.head.fingerprint

    def predict(self, dataset: KlineDataset, segment: str | slice = "test") -> pd.Series:
        """Score every member row of a segment.

        Returns
        -------
        Series named ``score``, float64, indexed (datetime, instrument) and sorted
            NaN where there is no window (fewer than ``min_bars`` bars, or suspended for more than ``carry`` days).
            A suspended member keeps the score of its last traded bar; its age is in :attr:`score_age`.

        Notes
        -----
        Rows dated on or before the cutoff of the checkpoint's card are marked in :attr:`before_cutoff` and warned of
        once. The tokens of at most 2,000 of the windows are compared with the card's (:attr:`token_drift`): a market
        that has drifted away from what the weights know is warned of. With a recorder active all three are saved:
        ``score_age.parquet``, ``before_cutoff.parquet`` and ``token_drift.json``; so is ``path_pit.parquet``: where
        the closes that came fell among the paths, for the report. No score depends on these closes.
        """
        dataset = kline_dataset(dataset)
        rows = dataset.rows(segment)
        self._mark_cutoff(rows.index)
        unique, inverse = np.unique(rows["row"].to_numpy(), return_inverse=True)
        scores = np.full(len(unique), np.nan)
        windows = unique >= 0
        recorder = active_recorder()
        outcomes = None
        if recorder is not None and self.signal != HEAD_SIGNAL:
            outcomes = PathOutcomes(dataset.panel, unique[windows], self.horizon)
        scores[windows] = self._score_rows(dataset, unique[windows], outcomes)
        self._score_age = rows[["age"]]
        self._token_drift = measure_drift(
            self.forecaster.card, self.forecaster.tokenizer, dataset.panel, unique[windows], self._policy(dataset),
            logger=logger,
        )  # fmt: skip
        if recorder is not None:
            dates = {key: self._last_day(key) for key in ("cutoff", "valid_end")}
            record_rows(recorder, self._score_age, self._before_cutoff, dates, self._token_drift)
            if outcomes is not None:
                save_frame(recorder, PIT_ARTIFACT, outcomes.frame())
        return pd.Series(scores[inverse], index=rows.index, name="score")

    @property
    def score_age(self) -> pd.DataFrame | None:
        """Of the last predict: bars of the calendar from the scored bar to a row's date (``age``; -1: no score)."""
        return self._score_age

    @property
    def before_cutoff(self) -> pd.Series | None:
        """Of the last predict: bool by row, dated on or before the card's cutoff; None: the card names no cutoff."""
        return self._before_cutoff

    @property
    def token_drift(self) -> TokenDrift | None:
        """Of the last predict: tokens against the card's; None: the card has no histograms, or no row a window."""
        return self._token_drift

    def _score_rows(
        self, dataset: KlineDataset, rows: npt.NDArray[np.int64], outcomes: PathOutcomes | None
    ) -> npt.NDArray[np.float64]:
        if self.signal == HEAD_SIGNAL:
            check_windows(self.head, self._policy(dataset), self.forecaster.max_context)
            own = self.forecaster
            return self.head.score(own.model, own.tokenizer, dataset.panel, rows, progress=True)
        scores = np.full(len(rows), np.nan)
        batches = self.forecaster.forecast_batches(
            dataset.panel, rows, policy=self._policy(dataset), horizon=self.horizon, sampling=self.sampling,
            calendar=dataset.handler.trading_calendar,
        )  # fmt: skip
        lines = ForecastLines(len(rows))
        for positions, paths in batches:
            scores[positions] = compute_signal(self.signal, paths, horizon=self.horizon, **self.signal_kwargs)
            if outcomes is not None:
                outcomes.add(positions, paths)
            lines.add(len(positions))
        return scores

    def _policy(self, dataset: KlineDataset) -> WindowPolicy:
        return window_policy(self, dataset)

    def _last_day(self, key: str = "cutoff") -> pd.Timestamp | None:
        """Last day that the network, or the alpha head in use, was trained on (``valid_end``: chosen by)."""
        return last_day([self.forecaster.card, *([self.head.card] if self.signal == HEAD_SIGNAL else [])], key)

    def _mark_cutoff(self, index: pd.Index) -> None:
        cutoff = self._last_day()
        self._before_cutoff = marked = mark_cutoff(index, cutoff)
        if cutoff is not None and marked is not None and marked.any() and not self._warned_cutoff:
            self._warned_cutoff = True
            warn_of_cutoff(marked, cutoff)
