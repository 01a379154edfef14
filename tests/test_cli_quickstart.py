"""The quickstart: its arithmetic on hand-made results, and (slow) the whole command."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import pandas as pd
import pytest
import yaml

from kronos_qlib import cli_quickstart
from kronos_qlib.market.synthetic import PlantedIC
from kronos_qlib.resources import workflow_path


def results() -> dict[str, pd.DataFrame | pd.Series]:
    """Three days of four stocks: the score is right on days 1 and 3 and upside down on day 2."""
    days = pd.to_datetime(["2020-06-30", "2020-07-01", "2020-07-02"])
    index = pd.MultiIndex.from_product([days, list("ABCD")], names=["datetime", "instrument"])
    label = pd.Series(np.tile([1.0, 2.0, 3.0, 4.0], 3), index=index)
    sign = np.repeat([1.0, -1.0, 1.0], 4)
    risk = pd.Series({"annualized_return": 0.1, "information_ratio": 1.5, "max_drawdown": -0.05})
    return {
        "score": label * sign,
        "label": label,
        "risk": pd.concat({"excess_return_with_cost": risk.to_frame("risk")}),
    }


def measure(monkeypatch: pytest.MonkeyPatch, cutoff: str) -> cli_quickstart.QuickstartFigures:
    monkeypatch.setattr("kronos_qlib.kronos.load_card", lambda name: {"cutoff": cutoff})
    asked = []

    def planted(start: pd.Timestamp, end: pd.Timestamp) -> PlantedIC:
        asked.append((start, end))
        return PlantedIC(0.5, 0.25, 2, pd.DataFrame())

    market = SimpleNamespace(planted_ic=planted)
    figures, daily = cli_quickstart.measure(market, results(), 0.0)
    assert asked == [(daily["IC"].index[0], daily["IC"].index[-1])]  # the maximum is that of the same days
    return figures


def test_only_days_after_the_cutoff_count(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = measure(monkeypatch, "2020-06-30")
    assert (figures.first_day, figures.last_day, figures.days) == ("2020-07-01", "2020-07-02", 2)
    assert figures.ic == pytest.approx(0.0)  # one day right, one day upside down
    figures = measure(monkeypatch, "2020-07-01")
    assert figures.days == 1
    assert figures.ic == pytest.approx(1.0)
    assert figures.share_of_planted_ic == pytest.approx(2.0)
    assert figures.share_of_planted_rank_ic == pytest.approx(4.0)


def test_the_text_says_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    text = cli_quickstart.describe(measure(monkeypatch, "2020-07-01"))
    for shown in ("+1.0000", "+0.5000", "200%", "+10.0%", "+1.50", "-5.0%", "2020-07-02"):
        assert shown in text


def test_a_run_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    empty = tmp_path / "store"
    with pytest.raises(ValueError, match=r"exit code 1; the end of .*qrun\.log"):
        cli_quickstart.run_workflow(cli_quickstart.WORKFLOW, tmp_path, empty)


def test_the_workflow_uses_the_universe_that_is_written() -> None:
    text = workflow_path(cli_quickstart.WORKFLOW).read_text(encoding="utf-8")
    workflow = yaml.safe_load(jinja2.Template(text).render())
    handler = workflow["task"]["dataset"]["kwargs"]["handler"]["kwargs"]
    assert handler["instruments"] == cli_quickstart.UNIVERSE


@pytest.mark.slow
def test_the_whole_quickstart(tmp_path: Path) -> None:
    """Real data in, a backtest out: at least half of what is planted, after the cutoff, within 4 minutes and 3 GB."""
    command = [sys.executable, "-m", "kronos_qlib.cli", "quickstart", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert f"{figures['ic']:+.4f}" in done.stdout
    assert figures["first_day"] > figures["cutoff"]
    assert figures["share_of_planted_ic"] >= 0.5
    assert figures["seconds"] < 240
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 3e9
    for name in ("ic.png", "cumulative_excess_return.png", "forecast.png"):
        assert (tmp_path / name).stat().st_size > 10_000
