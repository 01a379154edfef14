"""KronosModel: Qlib's protocol of a model, scores by row, small pickles, refusals."""

from __future__ import annotations

import inspect
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.model.base import BaseModel, Model
from qlib.utils import init_instance_by_config
from tiny_market import (
    LONG_HALT,
    SHORT_HALT,
    UNIVERSE,
    start_qlib,
    write_tiny_checkpoint,
    write_tiny_store,
)

from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos import SamplingConfig
from kronos_qlib.model import KronosModel
from kronos_qlib.model_checkpoint import CheckpointChangedError

pytestmark = pytest.mark.filterwarnings("ignore:.*dated on or before")  # the tiny card has a cutoff
START, END = "2020-07-27", "2020-09-30"
SEGMENTS = {"valid": ("2020-07-27", "2020-07-31"), "test": ("2020-08-03", "2020-09-18")}
SAMPLING = {"n_paths": 2, "seed": 7}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("model") / "store")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("model") / "tiny", lookback=40, max_context=64, cutoff="2020-08-05"
    )


@pytest.fixture(scope="module")
def dataset(store: Path) -> KlineDataset:
    start_qlib(store)
    return KlineDataset(KlineHandler(UNIVERSE, START, END), SEGMENTS)


@pytest.fixture
def model(checkpoint: Path) -> KronosModel:
    return make_model(checkpoint)


def make_model(checkpoint: Path, **settings: Any) -> KronosModel:
    return KronosModel(**{"model": str(checkpoint), "horizon": 3, "sampling": SAMPLING, "device": "cpu", **settings})


@pytest.fixture(scope="module")
def scores(checkpoint: Path, dataset: KlineDataset) -> pd.Series:
    with pytest.warns(UserWarning, match="the end of the checkpoint's training data"):
        return make_model(checkpoint).predict(dataset)


def test_it_is_a_model_of_qlib(model: KronosModel) -> None:
    assert isinstance(model, Model)
    assert list(inspect.signature(KronosModel.fit).parameters) == list(inspect.signature(Model.fit).parameters)
    parameters = inspect.signature(KronosModel.predict).parameters
    assert list(parameters) == list(inspect.signature(Model.predict).parameters)
    assert parameters["segment"].default == "test"
    assert KronosModel.__call__ is BaseModel.__call__


def test_the_score_has_qlibs_form(scores: pd.Series, dataset: KlineDataset) -> None:
    assert scores.name == "score"
    assert scores.dtype == np.float64
    assert scores.index.names == ["datetime", "instrument"]
    assert scores.index.is_monotonic_increasing
    assert scores.index.equals(dataset.prepare("test", col_set="label").index)
    assert scores.notna().mean() > 0.8


def test_scores_are_the_signal_of_the_forecasts(scores: pd.Series, dataset: KlineDataset, model: KronosModel) -> None:
    """The convenience equals the manual way, window by window."""
    rows = dataset.rows("test")
    chosen = rows[rows["row"] >= 0].iloc[::40]
    for (day, code), row, _ in chosen.itertuples():
        batches = model.forecaster.forecast_batches(
            dataset.panel, np.array([row]), policy=dataset.window_policy(40), horizon=3,
            sampling=SamplingConfig(**SAMPLING), calendar=dataset.handler.trading_calendar, progress=False,
        )  # fmt: skip
        ((_, paths),) = batches
        assert paths.index[0][1] == code
        assert compute_signal("expected_return", paths)[0] == scores[day, code]


def test_a_suspended_member_keeps_its_last_score_for_twenty_sessions(
    scores: pd.Series, dataset: KlineDataset, model: KronosModel
) -> None:
    before = model.predict(dataset, slice("2020-07-31", "2020-07-31"))
    halt = scores.xs(LONG_HALT[0], level=1)
    assert (halt.iloc[:20] == before["2020-07-31", LONG_HALT[0]]).all()
    assert halt.loc[:"2020-09-11"].iloc[20:].isna().all()
    short = scores.xs(SHORT_HALT[0], level=1).loc[SHORT_HALT[1] : SHORT_HALT[2]]
    assert short.nunique() == 1
    assert short.iloc[0] == before["2020-07-31", SHORT_HALT[0]]


def test_the_age_of_each_score_is_kept(model: KronosModel, dataset: KlineDataset) -> None:
    assert model.score_age is None
    scores = model.predict(dataset)
    assert model.score_age is not None
    assert model.score_age.index.equals(scores.index)
    assert ((model.score_age["age"] == -1) == scores.isna()).all()
    assert model.score_age["age"].max() == 20


def test_each_window_is_forecast_once(
    model: KronosModel, dataset: KlineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    original = model.forecaster.forecast_batches

    def spy(panel: Any, rows: np.ndarray, **settings: Any) -> Any:
        seen.append(rows)
        return original(panel, rows, **settings)

    monkeypatch.setattr(model.forecaster, "forecast_batches", spy)
    model.predict(dataset)
    (rows,) = seen
    assert len(np.unique(rows)) == len(rows) < (dataset.rows("test")["row"] >= 0).sum()


def test_a_score_does_not_depend_on_the_segment_around_it(
    scores: pd.Series, model: KronosModel, dataset: KlineDataset
) -> None:
    part = model.predict(dataset, slice("2020-08-20", "2020-08-24"))
    pd.testing.assert_series_equal(part, scores.loc["2020-08-20":"2020-08-24"], check_exact=True)


def test_the_last_day_of_the_store_is_scored(store: Path, model: KronosModel) -> None:
    """kronos.md, trap 12."""
    start_qlib(store)
    last = KlineDataset(KlineHandler(UNIVERSE, "2020-12-31", "2020-12-31"), {"test": ("2020-12-31", "2020-12-31")})
    scores = model.predict(last)
    assert set(scores.index.get_level_values(0)) == {pd.Timestamp("2020-12-31")}
    assert scores.notna().sum() >= 5


@pytest.mark.parametrize("signal", ["terminal_return", "execution_return", "probability_up", "z_unit"])
def test_other_signals_by_name(checkpoint: Path, dataset: KlineDataset, signal: str) -> None:
    day = slice("2020-09-01", "2020-09-02")
    scores = make_model(checkpoint, signal=signal).predict(dataset, day)
    expected = make_model(checkpoint).predict(dataset, day)
    assert scores.notna().equals(expected.notna())
    assert not scores.equals(expected)


def test_signal_options_are_passed_on(checkpoint: Path, dataset: KlineDataset) -> None:
    day = slice("2020-09-01", "2020-09-01")
    low, high = (
        make_model(checkpoint, signal="quantile_return", signal_kwargs={"q": q}).predict(dataset, day) for q in (0, 1)
    )
    assert (low.dropna() <= high.dropna()).all()
    assert (low.dropna() < high.dropna()).any()


def test_fit_without_a_recorder_records_nothing_and_works(model: KronosModel, dataset: KlineDataset) -> None:
    model.fit(dataset)
    assert model.fingerprint == model.forecaster.fingerprint


def test_pickle_holds_location_and_fingerprint_only(
    scores: pd.Series, model: KronosModel, dataset: KlineDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model.fit(dataset)
    model.predict(dataset, slice("2020-09-01", "2020-09-02"))
    blob = pickle.dumps(model)
    assert len(blob) < 10_000
    monkeypatch.chdir(tmp_path)
    back = pickle.loads(blob)
    assert back.fingerprint == model.fingerprint
    again = back.predict(dataset, slice("2020-09-01", "2020-09-02"))
    pd.testing.assert_series_equal(again, scores.loc["2020-09-01":"2020-09-02"], check_exact=True)


def test_a_relative_location_survives_a_change_of_folder(
    checkpoint: Path, dataset: KlineDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    model = make_model(Path(checkpoint.name))
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(model)).fit(dataset)


def test_a_changed_checkpoint_is_refused(checkpoint: Path, dataset: KlineDataset, tmp_path: Path) -> None:
    place = tmp_path / "weights"
    shutil.copytree(checkpoint, place)
    model = make_model(place)
    model.fit(dataset)
    blob = pickle.dumps(model)
    write_tiny_checkpoint(place, seed=1)
    with pytest.raises(CheckpointChangedError, match="fitted with"):
        pickle.loads(blob).predict(dataset)


def test_dates_the_checkpoint_has_seen_warn_once(checkpoint: Path, dataset: KlineDataset) -> None:
    model = make_model(checkpoint)
    with pytest.warns(UserWarning, match=r"of \d+ scores are dated on or before 2020-08-05"):
        model.predict(dataset, "valid")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(dataset, "valid")
        make_model(checkpoint).predict(dataset, slice("2020-08-06", "2020-08-07"))


def test_built_by_qlib_from_configuration(checkpoint: Path) -> None:
    kwargs = {"model": str(checkpoint), "sampling": {"n_paths": 3}}
    config = {"class": "KronosModel", "module_path": "kronos_qlib.model", "kwargs": kwargs}
    assert init_instance_by_config(config, accept_types=Model).sampling.n_paths == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "no checkpoint.*KRONOS_CHECKPOINT"),
        ({"horizn": 3}, "did you mean 'horizon'"),
        ({"n_paths": 3}, "unknown key 'n_paths'"),
        ({"horizon": 0}, "horizon must be a whole number >= 1"),
        ({"horizon": "10"}, "horizon must be a whole number"),
        ({"signal": "expected_retrun"}, "Did you mean 'expected_return'"),
        ({"signal_kwargs": {"q": 0.5}}, "has no option 'q'"),
        ({"signal": "execution_return", "horizon": 1}, "at least 2 forecast steps"),
        ({"sampling": {"n_path": 3}}, "did you mean 'n_paths'"),
        ({"sampling": {"top_p": 0.0}}, "top_p"),
        ({"sampling": [3]}, "sampling must be a mapping"),
        ({"lookback": -1}, "lookback must be a whole number"),
    ],
)
def test_bad_settings_are_value_errors_when_constructed(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(checkpoint, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "/nowhere/at/all"}, "nowhere"),
        ({"horizon": 64}, "below the network's context of 64"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_fit_refuses_what_cannot_run(
    checkpoint: Path, dataset: KlineDataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(checkpoint, **settings).fit(dataset)


def test_two_different_lookbacks_are_refused(checkpoint: Path, dataset: KlineDataset) -> None:
    strict = KlineDataset(dataset.handler, SEGMENTS, lookback=50)
    with pytest.raises(ValueError, match="lookback 40, its dataset cuts windows of 50"):
        make_model(checkpoint, lookback=40).fit(strict)
    make_model(checkpoint, lookback=50).fit(strict)


def test_fit_needs_a_test_segment_and_our_dataset(model: KronosModel, dataset: KlineDataset) -> None:
    with pytest.raises(ValueError, match="unknown key 'test'"):
        model.fit(KlineDataset(dataset.handler, {"valid": SEGMENTS["valid"]}))
    with pytest.raises(ValueError, match="needs a KlineDataset, got dict"):
        model.fit({})
    with pytest.raises(ValueError, match="no reweighter"):
        model.fit(dataset, reweighter=object())


def test_empty_texts_of_unset_environment_variables_mean_none(checkpoint: Path) -> None:
    model = make_model(checkpoint, tokenizer="", revision="", tokenizer_revision="")
    assert (model.tokenizer, model.revision, model.tokenizer_revision) == (None, None, None)
