"""Which sources of a forecast store answer for which columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kronos_qlib.forecast.store_catalog import fingerprints, resolve, saved_source
from kronos_qlib.forecast.store_source import differences
from kronos_qlib.kronos.config import check_keys

EMBEDDING_PATTERN = "emb_*"
BUILD = "kronos-qlib factors build"


@dataclass(frozen=True)
class SavedSource:
    """What ``source.json`` says of a source; its rows are not looked at."""

    fingerprint: str
    weights: str
    columns: tuple[str, ...]
    description: dict[str, Any]


@dataclass(frozen=True)
class ColumnGroup:
    """Columns that the same sources answer for, which differ in their weights.

    Attributes
    ----------
    columns : tuple of str, in the sources' order.
    sources : tuple of SavedSource, each with other weights.
    """

    columns: tuple[str, ...]
    sources: tuple[SavedSource, ...]


def find_groups(
    store: Path, columns: Sequence[str] | None = None, sources: Sequence[str] | None = None
) -> list[ColumnGroup]:
    """Find the sources of the columns asked for; the order of columns is that of the build.

    Parameters
    ----------
    columns : names, or shell patterns such as ``expected_return*``; None: all but the embeddings (``emb_*``), since
        those of several sets of weights have no common basis.
    sources : fingerprints or their beginnings. Sources that are named may differ in anything, but only in their weights
        otherwise. None: all sources of the store.

    Raises
    ------
    ValueError
        No factors, an unknown column or source, a column that sources of several settings (or twice the same weights)
        have.
    """
    known = fingerprints(store)
    if not known:
        raise ValueError(f"{store} holds no factors; build them: {BUILD} --store STORE --out {store} --checkpoint …")
    named = None if sources is None else [resolve(store, name) for name in sources]
    saved = [_saved(store, name) for name in (known if named is None else dict.fromkeys(named))]
    wanted = _wanted(store, saved, columns)
    groups: dict[str, list[SavedSource]] = {}
    for source in saved:
        groups.setdefault(_settings(source, named is not None), []).append(source)
    found = []
    # path factors before token factors, whatever the fingerprints
    for members in sorted(groups.values(), key=lambda group: str(group[0].description.get("kind", ""))):
        names = tuple(name for name in members[0].columns if name in wanted)
        if names:
            found.append(ColumnGroup(names, tuple(members)))
    _refuse_shared(store, found)
    return found


def _saved(store: Path, fingerprint: str) -> SavedSource:
    saved = saved_source(store, fingerprint)
    return SavedSource(fingerprint, saved["weights"], tuple(saved["columns"]), saved["description"])


def _settings(source: SavedSource, named: bool) -> str:
    others = {} if named else {key: value for key, value in source.description.items() if key != "weights"}
    return json.dumps([source.columns, others], sort_keys=True)


def _wanted(store: Path, saved: Sequence[SavedSource], columns: Sequence[str] | None) -> set[str]:
    have = list(dict.fromkeys(name for source in saved for name in source.columns))
    if columns is None:
        found = {name for name in have if not fnmatchcase(name, EMBEDDING_PATTERN)}
        if not found:
            raise ValueError(f"{store} holds embeddings only; ask for them: columns: ['{EMBEDDING_PATTERN}']")
        return found
    if isinstance(columns, str) or not columns:
        raise ValueError(f"found columns={columns!r}; expected a list of names or patterns of {store}, or null for all")
    found = set()
    for pattern in columns:
        matching = [name for name in have if fnmatchcase(name, pattern)]
        if not matching:
            check_keys([pattern], have, f"columns of {store}")
        found.update(matching)
    return found


def _refuse_shared(store: Path, groups: Sequence[ColumnGroup]) -> None:
    for group in groups:
        weights = [source.weights for source in group.sources]
        if len(set(weights)) < len(weights):
            listed = ", ".join(source.fingerprint[:12] for source in group.sources)
            raise ValueError(f"the sources {listed} of {store} have the same weights; name one of them: sources: [...]")
    owner: dict[str, ColumnGroup] = {}
    for group in groups:
        for name in group.columns:
            if name in owner:
                one, other = owner[name].sources[0], group.sources[0]
                lines = differences(
                    {**one.description, "columns": list(one.columns)},
                    {**other.description, "columns": list(other.columns)},
                )
                raise ValueError(
                    f"the column {name!r} is in sources of {store} with other settings, {one.fingerprint[:12]} and "
                    f"{other.fingerprint[:12]} ({'; '.join(lines)}); name those to use: sources: [...]"
                )
            owner[name] = group
