"""Which scores of a model lie in the years that its weights have seen, and what a recorder keeps beside the scores."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from qlib.workflow.recorder import Recorder

from kronos_qlib.forecast.cutoff import before_cutoff, card_date
from kronos_qlib.forecast.drift import TokenDrift
from kronos_qlib.record import save_frame, save_json


def last_day(cards: Iterable[Mapping[str, Any]], key: str = "cutoff") -> pd.Timestamp | None:
    """Return the last date that any of the cards names under a key."""
    return max((day for card in cards if (day := card_date(card, key)) is not None), default=None)


def mark_cutoff(index: pd.Index, cutoff: pd.Timestamp | None) -> pd.Series | None:
    """Return which rows (datetime, instrument) are dated on or before a cutoff; None where there is none."""
    if cutoff is None:
        return None
    inside = before_cutoff(index.get_level_values("datetime"), cutoff)
    return pd.Series(inside, index=index, name="before_cutoff")


def warn_of_cutoff(marked: pd.Series, cutoff: pd.Timestamp) -> None:
    """Warn the caller of ``predict`` of the rows that are marked."""
    warnings.warn(
        f"{int(marked.sum())} of {len(marked)} scores are dated on or before {cutoff:%Y-%m-%d}, the end of the "
        "checkpoint's training data: the network may have seen what it forecasts; judge later dates apart "
        "(before_cutoff marks the rows, KronosSignalRecord splits the figures)",
        stacklevel=4,
    )


def record_rows(
    recorder: Recorder,
    age: pd.DataFrame,
    marked: pd.Series | None,
    dates: Mapping[str, pd.Timestamp | None],
    drift: TokenDrift | None,
) -> None:
    """Save what belongs to each score: its age, its side of the cutoff, and how far the tokens have drifted."""
    save_frame(recorder, "score_age.parquet", age)
    if marked is not None:
        save_frame(recorder, "before_cutoff.parquet", marked.to_frame())
        save_json(recorder, "kronos_cutoff.json", dates)
    if drift is not None:
        save_json(recorder, "token_drift.json", drift.to_dict())
