"""Fine-tuning in Qlib: fit with a training block, what the recorder keeps, pickles, finetune, what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_market
import torch
from qlib.model.base import ModelFT
from qlib.workflow import R
from tiny_market import UNIVERSE, start_qlib, write_tiny_checkpoint, write_tiny_store

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos import load_card, load_model
from kronos_qlib.model import KronosModel
from kronos_qlib.model_checkpoint import CheckpointChangedError
from kronos_qlib.model_training import cut_panel, known_bars
from kronos_qlib.training.alpha_head import HeadTraining

pytestmark = pytest.mark.filterwarnings("ignore:.*dated on or before")
START, END = "2020-03-02", "2020-09-18"
SEGMENTS = {
    "train": ("2020-03-02", "2020-05-29"), "valid": ("2020-06-01", "2020-07-10"), "test": ("2020-08-03", "2020-09-18"),
}  # fmt: skip
TRAINING = {
    "horizon": 4,
    "predictor": {"steps": 4, "batch_size": 8, "rate": 1e-3, "valid_every": 2, "valid_windows": 32},
}
DAY = slice("2020-09-01", "2020-09-02")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("tuned") / "store")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("tuned") / "tiny", lookback=40, max_context=64, train_start="2019-01-02",
        cutoff="2020-02-14",
    )  # fmt: skip


def make_dataset(**segments: Any) -> KlineDataset:
    return KlineDataset(KlineHandler(UNIVERSE, START, END), {**SEGMENTS, **segments})


@pytest.fixture(scope="module")
def dataset(store: Path) -> KlineDataset:
    start_qlib(store)
    return make_dataset()


def make_model(checkpoint: Path, **settings: Any) -> KronosModel:
    given = {"model": str(checkpoint), "device": "cpu", "horizon": 3, "sampling": {"n_paths": 2}, "training": TRAINING}
    return KronosModel(**{**given, **settings})


def same_weights(a: KronosModel, b: KronosModel) -> bool:
    pairs = zip(a.forecaster.model.parameters(), b.forecaster.model.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_fit_keeps_the_checkpoint_with_the_run(
    store: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start_qlib(store, runs=tmp_path)
    data, model = make_dataset(), make_model(checkpoint)
    assert isinstance(model, ModelFT)
    with R.start(experiment_name="tuned"):
        model.fit(data)
        recorder = R.get_recorder()
        expected = model.predict(data, DAY)
        marked = model.before_cutoff
    # Qlib writes parameters and metrics in a thread that ends with the run
    artifacts = Path(recorder.get_local_dir()) / "artifacts"
    kept = artifacts / "checkpoint"
    assert Path(str(model.tuned_folder)) == kept
    card = load_card(kept)
    assert (card["train_start"], card["cutoff"], card["valid_end"]) == ("2019-01-02", "2020-05-29", "2020-07-10")
    assert card["parent"]["cutoff"] == "2020-02-14"
    assert card["lookback"] == 40
    curves = json.loads((artifacts / "curves.json").read_text())
    assert [entry["step"] for entry in curves["predictor"]["entries"]] == [2, 4]
    assert (artifacts / "curves.png").stat().st_size > 5_000
    assert recorder.list_params()["kronos.mode"] == "fine-tuned"
    assert recorder.list_params()["kronos.cutoff"] == "2020-05-29"
    history = recorder.client.get_metric_history(recorder.id, "predictor.valid_forecast")
    assert {point.step: pytest.approx(point.value) for point in history} == {
        entry["step"]: entry["valid_forecast"] for entry in curves["predictor"]["entries"]
    }
    assert {"predictor.train_loss", "predictor.rate", "predictor.tokens_per_second"} <= set(recorder.list_metrics())
    # marks follow the new card
    assert marked is not None
    assert not marked.any()
    model.predict(data, slice("2020-05-28", "2020-06-01"))
    assert model.before_cutoff is not None
    assert model.before_cutoff.groupby(level=0).all().tolist() == [True, True, False]
    # the scores are those of the new weights, also from a pickle elsewhere
    monkeypatch.chdir("/")
    blob = pickle.dumps(model)
    assert len(blob) < 10_000
    pd.testing.assert_series_equal(pickle.loads(blob).predict(data, DAY), expected, check_exact=True)
    untouched = make_model(checkpoint, training=None)
    assert not np.allclose(untouched.predict(data, DAY), expected, equal_nan=True)
    assert not same_weights(untouched, model)
    (kept / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        pickle.loads(blob).predict(data, DAY)


def test_finetune_goes_on_and_fit_begins_again(checkpoint: Path, dataset: KlineDataset, tmp_path: Path) -> None:
    once = make_model(checkpoint, training={**TRAINING, "out": str(tmp_path / "out")})
    once.fit(dataset)
    first = once.fingerprint
    later = make_dataset(train=("2020-03-02", "2020-06-30"), valid=("2020-07-01", "2020-07-24"))
    once = pickle.loads(pickle.dumps(once))
    once.finetune(later)
    assert once.tuned_folder == str(tmp_path / "out" / "2020-06-30")
    card = once.forecaster.card
    assert (card["parent"]["fingerprint"], card["cutoff"]) == (first, "2020-06-30")
    assert card["parent"]["parent"]["cutoff"] == "2020-02-14"
    assert once.fingerprint == once.forecaster.fingerprint != first
    base = make_model(checkpoint, training=TRAINING)
    base.finetune(later)  # of a model that was never fitted: from the checkpoint
    assert base.forecaster.card["parent"]["cutoff"] == "2020-02-14"
    assert not same_weights(base, once)
    once.fit(dataset)
    assert once.fingerprint == first
    with pytest.raises(ValueError, match="there are no training settings"):
        make_model(checkpoint, training=None).finetune(later)


def test_no_bar_and_no_member_after_train_teaches_anything(
    checkpoint: Path, dataset: KlineDataset, store: Path, tmp_path: Path
) -> None:
    once = {**TRAINING, "predictor": {**TRAINING["predictor"], "valid_every": 4}}
    plain = make_model(checkpoint, training=once)
    plain.fit(dataset)
    bars = tiny_market.bars()
    after = (bars["datetime"] > SEGMENTS["train"][1]).to_numpy()
    names = ["open", "high", "low", "close", "volume", "amount"]
    other = bars.astype(dict.fromkeys(names, np.float64))
    other.loc[after, names] *= np.random.default_rng(0).uniform(0.95, 1.05, (after.sum(), 1))
    start_qlib(write_tiny_store(tmp_path / "changed", other))
    changed = make_model(checkpoint, training=once)
    changed.fit(make_dataset())
    start_qlib(store)
    assert same_weights(plain, changed)
    assert plain.forecaster.card["valid_figures"] != changed.forecaster.card["valid_figures"]


def test_training_bars_are_those_of_members_so_far(dataset: KlineDataset) -> None:
    panel = known_bars(dataset, pd.Timestamp("2020-05-29"), pd.Timestamp("2020-07-10"))
    assert "SH600002" in dataset.panel.instruments  # it enters on 2020-07-15
    assert set(dataset.panel.instruments) - set(panel.instruments) == {"SH600002"}
    assert panel.timestamps.max() == np.datetime64("2020-07-10")
    assert panel.timestamps.min() == dataset.panel.timestamps.min()
    part = cut_panel(dataset.panel, {"SH600001", "SH600005"}, pd.Timestamp("2020-04-30"))
    for name in part.instruments:
        rows = part.codes == part.instruments.index(name)
        whole = dataset.panel.codes == dataset.panel.instruments.index(name)
        whole &= dataset.panel.timestamps <= np.datetime64("2020-04-30")
        np.testing.assert_array_equal(part.values[rows], dataset.panel.values[whole])
        np.testing.assert_array_equal(part.calendar[part.session[rows]], part.timestamps[rows])


def test_without_a_place_the_weights_live_in_memory_only(checkpoint: Path, dataset: KlineDataset) -> None:
    model = make_model(checkpoint)
    model.fit(dataset)
    assert model.predict(dataset, DAY).notna().any()
    with pytest.raises(CheckpointChangedError):
        pickle.loads(pickle.dumps(model)).predict(dataset, DAY)


def test_an_alpha_head_is_trained_on_the_new_weights(checkpoint: Path, dataset: KlineDataset, tmp_path: Path) -> None:
    head = HeadTraining(epochs=1, every=5, min_names=3, hidden=4, dates_per_batch=4)
    model = make_model(checkpoint, signal="alpha_head", alpha_head=head)
    model.fit(dataset)
    assert model.head.trunk_fingerprint == model.fingerprint
    assert model.predict(dataset, DAY).notna().any()


def test_an_empty_or_missing_valid_segment_is_refused(checkpoint: Path, dataset: KlineDataset) -> None:
    none = KlineDataset(dataset.handler, {key: SEGMENTS[key] for key in ("train", "test")})
    with pytest.raises(ValueError, match="unknown key 'valid'"):
        make_model(checkpoint).fit(none)
    # two sessions hold no four bars to predict
    short = KlineDataset(dataset.handler, {**SEGMENTS, "valid": ("2020-06-01", "2020-06-02")})
    with pytest.raises(ValueError, match="the valid span holds nothing"):
        make_model(checkpoint).fit(short)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"predicter": {"steps": 1}}, "ModelTraining: unknown key 'predicter' .did you mean 'predictor'"),
        ({"predictor": {"step": 1}}, "NetworkTuning: unknown key 'step' .did you mean 'steps'"),
        ({}, "predictor is not set"),
        ("fast", "must be a mapping of settings"),
    ],
)
def test_bad_settings_are_refused_when_constructed(checkpoint: Path, training: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(checkpoint, training=training)


def test_a_checkpoint_without_a_cutoff_needs_one(dataset: KlineDataset, tmp_path: Path) -> None:
    bare = write_tiny_checkpoint(tmp_path / "bare")
    with pytest.raises(ValueError, match="set parent_cutoff"):
        make_model(bare, lookback=40).fit(dataset)
    model = make_model(bare, lookback=40, training={**TRAINING, "parent_cutoff": "2020-08-31"})
    model.fit(dataset)
    assert load_model(bare).config == model.forecaster.model.config
    assert model.forecaster.card["cutoff"] == "2020-08-31"
