"""What ``KronosModel`` reads from its settings, and what it records of them; a bad one is a ValueError."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlib.log import get_module_logger
from qlib.workflow.recorder import Recorder

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.record import log_parameters, save_json

if TYPE_CHECKING:
    from kronos_qlib.model import KronosModel

logger = get_module_logger("kronos_qlib.model")


def kline_dataset(dataset: Any) -> KlineDataset:
    """Return the dataset if it is one of candlesticks."""
    if isinstance(dataset, KlineDataset):
        return dataset
    raise ValueError(
        f"KronosModel needs a KlineDataset, got {type(dataset).__name__}; "
        "set class: KlineDataset, module_path: kronos_qlib.dataset"
    )


def read_sampling(given: Any) -> SamplingConfig:
    """Return the sampling of a configuration or a mapping; the defaults for None."""
    if isinstance(given, SamplingConfig):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"KronosModel: sampling must be a mapping such as n_paths: 10, got {given!r}")
    return SamplingConfig(**(given or {}))


def whole_number(name: str, value: Any) -> int | None:
    """Return a whole number of at least 1, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"KronosModel: {name} must be a whole number >= 1, got {value!r}")
    return value


def lasting_location(location: str) -> str:
    """Return a folder by its full path, so that a pickle still finds it from another working directory."""
    path = Path(location).expanduser()
    return str(path.resolve()) if path.exists() else str(location)


def check_context(policy: WindowPolicy, horizon: int, forecaster: KronosForecaster) -> None:
    """Raise a ValueError where the horizon does not fit the network's context; warn of windows it did not learn."""
    longest, limit = policy.lookback, forecaster.max_context
    if horizon >= limit:
        raise ValueError(f"KronosModel: horizon {horizon} must be below the network's context of {limit} bars")
    if longest + horizon > limit:
        logger.warning(
            "lookback %d + horizon %d exceeds the context of %d: the window slides and is recomputed at every "
            "step, which is exact but slow", longest, horizon, limit,
        )  # fmt: skip
    trained = forecaster.card.get("lookback")
    if trained is not None and trained != longest:
        logger.warning("windows hold up to %d bars, the checkpoint was trained on %s", longest, trained)


def window_policy(model: KronosModel, dataset: KlineDataset) -> WindowPolicy:
    """Return the rule of the dataset's windows, as long as dataset, model or card says; ValueError where two differ."""
    if None not in (model.lookback, dataset.lookback) and model.lookback != dataset.lookback:
        raise ValueError(
            f"KronosModel has lookback {model.lookback}, its dataset cuts windows of {dataset.lookback} bars; "
            "set lookback in one of them only, or to the same number"
        )
    return dataset.window_policy(model.lookback or dataset.lookback or model.forecaster.lookback)


def record_run(
    model: KronosModel, dataset: KlineDataset, policy: WindowPolicy, recorder: Recorder, *, parameters: bool
) -> None:
    """Save the card to a recorder and, where asked, log the parameters of the run."""
    if parameters:
        log_parameters(recorder, "kronos", run_parameters(model, dataset, policy))
    save_json(recorder, "kronos_card.json", {"fingerprint": model.fingerprint, "card": model.forecaster.card})


def run_parameters(model: KronosModel, dataset: KlineDataset, policy: WindowPolicy) -> dict[str, Any]:
    """Return flat parameters of a run, for a recorder."""
    windows = {f"window.{key}": value for key, value in policy.to_dict().items()}
    sampling = {f"sampling.{key}": value for key, value in model.sampling.to_dict().items()}
    return {
        "mode": "zero-shot" if model.training is None else "fine-tuned", "checkpoint": model.model,
        "tokenizer": model.tokenizer, "revision": model.revision, "tokenizer_revision": model.tokenizer_revision,
        "fingerprint": model.fingerprint, "cutoff": model.forecaster.card.get("cutoff"), "horizon": model.horizon,
        "signal": model.signal, "signal_kwargs": model.signal_kwargs, "max_context": model.forecaster.max_context,
        "dtype": model.dtype, "carry": dataset.carry, **windows, **sampling,
    }  # fmt: skip
