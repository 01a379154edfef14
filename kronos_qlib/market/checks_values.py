"""Checks of values: prices, ranges, volume and amount, the average price, stale bars, factors."""

from __future__ import annotations

import numpy as np

from kronos_qlib.market import rules
from kronos_qlib.market.checks import CheckContext
from kronos_qlib.market.events import price_slack
from kronos_qlib.market.fields import PRICE_FIELDS
from kronos_qlib.market.report import CheckResult, Severity


def value_checks(context: CheckContext) -> list[CheckResult]:
    """Every check of values."""
    checks = [*_prices(context), *_quantities(context)]
    return [*checks, _average_price(context), _stale(context), _factor(context)]


def empty_bar_check(context: CheckContext) -> CheckResult:
    """Bars that stand for a suspended day; the other checks run without them."""
    empty = rules.empty_bars(context.values)
    text = "bars without price and volume: read as suspended, a repair drops them"
    return context.result("empty_bars", "warning", empty, text)


def _prices(context: CheckContext) -> list[CheckResult]:
    prices = np.stack([context.values[name] for name in PRICE_FIELDS])
    strange = (~np.isfinite(prices)).any(axis=0)
    with np.errstate(invalid="ignore"):
        low = ((prices <= 0) & np.isfinite(prices)).any(axis=0)
    crossed = rules.bad_ranges(context.values)
    return [
        context.result("nonfinite_prices", "error", strange, "bars with a NaN or inf price"),
        context.result("nonpositive_prices", "error", low, "bars with a price of 0 or less"),
        context.result("ohlc", "error", crossed, "bars whose high or low does not enclose the other prices"),
    ]


def _quantities(context: CheckContext) -> list[CheckResult]:
    nowhere = np.zeros(len(context.columns), dtype=bool)
    negative, missing = nowhere.copy(), nowhere.copy()
    for name in ("volume", "amount"):
        if name in context.values:
            quantity = context.values[name]
            negative |= (quantity < 0) | np.isinf(quantity)
            missing |= np.isnan(quantity)
    still = nowhere
    if "volume" in context.values:
        still = (context.values["volume"] == 0) & ~context.of_index
    flat = still & (context.values["high"] == context.values["low"])
    text = f"bars without a trade, {int(flat.sum()):,} of them with one price (filled suspensions?)"
    impossible = "bars with a negative or infinite volume or amount"
    absent = "bars without volume or amount; a repair fills them"
    return [
        context.result("impossible_volume", "error", negative, impossible),
        context.result("missing_volume", "warning", missing, absent),
        context.result("zero_volume", "warning", still, text),
    ]


def _average_price(context: CheckContext) -> CheckResult:
    """amount / volume must lie in [low, high] up to a tick; far outside in most bars means wrong units."""
    name, values = "average_price", context.values
    message = "amount / volume outside [low, high] by more than a tick"
    if "amount" not in values or "volume" not in values:
        return CheckResult(name, "warning", 0, [], f"{message}: not checked without volume and amount")
    with np.errstate(divide="ignore", invalid="ignore"):
        average = values["amount"] / values["volume"]
        slack = price_slack(values["high"], context.tick)
        outside = (average < values["low"] - slack) | (average > values["high"] + slack)
        ratio = average / values["close"]
    checked = ~context.of_index & ~rules.bad_quantities(average)
    outside &= ~context.of_index & ~np.isnan(average)
    usual = float(np.median(ratio[checked])) if checked.any() else 1.0
    severity: Severity = "warning"
    if checked.any() and not 0.5 <= usual <= 2:
        severity = "error"
        message = f"amount / volume is usually {usual:.4g} times the close: units differ (lots? thousands?)"
    return context.result(name, severity, outside, message, extra={"average": average}, by=np.abs(ratio - 1))


def _stale(context: CheckContext) -> CheckResult:
    """Runs of bars with the same four prices although something was traded."""
    same = np.ones(len(context.columns), dtype=bool)
    for name in PRICE_FIELDS:
        same &= context.values[name] == context.columns.previous_bar(name)
    if "volume" in context.values:
        same &= context.values["volume"] > 0
    run = np.cumsum(~same) - 1 if len(same) else np.zeros(0, dtype=np.int64)
    length = np.bincount(run)[run] if len(run) else run
    starts = ~same & (length >= context.stale_run)
    text = f"runs of {context.stale_run} or more traded bars with identical prices"
    return context.result("stale_bars", "warning", starts, text, extra={"length": length}, by=length)


def _factor(context: CheckContext) -> CheckResult:
    wrong = rules.bad_prices(context.columns.factor)
    text = "bars whose factor is NaN, inf, 0 or negative"
    return context.result("factor", "error", wrong, text, extra={"factor": context.columns.factor})
