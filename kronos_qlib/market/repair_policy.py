"""Repairs by name: what is done with impossible prices, missing volumes and duplicates."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CHOICES = {
    "price": ("drop", "ffill", "interpolate"),
    "volume": ("instrument_median", "cross_section_median", "zero"),
    "duplicates": ("error", "keep_last"),
}


@dataclass(frozen=True)
class RepairPolicy:
    """What ``repair_bars`` may do. A stored policy names its version, so that old stores stay explained.

    Attributes
    ----------
    name : str
        Name of the policy.
    version : str
        Changes whenever the meaning of the policy does.
    price : {"drop", "ffill", "interpolate"}
        A bar with a NaN, infinite or non-positive price, or a high below or a low above its other prices, is
        dropped, or its bad prices are filled. ``ffill``: the last price known before, in today's price scale (open
        from the previous close, close from the open). ``interpolate``: on the line between the nearest good bars of
        the instrument, **including the later one: not for inference**, see ``uses_future``. In both, high and low
        are then widened to hold open and close; a bar with no earlier good bar is dropped.
    volume : {"instrument_median", "cross_section_median", "zero"}
        Fill for a NaN, infinite or negative volume or amount. ``instrument_median``: median of the instrument's
        last ``median_bars`` good values before the bar (volumes in today's share count). ``cross_section_median``:
        median of the good values of other instruments at the same stamp (indices left out). ``zero``: 0, as the
        original Kronos does. Where a median has no values, 0, counted apart.
    duplicates : {"error", "keep_last"}
        Two bars of one instrument and stamp: refuse the frame, or keep the one that stands last in it.
    median_bars : int
        Past bars of ``instrument_median``.

    Raises
    ------
    ValueError
        A choice that does not exist.
    """

    name: str = "default"
    version: str = "1"
    price: str = "drop"
    volume: str = "instrument_median"
    duplicates: str = "error"
    median_bars: int = 20

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            given = getattr(self, key)
            if given not in allowed:
                raise ValueError(f"repair policy: {key}={given!r}{_nearest(given, allowed)}")
        if isinstance(self.median_bars, bool) or not isinstance(self.median_bars, int) or self.median_bars < 1:
            raise ValueError(f"repair policy: median_bars={self.median_bars!r}; expected an integer of at least 1")

    @property
    def uses_future(self) -> bool:
        """True when a repaired value may depend on later bars: fit for charts, not for inference or backtests."""
        return self.price == "interpolate"

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of the fields, with ``uses_future``."""
        return {**asdict(self), "uses_future": self.uses_future}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> RepairPolicy:
        """Make a policy from a mapping such as a YAML block; an unknown key is a ``ValueError``."""
        known = tuple(item.name for item in fields(cls))
        for key in given:
            if key not in known:
                raise ValueError(f"repair policy: unknown key {key!r}{_nearest(key, known)}")
        return cls(**given)


POLICIES = {
    policy.name: policy
    for policy in (
        RepairPolicy(),
        RepairPolicy(name="forward_fill", price="ffill", duplicates="keep_last"),
        RepairPolicy(name="original", price="drop", volume="zero"),
        RepairPolicy(name="interpolate", price="interpolate", duplicates="keep_last"),
    )
}


def repair_policy(policy: str | RepairPolicy | Mapping[str, Any]) -> RepairPolicy:
    """Policy of a name in ``POLICIES``, of a mapping, or the policy itself; ``ValueError`` for an unknown name."""
    if isinstance(policy, RepairPolicy):
        return policy
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"unknown repair policy {policy!r}{_nearest(policy, tuple(POLICIES))}")
        return POLICIES[policy]
    return RepairPolicy.from_dict(policy)


def _nearest(given: object, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(given), known, 1, cutoff=0.4)
    return f"; expected one of {', '.join(known)}" + (f". Did you mean {near[0]!r}?" if near else "")
