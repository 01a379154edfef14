"""Qlib's TopkDropout backtest of a score with the project's costs, many times on one exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from qlib.backtest.exchange import Exchange
from qlib.backtest.position import Position
from qlib.contrib.evaluate import backtest_daily, risk_analysis
from qlib.contrib.strategy import TopkDropoutStrategy
from qlib.data import D

from kronos_qlib.evaluation.breakdown import YEAR
from kronos_qlib.evaluation.drawdown import max_drawdown
from kronos_qlib.evaluation.ic import newey_west_lags, newey_west_t
from kronos_qlib.resources import workflow_path


@dataclass(frozen=True)
class BacktestConfig:
    """Portfolio, account and costs; defaults are those of ``workflows/csi300_base.yaml``."""

    topk: int
    n_drop: int
    account: float
    benchmark: str
    exchange: tuple[tuple[str, Any], ...]

    @classmethod
    def of_workflow(cls, path: Path | None = None, **changes: Any) -> BacktestConfig:
        """Read the PortAnaRecord of a workflow (None: the CSI300 base), with ``changes`` that are not None.

        Raises
        ------
        ValueError : the workflow has no such record.
        """
        path = workflow_path("csi300_base") if path is None else path
        records = yaml.safe_load(path.read_text(encoding="utf-8"))["task"]["record"]
        found = [record["kwargs"]["config"] for record in records if record["class"] == "PortAnaRecord"]
        if not found:
            raise ValueError(f"{path} has no PortAnaRecord to take the portfolio and its costs from")
        strategy, backtest = found[0]["strategy"]["kwargs"], found[0]["backtest"]
        settings = {
            "topk": strategy["topk"],
            "n_drop": strategy["n_drop"],
            "account": float(backtest["account"]),
            "benchmark": backtest["benchmark"],
            "exchange": tuple(sorted(backtest["exchange_kwargs"].items())),
        }
        return cls(**(settings | {name: value for name, value in changes.items() if value is not None}))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return vars(self) | {"exchange": dict(self.exchange)}


class SortedPosition(Position):
    """A position that names its stocks in alphabetical order.

    Qlib's own (0.9.7) names them in the order of a set, which is another in each process unless ``PYTHONHASHSEED`` is
    set. TopkDropout ranks held stocks without a score in that order, so that the same scores earned more or less.
    """

    def get_stock_list(self) -> list[str]:
        """Codes held, sorted."""
        return sorted(super().get_stock_list())


class Backtester:
    """Backtests of scores over one span; quotes are loaded once.

    Parameters
    ----------
    codes : every instrument that a score may name. start, end : first and last date of the scores; the last day traded
        is ``end``, or the last but one session of the store where that is earlier (Qlib needs one more).
    """

    def __init__(self, config: BacktestConfig, codes: Sequence[str], start: Any, end: Any) -> None:
        self.config = config
        sessions = pd.DatetimeIndex(D.calendar(freq="day"))
        inside = sessions[(sessions >= pd.Timestamp(start)) & (sessions <= min(pd.Timestamp(end), sessions[-2]))]
        if len(inside) < 2:
            raise ValueError(
                f"a backtest needs at least 2 sessions between {start} and {end}, the store has {len(inside)}"
            )
        self.start, self.end = inside[0], inside[-1]
        self._exchange = Exchange(
            freq="day", start_time=self.start, end_time=self.end, codes=list(codes), **dict(config.exchange)
        )

    def run(self, score: pd.Series) -> dict[str, float]:
        """Backtest a score.

        Parameters
        ----------
        score : float Series indexed (datetime, instrument), dated as known; traded on the next session.

        Returns
        -------
        dict: ``excess_return`` and ``net_excess_return`` a year over the benchmark, before and after cost (Qlib's sums,
        238 days), ``net_excess_error`` (Newey–West), ``information_ratio`` and ``max_drawdown`` after cost,
        ``turnover`` a day (value traded over the account, both ways), ``cost`` a year, ``days``.
        """
        return backtest_figures(self.report(score))

    def report(self, score: pd.Series) -> pd.DataFrame:
        """Qlib's daily report of a backtest: ``return``, ``bench``, ``cost``, ``turnover`` …, shares of the account."""
        strategy = TopkDropoutStrategy(signal=score, topk=self.config.topk, n_drop=self.config.n_drop)
        report, _ = backtest_daily(
            self.start, self.end, strategy, account=self.config.account, benchmark=self.config.benchmark,
            exchange_kwargs={"exchange": self._exchange}, pos_type=f"{__name__}.{SortedPosition.__name__}",
        )  # fmt: skip
        return report


def backtest_figures(report: pd.DataFrame) -> dict[str, float]:
    """Figures of Qlib's daily report; see :meth:`Backtester.run`."""
    gross = report["return"] - report["bench"]
    net = gross - report["cost"]
    risk = risk_analysis(net, freq="day")["risk"]
    values = net.to_numpy(dtype=np.float64)
    t = newey_west_t(values, newey_west_lags(len(values)))
    mean = float(values.mean())
    return {
        "excess_return": float(gross.mean()) * YEAR,
        "net_excess_return": float(risk["annualized_return"]),
        "net_excess_error": abs(mean / t) * YEAR if t else float("nan"),
        "information_ratio": float(risk["information_ratio"]),
        "max_drawdown": max_drawdown(net),
        "turnover": float(report["turnover"].mean()),
        "cost": float(report["cost"].mean()) * YEAR,
        "days": len(report),
    }
