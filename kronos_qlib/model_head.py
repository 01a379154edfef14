"""The alpha head on the Qlib side: trained on a dataset's segments, kept with the run, read by ``KronosModel``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from qlib.data.data import ExpressionD
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger
from qlib.workflow.recorder import Recorder

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.kronos import CheckpointError
from kronos_qlib.kronos.checkpoint import local_folder
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.record import log_parameters
from kronos_qlib.training.alpha_data import HeadData, purged
from kronos_qlib.training.alpha_features import FeatureSettings, cached_features, feature_width
from kronos_qlib.training.alpha_files import HEAD_FOLDER, TrainedHead, load_head
from kronos_qlib.training.alpha_head import HeadTraining
from kronos_qlib.training.alpha_networks import FrozenNetwork, TunedNetwork, tuned_names
from kronos_qlib.training.alpha_training import HeadFit, new_head, train_head

SIGNAL = "alpha_head"
SEGMENTS = ("train", "valid")
logger = get_module_logger("kronos_qlib.model_head")


def check_head(signal: str, given: Any) -> HeadTraining | str | None:
    """Read ``alpha_head`` of a model: a folder, a mapping of training settings, or None (beside the checkpoint)."""
    if given is not None and signal != SIGNAL:
        raise ValueError(f"KronosModel: alpha_head is set but signal is {signal!r}; set signal: {SIGNAL}, or remove it")
    if given is None or isinstance(given, HeadTraining):
        return given
    if isinstance(given, str | Path) and str(given):
        place = Path(given).expanduser()
        return str(place.resolve()) if place.exists() else str(given)
    if isinstance(given, Mapping):
        return HeadTraining(**given)
    raise ValueError(
        f"KronosModel: alpha_head must be a folder or a mapping of training settings such as loss: ic, got {given!r}"
    )


@dataclass(frozen=True)
class HeadRows:
    """Labelled rows of both segments, and the panel rows whose windows they are scored from."""

    rows: np.ndarray  # int64 (n,), each panel row once
    train: HeadData
    valid: HeadData
    facts: dict[str, Any]


def fit_head(
    forecaster: KronosForecaster, dataset: KlineDataset, policy: WindowPolicy, training: HeadTraining
) -> TrainedHead:
    """Train a head on a dataset's segments ``train`` and ``valid``, with its learn-processed labels.

    Labels that reach past the end of their segment are purged, in both. The trunk's hidden states are computed for the
    sessions that are used only (``every``).

    Raises
    ------
    ValueError : a segment is missing or holds no usable row, more than one label, a label whose reach is not known.
    """
    dtype = training.dtype or forecaster.dtype
    settings = FeatureSettings(policy, forecaster.max_context, training.pooled_bars, dtype)
    found = head_rows(dataset, training)
    head = new_head(training, feature_width(forecaster.model)).to(forecaster.device)
    networks = forecaster.model, forecaster.tokenizer
    network: FrozenNetwork | TunedNetwork
    sample = np.unique(found.train.position)
    sample = sample[np.linspace(0, len(sample) - 1, min(50_000, len(sample))).astype(np.int64)]
    if training.unfreeze:
        network = TunedNetwork(head, *networks, dataset.panel, found.rows, settings, training.unfreeze)
        start = cached_features(training.cache, *networks, dataset.panel, found.rows[sample], settings, progress=True)
    else:
        table = cached_features(training.cache, *networks, dataset.panel, found.rows, settings, progress=True)
        network, start = FrozenNetwork(head, table), table[sample]
    head.fit_features(start)
    state = None if training.cache is None else Path(training.cache).expanduser() / "alpha_head.state.safetensors"
    result = train_head(network, found.train, found.valid, training, state=state)
    trunk: dict[str, torch.Tensor] = {}
    if isinstance(network, TunedNetwork):
        parameters = dict(network.trunk.named_parameters())
        trunk = {name: parameters[name].detach() for name in tuned_names(network.trunk, training.unfreeze)}
    head.eval().requires_grad_(False)
    card = _card(forecaster, found, training, result)
    return TrainedHead(head, forecaster.fingerprint, settings, trunk, card)


def head_rows(dataset: KlineDataset, training: HeadTraining) -> HeadRows:
    """Collect labelled rows of train and valid, purged, with the panel row of each one's window."""
    reach = training.label_reach or label_reach(dataset)
    labels: dict[str, pd.Series] = {}
    places: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {"label_reach": reach, "label": _label_text(dataset)}
    for name in SEGMENTS:
        rows = dataset.rows(name)
        dates = pd.DatetimeIndex(rows.index.get_level_values("datetime")).as_unit("ns")
        kept = purged(dates, dataset.panel.calendar, reach, training.every if name == "train" else 1)
        labels[name] = segment_labels(dataset, name).reindex(rows.index)[kept]
        places[name] = rows["row"].to_numpy()[kept]
        facts |= {f"{name}_start": str(dates.min().date()), f"{name}_end": str(dates.max().date())}
    unique = np.unique(np.concatenate(list(places.values())))
    unique = unique[unique >= 0]
    data = {
        name: HeadData.build(
            labels[name], np.where(places[name] >= 0, np.searchsorted(unique, places[name]), -1),
            scale=training.label_scale, min_names=training.min_names, name=name,
        )
        for name in SEGMENTS
    }  # fmt: skip
    return HeadRows(unique, data["train"], data["valid"], facts)


def segment_labels(dataset: KlineDataset, segment: str) -> pd.Series:
    """Return a segment's learn-processed labels; ValueError for more than one column."""
    frame = dataset.prepare(segment, col_set="label", data_key=DataHandlerLP.DK_L)
    if frame.shape[1] != 1:
        raise ValueError(f"an alpha head learns one label, the handler has {list(frame.columns)}; give it one")
    return frame.iloc[:, 0]


def label_reach(dataset: KlineDataset) -> int:
    """Bars that the handler's label looks ahead, read from its expression by Qlib."""
    expressions = _label_expressions(dataset)
    if not expressions:
        raise ValueError("the handler's label is no Qlib expression; set alpha_head: label_reach (bars it looks ahead)")
    return max(ExpressionD.get_expression_instance(text).get_extended_window_size()[1] for text in expressions)


def keep_head(head: TrainedHead, out: str | None, recorder: Recorder | None) -> str | None:
    """Write a trained head to ``out`` and to the recorder's artifacts; returns a local folder it can be read from."""
    place = None
    if out is not None:
        place = str(Path(out).expanduser().resolve())
        head.save(place)
    if recorder is not None:
        with tempfile.TemporaryDirectory() as folder:
            head.save(folder)
            recorder.save_objects(local_path=folder, artifact_path=HEAD_FOLDER)
        valid = head.card["valid"]
        recorder.log_metrics(**{"alpha_head.valid_rank_ic": valid["mean"], "alpha_head.valid_t": valid["newey_west_t"]})
        facts = ("label", "label_reach", "train_start", "train_end", "valid_start", "valid_end", "best_epoch")
        log_parameters(recorder, "alpha_head", {name: head.card[name] for name in facts})
        place = place or _artifact_folder(recorder)
    if place is None:
        logger.warning(
            "the alpha head is kept in memory only: no recorder with a local store is active, and alpha_head has no out"
        )
    return place


def open_head(location: str | None, model: str, forecaster: KronosForecaster) -> TrainedHead:
    """Load the head at a location, else the one beside the checkpoint."""
    if location is None:
        folder = local_folder(model)
        if folder is None:
            raise CheckpointError(
                f"{model} is a hub id, which holds no alpha head; set alpha_head to the head's folder"
            )
        location = str(folder)
    return load_head(location, forecaster.model, forecaster.tokenizer)


def check_windows(head: TrainedHead, policy: WindowPolicy, max_context: int) -> None:
    """Refuse to score other windows than the head was trained on."""
    trained = head.settings
    if trained.policy != policy or trained.max_context != max_context:
        raise ValueError(
            f"the alpha head was trained on windows {trained.policy.to_dict()} with max_context {trained.max_context}; "
            f"the dataset and the model ask for {policy.to_dict()} with {max_context}: set the same, or train a head"
        )


def _card(forecaster: KronosForecaster, found: HeadRows, training: HeadTraining, result: HeadFit) -> dict[str, Any]:
    trunk_cutoff = forecaster.card.get("cutoff")
    days = found.train.label.index.get_level_values("datetime")
    seen = 0.0 if trunk_cutoff is None else float((days <= pd.Timestamp(trunk_cutoff)).mean())
    if seen:
        logger.warning(
            "%.0f%% of the head's training rows are dated on or before %s, the end of the trunk's own training data: "
            "its hidden states know these bars better than those to come; judge by valid, not by train",
            100 * seen, trunk_cutoff,
        )  # fmt: skip
    return {
        **found.facts,
        # labels of train use bars up to its last session, none after it
        "cutoff": found.facts["train_end"],
        "train_rows": len(found.train), "train_dates": found.train.n_dates,
        "valid_rows": len(found.valid), "valid_dates": found.valid.n_dates,
        "valid": result.valid.to_dict(), "best_epoch": result.best_epoch, "history": result.history,
        "training": training.to_dict(), "trunk_cutoff": trunk_cutoff, "train_rows_seen_by_trunk": seen,
    }  # fmt: skip


def _label_expressions(dataset: KlineDataset) -> list[str]:
    fields = getattr(dataset.handler.data_loader, "fields", {})
    return [str(text) for text in fields["label"][0]] if "label" in fields else []


def _label_text(dataset: KlineDataset) -> str | None:
    return "; ".join(_label_expressions(dataset)) or None


def _artifact_folder(recorder: Recorder) -> str | None:
    try:
        local = Path(recorder.get_local_dir())
    except (RuntimeError, ValueError):
        return None  # a remote store; keep_head then says that nothing local is kept
    place = local / "artifacts" / HEAD_FOLDER
    return str(place) if place.is_dir() else None
