"""Which sources of a forecast store answer for which columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kronos_qlib.forecast.store_catalog import SavedSource, fingerprints, known_source, resolve
from kronos_qlib.forecast.store_cover import column_settings
from kronos_qlib.forecast.store_source import differences
from kronos_qlib.kronos.config import check_keys

EMBEDDING_PATTERN = "emb_*"
BUILD = "kronos-qlib factors build"


@dataclass(frozen=True)
class ColumnGroup:
    """Columns that the same sources answer for.

    Attributes
    ----------
    columns : tuple of str, in the sources' order.
    sources : tuple of SavedSource
        They differ in their weights; those of the same weights in their columns alone, and the reader takes one.
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
    sources : fingerprints or their beginnings. Sources that are named may differ in anything; None: all sources of the
        store, which must agree, weights aside, in the settings and the definition of each column asked for. What other
        columns they have does not matter.

    Raises
    ------
    ValueError
        No factors, an unknown column or source, a column that sources of several settings have (named ones: of the
        same weights).
    """
    known = fingerprints(store)
    if not known:
        raise ValueError(f"{store} holds no factors; build them: {BUILD} --store STORE --out {store} --checkpoint …")
    named = None if sources is None else [resolve(store, name) for name in sources]
    saved = [known_source(store, name) for name in (known if named is None else dict.fromkeys(named))]
    wanted = _wanted(store, saved, columns)
    # path factors before token factors, whatever the fingerprints; the longest list of columns gives the order
    saved.sort(key=lambda source: (str(source.description.get("kind", "")), -len(source.columns), source.fingerprint))
    groups: dict[tuple[str, ...], list[str]] = {}
    owners: dict[tuple[str, ...], tuple[SavedSource, ...]] = {}
    for name in dict.fromkeys(name for source in saved for name in source.columns if name in wanted):
        having = tuple(source for source in saved if name in source.columns)
        _refuse_other_settings(store, name, having, named is not None)
        key = tuple(source.fingerprint for source in having)
        owners[key] = having
        groups.setdefault(key, []).append(name)
    return [ColumnGroup(tuple(names), owners[key]) for key, names in groups.items()]


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


def _refuse_other_settings(store: Path, column: str, sources: Sequence[SavedSource], named: bool) -> None:
    for number, other in enumerate(sources):
        for one in sources[:number]:
            if named and one.weights != other.weights:
                continue
            lines = differences(column_settings(one.description, column), column_settings(other.description, column))
            if lines:
                same = ", and the same weights" if one.weights == other.weights else ""
                raise ValueError(
                    f"the column {column!r} is in sources of {store} with other settings{same}, "
                    f"{one.fingerprint[:12]} and {other.fingerprint[:12]} ({'; '.join(lines)}); name those to use: "
                    "sources: [...]"
                )
