"""A run, described: what is computed and how it is judged, as frozen values with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kronos_qlib.comparison.methods import Method
from kronos_qlib.sweep_backtest import BacktestConfig

FORMAT = 1  # raised when the same task would give other figures
SEGMENTS = ("valid", "test")
Span = tuple[str, str]


@dataclass(frozen=True)
class Protocol:
    """What all rows of one table share; defaults are the CSI300 base's.

    Attributes
    ----------
    universe : market of the store. train, valid, test : first and last date, both included.
    carry : sessions that a suspended member keeps its last score. min_bars : fewest bars of a judged row's window.
    label : of :data:`kronos_qlib.evaluation.outcomes.LABELS`. portfolio : TopkDropout, account and costs.
    """

    universe: str = "csi300"
    train: Span = ("2008-01-01", "2014-12-31")
    valid: Span = ("2015-01-01", "2016-12-31")
    test: Span = ("2017-01-01", "2020-08-01")
    carry: int = 20
    min_bars: int = 32
    label: str = "one_day"
    portfolio: BacktestConfig | None = None

    @property
    def trades(self) -> BacktestConfig:
        """The portfolio; the CSI300 base workflow's where none was given."""
        return BacktestConfig.of_workflow() if self.portfolio is None else self.portfolio

    def span(self, segment: str) -> Span:
        """First and last date of a segment."""
        spans: dict[str, Span] = {"train": self.train, "valid": self.valid, "test": self.test}
        return spans[segment]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self) | {"portfolio": self.trades.to_dict()}


@dataclass(frozen=True)
class Task:
    """One run: a method with a seed on a segment of a store.

    Attributes
    ----------
    method, seed, segment, protocol : see their classes; ``segment`` is ``valid`` or ``test``.
    store : folder of the Qlib store. store_fingerprint : of its content.
    checkpoint : fingerprint of the weights in use; empty without any. threads : for models that take a number.
    """

    method: Method
    seed: int
    segment: str
    protocol: Protocol
    store: Path
    store_fingerprint: str
    checkpoint: str = ""
    threads: int = 1

    def __post_init__(self) -> None:
        if self.segment not in SEGMENTS:
            raise ValueError(f"found segment={self.segment!r}; expected one of {list(SEGMENTS)}")

    @property
    def configuration(self) -> str:
        """Hash of the method's configuration, 12 hex digits."""
        return fingerprint(self.method.configuration())

    @property
    def key(self) -> str:
        """Hash of all that the figures depend on, 12 hex digits: the name of the run."""
        return fingerprint(self._fit() | {"segment": self.segment, "protocol": self.protocol.to_dict()})

    @property
    def fit_key(self) -> str:
        """Hash of all that a fitted model depends on: valid and test share one fit."""
        return fingerprint(self._fit())

    def _fit(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "configuration": self.method.configuration(),
            "seed": self.seed,
            "store": self.store_fingerprint,
            "checkpoint": self.checkpoint,
            "universe": self.protocol.universe,
            "train": self.protocol.train,
            "stopped_on": self.protocol.valid,
        }


def fingerprint(content: Mapping[str, Any]) -> str:
    """Hash of a JSON mapping, 12 hex digits; the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
