"""``kronos-qlib quickstart``: the whole way on embedded data, from made-up bars to a backtest.

The market is synthetic and its predictability is planted, so that the IC that a perfect reader of past bars
would reach is known. Nothing printed here says anything about a real market.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kronos_qlib.cli_output import check_output_folder

if TYPE_CHECKING:
    import pandas as pd

    from kronos_qlib.market.synthetic import SyntheticMarket

WORKFLOW = "quickstart"
CHECKPOINT = "bundled:synthetic"
UNIVERSE = "csi300"
LOG_LINES_ON_FAILURE = 30


@dataclass(frozen=True)
class QuickstartFigures:
    """What the quickstart prints and saves; ICs are means over the days after the checkpoint's cutoff."""

    checkpoint: str
    cutoff: str
    first_day: str
    last_day: str
    days: int
    ic: float
    rank_ic: float
    planted_ic: float
    planted_rank_ic: float
    share_of_planted_ic: float
    share_of_planted_rank_ic: float
    annualised_excess_return_after_cost: float
    information_ratio_after_cost: float
    max_drawdown_after_cost: float
    seconds: float


def quickstart(
    out: Path = typer.Option(Path("output/quickstart"), help="Folder for the store, the run, figures and plots."),
) -> None:
    """Build a synthetic market, score it with the bundled checkpoint and backtest it through qrun.

    \b
    Examples:
      kronos-qlib quickstart
      kronos-qlib quickstart --out /tmp/quickstart
    """
    began = time.monotonic()
    out = check_output_folder(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    say("1/4  Simulating a market whose predictability is known")
    market, store = build_store(out)
    say(f"2/4  qrun {WORKFLOW}.yaml: scoring and backtest (its log: {out / 'qrun.log'})")
    run_workflow(WORKFLOW, out, store)
    say("3/4  Reading the run")
    results = read_results(out, store)
    figures, daily = measure(market, results, began)
    say("4/4  Drawing")
    draw(out, market, results, daily, figures)
    (out / "figures.json").write_text(json.dumps(asdict(figures), indent=2), encoding="utf-8")
    typer.echo(describe(figures))
    typer.echo(f"\nFigures (figures.json), plots (*.png), the store and the recorded run are in {out}")


def say(text: str) -> None:
    """Print a step at once, also when the output is a pipe."""
    print(text, flush=True)


def build_store(out: Path) -> tuple[SyntheticMarket, Path]:
    """Simulate the market, write it as vendor files, and ingest these as a user's files would be."""
    from kronos_qlib.market.ingest import ingest
    from kronos_qlib.market.synthetic import make_market

    market = make_market()
    vendor, store = out / "vendor", out / "store"
    vendor.mkdir(exist_ok=True)
    bars, members = vendor / "bars.parquet", vendor / "members.txt"
    market.bars.to_parquet(bars, index=False)
    market.members.to_csv(members, sep="\t", header=False, index=False, date_format="%Y-%m-%d")
    ingest([bars], store, members={UNIVERSE: members}, calendar="XSHG", freq="day", region="cn")
    return market, store


def run_workflow(name: str, out: Path, store: Path) -> None:
    """Run a workflow as ``qrun`` does, in a process of its own, with ``out`` as its working folder.

    Raises
    ------
    ValueError : the run failed; the message holds the end of its log.
    """
    from kronos_qlib.resources import workflow_path

    command = [sys.executable, "-m", "qlib.cli.run", str(workflow_path(name))]
    environment = {**os.environ, "KRONOS_STORE": str(store), "KRONOS_CHECKPOINT": CHECKPOINT, "MPLBACKEND": "Agg"}
    log = out / "qrun.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=out, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        exit_code = wait_showing_time(process)
    if exit_code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-LOG_LINES_ON_FAILURE:])
        raise ValueError(f"qrun of {name}.yaml ended with exit code {exit_code}; the end of {log}:\n{tail}")


def wait_showing_time(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, showing the time it takes on a terminal; stop it when we are interrupted."""
    from tqdm import tqdm

    try:
        with tqdm(total=None, desc="qrun", bar_format="{desc}: {elapsed}", disable=None, leave=False) as clock:
            while True:
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    clock.refresh()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def read_results(out: Path, store: Path) -> dict[str, Any]:
    """Load prediction, label and backtest of the newest recorder in ``out``."""
    import qlib
    from qlib.workflow import R

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = f"sqlite:///{out / 'mlruns.db'}"
    manager = {
        "class": "MLflowExpManager",
        "module_path": "qlib.workflow.expm",
        "kwargs": {"uri": uri, "default_exp_name": "Experiment"},
    }
    qlib.init(provider_uri=str(store), region="cn", exp_manager=manager, logging_level=30)
    recorders = R.get_exp(experiment_name=WORKFLOW, create=False).list_recorders(rtype="list")
    newest = max(recorders, key=lambda recorder: recorder.info["start_time"] or "")
    return {
        "score": newest.load_object("pred.pkl").iloc[:, 0],
        "label": newest.load_object("label.pkl").iloc[:, 0],
        "backtest": newest.load_object("portfolio_analysis/report_normal_1day.pkl"),
        "risk": newest.load_object("portfolio_analysis/port_analysis_1day.pkl"),
    }


def measure(
    market: SyntheticMarket, results: dict[str, Any], began: float
) -> tuple[QuickstartFigures, dict[str, pd.Series]]:
    """Compute the figures on the days after the checkpoint's cutoff, and the daily ICs behind them."""
    import pandas as pd

    from kronos_qlib.evaluation.ic import daily_ic, daily_rank_ic
    from kronos_qlib.kronos import load_card

    cutoff = pd.Timestamp(load_card(CHECKPOINT)["cutoff"])
    unseen = results["score"].index.get_level_values("datetime") > cutoff
    score = results["score"][unseen]
    daily = {"IC": daily_ic(score, results["label"]), "Rank IC": daily_rank_ic(score, results["label"])}
    days = daily["IC"].index
    planted = market.planted_ic(days[0], days[-1])
    ic, rank_ic = float(daily["IC"].mean()), float(daily["Rank IC"].mean())
    risk = results["risk"].loc["excess_return_with_cost", "risk"]
    figures = QuickstartFigures(
        checkpoint=CHECKPOINT,
        cutoff=f"{cutoff:%Y-%m-%d}",
        first_day=f"{days[0]:%Y-%m-%d}",
        last_day=f"{days[-1]:%Y-%m-%d}",
        days=len(days),
        ic=ic,
        rank_ic=rank_ic,
        planted_ic=planted.ic,
        planted_rank_ic=planted.rank_ic,
        share_of_planted_ic=ic / planted.ic,
        share_of_planted_rank_ic=rank_ic / planted.rank_ic,
        annualised_excess_return_after_cost=float(risk["annualized_return"]),
        information_ratio_after_cost=float(risk["information_ratio"]),
        max_drawdown_after_cost=float(risk["max_drawdown"]),
        seconds=round(time.monotonic() - began, 1),
    )
    return figures, daily


def draw(
    out: Path,
    market: SyntheticMarket,
    results: dict[str, Any],
    daily: dict[str, pd.Series],
    figures: QuickstartFigures,
) -> None:
    """Write ic.png, cumulative_excess_return.png and forecast.png."""
    import pandas as pd

    from kronos_qlib.plots import plot_cumulative_return, plot_forecast, plot_ic, save_figure

    report = results["backtest"]
    before_cost = report["return"] - report["bench"]
    returns = {"before cost": before_cost, "after cost": before_cost - report["cost"]}
    save_figure(plot_ic(daily), out / "ic.png")
    title = "Return above the benchmark, running sum (synthetic market)"
    save_figure(plot_cumulative_return(returns, title), out / "cumulative_excess_return.png")
    history, followed, futures = forecast_one(market, pd.Timestamp(figures.first_day))
    save_figure(plot_forecast(history, futures, actual=followed), out / "forecast.png")


def forecast_one(market: SyntheticMarket, day: pd.Timestamp, horizon: int = 10) -> tuple[Any, Any, Any]:
    """Forecast the first member of ``day`` from adjusted bars up to that day; also return what followed."""
    from kronos_qlib import KronosForecaster, SamplingConfig
    from kronos_qlib.market.adjust import adjust_bars
    from kronos_qlib.market.calendars import get_calendar

    members = market.members[(market.members["start"] <= day) & (market.members["end"] >= day)]
    instrument = str(members["instrument"].min())
    stock = market.bars[market.bars["instrument"] == instrument]
    bars = adjust_bars(stock.set_index("datetime").drop(columns="instrument"))
    history = bars[bars.index <= day]
    futures = KronosForecaster.from_pretrained(model=CHECKPOINT).forecast_frame(
        history,
        horizon=horizon,
        sampling=SamplingConfig(n_paths=50),
        calendar=get_calendar("XSHG", freq="day"),
        instrument=instrument,
    )
    return history, bars[bars.index > day], futures


def describe(figures: QuickstartFigures) -> str:
    """Return the figures as the few lines that a newcomer reads."""
    span = f"{figures.first_day} to {figures.last_day}"
    share, rank_share = figures.share_of_planted_ic, figures.share_of_planted_rank_ic
    return f"""
Synthetic market, {figures.days} days after the checkpoint's cutoff ({span})
              reached   planted   share
  IC          {figures.ic:+.4f}   {figures.planted_ic:+.4f}   {share:.0%}
  Rank IC     {figures.rank_ic:+.4f}   {figures.planted_rank_ic:+.4f}   {rank_share:.0%}
  "planted" is what a perfect reader of past bars would reach: the market is made so that it is known.
Backtest (TopkDropout, after cost, above the benchmark)
  annualised excess return  {figures.annualised_excess_return_after_cost:+.1%}
  information ratio         {figures.information_ratio_after_cost:+.2f}
  max drawdown              {figures.max_drawdown_after_cost:+.1%}
Made-up data, far more predictable than life: this shows that the machinery works, nothing about a real market.
Took {figures.seconds:.0f} s."""
