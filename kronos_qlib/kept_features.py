"""Expression columns of a handler, computed once and read by every roll and every run of a comparison."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd
import qlib
from qlib.contrib.data.loader import Alpha158DL, Alpha360DL
from qlib.data.dataset import Dataset
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import DataLoader, NestedDataLoader, QlibDataLoader
from qlib.utils import get_callable_kwargs, init_instance_by_config

from kronos_qlib.forecast.store_lock import wait_for_lock
from kronos_qlib.handler import store_path
from kronos_qlib.market.store import METADATA_FILE, store_metadata
from kronos_qlib.market.store_columns import COLUMNS_KEY
from kronos_qlib.market.swap import whole_file

KEPT = (QlibDataLoader, Alpha158DL, Alpha360DL)  # not their subclasses, whose columns may depend on more


class KeptLoader(DataLoader):
    """A Qlib loader of expressions whose columns are kept as parquet, from the first date to the store's last session.

    Values are those of the loader itself to the bit, whatever the end asked for: an expression's value at t is the same
    in a longer table that begins on the same day. Each group of columns is a table of its own, so that handlers with
    the same features and other labels share the features. A table is known by the store's fingerprint (with its later
    columns), the expressions, the universe, the first date, and Qlib's and pandas' versions, so none is ever stale.

    Parameters
    ----------
    loader : with neither a filter nor instrument processors, whose results may depend on the range.
    folder : of the tables; may be deleted at any time. Processes may share it: one computes, the others wait.
    """

    def __init__(self, loader: QlibDataLoader, folder: Path) -> None:
        super().__init__()
        self.loader, self.folder = loader, folder

    def load(self, instruments: Any = None, start_time: Any = None, end_time: Any = None) -> pd.DataFrame:
        """Return the rows from ``start_time`` to ``end_time``, both included, as the loader itself does."""
        span = (instruments, start_time, end_time)
        if not self.loader.is_group:
            return self._columns(self.loader.fields, *span)
        parts = {name: self._columns(given, *span) for name, given in self.loader.fields.items()}
        return cast(pd.DataFrame, pd.concat(parts, axis="columns"))

    def _columns(self, fields: Sequence[Any], instruments: Any, start_time: Any, end_time: Any) -> pd.DataFrame:
        expressions, names = fields
        first = None if start_time is None else str(pd.Timestamp(start_time))
        content = [qlib.__version__, pd.__version__, expressions, names, self.loader.swap_level, instruments, first,
                   store_state(store_path())]  # fmt: skip
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
        place = self.folder / f"{key}.parquet"
        with wait_for_lock(place.with_suffix(".lock")):
            if not place.is_file():
                with whole_file(place) as partial:
                    self.loader.load_group_df(instruments, expressions, names, start_time, None).to_parquet(partial)
        kept = None if end_time is None else [("datetime", "<=", pd.Timestamp(end_time))]
        return pd.read_parquet(place, filters=kept)


def build_dataset(config: Mapping[str, Any], folder: Path | None) -> Dataset:
    """Make a dataset whose handler's expressions are kept in ``folder``.

    They are computed anew, as Qlib does, where they cannot be kept: without a folder, in a store without a fingerprint,
    for a handler that is no configuration or cannot be made without its data, and for loaders of other kinds.
    """
    handler = config.get("kwargs", {}).get("handler")
    if folder is None or not isinstance(handler, Mapping) or not (store_path() / METADATA_FILE).is_file():
        return init_instance_by_config(config, accept_types=Dataset)
    made_by, settings = get_callable_kwargs(handler)
    if not (issubclass(made_by, DataHandlerLP) and _takes(made_by, "init_data") and settings.get("init_data", True)):
        return init_instance_by_config(config, accept_types=Dataset)
    made = made_by(**{**settings, "init_data": False})
    made.data_loader = keep(made.data_loader, folder)
    made.setup_data()
    return init_instance_by_config({**config, "kwargs": {**config["kwargs"], "handler": made}}, accept_types=Dataset)


def keep(loader: DataLoader, folder: Path) -> DataLoader:
    """Return a loader whose expressions are kept, also inside a nested one; another kind as it is."""
    if isinstance(loader, NestedDataLoader):
        loader.data_loader_l = [keep(part, folder) for part in loader.data_loader_l]
        return loader
    if type(loader) in KEPT and loader.freq == "day" and not loader.filter_pipe and not loader.inst_processors:
        return KeptLoader(loader, folder)
    return loader


def store_state(store: Path) -> dict[str, Any]:
    """Return what tells a store's content from another's."""
    if (store / METADATA_FILE).is_file():
        known = store_metadata(store)
        # fields that were written later are no part of the fingerprint, but an expression may read them
        return {key: known[key] for key in ("fingerprint", COLUMNS_KEY) if key in known}
    # a store of another tool has no fingerprint: its place and its calendar say when it grew
    days = store / "calendars" / "day.txt"
    return {"place": str(store), "sessions": hashlib.sha256(days.read_bytes()).hexdigest()}


def _takes(made_by: type, name: str) -> bool:
    """Whether a class's constructor takes an argument, by name or among others that it passes on."""
    parameters = inspect.signature(made_by).parameters.values()
    return any(each.name == name or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
