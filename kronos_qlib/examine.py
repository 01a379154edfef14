"""One checkpoint, examined: losses, reconstruction, signals beside the references, calibration, on the same rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.evaluation.ic import daily_rank_ic
from kronos_qlib.evaluation.outcomes import LABELS, label_returns, realised_returns
from kronos_qlib.evaluation.probability import ensemble_coverage
from kronos_qlib.evaluation.references import REFERENCES, reference_columns
from kronos_qlib.forecast.figures import calibration_table, signal_table
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.pretrained import warn_of_default_lookback
from kronos_qlib.forecast.reduction import LEVELS, CheckpointSource, ReductionPlan, reduce_forecasts
from kronos_qlib.forecast.token_quality import cut_windows, draw_window_ends, token_quality
from kronos_qlib.handler import find_calendar, load_panel, member_index, member_spans, sessions_between
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.calendars import TradingCalendar
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.store import METADATA_FILE, store_metadata
from kronos_qlib.market.swap import left_aside
from kronos_qlib.market.windows import WindowPolicy, window_lengths

LONGEST_LABEL = max(sold for _, sold in LABELS.values())
SPANS = {name: sold - bought for name, (bought, sold) in LABELS.items()}
QLIB_REGIONS = {"crypto": "us"}  # Qlib's us has no price limit and no lots, as a market that never closes


@dataclass(frozen=True)
class ExamineConfig:
    """What is examined, and on which windows.

    Attributes
    ----------
    source : the checkpoint. store : folder of a Qlib store. universe : whose members are scored.
    start, end : first and last date of rows and of token windows. every : use every so many sessions.
    horizon, sampling : of the forecasts.
    token_windows, reconstruction_windows : random windows of lookback + horizon + 1 bars of all the store's
        instruments. seed : of their draw.
    """

    source: CheckpointSource
    store: Path
    universe: str = "csi300"
    start: str = "2015-01-01"
    end: str = "2016-12-31"
    every: int = 5
    horizon: int = 10
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    token_windows: int = 768
    reconstruction_windows: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "horizon", "token_windows", "reconstruction_windows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"found {name}={value!r}; expected a whole number of at least 1")
        if self.horizon < 2:
            raise ValueError("found horizon=1; the execution return needs at least 2 forecast bars")


@dataclass(frozen=True, eq=False)
class Examination:
    """The bars, the rows and what happened after them: the same for every checkpoint and setting.

    Attributes
    ----------
    panel : bars of all the store's instruments, up to the last session that a label or a truth needs.
    index : (datetime, instrument) of the members that traded and have a window. rows : their panel rows.
    labels, references : columns on ``index``. truth : float64 (n, horizon) realised returns.
    """

    panel: BarPanel
    policy: WindowPolicy
    calendar: TradingCalendar
    index: pd.MultiIndex
    rows: npt.NDArray[np.int64]
    labels: pd.DataFrame
    references: pd.DataFrame
    truth: npt.NDArray[np.float64]


def open_store(folder: Path) -> dict[str, Any]:
    """Point Qlib at a store and return its metadata (``freq`` and ``region`` always there).

    Raises
    ------
    ValueError : no store there.
    """
    import qlib

    folder = folder.expanduser()
    if not (folder / "calendars").is_dir():
        found = left_aside(folder) or "Write one with kronos-qlib ingest"
        raise ValueError(f"{folder} is no Qlib store: it has no calendars/. {found}")
    known = store_metadata(folder) if (folder / METADATA_FILE).is_file() else {}
    known = {"freq": "day", "region": "cn"} | known
    region = str(known["region"])
    qlib.init(provider_uri=str(folder), region=QLIB_REGIONS.get(region, region), logging_level=logging.WARNING)
    return known


def prepare(config: ExamineConfig, lookback: int) -> Examination:
    """Read the bars and lay out rows, labels, references and truths; Qlib is initialised with the store.

    Raises
    ------
    ValueError : no store, no such universe, no session or no window in the span.
    """
    known = open_store(config.store)
    freq = str(known["freq"])
    # outside China no price limit makes a large move impossible, so no move starts a new window
    jump = WindowPolicy.max_jump if known["region"] == "cn" else None
    policy = WindowPolicy.up_to(lookback, max_jump=jump)
    sessions = sessions_between(config.start, config.end, freq)
    spans = member_spans(config.universe, sessions, freq)
    index = member_index(spans, sessions[:: config.every])
    panel = _panel(set(spans), sessions, freq, config.horizon)
    rows = panel.locate(
        [str(code) for code in index.get_level_values("instrument")], index.get_level_values("datetime")
    )
    usable = (rows >= 0) & (window_lengths(panel, rows, policy) > 0)
    if not usable.any():
        raise ValueError(
            f"no member of {config.universe} has a window of at least {policy.min_bars} bars between {config.start} "
            f"and {config.end}; choose another span"
        )
    index, rows = index[usable], rows[usable]
    references = reference_columns(panel, policy=policy).reindex(index)
    return Examination(
        panel, policy, find_calendar(None, freq), index, rows, label_returns(panel, index), references,
        realised_returns(panel, rows, config.horizon),
    )  # fmt: skip


def _panel(members: set[str], sessions: pd.DatetimeIndex, freq: str, horizon: int) -> BarPanel:
    """Bars of all instruments up to the last session that a label of the span reads."""
    following = sessions_between(sessions[-1], None, freq)
    last = following[: max(horizon, LONGEST_LABEL) + 1][-1]
    listed = member_spans("all", sessions_between(None, last, freq), freq)
    return load_panel(sorted(set(listed) | members), None, last, freq)


def examine(config: ExamineConfig, *, jobs: int = 1, progress: bool = True) -> dict[str, Any]:
    """Examine a checkpoint.

    Returns
    -------
    dict ready for JSON: ``checkpoint``, ``settings``, ``tokens``, ``signals`` (list of rows: signals and references by
    label), ``calibration`` (list of rows by step), ``cost``.

    Raises
    ------
    ValueError : the checkpoint does not load, or as :func:`prepare`.
    """
    forecaster = config.source.load()
    warn_of_default_lookback(config.source.model, forecaster.card, config.source.lookback)
    prepared = prepare(config, forecaster.lookback)
    plan = ReductionPlan(prepared.policy, config.horizon, config.sampling, prepared.calendar)
    tokens = examine_tokens(forecaster, prepared, config)
    began = time.perf_counter()
    source = config.source if jobs > 1 else forecaster
    reduced = reduce_forecasts(
        source, prepared.panel, prepared.rows, prepared.truth, plan, jobs=jobs, progress=progress
    )
    seconds = time.perf_counter() - began
    scores = pd.DataFrame(reduced.signals, index=prepared.index)
    signals = signal_table(scores, prepared.labels, SPANS, every=config.every, references=prepared.references)
    own = signal_table(prepared.references, prepared.labels, SPANS, every=config.every)
    dates = prepared.index.get_level_values("datetime")
    calibration = calibration_table(
        reduced, prepared.truth, dates, levels=LEVELS, n_paths=config.sampling.n_paths, every=config.every,
        volatility=prepared.references["volatility"].to_numpy(),
    )  # fmt: skip
    return {
        "checkpoint": describe_checkpoint(forecaster, config.source),
        "settings": describe_settings(config, prepared),
        "tokens": tokens,
        "signals": records(signals) + records(own),
        "correlation_with_mean_reversion": _correlations(scores, prepared.references["mean_reversion"]),
        "calibration": records(calibration),
        "calibrated_coverage": calibrated_coverage(config.sampling.n_paths),
        "cost": {"seconds": seconds, "windows": len(prepared.rows), "windows_per_second": len(prepared.rows) / seconds},
    }


def examine_tokens(forecaster: KronosForecaster, prepared: Examination, config: ExamineConfig) -> dict[str, Any]:
    """Losses and reconstruction on random windows of all the store's instruments."""
    context = prepared.policy.lookback
    length = context + config.horizon + 1
    count = max(config.token_windows, config.reconstruction_windows)
    ends = draw_window_ends(
        prepared.panel, config.start, config.end, lookback=context, horizon=config.horizon, n_windows=count,
        seed=config.seed, policy=prepared.policy,
    )  # fmt: skip
    x, stamps, clipped = cut_windows(prepared.panel, ends, length, context)
    quality = token_quality(
        forecaster.model, forecaster.tokenizer, x, stamps, context=context,
        n_reconstructed=config.reconstruction_windows, clipped_share=clipped,
    )  # fmt: skip
    return quality.to_dict()


def describe_checkpoint(forecaster: KronosForecaster, source: CheckpointSource) -> dict[str, Any]:
    """Where the checkpoint is, what it is, and how large."""
    sizes = {
        name: sum(parameter.numel() for parameter in network.parameters())
        for name, network in (("model", forecaster.model), ("tokenizer", forecaster.tokenizer))
    }
    return {
        **asdict(source),
        "fingerprint": forecaster.fingerprint,
        "parameters": sizes,
        "bits": [forecaster.tokenizer.config.s1_bits, forecaster.tokenizer.config.s2_bits],
        "cutoff": forecaster.card.get("cutoff"),
        "lookback": forecaster.lookback,
    }


def describe_settings(config: ExamineConfig, prepared: Examination) -> dict[str, Any]:
    """Which rows, which sampling, and what each label is."""
    dates = prepared.index.get_level_values("datetime")
    return {
        "universe": config.universe,
        "start": config.start,
        "end": config.end,
        "every": config.every,
        "n_dates": int(dates.nunique()),
        "n_windows": len(prepared.index),
        "n_full_windows": int((window_lengths(prepared.panel, prepared.rows, prepared.policy)
                               == prepared.policy.lookback).sum()),
        "horizon": config.horizon,
        "sampling": config.sampling.to_dict(),
        "window_policy": prepared.policy.to_dict(),
        "labels": {name: f"close[t+{sold}] / close[t+{bought}] - 1" for name, (bought, sold) in LABELS.items()},
        "references": list(REFERENCES),
        "token_seed": config.seed,
    }  # fmt: skip


def calibrated_coverage(n_paths: int) -> dict[str, float]:
    """What a calibrated ensemble of so many paths would cover, by level in per cent."""
    some = np.zeros((1, n_paths, 1))
    return {f"{100 * level:g}": ensemble_coverage(some, some[:, 0], level).calibrated for level in LEVELS}


def _correlations(scores: pd.DataFrame, reference: pd.Series) -> dict[str, float]:
    """Mean over dates of the rank correlation with a reference."""
    return {str(name): float(daily_rank_ic(scores[name], reference).mean()) for name in scores}


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain dicts; NaN as None."""
    frame = table.reset_index().astype(object)
    return [
        {str(key): value for key, value in row.items()}
        for row in frame.where(frame.notna(), None).to_dict(orient="records")
    ]


def plain(value: Any) -> Any:
    """Return nested mappings and lists with numpy numbers as Python's, and what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
