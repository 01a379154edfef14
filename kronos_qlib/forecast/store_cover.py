"""Which stored source answers for a source that is asked for: the same one, or one that has more columns.

A stored source covers an asked one where they differ in nothing but the list of columns (weights, preprocessing,
windows, sampling, block, dtype, device and calendar are the same) and it has each asked column by the same definition.
Of a source's description, ``factors`` (definitions by name) and ``embedding`` (definitions in the order of their
columns) are that list; every other key is a setting. Since a column's values and a row's key depend on the settings
alone, never on the columns beside it, reading the wider source gives the same bits as computing.

Of several sources the one with the fewest rows left to compute answers; where even, the one with exactly these columns,
then the one with the fewest columns, then by fingerprint. What it lacks is computed with all of its columns, so that a
source is never part empty. That needs the source to be the one that this version would compute: where a column beside
the asked ones has another definition by now, the stored source answers only if it has every row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kronos_qlib.forecast.store_catalog import SavedSource, fingerprints, known_source, saved_source, source_folder
from kronos_qlib.forecast.store_plan import PRESENT, SourcePlan, reasons, row_states
from kronos_qlib.forecast.store_source import (
    FactorSource,
    WantedRows,
    Widens,
    differences,
    source_fingerprint,
    weights_of,
)

FACTORS, EMBEDDING = "factors", "embedding"


@dataclass(frozen=True)
class Candidate:
    """A stored source that covers an asked one; ``filler`` computes all of its columns, None: nothing does any more."""

    fingerprint: str
    columns: tuple[str, ...]
    filler: FactorSource | None


def column_settings(description: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return what the values of one column depend on besides bars and weights."""
    settings = {key: value for key, value in _settings(description).items() if key != "weights"}
    factors = description.get(FACTORS) or {}
    own = {FACTORS: {column: factors[column]}} if column in factors else {EMBEDDING: description.get(EMBEDDING)}
    return {**settings, **own}


def covers(stored: SavedSource, columns: Sequence[str], description: Mapping[str, Any]) -> bool:
    """Say whether a stored source has all of these columns, by the same settings and definitions."""
    asked, theirs = _plain(description), stored.description
    embedding, factors = asked.get(EMBEDDING) or [], theirs.get(FACTORS) or {}
    return (
        _settings(asked) == _settings(theirs)
        and set(columns) <= set(stored.columns)
        and all(factors.get(name) == definition for name, definition in (asked.get(FACTORS) or {}).items())
        # emb_000 and so on are numbered through all kinds, so only the first kinds keep their names
        and (theirs.get(EMBEDDING) or [])[: len(embedding)] == embedding
    )


def candidates(store: Path, source: FactorSource) -> list[Candidate]:
    """Return the stored sources that cover a source: the one with exactly its columns, then the narrowest first."""
    own, known = source_fingerprint(source), fingerprints(store)
    wider = []
    for name in known:
        try:
            stored = known_source(store, name)
        except ValueError:
            continue  # unreadable or just removed: it cannot answer, and whoever asks for it by name is told
        if name != own and covers(stored, source.columns, source.description):
            wider.append(stored)
    wider.sort(key=lambda stored: (len(stored.columns), stored.fingerprint))
    mine = [Candidate(own, tuple(source.columns), source)] if own in known else []
    return mine + [Candidate(stored.fingerprint, stored.columns, _widened(source, stored)) for stored in wider]


def plan_source(store: Path, source: FactorSource, wanted: WantedRows) -> SourcePlan:
    """Say which stored source answers for the wanted rows, and what is to be computed in it and why."""
    own, weights, asked = source_fingerprint(source), weights_of(source), len(source.columns)
    best: SourcePlan | None = None
    for candidate in candidates(store, source):
        state = row_states(source_folder(store, candidate.fingerprint), wanted)
        todo = int(np.count_nonzero(state != PRESENT))
        if (todo and candidate.filler is None) or (best is not None and todo >= len(best.todo)):
            continue
        others = 0 if candidate.fingerprint == own else asked
        best = SourcePlan(
            candidate.fingerprint, weights, wanted, state, reasons(wanted, state, []),
            columns=candidate.columns, source=candidate.filler, among=others,
        )  # fmt: skip
        if not todo:
            break
    if best is not None:
        return best
    state = row_states(source_folder(store, own), wanted)
    why = reasons(wanted, state, explain_new(store, source))
    return SourcePlan(own, weights, wanted, state, why, columns=tuple(source.columns), source=source)


def serving(store: Path, source: FactorSource, wanted: Callable[[], WantedRows]) -> str:
    """Return the fingerprint of the source that ``plan_source`` finds; ``wanted`` is called only where it matters."""
    found = candidates(store, source)
    if len(found) > 1:
        return plan_source(store, source, wanted()).fingerprint
    return found[0].fingerprint if found else source_fingerprint(source)


def explain_new(store: Path, source: FactorSource) -> list[str]:
    """Say how a source that the store does not have differs from the nearest one it has.

    Columns that the stored source has beside those asked for do not count.
    """
    known = fingerprints(store)
    if not known:
        return ["the store has no source yet"]
    mine = {"columns": list(source.columns), **_plain(source.description)}
    found = []
    for name in known:
        saved = saved_source(store, name)
        found.append(
            (differences(_without_others({"columns": saved["columns"], **saved["description"]}, mine), mine), name)
        )
    lines, nearest = min(found, key=lambda pair: (len(pair[0]), pair[1]))
    if not lines:
        return [
            f"new source; {nearest[:12]} has these columns, but others beside them that this version does not define "
            "so, and cannot be added to"
        ]
    return [f"new source; it differs from the nearest one, {nearest[:12]}, in", *(f"  {line}" for line in lines)]


def _settings(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key not in (FACTORS, EMBEDDING)}


def _without_others(stored: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored description without the columns and definitions that nobody asks for."""
    embedding, wanted = stored.get(EMBEDDING) or [], asked.get(EMBEDDING) or []
    if FACTORS in stored and FACTORS in asked:
        stored = {**stored, FACTORS: {k: v for k, v in (stored[FACTORS] or {}).items() if k in asked[FACTORS]}}
    if EMBEDDING in stored and embedding[: len(wanted)] == wanted:
        stored = {**stored, EMBEDDING: wanted}
    return {**stored, "columns": asked["columns"]} if set(asked["columns"]) <= set(stored["columns"]) else stored


def _widened(source: FactorSource, stored: SavedSource) -> FactorSource | None:
    """Return what computes a stored source in full; None where this version defines one of its columns otherwise."""
    if not isinstance(source, Widens):
        return None
    try:
        wider = source.widened(stored.columns, stored.description)
    except ValueError:  # a column that this version does not know
        return None
    return wider if source_fingerprint(wider) == stored.fingerprint else None


def _plain(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description as reading its JSON gives it."""
    return dict(json.loads(json.dumps(description)))
