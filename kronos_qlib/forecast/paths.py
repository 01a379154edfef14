"""KlinePaths: many possible futures of many windows, kept as paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from kronos_qlib.forecast.plausibility import ImpossibleBars, count_impossible, repair_paths
from kronos_qlib.market.fields import BAR_FIELDS

INDEX_NAMES = ("datetime", "instrument")


@dataclass(frozen=True, eq=False)
class KlinePaths:
    """Sampled futures: W windows, P paths of each, S steps ahead.

    Everything is known at the close of each window's last bar: a path dated t uses bars up to and including
    t. Frequencies among paths (a share of rising paths, a quantile's level) are raw: zero-shot cones are
    known to be too narrow, so never present them as probabilities without a calibration figure beside them.

    Attributes
    ----------
    values : float32 or float64 (W, P, S, 6)
        Bars in the units of the bars that came in, columns ``BAR_FIELDS``. Unrepaired (see
        ``impossible_bars``).
    index : MultiIndex (datetime, instrument), length W
        Stamp of each window's last bar, and its instrument. Need not be unique.
    last_close : (W,)
        Close of that bar, same units.
    center, scale : float32 (W, 6)
        The window's mean, and its population standard deviation + 1e-5; ``(values - center) / scale`` is what
        the network saw and said.
    timestamps : datetime64[ns] (W, S)
        Stamps of the forecast bars, from the trading calendar.

    Raises
    ------
    ValueError
        Shapes that do not fit together.
    """

    values: NDArray[np.floating]
    index: pd.MultiIndex
    last_close: NDArray[np.floating]
    center: NDArray[np.floating]
    scale: NDArray[np.floating]
    timestamps: NDArray[np.datetime64]

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or self.values.shape[-1] != len(BAR_FIELDS):
            raise ValueError(f"found paths of shape {self.values.shape}; expected (window, path, step, 6)")
        if not isinstance(self.index, pd.MultiIndex) or tuple(self.index.names) != INDEX_NAMES:
            raise ValueError(f"found an index with names {list(self.index.names)}; expected {list(INDEX_NAMES)}")
        windows, _, steps, columns = self.values.shape
        expected = {
            "index": (windows,),
            "last_close": (windows,),
            "center": (windows, columns),
            "scale": (windows, columns),
            "timestamps": (windows, steps),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"found {name} of shape {found}; expected {shape} to go with {self.values.shape}")

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"KlinePaths({len(self)} windows, {self.n_paths} paths, {self.n_steps} steps)"

    @property
    def n_paths(self) -> int:
        """Paths of each window."""
        return int(self.values.shape[1])

    @property
    def n_steps(self) -> int:
        """Steps ahead."""
        return int(self.values.shape[2])

    def field(self, name: str) -> NDArray[np.floating]:
        """Return one column of ``BAR_FIELDS`` as a view, (W, P, S)."""
        if name not in BAR_FIELDS:
            raise ValueError(f"found the field {name!r}; expected one of {', '.join(BAR_FIELDS)}")
        return self.values[..., BAR_FIELDS.index(name)]

    def quantile(self, q: float | Sequence[float], field: str = "close") -> NDArray[np.float64]:
        """Quantiles across paths, step by step, interpolated linearly.

        Parameters
        ----------
        q : level or levels in [0, 1]; raw levels of the sampled paths, not calibrated ones.
        field : a column of ``BAR_FIELDS``.

        Returns
        -------
        float64 (W, S); for several levels (level, W, S).

        Raises
        ------
        ValueError : a level outside [0, 1], an unknown field.
        """
        levels = np.asarray(q, dtype=np.float64)
        if not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"found the quantile level {q!r}; expected levels from 0 to 1")
        return np.asarray(np.quantile(self.field(field).astype(np.float64), levels, axis=1), dtype=np.float64)

    def returns(self) -> NDArray[np.float64]:
        """Close over the last close, minus 1: float64 (W, P, S), a fraction; NaN where the last close is no price."""
        last = np.asarray(self.last_close, dtype=np.float64)
        last = np.where(last > 0, last, np.nan)
        return self.field("close").astype(np.float64) / last[:, None, None] - 1.0

    def mean(self) -> NDArray[np.float64]:
        """Mean over paths, float64 (W, S, 6): what the original returns.

        A mean of bars is no bar: the mean high and low say nothing about the range to expect (trap 6).
        """
        return self.values.mean(axis=1, dtype=np.float64)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per window, path and step.

        Columns: ``datetime`` and ``instrument`` of the window, ``path`` (from 0), ``step`` (from 1),
        ``timestamp`` of the forecast bar, and ``BAR_FIELDS``. W × P × S rows: mind the memory.
        """
        windows, paths, steps, _ = self.values.shape
        window = np.repeat(np.arange(windows), paths * steps)
        columns: dict[str, Any] = {name: self.index.get_level_values(name).take(window) for name in INDEX_NAMES}
        columns["path"] = np.tile(np.repeat(np.arange(paths), steps), windows)
        columns["step"] = np.tile(np.arange(1, steps + 1), windows * paths)
        columns["timestamp"] = np.repeat(self.timestamps[:, None], paths, axis=1).reshape(-1)
        flat = self.values.reshape(-1, len(BAR_FIELDS))
        columns |= {name: flat[:, i] for i, name in enumerate(BAR_FIELDS)}
        return pd.DataFrame(columns)

    def select(self, windows: ArrayLike | slice) -> Self:
        """Return the windows at these positions, or where a boolean mask (W,) is true, in that order."""
        chosen: Any = windows if isinstance(windows, slice) else np.asarray(windows)
        if not isinstance(chosen, slice):
            if chosen.dtype == bool and chosen.shape != (len(self),):
                raise ValueError(f"found a mask of shape {chosen.shape}; expected ({len(self)},)")
            chosen = chosen.astype(np.int64) if chosen.dtype != bool else chosen
        return replace(self, **{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    @classmethod
    def concat(cls, parts: Sequence[KlinePaths]) -> KlinePaths:
        """Join the windows of several forecasts of equal paths and steps, in the given order."""
        if not parts:
            raise ValueError("found no forecast to join; expected at least one")
        shapes = sorted({(p.n_paths, p.n_steps) for p in parts})
        if len(shapes) > 1:
            raise ValueError(f"found forecasts of (paths, steps) {shapes}; only equal ones can be joined")
        arrays = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls) if f.name != "index"}
        index = parts[0].index.append([p.index for p in parts[1:]])
        return cls(index=index.set_names(list(INDEX_NAMES)), **arrays)

    def impossible_bars(self, limit: float | NDArray[np.floating] | None = None) -> ImpossibleBars:
        """Count bars that no market can print (trap 15).

        Parameters
        ----------
        limit : daily price limit as a fraction, one for all or (W,); None: moves are not judged.
        """
        return count_impossible(self.values, self.last_close, limit)

    def repair(self, limit: float | NDArray[np.floating] | None = None) -> tuple[Self, ImpossibleBars]:
        """Return a copy whose finite bars are all possible, and the counts of what was impossible before.

        The rules are those of :func:`kronos_qlib.forecast.plausibility.repair_paths`. A repair changes the
        distribution: say beside any figure how many bars needed it.
        """
        counts = self.impossible_bars(limit)
        return replace(self, values=repair_paths(self.values, self.last_close, limit)), counts


def window_index(timestamps: NDArray[np.datetime64], instruments: Sequence[str]) -> pd.MultiIndex:
    """Return the (datetime, instrument) index of windows."""
    return pd.MultiIndex.from_arrays(
        [pd.DatetimeIndex(timestamps), pd.Index(list(instruments), dtype="str")], names=INDEX_NAMES
    )
