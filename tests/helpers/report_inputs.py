"""A made-up run with a weak signal, for the report's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.report.contents import ReportInputs


def made_up(days: int = 120, names: int = 30, strength: float = 0.1, **changes: Any) -> ReportInputs:
    """Scores that explain a share of the labels, a backtest and PITs of too narrow intervals."""
    random = np.random.default_rng(7)
    dates = pd.bdate_range("2019-11-01", periods=days)
    index = pd.MultiIndex.from_product([dates, [f"SH{600000 + i}" for i in range(names)]])
    index.names = ["datetime", "instrument"]
    signal, noise = random.normal(size=(2, len(index)))
    bench = random.normal(0, 0.01, days)
    backtest = pd.DataFrame(
        {
            "return": bench + random.normal(5e-4, 0.004, days), "bench": bench, "cost": 1.5e-4,
            "turnover": 0.1 + random.normal(0, 0.01, days),
        },
        index=dates,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "score": pd.Series(signal, index, name="score"),
        "label": pd.Series(0.02 * (strength * signal + noise), index, name="LABEL0"),
        "backtest": backtest,
        "pit": pd.DataFrame(random.beta(0.7, 0.7, (500, 4))),
        "title": "A made-up run <&>",
        "facts": {"model": "LinearModel"},
    }
    return ReportInputs(**{**settings, **changes})
