"""The alpha head in Qlib: trained by fit on whole dates of the dataset, kept with the run, scored without sampling."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_market
from qlib.workflow import R
from tiny_market import LONG_HALT, UNIVERSE, start_qlib, write_tiny_checkpoint, write_tiny_store

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos import CheckpointError
from kronos_qlib.model import KronosModel
from kronos_qlib.model_checkpoint import CheckpointChangedError
from kronos_qlib.model_head import head_rows, label_reach
from kronos_qlib.training.alpha_head import HeadTraining

pytestmark = pytest.mark.filterwarnings("ignore:.*dated on or before")
START, END = "2020-03-02", "2020-09-18"
SEGMENTS = {
    "train": ("2020-03-02", "2020-05-29"), "valid": ("2020-06-01", "2020-07-10"), "test": ("2020-08-03", "2020-09-18"),
}  # fmt: skip
TRAINING = {"epochs": 3, "every": 2, "min_names": 3, "hidden": 4, "dates_per_batch": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_store(tmp_path_factory.mktemp("head") / "store")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("head") / "tiny", lookback=40, cutoff="2020-04-15")


def make_dataset(**handler: Any) -> KlineDataset:
    return KlineDataset(KlineHandler(UNIVERSE, START, END, **handler), SEGMENTS)


@pytest.fixture(scope="module")
def dataset(store: Path) -> KlineDataset:
    start_qlib(store)
    return make_dataset(learn_processors=["DropnaLabel"])


def make_model(checkpoint: Path, **settings: Any) -> KronosModel:
    return KronosModel(**{"model": str(checkpoint), "device": "cpu", "signal": "alpha_head", **settings})


@pytest.fixture(scope="module")
def fitted(checkpoint: Path, dataset: KlineDataset, tmp_path_factory: pytest.TempPathFactory) -> KronosModel:
    model = make_model(checkpoint, alpha_head={**TRAINING, "out": str(tmp_path_factory.mktemp("head") / "out")})
    model.fit(dataset)
    return model


@pytest.fixture(scope="module")
def scores(fitted: KronosModel, dataset: KlineDataset) -> pd.Series:
    return fitted.predict(dataset)


def test_the_score_has_qlibs_form_and_draws_no_path(
    scores: pd.Series, fitted: KronosModel, dataset: KlineDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scores.name == "score"
    assert scores.index.equals(dataset.prepare("test", col_set="label").index)
    assert scores.notna().mean() > 0.8
    assert scores.dropna().groupby(level=0).nunique().min() > 1

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a path was drawn")

    monkeypatch.setattr(fitted.forecaster, "forecast_batches", forbidden)
    part = fitted.predict(dataset, slice("2020-08-20", "2020-08-24"))
    pd.testing.assert_series_equal(part, scores.loc["2020-08-20":"2020-08-24"], check_exact=True)


def test_the_scores_are_the_heads_own(scores: pd.Series, fitted: KronosModel, dataset: KlineDataset) -> None:
    rows = dataset.rows("test")
    known = rows["row"] >= 0
    own = fitted.forecaster
    direct = fitted.head.score(own.model, own.tokenizer, dataset.panel, rows.loc[known, "row"].to_numpy())
    assert np.array_equal(scores[known].to_numpy(), direct)
    assert scores[~known].isna().all()
    halted = scores.xs(LONG_HALT[0], level=1)
    assert halted.iloc[:20].nunique() == 1


def test_another_fit_gives_the_same_bits(checkpoint: Path, dataset: KlineDataset, scores: pd.Series) -> None:
    again = make_model(checkpoint, alpha_head=TRAINING)
    again.fit(dataset)
    pd.testing.assert_series_equal(again.predict(dataset), scores, check_exact=True)


def test_the_card_says_what_the_head_has_seen(fitted: KronosModel) -> None:
    card = fitted.head.card
    assert card["label"] == "Ref($close, -2)/Ref($close, -1) - 1"
    assert card["label_reach"] == 2
    assert (card["train_start"], card["cutoff"]) == ("2020-03-02", "2020-05-29")
    assert (card["valid_start"], card["valid_end"]) == ("2020-06-01", "2020-07-10")
    assert 0.4 < card["train_rows_seen_by_trunk"] < 0.7
    assert len(card["history"]) == 3
    assert card["valid"]["mean"] == max(entry["valid_rank_ic"] for entry in card["history"])


def test_labels_that_reach_out_of_their_segment_are_purged(dataset: KlineDataset) -> None:
    sessions = dataset.panel.calendar
    found = head_rows(dataset, HeadTraining(min_names=3))
    for data, (_, last) in ((found.train, SEGMENTS["train"]), (found.valid, SEGMENTS["valid"])):
        dates = data.label.index.get_level_values(0)
        assert sessions.get_loc(dates.max()) + 2 == sessions.get_loc(pd.Timestamp(last))
    thin = head_rows(dataset, HeadTraining(min_names=3, every=3))
    assert thin.train.n_dates == -(-found.train.n_dates // 3)
    assert thin.valid.n_dates == found.valid.n_dates


def test_the_reach_is_read_from_the_labels_expression(store: Path, dataset: KlineDataset) -> None:
    start_qlib(store)
    assert label_reach(dataset) == 2
    long = make_dataset(label=(["Ref($close, -11)/Ref($close, -1) - 1"], ["LABEL0"]))
    assert label_reach(long) == 11
    assert head_rows(long, HeadTraining(min_names=3)).facts["label_reach"] == 11
    two = make_dataset(label=(["Ref($close, -2)/$close", "Ref($close, -3)/$close"], ["A", "B"]))
    with pytest.raises(ValueError, match="learns one label"):
        head_rows(two, HeadTraining())


def test_learn_processors_shape_the_labels(store: Path, dataset: KlineDataset) -> None:
    start_qlib(store)
    ranked = make_dataset(
        learn_processors=["DropnaLabel", {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}}]
    )
    plain, found = (head_rows(data, HeadTraining(min_names=3)) for data in (dataset, ranked))
    assert found.train.label.abs().max() > 1 > plain.train.label.abs().max()
    np.testing.assert_array_equal(found.train.target, plain.train.target)  # ranks of ranks


def test_a_head_beside_the_checkpoint_is_found(
    fitted: KronosModel, checkpoint: Path, dataset: KlineDataset, scores: pd.Series, tmp_path: Path
) -> None:
    place = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, place)
    fitted.head.save(place / "alpha_head")
    beside = make_model(place)
    beside.fit(dataset)
    pd.testing.assert_series_equal(beside.predict(dataset), scores, check_exact=True)
    elsewhere = make_model(checkpoint, alpha_head=str(place / "alpha_head"))
    pd.testing.assert_series_equal(elsewhere.predict(dataset), scores, check_exact=True)
    with pytest.raises(CheckpointError, match="found no alpha head"):
        make_model(checkpoint).fit(dataset)


def test_a_pickle_refers_to_the_folder(
    fitted: KronosModel, dataset: KlineDataset, scores: pd.Series, tmp_path: Path
) -> None:
    blob = pickle.dumps(fitted)
    assert len(blob) < 10_000
    pd.testing.assert_series_equal(pickle.loads(blob).predict(dataset), scores, check_exact=True)
    kept = Path(fitted.head_folder)
    backup = shutil.copytree(kept, tmp_path / "kept")
    other = make_model(Path(fitted.model), alpha_head={**TRAINING, "seed": 1, "out": str(kept)})
    other.fit(dataset)
    with pytest.raises(CheckpointChangedError, match=r"alpha head at .* fitted with"):
        pickle.loads(blob).predict(dataset)
    shutil.copytree(backup, kept, dirs_exist_ok=True)


def test_without_a_place_the_head_lives_in_memory_only(checkpoint: Path, dataset: KlineDataset) -> None:
    model = make_model(checkpoint, alpha_head={**TRAINING, "epochs": 1})
    with pytest.raises(ValueError, match="call fit to train one"):
        model.predict(dataset)
    model.fit(dataset)
    assert model.predict(dataset).notna().any()
    with pytest.raises(ValueError, match="there is no alpha head to load"):
        pickle.loads(pickle.dumps(model)).predict(dataset)


def test_the_recorder_keeps_the_head_as_an_artifact(
    store: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start_qlib(store, runs=tmp_path)
    data = make_dataset()
    model = make_model(checkpoint, alpha_head={**TRAINING, "cache": str(tmp_path / "cache")})
    with R.start(experiment_name="head"):
        model.fit(data)
        recorder = R.get_recorder()
        expected = model.predict(data)
    # Qlib writes parameters and metrics in a thread that ends with the run
    card = json.loads((Path(recorder.get_local_dir()) / "artifacts/alpha_head/card.json").read_text())
    assert recorder.list_metrics()["alpha_head.valid_rank_ic"] == pytest.approx(card["valid"]["mean"])
    assert recorder.list_params()["alpha_head.label_reach"] == "2"
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]
    monkeypatch.chdir("/")
    back = pickle.loads(pickle.dumps(model))
    pd.testing.assert_series_equal(back.predict(data), expected, check_exact=True)


def test_tuned_layers_are_kept_with_the_head(checkpoint: Path, dataset: KlineDataset, tmp_path: Path) -> None:
    tuned = {**TRAINING, "epochs": 1, "unfreeze": 1, "trunk_rate": 1e-3, "out": str(tmp_path / "tuned")}
    model = make_model(checkpoint, alpha_head=tuned)
    model.fit(dataset)
    assert model.head.trunk
    day = slice("2020-09-01", "2020-09-04")
    back = pickle.loads(pickle.dumps(model))
    pd.testing.assert_series_equal(back.predict(dataset, day), model.predict(dataset, day), check_exact=True)


def test_no_bar_after_the_date_changes_a_score(
    fitted: KronosModel, checkpoint: Path, scores: pd.Series, store: Path, tmp_path: Path
) -> None:
    cut = "2020-08-25"
    bars = tiny_market.bars()
    after = (bars["datetime"] > cut).to_numpy()
    noise = np.random.default_rng(0).uniform(0.8, 1.2, (after.sum(), 1))
    names = ["open", "high", "low", "close", "volume", "amount"]
    changed = bars.astype(dict.fromkeys(names, np.float64))
    changed.loc[after, names] *= noise
    start_qlib(write_tiny_store(tmp_path / "changed", changed))
    model = make_model(checkpoint, alpha_head=fitted.head_folder)
    found = model.predict(KlineDataset(KlineHandler(UNIVERSE, START, END), SEGMENTS))
    pd.testing.assert_series_equal(found.loc[:cut], scores.loc[:cut], check_exact=True)
    assert not found.loc["2020-08-26":].equals(scores.loc["2020-08-26":])
    start_qlib(store)


def test_other_windows_than_the_heads_are_refused(fitted: KronosModel, checkpoint: Path, dataset: KlineDataset) -> None:
    model = make_model(checkpoint, alpha_head=fitted.head_folder, lookback=41)
    with pytest.raises(ValueError, match=r"trained on windows .*'lookback': 40.*'lookback': 41"):
        model.predict(dataset)


def test_scores_of_the_heads_own_training_dates_are_marked(fitted: KronosModel, dataset: KlineDataset) -> None:
    fitted.predict(dataset, slice("2020-05-28", "2020-06-02"))
    marked = fitted.before_cutoff
    assert marked is not None
    # the trunk's own cutoff is 2020-04-15, the head's 2020-05-29
    assert marked.groupby(level=0).all().to_dict() == {
        pd.Timestamp("2020-05-28"): True, pd.Timestamp("2020-05-29"): True,
        pd.Timestamp("2020-06-01"): False, pd.Timestamp("2020-06-02"): False,
    }  # fmt: skip


def test_an_empty_valid_segment_is_refused(checkpoint: Path, dataset: KlineDataset) -> None:
    model = make_model(checkpoint, alpha_head={**TRAINING, "min_names": 50})
    with pytest.raises(ValueError, match="holds no date with 50 rows"):
        model.fit(dataset)
    none = KlineDataset(dataset.handler, {key: SEGMENTS[key] for key in ("train", "test")})
    with pytest.raises(ValueError, match="unknown key 'valid'"):
        make_model(checkpoint, alpha_head=TRAINING).fit(none)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_head": {"los": "ic"}}, "did you mean 'loss'"),
        ({"alpha_head": 3}, "a folder or a mapping"),
        ({"signal": "expected_return", "alpha_head": {}}, "set signal: alpha_head"),
        ({"signal_kwargs": {"q": 0.5}}, "takes no signal_kwargs"),
    ],
)
def test_bad_settings_are_refused_when_constructed(checkpoint: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(checkpoint, **settings)
