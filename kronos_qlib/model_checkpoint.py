"""Open what a ``KronosModel`` refers to, its checkpoint and its alpha head, and refuse what has changed since fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.model_head import open_head
from kronos_qlib.training.alpha_files import TrainedHead
from kronos_qlib.training.alpha_head import HeadTraining

if TYPE_CHECKING:
    from kronos_qlib.model import KronosModel


class CheckpointChangedError(ValueError):
    """The checkpoint at the stored location is not the one the model was pickled with."""


def open_forecaster(model: KronosModel) -> KronosForecaster:
    """Load a model's network, tuned or as given; CheckpointChangedError when it is not the one that was fitted."""
    base = {
        "model": model.model, "tokenizer": model.tokenizer, "revision": model.revision,
        "tokenizer_revision": model.tokenizer_revision,
    }  # fmt: skip
    loaded = KronosForecaster.from_pretrained(
        **({"model": model.tuned_folder} if model.tuned_folder else base), lookback=model.lookback,
        max_context=model.max_context, device=model.device, dtype=model.dtype,
    )  # fmt: skip
    if model.fingerprint not in (None, loaded.fingerprint):
        raise CheckpointChangedError(
            f"The checkpoint at {model.tuned_folder or model.model} has fingerprint {loaded.fingerprint}, but the "
            f"model was fitted with {model.fingerprint}: put the old weights back, or fit again"
        )
    return loaded


def open_fitted_head(model: KronosModel) -> TrainedHead:
    """Load a model's alpha head, strictly, and only for its own checkpoint; ValueError where it must be trained first.

    CheckpointChangedError when it is not the one that was fitted.
    """
    if isinstance(model.alpha_head, HeadTraining) and model.head_folder is None:
        raise ValueError(
            "KronosModel: there is no alpha head to load: call fit to train one, with a recorder active or "
            "alpha_head: {out: FOLDER} set, so that it is still there after unpickling"
        )
    loaded = open_head(model.head_folder, model.model, model.forecaster)
    if model.head_fingerprint not in (None, loaded.fingerprint):
        raise CheckpointChangedError(
            f"The alpha head at {model.head_folder or model.model} has fingerprint {loaded.fingerprint}, but the "
            f"model was fitted with {model.head_fingerprint}: put the old files back, or fit again"
        )
    return loaded
