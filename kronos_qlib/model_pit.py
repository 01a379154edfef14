"""Where outcomes fell among a run's paths: what a report needs to say whether its forecast spreads can be believed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from kronos_qlib.evaluation.outcomes import realised_returns
from kronos_qlib.evaluation.probability import ensemble_pit
from kronos_qlib.forecast.keys import window_keys
from kronos_qlib.forecast.paths import KlinePaths
from kronos_qlib.market.panel import BarPanel


class PathOutcomes:
    """PIT of the realised close among the paths of each window, by forecast step.

    The outcomes are read for the report alone, after the scores: no score depends on them.

    Parameters
    ----------
    panel : the bars that windows are cut from, and what came after them as far as it is known.
    rows : int64 (n,), panel rows of the windows' last bars, all >= 0.
    horizon : forecast steps H.
    """

    def __init__(self, panel: BarPanel, rows: npt.NDArray[np.int64], horizon: int) -> None:
        self.panel, self.rows, self.horizon = panel, rows, horizon
        self._truth = realised_returns(panel, rows, horizon)
        self._pit = np.full((len(rows), horizon), np.nan, dtype=np.float32)

    def add(self, positions: npt.NDArray[np.int64], paths: KlinePaths) -> None:
        """Take in the paths of the windows at ``positions`` of ``rows``."""
        returns = paths.returns()
        # seeded by the window, so that neither batch nor range decides how ties are spread
        names = list(paths.index.get_level_values("instrument"))
        seeds = window_keys(names, self.panel.timestamps[self.rows[positions]])
        for position, own, seed in zip(positions, returns, seeds, strict=True):
            truth = self._truth[position]
            if np.isfinite(truth).any():
                self._pit[position] = ensemble_pit(own[None], truth[None], seed=int(seed))[0]

    def frame(self) -> pd.DataFrame:
        """PIT, float32 in [0, 1), indexed (datetime, instrument), columns 1 to H; NaN where no close is known."""
        index = pd.MultiIndex.from_arrays(
            [pd.DatetimeIndex(self.panel.timestamps[self.rows]), self.panel.instrument_names(self.rows)],
            names=["datetime", "instrument"],
        )
        return pd.DataFrame(self._pit, index, [str(step + 1) for step in range(self.horizon)]).sort_index()
