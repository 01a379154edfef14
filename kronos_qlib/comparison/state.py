"""What a run keeps outside git: scores, daily series, and the fitted model, so that nothing is computed twice."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kronos_qlib.market.swap import whole_file

SCORES, DAILY, TASK, RAW = "scores.parquet", "daily.parquet", "task.json", "raw.parquet"
FIT, FIT_COLUMNS = "params.pkl", "columns.json"


class State:
    """A folder: ``runs/<task key>/`` with scores and daily series, ``fits/<fit key>/`` with fitted models.

    The models are pickles, which a later run and ``importance`` load: take somebody else's folder to compare only, and
    without ``fits``. Beside a fit that knows its columns by number stands ``columns.json``, their names in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()

    def run(self, key: str) -> Path:
        """Folder of a run."""
        return self.folder / "runs" / key

    def fit(self, key: str) -> Path:
        """Folder of a fitted model."""
        return self.folder / "fits" / key

    def has(self, key: str) -> bool:
        """Whether a run was kept whole."""
        return (self.run(key) / TASK).is_file()

    def keep(self, key: str, task: Mapping[str, Any], scores: pd.Series, daily: pd.DataFrame) -> None:
        """Keep a run; the description comes last, so that a folder without it is unfinished."""
        place = self.run(key)
        place.mkdir(parents=True, exist_ok=True)
        scores.to_frame("score").to_parquet(place / SCORES)
        daily.to_parquet(place / DAILY)
        with whole_file(place / TASK) as partial:
            partial.write_text(json.dumps(task, indent=1, default=str), encoding="utf-8")

    def scores(self, key: str) -> pd.Series:
        """Laid-out scores of a run; ValueError where it was not kept here."""
        self._check(key)
        return pd.read_parquet(self.run(key) / SCORES)["score"]

    def daily(self, key: str) -> pd.DataFrame:
        """Daily series of a run, by ``datetime``."""
        self._check(key)
        return pd.read_parquet(self.run(key) / DAILY)

    def keep_bench(self, segment: str, label: pd.Series, groups: pd.DataFrame) -> None:
        """Keep what the rows are judged by: labels (NaN where a row is not judged), and columns to group names by."""
        place = self.folder / "bench"
        place.mkdir(parents=True, exist_ok=True)
        groups.assign(label=label).to_parquet(place / f"{segment}.parquet")

    def label(self, segment: str) -> pd.Series:
        """Labels of the judged rows, NaN elsewhere."""
        return self._bench(segment)["label"]

    def groups(self, segment: str) -> pd.DataFrame:
        """Columns to group names by."""
        return self._bench(segment).drop(columns="label")

    def _bench(self, segment: str) -> pd.DataFrame:
        path = self.folder / "bench" / f"{segment}.parquet"
        if not path.is_file():
            raise ValueError(f"the state folder {self.folder} has no run on {segment}; run a method there first")
        return pd.read_parquet(path)

    def _check(self, key: str) -> None:
        if not self.has(key):
            raise ValueError(
                f"the state folder {self.folder} has no run {key}: its row was made elsewhere; take that folder, or "
                "remove the row and run it again"
            )


def read_fit(folder: Path) -> Any:
    """The fitted model of a folder, unpickled, which runs what is in it: of a folder that you alone can write."""
    return pickle.loads((folder / FIT).read_bytes())


def read_fit_columns(folder: Path) -> list[str] | None:
    """Names of the columns that a fit was made on, in its order; None where nobody noted them."""
    place = folder / FIT_COLUMNS
    return list(json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else None
