"""Checks of moves against the boards' daily limits, and of adjusted moves that no limit explains."""

from __future__ import annotations

import numpy as np

from kronos_qlib.market.board import column_fractions, limit_prices, reference_prices
from kronos_qlib.market.checks import CheckContext
from kronos_qlib.market.events import price_slack
from kronos_qlib.market.report import CheckResult

# After longer suspensions a large move is news, not an error of the factor.
SHORT_GAP = 6
# Where no limit holds (indices, other regions) a move of more than half is worth a look.
UNLIMITED_MOVE = 0.5


def limit_checks(context: CheckContext) -> list[CheckResult]:
    """Closes and ranges beyond the limit (region ``cn``), and adjusted moves beyond it."""
    reference = reference_prices(context.columns)
    fraction = np.full(len(reference), np.nan)
    if context.region == "cn":
        fraction = column_fractions(context.columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        move = context.values["close"] / reference - 1
    checks = [_adjusted_moves(context, move, fraction, reference)]
    if context.region == "cn":
        checks = [*_beyond_limit(context, move, fraction, reference), *checks, _unknown_boards(context)]
    return checks


def _beyond_limit(
    context: CheckContext, move: np.ndarray, fraction: np.ndarray, reference: np.ndarray
) -> list[CheckResult]:
    down, up = limit_prices(reference, fraction, context.tick)
    slack = price_slack(reference, context.tick)
    values, since = context.values, context.since
    close = (values["close"] > up + slack) | (values["close"] < down - slack)
    wide = (values["high"] > up + slack) | (values["low"] < down - slack)
    resumed = since > 1
    extra = {"reference": reference, "move": move, "sessions_since": since}
    after_gap = close & resumed
    text = f"closes over a tick beyond the board's limit, {int(after_gap.sum())} of them on resumption"
    # A move between neighbouring sessions is the stranger one, so that it is shown first.
    rank = np.abs(move) + 100.0 * ~resumed
    return [
        context.result("close_beyond_limit", "warning", close, text, extra=extra, by=rank),
        context.result(
            "close_beyond_limit_on_resumption",
            "info",
            after_gap,
            _resumption_message(move, since, after_gap),
            extra=extra,
            by=np.abs(move),
        ),
        context.result(
            "range_beyond_limit",
            "warning",
            wide,
            f"highs or lows over a tick beyond the limit, {int((wide & ~close).sum())} with a close inside,"
            f" {int((wide & resumed).sum())} on resumption",
            extra=extra,
            by=rank,
        ),
    ]


def _resumption_message(move: np.ndarray, since: np.ndarray, mask: np.ndarray) -> str:
    message = "closes beyond the limit on resumption (no limit holds on many such days)"
    if mask.any():
        row = int(np.argmax(np.where(mask, np.abs(move), -1)))
        message += f", up to {move[row]:+.0%} after {int(since[row])} sessions"
    return message


def _adjusted_moves(
    context: CheckContext, move: np.ndarray, fraction: np.ndarray, reference: np.ndarray
) -> CheckResult:
    """Adjusted closes that moved by over 1.1 limits within a few sessions: wrong factors, or oddities."""
    limit = np.where(np.isnan(fraction), UNLIMITED_MOVE, 1.1 * fraction)
    # A tick is more than a tenth of the limit of a stock at 20 cents, so that ticks count beside fractions.
    change = np.abs(context.values["close"] - reference)
    slack = price_slack(reference, context.tick)
    with np.errstate(invalid="ignore"):
        strange = (change > limit * reference + slack) & (context.since <= SHORT_GAP)
    text = (
        f"adjusted closes that moved by over 1.1 limits ({UNLIMITED_MOVE:.0%} where none holds) within"
        f" {SHORT_GAP} sessions: check their factors"
    )
    extra = {"reference": reference, "move": move, "sessions_since": context.since}
    return context.result("adjusted_moves", "warning", strange, text, extra=extra, by=np.abs(move))


def _unknown_boards(context: CheckContext) -> CheckResult:
    columns = context.columns
    unknown = np.isnan(column_fractions(columns)) & ~context.of_index & columns.first
    text = "instruments whose code names no board (expected such as SH600000): their limits were not checked"
    return context.result("unknown_boards", "warning", unknown, text)
