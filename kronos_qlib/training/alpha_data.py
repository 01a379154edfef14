"""What an alpha head learns from: features and labels of whole dates, purged where a label reaches out of its span."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

LabelScale = Literal["rank", "zscore"]
LEVELS = ["datetime", "instrument"]


@dataclass(frozen=True)
class HeadData:
    """Labelled rows, sorted by date.

    Attributes
    ----------
    label : float64 Series by (datetime, instrument), finite, in its own unit; valid figures are taken on it.
    position : int64 (n,), where each row stands in the table of features (several rows may share one).
    target : float32 (n,), the label normalised within its date; what is learnt.
    """

    label: pd.Series
    position: npt.NDArray[np.int64]
    target: npt.NDArray[np.float32]

    @classmethod
    def build(
        cls,
        label: pd.Series,
        position: npt.NDArray[np.int64],
        *,
        scale: LabelScale = "rank",
        min_names: int = 3,
        name: str = "train",
    ) -> Self:
        """Keep the rows with a label and features, on dates with at least ``min_names`` of them.

        Parameters
        ----------
        label : Series by (datetime, instrument); NaN where it is unknown.
        position : int64 (n,), rows of the features in the label's order; -1: no features.

        Raises
        ------
        ValueError : nothing is left (an empty valid set chooses nothing), or an index of another form.
        """
        if list(label.index.names) != LEVELS or not label.index.is_unique:
            raise ValueError(f"labels of the {name} span must be indexed by {LEVELS}, each pair once")
        values = label.to_numpy(dtype=np.float64)
        usable = np.isfinite(values) & (position >= 0)
        kept, position = label[usable].astype(np.float64), position[usable]
        dates = kept.index.get_level_values("datetime")
        enough = (kept.groupby(dates).transform("size") >= min_names).to_numpy() if len(kept) else np.zeros(0, bool)
        kept, position = kept[enough], position[enough]
        if kept.empty:
            raise ValueError(
                f"the {name} span holds no date with {min_names} rows that have a label and a window (of {len(label)} "
                f"rows, {int(usable.sum())} have both); give it a span with data"
            )
        order = np.argsort(kept.index.get_level_values("datetime"), kind="stable")
        kept = kept.iloc[order]
        return cls(kept, position[order], normalise_labels(kept, scale).to_numpy(dtype=np.float32))

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """First row of each date, and the number of rows at the end, int64 (dates + 1,)."""
        dates = self.label.index.get_level_values("datetime").to_numpy()
        return np.append(np.flatnonzero(np.append(True, dates[1:] != dates[:-1])), len(dates)).astype(np.int64)

    @property
    def n_dates(self) -> int:
        return len(self.starts) - 1

    def batch(self, dates: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Rows of whole dates: ``rows`` int64 (D, M), padded with a row of the date, and ``mask`` (D, M)."""
        first, count = self.starts[dates], np.diff(self.starts)[dates]
        place = np.arange(count.max())
        mask = place < count[:, None]
        return first[:, None] + np.where(mask, place, 0), mask


def normalise_labels(label: pd.Series, scale: LabelScale = "rank") -> pd.Series:
    """Normalise labels within each date.

    ``rank``: mean ranks, centred and divided by the number of names times sqrt(1/12), so about unit variance whatever
    the number (Qlib's CSRankNorm up to its centre). ``zscore``: minus the mean, over the population standard deviation;
    0 on a date where all labels are equal.
    """
    grouped = label.groupby(level="datetime")
    if scale == "rank":
        count = grouped.transform("size")
        return (grouped.rank() - (count + 1) / 2) / count * np.sqrt(12.0)
    if scale == "zscore":
        centred = label - grouped.transform("mean")
        spread = np.sqrt(centred.pow(2).groupby(level="datetime").transform("mean"))
        return (centred / spread.where(spread > 0)).fillna(0.0)
    raise ValueError(f"found label scale {scale!r}; expected 'rank' or 'zscore'")


def purged(dates: pd.DatetimeIndex, sessions: pd.DatetimeIndex, reach: int, every: int = 1) -> npt.NDArray[np.bool_]:
    """Say which rows of a span may be learnt from: no label may reach past the span's last session.

    Parameters
    ----------
    dates : the rows' dates.
    sessions : the market's calendar, ascending.
    reach : bars that a label looks ahead (2 for Qlib's ``Ref($close, -2) / Ref($close, -1) - 1``).
    every : keep only each ``every``-th session, counted from the span's first.

    Returns
    -------
    bool (n,)
        The last ``reach`` sessions of the span, from its first row's date to its last row's, are left out.
    """
    place = sessions.get_indexer(dates)
    if len(place) == 0:
        return np.zeros(0, dtype=bool)
    if place.min() < 0:
        raise ValueError(f"{dates[place < 0][0]} is not a session of the market's calendar")
    return (place + reach <= place.max()) & ((place - place.min()) % every == 0)
