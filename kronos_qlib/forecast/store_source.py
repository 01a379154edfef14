"""What the forecast store asks of a source of factors, and the name it gives one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kronos_qlib.market.panel import BarPanel


class FactorSource(Protocol):
    """Computes columns of factors for rows of a panel that it holds; what the store keeps.

    Attributes
    ----------
    columns : tuple of str, length F
    description : dict, JSON types only
        Everything besides the bars that the values depend on: weights, tokenizer, preprocessing, window policy,
        sampling, factor definitions. ``weights`` (text) marks each row; without it, the fingerprint does. ``factors``
        (definitions by column) and ``embedding`` (definitions in the order of their columns), where present, say what
        the columns are: sources that differ in these alone give the same keys, and the same values of a column by the
        same definition, so that a wider stored one is read instead (``forecast.store_cover``).
    """

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def description(self) -> dict[str, Any]: ...

    def data_keys(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Hash of exactly the bars and stamps that the values of each row depend on, uint64 (n,)."""
        ...

    def compute(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Values (n, F), independent of which other rows are asked for; NaN where there is no window."""
        ...


@runtime_checkable
class Widens(Protocol):
    """A source that can compute other columns with the same settings; without it a wider stored one gets no new row."""

    def widened(self, columns: Sequence[str], description: Mapping[str, Any]) -> FactorSource:
        """Return a source with the columns of a stored description, all else its own; ValueError: one is unknown."""
        ...


def source_fingerprint(source: FactorSource) -> str:
    """Return the hash (32 hexadecimal digits) of a source's description and columns.

    Raises
    ------
    ValueError
        The description is no plain JSON, so that it has no one text.
    """
    content = {"columns": list(source.columns), "description": source.description}
    try:
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the description of a factor source must be plain JSON: {error}") from error
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def weights_of(source: FactorSource) -> str:
    """Return the text that marks a source's rows: the fingerprint of its weights."""
    given = source.description.get("weights")
    return given if isinstance(given, str) and given else source_fingerprint(source)


def flat(description: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested mappings as one, ``{"sampling.n_paths": 10, ...}``; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in description.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{name}."))
        else:
            found[name] = value
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for every key in which two descriptions differ, ``sampling.n_paths: 10 -> 20``."""
    before, after = flat(old), flat(new)
    return [
        f"{key}: {_short(before.get(key, 'absent'))} -> {_short(after.get(key, 'absent'))}"
        for key in sorted(before.keys() | after.keys())
        if (key in before) != (key in after) or before.get(key) != after.get(key)
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, eq=False)
class WantedRows:
    """Rows that a source is asked for, with what identifies them in the store.

    Attributes
    ----------
    rows : int64 (n,), panel rows
    codes : int32 (n,), positions in ``instruments``
    timestamps : datetime64[ns] (n,)
    keys : uint64 (n,), hashes of the data each row depends on
    instruments : tuple of str
    """

    rows: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int32]
    timestamps: npt.NDArray[np.datetime64]
    keys: npt.NDArray[np.uint64]
    instruments: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: npt.NDArray[np.generic]) -> WantedRows:
        """Return some of the rows, by mask or position."""
        return WantedRows(
            self.rows[chosen], self.codes[chosen], self.timestamps[chosen], self.keys[chosen], self.instruments
        )

    def names(self) -> list[str]:
        """Return the instrument of each row."""
        return [self.instruments[code] for code in self.codes]


def wanted_rows(source: FactorSource, panel: BarPanel, rows: npt.NDArray[np.int64]) -> WantedRows:
    """Return panel rows without repetitions, by instrument and time, with their keys; -1 (no bar) is left out."""
    rows = np.unique(np.asarray(rows, dtype=np.int64))
    rows = rows[rows >= 0]
    if len(rows) and rows[-1] >= len(panel):
        raise ValueError(f"found panel row {rows[-1]}; the panel has {len(panel)} rows")
    keys = np.asarray(source.data_keys(rows))
    if keys.shape != rows.shape or keys.dtype != np.uint64:
        raise ValueError(f"data_keys gave {keys.dtype} {keys.shape} for {len(rows)} rows; expected uint64 (n,)")
    return WantedRows(rows, panel.codes[rows].astype(np.int32), panel.timestamps[rows], keys, panel.instruments)


def refuse_shared_rows(wanted: Sequence[WantedRows], columns: Sequence[tuple[str, ...]]) -> None:
    """Raise ``ValueError`` unless several sources share their columns and no row."""
    if any(names != columns[0] for names in columns):
        raise ValueError(f"sources of one build must have the same columns; found {list(map(list, columns))}")
    rows = np.concatenate([part.rows for part in wanted]) if wanted else np.zeros(0, dtype=np.int64)
    shared = len(rows) - len(np.unique(rows))
    if shared:
        raise ValueError(f"{shared} rows are asked of more than one source: give each row to one")
