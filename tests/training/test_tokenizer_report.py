"""The report on a tokenizer, against figures worked out by hand on a tokenizer whose every answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_network import tiny_networks, tokenizer_config
from torch import Tensor

from kronos_qlib.cli_checkpoint import describe_report
from kronos_qlib.kronos import KronosTokenizer, save_tokenizer
from kronos_qlib.market.events import Event
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.synthetic import SyntheticConfig, make_market
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.plots import plot_coarse_tokens
from kronos_qlib.training.report_windows import choose_ends, event_windows, read_event_panel
from kronos_qlib.training.tokenizer_report import bar_types, coarse_arrays, report_tokenizer


class KnownTokenizer(KronosTokenizer):
    """Answers with bars and ids that a test sets: the coarse bar is 1 above each value, the full one 0.5 below."""

    s1: Tensor
    s2: Tensor

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor]:
        return (x + 1.0, x - 0.5 * torch.arange(6)), torch.zeros(()), self.s1, self.s2


@pytest.fixture
def report() -> dict[str, Any]:
    """One window of four bars, the last of them after the context."""
    tokenizer = KnownTokenizer(tokenizer_config(bits=2, group_size=2)).eval()
    tokenizer.s1, tokenizer.s2 = torch.tensor([[0, 0, 3, 3]]), torch.tensor([[1, 1, 1, 2]])
    x = torch.zeros(1, 4, 6)
    x[0, :, 3] = torch.tensor([1.0, 3.0, -5.0, -5.0])  # closes; the last two are clipped
    events = np.array([[0, Event.LIMIT_UP | Event.GAP, Event.LIMIT_DOWN, Event.RESUMED]])
    return report_tokenizer(tokenizer, [(x, events)], lookback=3)


def test_errors_by_kind_of_bar_and_column(report: dict[str, Any]) -> None:
    kinds = report["bar_types"]
    assert {name: part["bars"] for name, part in kinds.items()} == {
        "all": 4, "normal": 1, "limit": 2, "gap": 1, "resumption": 1,
    }  # fmt: skip
    for part in kinds.values():
        assert part["coarse"]["mse"] == part["coarse"]["mae"] == pytest.approx(1.0)
        assert part["full"]["mae_by_column"]["amount"] == pytest.approx(2.5)
        assert part["full"]["mse_by_column"]["close"] == pytest.approx(1.5**2)
        assert part["full"]["mse"] == pytest.approx(0.25 * (0 + 1 + 4 + 9 + 16 + 25) / 6)
    assert kinds["limit"]["clipped_bars"] == 0.5
    assert kinds["normal"]["clipped_bars"] == 0.0
    assert kinds["all"]["clipped_values"]["close"] == 0.5
    assert kinds["all"]["clipped_values"]["open"] == 0.0
    assert (report["positions"]["context"]["bars"], report["positions"]["after"]["bars"]) == (3, 1)
    assert report["positions"]["after"]["clipped_bars"] == 1.0


def test_codes_in_use_and_perplexity(report: dict[str, Any]) -> None:
    codebook = report["codebook"]
    assert codebook["s1"] == {"ids": 4, "used": 2, "share_used": 0.5, "perplexity": pytest.approx(2.0)}
    assert codebook["s2"]["perplexity"] == pytest.approx(4 / 27**0.25)  # counts 3 and 1
    assert codebook["joint"]["used"] == 3  # (0, 1), (3, 1), (3, 2)
    assert codebook["joint"]["ids"] == 16


def test_what_the_coarse_token_says(report: dict[str, Any]) -> None:
    first, last = report["coarse_tokens"]
    assert (first["id"], first["bars"], last["id"], last["bars"]) == (0, 2, 3, 2)
    assert first["decoded"]["close"] == pytest.approx(3.0)  # mean of 1 + 1 and 3 + 1
    assert first["actual"]["close"] == pytest.approx(2.0)
    assert first["close_spread"] == pytest.approx(1.0)
    assert last["close_spread"] == 0.0
    counts, bars = coarse_arrays(report)
    assert counts.tolist() == [2, 0, 0, 2]
    assert bars[:, 3] == pytest.approx([3.0, 0.0, 0.0, -4.0])


def test_batches_do_not_matter_and_the_whole_is_json_and_text(report: dict[str, Any]) -> None:
    tokenizer = tiny_networks().tokenizer
    x = torch.randn(6, 20, 6, generator=torch.Generator().manual_seed(0)).clamp(-5, 5)
    events = np.random.default_rng(0).integers(0, 16, (6, 20))
    whole = report_tokenizer(tokenizer, [(x, events)], lookback=15)
    parts = report_tokenizer(tokenizer, [(x[i : i + 1], events[i : i + 1]) for i in range(6)], lookback=15)
    assert parts["codebook"] == whole["codebook"]
    for name, part in whole["bar_types"].items():
        assert parts["bar_types"][name]["full"]["mse"] == pytest.approx(part["full"]["mse"])
    full = tokenizer.decode(*tokenizer.encode(x))
    assert whole["bar_types"]["all"]["full"]["mse"] == pytest.approx(((full - x) ** 2).mean().item(), rel=1e-5)
    json.dumps(whole, allow_nan=False)
    text = describe_report(report)
    assert "s1: 2 of 4 ids in use (50%), perplexity 2.0" in text
    assert "(after)" in text


def test_without_events_kinds_are_not_told_apart() -> None:
    x = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0)).clamp(-5, 5)
    report = report_tokenizer(tiny_networks().tokenizer, [(x, None)], lookback=10)
    assert report["bar_types"]["all"]["bars"] == 20
    assert report["bar_types"]["normal"] == {"bars": 0}
    assert report["positions"]["after"] == {"bars": 0}
    assert "normal" not in describe_report(report)


def test_what_cannot_be_reported_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to report"):
        report_tokenizer(tiny_networks().tokenizer, [], lookback=10)
    with pytest.raises(ValueError, match="training mode"):
        report_tokenizer(KronosTokenizer(tokenizer_config()).train(), [], lookback=10)


def test_kinds_of_bars_may_overlap_but_normal_is_none_of_them() -> None:
    kinds = bar_types(np.array([0, 1, 2, 4, 8, 16, 10]))
    assert kinds["normal"].tolist() == [True, False, False, False, False, True, False]
    assert kinds["limit"].tolist() == [False, False, True, True, False, False, True]
    assert kinds["gap"].tolist() == [False, False, False, False, True, False, True]
    assert kinds["resumption"].tolist() == [False, True, False, False, False, False, False]


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    config = SyntheticConfig(seed=5, n_instruments=6, n_members=4, n_sectors=2, start="2019-01-02", end="2020-12-31")
    return make_market(config).bars


def test_windows_lie_in_their_span_and_carry_their_events(bars: pd.DataFrame, tmp_path: Path) -> None:
    bars.to_parquet(tmp_path / "bars.parquet")
    panel = read_event_panel([tmp_path / "bars.parquet"])
    assert "SH000300" not in panel.instruments  # an index is no stock
    assert (panel.events & Event.GAP).any()
    policy = WindowPolicy(lookback=40)
    ends = choose_ends(panel, policy, horizon=5, start="2020-01-01", end="2020-06-30", n_windows=50)
    assert len(np.unique(ends)) == 50
    assert panel.timestamps[ends].min() >= np.datetime64("2020-01-01")
    assert panel.timestamps[ends].max() <= np.datetime64("2020-06-30")
    assert (ends == choose_ends(panel, policy, horizon=5, start="2020-01-01", end="2020-06-30", n_windows=50)).all()
    x, events = next(event_windows(panel, ends, lookback=40, horizon=5))
    assert x.shape == (50, 45, 6)
    assert (events[:, -1] == panel.events[ends]).all()
    assert x[:, :40].mean(dim=1).abs().max() < 1e-3  # scaled by its context
    assert x.abs().max() <= 5
    with pytest.raises(ValueError, match="no window of 45 bars ends between 2031"):
        choose_ends(panel, policy, horizon=5, start="2031-01-01")
    assert isinstance(panel, BarPanel)


def test_the_command_writes_report_and_figure(
    bars: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kronos_qlib.cli import main

    bars.to_parquet(tmp_path / "bars.parquet")
    save_tokenizer(tiny_networks().tokenizer, tmp_path / "tiny" / "tokenizer")
    arguments = ["tokenizer-report", str(tmp_path / "tiny"), "--bars", str(tmp_path / "bars.parquet")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--windows", "30", "--lookback", "40", "--out", str(tmp_path / "out")])
    assert not stop.value.code
    assert "30 windows, 1,500 bars" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "tokenizer_report.json").read_text())
    assert report["bar_types"]["gap"]["bars"] > 0
    assert (tmp_path / "out" / "coarse_tokens.png").stat().st_size > 5_000
    with pytest.raises(SystemExit) as stop:
        main(["tokenizer-report", str(tmp_path / "tiny")])
    assert stop.value.code == 2
    assert "give either --bars" in capsys.readouterr().err


def test_the_figure_draws_used_tokens_in_the_order_of_their_close() -> None:
    bars = np.zeros((4, 6))
    bars[:, 3] = [2.0, -1.0, 9.0, 0.5]
    figure = plot_coarse_tokens(np.array([10, 1, 0, 100]), bars)
    candles = figure.axes[0].patches
    tops = [patch.get_y() + patch.get_height() if patch.get_y() >= 0 else patch.get_y() for patch in candles]
    assert tops == [-1.0, 0.5, 2.0]  # bodies from the open at 0 to the close; id 2 has no bars
    opacity = [patch.get_facecolor()[3] for patch in candles]
    assert opacity[1] == 1.0
    assert opacity[0] < opacity[2] < 1.0
    with pytest.raises(ValueError, match="no token is in use"):
        plot_coarse_tokens(np.zeros(4, dtype=int), bars)
    with pytest.raises(ValueError, match="expected"):
        plot_coarse_tokens(np.ones(3, dtype=int), bars)
