"""Where outcomes fell among a run's paths, as the report's calibration part reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from qlib.config import C
from qlib.workflow import R
from tiny_market import UNIVERSE, start_qlib, write_tiny_checkpoint, write_tiny_store

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.handler import KlineHandler
from kronos_qlib.model import KronosModel
from kronos_qlib.model_pit import PathOutcomes

pytestmark = pytest.mark.filterwarnings("ignore:.*dated on or before")
HORIZON, SAMPLING = 3, {"n_paths": 4, "seed": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("pit") / "tiny", lookback=40, max_context=64)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> KlineDataset:
    start_qlib(write_tiny_store(tmp_path_factory.mktemp("pit") / "store"))
    segments = {"valid": ("2020-07-27", "2020-07-31"), "test": ("2020-08-03", "2020-08-14")}
    return KlineDataset(KlineHandler(UNIVERSE, "2020-07-27", "2020-08-14"), segments)


def judged(checkpoint: Path, dataset: KlineDataset, rows: np.ndarray, batch_size: int) -> pd.DataFrame:
    forecaster = KronosForecaster.from_pretrained(checkpoint, device="cpu")
    outcomes = PathOutcomes(dataset.panel, rows, HORIZON)
    batches = forecaster.forecast_batches(
        dataset.panel, rows, horizon=HORIZON, sampling=SAMPLING, calendar=dataset.handler.trading_calendar,
        batch_size=batch_size, progress=False,
    )  # fmt: skip
    for positions, paths in batches:
        outcomes.add(positions, paths)
        truth = outcomes._truth[positions]
        below = (paths.returns() < truth[:, None]).sum(axis=1)
        equal = (paths.returns() == truth[:, None]).sum(axis=1)
        known = np.isfinite(truth)
        found = outcomes._pit[positions]
        assert (np.isnan(found) == ~known).all()
        assert (found[known] * 5 >= below[known] - 1e-5).all()
        assert (found[known] * 5 <= below[known] + equal[known] + 1 + 1e-5).all()
    return outcomes.frame()


def test_the_rank_of_the_outcome_among_the_paths_whatever_the_batch(checkpoint: Path, dataset: KlineDataset) -> None:
    rows = np.unique(dataset.rows("test")["row"])
    rows = rows[rows >= 0]
    whole = judged(checkpoint, dataset, rows, 64)
    assert list(whole.columns) == ["1", "2", "3"]
    assert whole.dtypes.eq(np.float32).all()
    last = whole.xs(whole.index.get_level_values("datetime").max(), level="datetime")
    assert last.isna().all().all()  # nothing is known after the handler's end
    part = judged(checkpoint, dataset, rows[5:20], 2)
    pd.testing.assert_frame_equal(part, whole.loc[part.index])


def test_predict_saves_it_for_the_report_and_scores_do_not_change(
    checkpoint: Path, dataset: KlineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = KronosModel(model=str(checkpoint), horizon=HORIZON, sampling=SAMPLING, device="cpu")
    plain = model.predict(dataset)
    monkeypatch.chdir(tmp_path)
    start_qlib(Path(C["provider_uri"]["__DEFAULT_FREQ"]), runs=tmp_path)
    with R.start(experiment_name="pit"):
        recorded = model.predict(dataset)
        saved = pd.read_parquet(R.get_recorder().download_artifact("path_pit.parquet"))
    pd.testing.assert_series_equal(recorded, plain, check_exact=True)
    assert saved.shape[1] == HORIZON
    assert 0 <= saved.min().min() <= saved.max().max() < 1
