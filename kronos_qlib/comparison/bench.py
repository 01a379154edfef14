"""The rows that every method is judged on, with what happened after them; one segment of one store."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kronos_qlib.comparison.scores import carry_scores
from kronos_qlib.comparison.task import Protocol
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic, ic_summary
from kronos_qlib.evaluation.outcomes import LABELS, label_returns
from kronos_qlib.evaluation.references import reference_columns
from kronos_qlib.examine import open_store
from kronos_qlib.handler import KlineHandler, sessions_between
from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, window_lengths
from kronos_qlib.sweep_backtest import Backtester, backtest_figures

TURNOVER_BARS = 20


class Bench:
    """Members, labels, references and the exchange of a segment.

    Attributes
    ----------
    age : int64 Series on every (datetime, member) of the segment: sessions since the member last traded; -1 where
        nobody is asked for a score (no bar within ``carry`` sessions, or a window of fewer than ``min_bars``).
    label : float64 Series on the same rows. judged : bool Series: traded that day, and its label is finite. These rows
        depend on the store and the protocol alone, so they are the same for every method.
    """

    def __init__(self, protocol: Protocol, store: Path, segment: str) -> None:
        self.protocol, self.segment = protocol, segment
        known = open_store(store)
        if not known.get("fingerprint"):
            raise ValueError(f"{store} has no kronos_store.json with a fingerprint; write the store with ingest")
        self.store_fingerprint = str(known["fingerprint"])
        self.start, self.end = protocol.span(segment)
        self.sessions = sessions_between(self.start, self.end)
        # the labels of the last sessions read the next ones; nothing later is loaded
        following = sessions_between(self.sessions[-1], None)
        last = following[: max(sold for _, sold in LABELS.values()) + 1][-1]
        handler = KlineHandler(protocol.universe, self.start, last, init_data=False)
        dataset = KlineDataset(handler, {"judged": (self.start, self.end)}, min_bars=protocol.min_bars,
                               carry=protocol.carry)  # fmt: skip
        self.panel: BarPanel = dataset.panel
        self.policy: WindowPolicy = dataset.window_policy(WindowPolicy.lookback)
        table = dataset.rows("judged")
        self.row, self.age = table["row"], table["age"]
        index = pd.MultiIndex.from_arrays([table.index.get_level_values(name) for name in ("datetime", "instrument")],
                                          names=["datetime", "instrument"])  # fmt: skip
        wanted = {protocol.label: LABELS[protocol.label]}
        self.label = label_returns(self.panel, index, wanted)[protocol.label].rename("label")
        self.label.index = self.age.index
        self.judged = (self.age == 0) & np.isfinite(self.label)

    @cached_property
    def columns(self) -> pd.DataFrame:
        """Reference columns of every row with a bar (the bar it is scored from), NaN elsewhere; with ``turnover``.

        ``turnover``: mean amount of the last 20 bars over that of the window, minus 1: how much more than usual a name
        is traded. Bars carry no shares outstanding, so the level itself cannot be had.
        """
        known = self.row.to_numpy() >= 0
        table = reference_columns(self.panel, policy=self.policy).assign(turnover=unusual_turnover(
            self.panel, self.policy))  # fmt: skip
        rows = self.row.to_numpy()[known]
        bars = pd.MultiIndex.from_arrays(
            [pd.DatetimeIndex(self.panel.timestamps[rows]), self.panel.instrument_names(rows)], names=table.index.names
        )
        result = pd.DataFrame(np.nan, index=self.row.index, columns=table.columns)
        result.loc[known] = table.reindex(bars).to_numpy()
        return result

    @cached_property
    def backtester(self) -> Backtester:
        """Exchange of the segment, loaded at the first backtest."""
        return Backtester(self.protocol.trades, self.panel.instruments, self.start, self.end)

    def lay_out(self, raw: pd.Series) -> pd.Series:
        """Scores on the table's rows, see :func:`carry_scores`."""
        return carry_scores(raw, self.age, self.protocol.carry)

    def judge(self, score: pd.Series, label: pd.Series | None = None) -> tuple[dict[str, Any], pd.DataFrame]:
        """Figures of a laid-out score, and its daily series.

        Parameters
        ----------
        score : of :meth:`lay_out`. label : instead of the bench's own, for a control; then there is no backtest.

        Returns
        -------
        figures (the columns of :class:`kronos_qlib.comparison.rows.Row`), and a DataFrame by ``datetime`` with ``ic``,
        ``rank_ic``, ``gross`` and ``net`` (excess return over the benchmark before and after cost), ``cost``,
        ``traded`` (value traded over the account, both ways).
        """
        target = (self.label if label is None else label)[self.judged]
        judged = score[self.judged]
        finite = np.isfinite(judged)
        if not finite.any():
            raise ValueError(f"no judged row of {self.segment} has a score; the method scored other dates or codes")
        daily = pd.DataFrame({"ic": daily_ic(judged, target), "rank_ic": daily_rank_ic(judged, target)})
        ic, rank_ic = ic_summary(daily["ic"]), ic_summary(daily["rank_ic"])
        figures: dict[str, Any] = {
            "first": f"{daily.index[0]:%Y-%m-%d}", "last": f"{daily.index[-1]:%Y-%m-%d}", "days": len(daily),
            "rows": int(self.judged.sum()), "coverage": float(finite.mean()),
            "ic": ic.mean, "icir": ic.icir, "ic_t": ic.newey_west_t,
            "rank_ic": rank_ic.mean, "rank_icir": rank_ic.icir, "rank_ic_t": rank_ic.newey_west_t,
        }  # fmt: skip
        if label is None:
            report = self.backtester.report(score.dropna())
            found = backtest_figures(report)
            figures |= {name: found[name] for name in (
                "excess_return", "net_excess_return", "information_ratio", "max_drawdown", "turnover")}  # fmt: skip
            gross = report["return"] - report["bench"]
            trades = pd.DataFrame({"gross": gross, "net": gross - report["cost"], "cost": report["cost"],
                                   "traded": report["turnover"]})  # fmt: skip
            daily = daily.join(trades.rename_axis("datetime"), how="outer")
        return figures, daily


def unusual_turnover(panel: BarPanel, policy: WindowPolicy) -> pd.Series:
    """Mean amount of the last 20 bars over that of each bar's window, minus 1; NaN without a window of 20 bars."""
    amount = panel.values[:, BAR_FIELDS.index("amount")].astype(np.float64)
    lengths = window_lengths(panel, np.arange(len(panel), dtype=np.int64), policy)
    total = np.concatenate([[0.0], np.cumsum(amount)])
    ends = np.arange(1, len(panel) + 1)
    recent = (total[ends] - total[np.maximum(ends - TURNOVER_BARS, 0)]) / TURNOVER_BARS
    usual = (total[ends] - total[ends - lengths]) / np.maximum(lengths, 1)
    ratio = np.full(len(panel), np.nan)
    known = (lengths >= TURNOVER_BARS) & (usual > 0)
    ratio[known] = recent[known] / usual[known] - 1.0
    index = pd.MultiIndex.from_arrays(
        [pd.DatetimeIndex(panel.timestamps), panel.instrument_names(np.arange(len(panel)))],
        names=["datetime", "instrument"],
    )
    return pd.Series(ratio, index=index)
