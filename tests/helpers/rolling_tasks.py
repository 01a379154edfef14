"""Tasks to roll: a linear model on two reversals, and Kronos untouched, on the tiny market of ten stocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

UNIVERSE = "csi300"
SEGMENTS = {
    "train": ["2020-01-02", "2020-06-30"], "valid": ["2020-07-01", "2020-07-31"], "test": ["2020-08-03", "2020-10-15"],
}  # fmt: skip
REVERSALS = [["Ref($close, 5)/$close - 1", "Ref($close, 20)/$close - 1"], ["REVERSAL5", "REVERSAL20"]]


def linear_task(segments: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ridge on two factors, standardised by what the training segment knows."""
    handler = {
        "class": "KlineHandler",
        "module_path": "kronos_qlib.handler",
        "kwargs": {
            "instruments": UNIVERSE, "start_time": "2019-12-02", "end_time": "2020-12-31", "feature": REVERSALS,
            "fit_start_time": "2020-01-02", "fit_end_time": "2020-06-30",
            "infer_processors": [
                {"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature", "clip_outlier": True}},
                {"class": "Fillna", "kwargs": {"fields_group": "feature"}},
            ],
            "learn_processors": [{"class": "DropnaLabel"}],
        },
    }  # fmt: skip
    return {
        "model": {"class": "LinearModel", "module_path": "qlib.contrib.model.linear"},
        "dataset": {
            "class": "DatasetH", "module_path": "qlib.data.dataset",
            "kwargs": {"handler": handler, "segments": dict(segments or SEGMENTS)},
        },
        "record": records(),
    }  # fmt: skip


def records() -> list[dict[str, Any]]:
    """Signal, its analysis and a backtest of three stocks."""
    module = "qlib.workflow.record_temp"
    backtest = {
        "start_time": "2020-08-03", "end_time": "2020-10-15", "account": 1_000_000, "benchmark": "SH000300",
        "exchange_kwargs": {"limit_threshold": 0.095, "deal_price": "close", "open_cost": 0.0005, "close_cost": 0.0015},
    }  # fmt: skip
    strategy = {
        "class": "TopkDropoutStrategy", "module_path": "qlib.contrib.strategy",
        "kwargs": {"signal": "<PRED>", "topk": 3, "n_drop": 1},
    }  # fmt: skip
    return [
        {
            "class": "SignalRecord",
            "module_path": module,
            "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"},
        },
        {"class": "SigAnaRecord", "module_path": module, "kwargs": {"ana_long_short": False, "ann_scaler": 252}},
        {
            "class": "PortAnaRecord", "module_path": module,
            "kwargs": {"config": {"strategy": strategy, "backtest": backtest}},
        },
    ]  # fmt: skip


def kronos_task(checkpoint: str, test: tuple[str, str]) -> dict[str, Any]:
    """Zero-shot Kronos; there is a test segment only."""
    handler = {
        "class": "KlineHandler", "module_path": "kronos_qlib.handler",
        "kwargs": {"instruments": UNIVERSE, "start_time": "2020-01-02", "end_time": "2020-12-31"},
    }  # fmt: skip
    return {
        "model": {
            "class": "KronosModel", "module_path": "kronos_qlib.model",
            "kwargs": {"model": checkpoint, "horizon": 3, "device": "cpu", "sampling": {"n_paths": 4}},
        },
        "dataset": {
            "class": "KlineDataset", "module_path": "kronos_qlib.dataset",
            "kwargs": {"handler": handler, "segments": {"test": list(test)}, "lookback": 40},
        },
        "record": records()[:2],
    }  # fmt: skip


def workflow(task: dict[str, Any], store: Path, runs: Path, name: str = "rolled") -> dict[str, Any]:
    """Put a task into the frame of a workflow, tracked in a sqlite file of ``runs``."""
    manager = {
        "class": "MLflowExpManager", "module_path": "qlib.workflow.expm",
        "kwargs": {"uri": f"sqlite:///{runs / 'mlruns.db'}", "default_exp_name": "Experiment"},
    }  # fmt: skip
    start = {
        "provider_uri": str(store), "region": "cn", "kernels": 1, "logging_level": 40, "exp_manager": manager,
    }  # fmt: skip
    return {"qlib_init": start, "experiment_name": name, "task": task}
