"""Sources of factors: what a forecast store keeps, computed for any rows of a panel.

A source follows the protocol :class:`kronos_qlib.forecast.store_source.FactorSource`: ``columns``, ``description``
(JSON; with the row's data, everything that its values depend on), ``data_keys(rows)``, ``compute(rows)``. A row's
values are bit-identical whichever other rows are asked for, and use bars up to and including the row's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kronos_qlib.alpha.factors import FACTORS, check_factors, compute_factors, default_factors
from kronos_qlib.forecast.calendar_choice import choose_calendar
from kronos_qlib.forecast.data_keys import BarHasher
from kronos_qlib.forecast.forecaster import KronosForecaster, plain_calendar
from kronos_qlib.forecast.source_parts import describe_forecaster, window_policy
from kronos_qlib.forecast.token_source import TokenFactorSource
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.market.board import board_fraction, limit_fractions
from kronos_qlib.market.calendars import TradingCalendar, future_times
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, window_lengths

__all__ = ["PathFactorSource", "TokenFactorSource"]


class PathFactorSource:
    """Path factors of sampled forecasts.

    Parameters
    ----------
    forecaster : the network and how to apply it.
    panel : bars of all instruments.
    policy : None: WindowPolicy with the forecaster's lookback.
    horizon, sampling : of the forecast.
    factors : keys of ``alpha.factors.FACTORS``; None: all that such a forecast defines, those about daily price
        limits only where one of the instruments has one.
    calendar : a calendar or its name; None: Shanghai's if all instruments are Chinese codes, else an error.
    progress : a progress bar for each ``compute``.

    Raises
    ------
    ValueError : unknown factors, too few steps or paths for one, no calendar, settings out of range.
    """

    def __init__(
        self,
        forecaster: KronosForecaster,
        panel: BarPanel,
        *,
        policy: WindowPolicy | None = None,
        horizon: int = 10,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        factors: Sequence[str] | None = None,
        calendar: TradingCalendar | str | None = None,
        progress: bool = False,
    ) -> None:
        self.forecaster, self.panel, self.progress = forecaster, panel, progress
        self.policy = window_policy(forecaster, policy)
        self.horizon, self.sampling = forecaster.check_request(horizon, sampling)
        self.calendar = choose_calendar(calendar, plain_calendar(panel), list(panel.instruments))
        limited = any(board_fraction(code) > 0 for code in panel.instruments)
        names = default_factors(self.horizon, self.sampling.n_paths, limits=limited) if factors is None else factors
        check_factors(names, horizon=self.horizon, n_paths=self.sampling.n_paths)
        self.columns = tuple(names)

    @property
    def description(self) -> dict[str, Any]:
        """Everything besides the bars that the values depend on; plain JSON."""
        return {
            "kind": "path factors",
            **describe_forecaster(self.forecaster, self.policy),
            "horizon": self.horizon,
            "sampling": self.sampling.to_dict(),
            "calendar": {"name": self.calendar.name, "freq": self.calendar.freq},
            "factors": {name: {"version": FACTORS[name].version} for name in self.columns},
        }

    def widened(self, columns: Sequence[str], description: Mapping[str, Any]) -> PathFactorSource:
        """Return the source of the same paths with other factors; see ``forecast.store_source.Widens``."""
        check_factors(columns, horizon=self.horizon, n_paths=self.sampling.n_paths)
        other = copy(self)
        other.columns = tuple(columns)
        return other

    def data_keys(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Hash each row's window, instrument and stamps to come, uint64 (n,); 0 where there is no window."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = window_lengths(self.panel, rows, self.policy)
        return self._hasher.keys(rows - lengths + 1, rows, self._prefixes(rows))

    def compute(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the factors of each row, float32 (n, F); NaN where there is no window."""
        rows = np.asarray(rows, dtype=np.int64)
        table = np.full((len(rows), len(self.columns)), np.nan, dtype=np.float32)
        batches = self.forecaster.forecast_batches(
            self.panel,
            rows,
            policy=self.policy,
            horizon=self.horizon,
            sampling=self.sampling,
            calendar=self.calendar,
            progress=self.progress,
        )
        for positions, paths in batches:
            limits = limit_fractions(paths.index.get_level_values("instrument"), paths.timestamps[:, 0])
            table[positions] = compute_factors(self.columns, paths, limit_fraction=limits)
        return table

    @cached_property
    def _hasher(self) -> BarHasher:
        return BarHasher(self.panel)

    def _prefixes(self, rows: NDArray[np.int64]) -> list[bytes]:
        """What a row depends on besides its bars: the instrument (its randomness, its limit) and the stamps to come."""
        days, where = np.unique(self.panel.timestamps[rows], return_inverse=True)
        future = future_times(self.calendar, days, self.horizon).astype("<i8")
        stamps = [row.tobytes() for row in future]
        names = [f"{name}|".encode() for name in self.panel.instruments]
        return [names[code] + stamps[day] for code, day in zip(self.panel.codes[rows], where, strict=True)]
