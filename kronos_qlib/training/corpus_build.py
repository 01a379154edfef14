"""How sources become the files of a corpus: what is planned has a fingerprint before a bar is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.market.fields import BAR_FIELDS
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import STAMP_FIELDS, time_stamps
from kronos_qlib.market.swap import whole_folder
from kronos_qlib.market.windows import WindowPolicy, segment_starts
from kronos_qlib.training.corpus_sources import CorpusSource

META_FILE = "meta.json"
CORPUS_VERSION = 1
# file name -> (type, columns); None for a plain vector
ARRAYS: dict[str, tuple[str, int | None]] = {
    "values": ("<f4", len(BAR_FIELDS)),
    "stamps": ("<i2", len(STAMP_FIELDS)),
    "segment": ("<i8", None),
    "timestamps": ("<M8[ns]", None),
    "code": ("<i4", None),
    "source": ("<i2", None),
}
Policies = WindowPolicy | Mapping[str, WindowPolicy] | None


@dataclass(frozen=True)
class CorpusPlan:
    """A corpus that is to be written.

    Attributes
    ----------
    sources, policies : mapping by name of the source
    described : dict by name
        What the source says of itself, and the segment rule.
    fingerprint : str
        Hash of the sources, their content and the segment rule, 32 hex digits.
    """

    sources: Mapping[str, CorpusSource]
    policies: Mapping[str, WindowPolicy]
    described: Mapping[str, dict[str, Any]]
    fingerprint: str

    @classmethod
    def of(cls, sources: Mapping[str, CorpusSource], policy: Policies = None) -> Self:
        """Describe the sources, which hashes files but reads no bar; see ``Corpus.build``."""
        policies = _policies(sources, policy)
        described = {
            name: {**source.describe(), "max_gap": policies[name].max_gap, "max_jump": policies[name].max_jump}
            for name, source in sources.items()
        }
        return cls(dict(sources), policies, described, _fingerprint(described, policies))

    def write(self, folder: Path) -> None:
        """Read the bars and write the folder, whole or not at all; ValueError where a source holds no bar."""
        parts: list[dict[str, npt.NDArray[Any]]] = []
        facts: list[dict[str, Any]] = []
        for number, (name, source) in enumerate(self.sources.items()):
            panel = source.panel()
            begin = sum(len(part["code"]) for part in parts)
            first_code = sum(len(fact["instruments"]) for fact in facts)
            parts.append(_arrays(panel, self.policies[name], number, begin, first_code))
            facts.append(_facts(name, panel, begin, self.described[name]))
        meta = {
            "format": "kronos_qlib corpus",
            "version": CORPUS_VERSION,
            "fingerprint": self.fingerprint,
            "window_policy": next(iter(self.policies.values())).version,
            "rows": sum(len(part["code"]) for part in parts),
            "sources": facts,
        }
        with whole_folder(folder, META_FILE) as target:
            for array in ARRAYS:
                np.save(target / f"{array}.npy", np.concatenate([part.pop(array) for part in parts]))
            (target / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _policies(sources: Mapping[str, CorpusSource], policy: Policies) -> dict[str, WindowPolicy]:
    if not sources:
        raise ValueError("no source was given; a corpus needs at least one, such as {'daily': panel}")
    if policy is None or isinstance(policy, WindowPolicy):
        return dict.fromkeys(sources, policy or WindowPolicy())
    if set(policy) != set(sources):
        raise ValueError(f"policies are given for {sorted(policy)}; expected one for each of {sorted(sources)}")
    return {name: policy[name] for name in sources}


def _fingerprint(described: Mapping[str, Any], policies: Mapping[str, WindowPolicy]) -> str:
    content = {
        "version": CORPUS_VERSION,
        "policy_versions": {name: policy.version for name, policy in policies.items()},
        "sources": list(described.items()),
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _arrays(
    panel: BarPanel, policy: WindowPolicy, number: int, begin: int, first_code: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of one source whose first row and code are these."""
    calendar_stamps = time_stamps(panel.calendar).astype("<i2")
    return {
        "values": panel.values.astype("<f4", copy=False),
        "stamps": calendar_stamps[panel.session],
        "segment": segment_starts(panel, policy) + begin,
        "timestamps": panel.timestamps.astype("<M8[ns]", copy=False),
        "code": (panel.codes + first_code).astype("<i4"),
        "source": np.full(len(panel), number, dtype="<i2"),
    }


def _facts(name: str, panel: BarPanel, begin: int, description: dict[str, Any]) -> dict[str, Any]:
    if len(panel) == 0:
        raise ValueError(f"source {name!r} holds no bar: nothing to train on")
    return {
        "name": name,
        "rows": [begin, begin + len(panel)],
        "first": str(pd.Timestamp(panel.timestamps.min())),
        "last": str(pd.Timestamp(panel.timestamps.max())),
        "has_volume": bool((panel.values[:, 4] > 0).any()),
        "description": description,
        "instruments": list(panel.instruments),
    }
