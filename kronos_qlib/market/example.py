"""The market of an example: the user's, where an environment variable names it, else a made-up one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pandas as pd

from kronos_qlib.market.reading import read_bars
from kronos_qlib.market.store import write_store
from kronos_qlib.market.synthetic import SyntheticConfig, make_market

BARS_VARIABLE, STORE_VARIABLE = "KRONOS_BARS", "KRONOS_STORE"
UNIVERSE = "csi300"
Kind = Literal["real", "synthetic"]


def example_bars(config: SyntheticConfig | None = None) -> tuple[pd.DataFrame, Kind]:
    """Return the bars of the file that ``KRONOS_BARS`` names, else those of a synthetic market.

    Parameters
    ----------
    config : of the synthetic market; None: the quickstart's.

    Returns
    -------
    Bars as :func:`kronos_qlib.market.reading.read_bars` gives them (raw prices, a suspended day is an absent row), and
    which of the two they are.

    Raises
    ------
    ValueError : the file cannot be read as bars.
    """
    file = os.environ.get(BARS_VARIABLE)
    if file:
        return read_bars(Path(file).expanduser()), "real"
    return make_market(config).bars, "synthetic"


def example_store(folder: str | Path, config: SyntheticConfig | None = None) -> tuple[Path, Kind]:
    """Return the Qlib store that ``KRONOS_STORE`` names, else write a synthetic market into ``folder``.

    Parameters
    ----------
    folder : where the synthetic market is written, with its index's members as ``csi300`` and its index as SH000300;
        an earlier store of ours there is replaced.
    config : of the synthetic market; None: the quickstart's.

    Returns
    -------
    The store's folder, absolute, and which of the two it is.

    Raises
    ------
    ValueError : ``KRONOS_STORE`` names no Qlib store, or ``folder`` holds something else.
    """
    named = os.environ.get(STORE_VARIABLE)
    if named:
        store = Path(named).expanduser().resolve()
        if not (store / "calendars").is_dir():
            raise ValueError(
                f"{STORE_VARIABLE} names {store}, which is no Qlib store: it has no calendars/. Write one with "
                f"kronos-qlib ingest, or unset {STORE_VARIABLE} to use a synthetic market"
            )
        return store, "real"
    market = make_market(config)
    write_store(market.bars, folder, members={UNIVERSE: market.members})
    return Path(folder).expanduser().resolve(), "synthetic"
