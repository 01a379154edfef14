"""The page: sections of text, tables and pictures in one HTML file that needs nothing else, not even a script."""

from __future__ import annotations

import html
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kronos_qlib.evaluation.breakdown import YEAR
from kronos_qlib.evaluation.drawdown import drawdown
from kronos_qlib.evaluation.ic import daily_rank_ic
from kronos_qlib.evaluation.probability import pit_histogram
from kronos_qlib.report import contents, figures
from kronos_qlib.report.contents import ReportInputs

ROLLING_DAYS = 60
NO_PATHS = (
    "No path statistics were saved with this run (an artifact path_pit.parquet), so whether the forecast "
    "probabilities are right is not judged here."
)
NO_BACKTEST = "No backtest was made with this run (an artifact of PortAnaRecord), so there is nothing to show here."
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto; padding: 0 16px 48px;
  max-width: 720px; }
h1 { font-size: 1.5em; line-height: 1.25; margin: 24px 0 8px; }
h2 { font-size: 1.15em; margin: 32px 0 8px; border-top: 1px solid #ddd; padding-top: 16px; }
p { margin: 8px 0; }
figure { margin: 8px 0; }
img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.9em; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td.words { white-space: normal; }
thead th { border-bottom: 2px solid #999; font-weight: 600; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.note { color: #555; font-size: 0.9em; }
@media (max-width: 480px) { table { font-size: 0.75em; } th, td { padding: 5px 3px; } }
.bad { color: #b03a2e; font-weight: 600; }
"""


def render(inputs: ReportInputs) -> str:
    """Return a run's report as an HTML page.

    Raises
    ------
    ValueError : score and label share no day with at least three names.
    """
    daily = daily_rank_ic(inputs.score, inputs.label)
    if daily.dropna().empty:
        raise ValueError("report: score and label share no day on which at least 3 names have both; nothing to report")
    parts = [
        _introduction(inputs, daily),
        *_performance(inputs),
        *_signal(inputs, daily),
        *_trust(inputs),
        *_calibration(inputs),
    ]
    title = html.escape(inputs.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _introduction(inputs: ReportInputs, daily: pd.Series) -> str:
    first, last = daily.index[0], daily.index[-1]
    rows = int(pd.concat([inputs.score, inputs.label], axis=1, join="inner").notna().all(axis=1).sum())
    text = _p(f"{len(daily)} days, {first:%Y-%m-%d} to {last:%Y-%m-%d}; {rows:,} scores with a label.")
    table = contents.headline(inputs)
    shown = pd.DataFrame(
        {
            "figure": list(table.index),
            "value": [_value(value, unit) for value, unit in zip(table["value"], table["unit"], strict=True)],
            "t": [f"{t:+.2f}" if np.isfinite(t) else "" for t in table["t"]],
            "95 % interval": [
                f"{_rounded(low, unit)} to {_rounded(high, unit)}" if np.isfinite(low) else ""
                for low, high, unit in zip(table["low"], table["high"], table["unit"], strict=True)
            ],
        }
    )
    facts = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in inputs.facts.items()
    )
    note = _note(
        "t and intervals allow for correlated days (Newey–West). A t of 2 is nothing when many variants were tried. "
        f"Returns are added, not compounded; a year has {YEAR} days, as in Qlib."
    )
    block = f'<div class="wide"><table class="facts"><tbody>{facts}</tbody></table></div>' if facts else ""
    return text + block + _h("In short") + _table(shown) + note


def _performance(inputs: ReportInputs) -> Iterator[str]:
    yield _h("Return above the benchmark, after cost")
    if inputs.backtest is None:
        yield _p(NO_BACKTEST)
        return
    net = contents.net_excess(inputs.backtest)
    gross = inputs.backtest["return"] - inputs.backtest["bench"]
    yield _picture(figures.draw_cumulative(net, gross), "Running sum of daily excess returns, after and before cost")
    yield _h("Drawdown")
    yield _picture(figures.draw_drawdown(drawdown(net)), "Net excess return below its highest value so far")


def _signal(inputs: ReportInputs, daily: pd.Series) -> Iterator[str]:
    window = max(2, min(ROLLING_DAYS, len(daily.dropna()) // 3))
    yield _h("Rank IC over time")
    yield _picture(
        figures.draw_ic(contents.rolling_ic(daily, window), daily), f"Rolling mean of {window} days with its band"
    )
    yield _note(f"Rolling mean of {window} days; the band is two standard errors of independent days to either side.")
    yield _table(_years(contents.by_year(inputs)))
    yield _h("Return by score")
    groups = contents.quantile_returns(inputs.score, inputs.label)
    yield _picture(figures.draw_quantiles(groups), "Mean label above the day's mean, by group of scores")
    yield _note("Mean label of each fifth of the names above the day's mean, with two standard errors; before cost.")
    yield _h("Turnover")
    turnover = None if inputs.backtest is None else inputs.backtest["turnover"]
    persistence = contents.score_persistence(inputs.score)
    yield _picture(figures.draw_turnover(turnover, persistence), "Turnover and rank autocorrelation of the scores")
    yield _note(
        "Rolling means of 20 days at most. Turnover is the value bought and sold in a day over the account; a rank "
        "autocorrelation near 100 % means that tomorrow's ranking is nearly today's."
    )


def _trust(inputs: ReportInputs) -> Iterator[str]:
    yield _h("Worst days")
    yield _table(_worst(contents.worst_days(inputs)))
    yield _note(
        "return is the portfolio's, before cost. Rank IC is that of the scores two sessions before: a score of one "
        "close is traded at the next and earns on the day after."
    )
    yield _h("Controls that must fail")
    table = contents.controls(inputs.score, inputs.label, inputs.control_seeds, inputs.lags)
    shown = pd.DataFrame(
        {
            "control": list(table.index),
            "mean Rank IC": [f"{value:+.4f}" for value in table["mean"]],
            "largest t": [f"{value:+.2f}" for value in table["largest_t"]],
            "verdict": ["fails, as it must" if passed else "DOES NOT FAIL" for passed in table["passed"]],
        }
    )
    yield _table(shown)
    if not table["passed"].all():
        yield (
            '<p class="bad">A control that should know nothing has a t of 3 or more: there is a fault in the '
            "evaluation. Believe no figure on this page until it is found.</p>"
        )
    yield _note(f"{inputs.control_seeds} shuffles of each kind; the largest t of them must stay below 3.")


def _calibration(inputs: ReportInputs) -> Iterator[str]:
    yield _h("Calibration of the forecast paths")
    if inputs.pit is None:
        yield _p(NO_PATHS)
        return
    values = inputs.pit.to_numpy(dtype=np.float64)
    yield _picture(figures.draw_pit(pit_histogram(values)), "Where outcomes fell among the paths")
    yield _picture(figures.draw_coverage(contents.coverage(inputs.pit)), "Coverage of central intervals by step")
    yield _note(
        f"{len(values):,} windows. Flat histograms, and lines on their dashed levels, are calibrated; high ends mean "
        "intervals that are too narrow."
    )


def _years(table: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame(
        {
            "year": [str(year) for year in table.index],
            "Rank IC": [f"{value:+.4f}" for value in table["rank_ic"]],
            "t": [f"{value:+.2f}" if np.isfinite(value) else "" for value in table["t"]],
            "days": [str(int(days)) for days in table["days"]],
        }
    )
    if "net_excess" in table:
        shown["net excess"] = [_value(value, "percent") for value in table["net_excess"]]
    return shown


def _worst(table: pd.DataFrame) -> pd.DataFrame:
    shown = pd.DataFrame({"day": [f"{day:%Y-%m-%d}" for day in table.index]})
    names = {"net_excess": "net excess", "return": "return", "bench": "bench"}
    for column, name in names.items():
        if column in table:
            shown[name] = [_value(value, "percent") for value in table[column]]
    shown["Rank IC"] = [f"{value:+.3f}" if np.isfinite(value) else "" for value in table["rank_ic"]]
    return shown


def _value(value: float, unit: str) -> str:
    if not np.isfinite(value):
        return "–"
    return {"percent": f"{value:+.2%}", "ratio": f"{value:+.2f}"}.get(unit, f"{value:+.4f}")


def _rounded(value: float, unit: str) -> str:
    return f"{value:+.1%}" if unit == "percent" else f"{value:+.3f}"


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in frame.columns)
    body = "".join(
        "<tr>" + "".join(_cell(str(cell)) for cell in row) + "</tr>" for row in frame.itertuples(index=False)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    # words may break over lines on a narrow screen, figures and intervals may not
    words = ' class="words"' if text[:1].isalpha() else ""
    return f"<td{words}>{html.escape(text)}</td>"


def _picture(figure: Figure, words: str) -> str:
    return f'<figure><img src="{figures.as_svg(figure)}" alt="{html.escape(words)}"></figure>'


def _h(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def _p(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'
