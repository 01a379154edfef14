"""A run in Qlib: rows before the cutoff are marked, figures split there, drift told, all of it in the recorder."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.utils import init_instance_by_config
from qlib.workflow import R
from qlib.workflow.record_temp import SignalRecord
from tiny_market import UNIVERSE, start_qlib, write_tiny_checkpoint, write_tiny_store

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.evaluation.ic import daily_rank_ic
from kronos_qlib.forecast.drift import count_tokens
from kronos_qlib.handler import KlineHandler
from kronos_qlib.kronos import load_tokenizer
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.model import KronosModel
from kronos_qlib.record import KronosSignalRecord, load_json

pytestmark = pytest.mark.filterwarnings("ignore:.*dated on or before")
CUTOFF, VALID_END = "2020-08-14", "2020-08-21"
CARD: dict[str, Any] = {"lookback": 40, "max_context": 64, "cutoff": CUTOFF, "valid_end": VALID_END}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> KlineDataset:
    start_qlib(write_tiny_store(folder / "store"), folder)
    return KlineDataset(KlineHandler(UNIVERSE, "2020-08-03", "2020-09-30"), {"test": ("2020-08-03", "2020-09-04")})


def make_model(folder: Path, **card: Any) -> KronosModel:
    place = write_tiny_checkpoint(folder, **card)
    return KronosModel(model=str(place), horizon=2, sampling={"n_paths": 2}, device="cpu")


@pytest.fixture(scope="module")
def run(folder: Path, dataset: KlineDataset) -> tuple[Any, KronosModel]:
    """One finished experiment: fit, SignalRecord, KronosSignalRecord."""
    tokenizer = load_tokenizer(write_tiny_checkpoint(folder / "tiny", **CARD))
    panel = dataset.panel
    past = np.flatnonzero(panel.timestamps <= np.datetime64(CUTOFF))
    tokens = count_tokens(tokenizer, panel, past, WindowPolicy(40, 30))
    assert tokens is not None
    model = make_model(folder / "tiny", **CARD, tokens=tokens.to_dict())
    with R.start(experiment_name="split"):
        model.fit(dataset)
        recorder = R.get_recorder()
        SignalRecord(model, dataset, recorder).generate()
        record = {"class": "KronosSignalRecord", "module_path": "kronos_qlib.record"}
        offered = {"model": model, "dataset": dataset}  # as qrun does
        init_instance_by_config(record, recorder=recorder, try_kwargs=offered).generate()
        recorder_id = recorder.id
    return R.get_recorder(recorder_id=recorder_id, experiment_name="split"), model


def frame(recorder: Any, name: str) -> pd.DataFrame:
    return pd.read_parquet(recorder.download_artifact(name))


def test_rows_up_to_the_cutoff_are_marked_in_the_model_and_in_the_recorder(run: tuple[Any, KronosModel]) -> None:
    recorder, model = run
    marks = frame(recorder, "before_cutoff.parquet")["before_cutoff"]
    assert marks.dtype == bool
    assert marks.index.equals(recorder.load_object("pred.pkl").index)
    assert (marks == (marks.index.get_level_values("datetime") <= pd.Timestamp(CUTOFF))).all()
    assert 0 < marks.sum() < len(marks)
    pd.testing.assert_series_equal(model.before_cutoff, marks, check_index_type=False)


def test_figures_are_split_at_the_cutoff(run: tuple[Any, KronosModel]) -> None:
    recorder, _ = run
    content = json.loads(Path(recorder.download_artifact("sig_analysis/kronos_signal.json")).read_text())
    assert (content["cutoff"], content["valid_end"]) == (CUTOFF, VALID_END)
    assert set(content["parts"]) == {"all", "before_cutoff", "after_cutoff", "after_valid"}
    score, label = recorder.load_object("pred.pkl")["score"], recorder.load_object("label.pkl")["LABEL0"]
    daily = daily_rank_ic(score, label)
    for part, chosen in (("before_cutoff", daily[:CUTOFF]), ("after_cutoff", daily["2020-08-15":])):
        assert content["parts"][part]["rank_ic"]["mean"] == pytest.approx(chosen.mean())
        assert content["parts"][part]["days"] == len(chosen)
    metrics = recorder.list_metrics()
    assert metrics["after_cutoff.rank_ic.mean"] == pytest.approx(daily["2020-08-15":].mean())
    assert metrics["before_cutoff.ic.newey_west_t"] == pytest.approx(
        content["parts"]["before_cutoff"]["ic"]["newey_west_t"]
    )
    assert metrics["Rank IC"] == pytest.approx(metrics["all.rank_ic.mean"])  # Qlib's own beside ours


def test_a_cutoff_that_is_given_goes_before_the_cards(run: tuple[Any, KronosModel]) -> None:
    recorder, _ = run
    parts = KronosSignalRecord(recorder, cutoff="2020-08-20", valid_end="2020-08-20")
    assert parts._dates() == (pd.Timestamp("2020-08-20"), pd.Timestamp("2020-08-20"))
    assert "sig_analysis/kronos_signal.json" in [parts.get_path(name) for name in parts.list()]
    with pytest.raises(ValueError, match="did you mean 'cutoff'"):
        KronosSignalRecord(recorder, cutof="2020-08-20")
    with pytest.raises(ValueError, match="cutoff='soon'"):
        KronosSignalRecord(recorder, cutoff="soon")._dates()


def test_the_same_market_has_not_drifted(run: tuple[Any, KronosModel]) -> None:
    recorder, model = run
    drift = load_json(recorder, "token_drift.json")
    assert drift["level"] in {"none", "moderate"}
    assert model.token_drift is not None
    assert drift["s1"]["psi"] == model.token_drift.s1.psi
    assert drift["now"]["windows"] <= 2_000
    assert load_json(recorder, "no_such.json") == {}


def test_a_market_that_has_drifted_is_warned_of_and_scored_all_the_same(
    folder: Path,
    dataset: KlineDataset,
    run: tuple[Any, KronosModel],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, fitted = run
    assert fitted.token_drift is not None
    known = fitted.token_drift.card.to_dict()
    # a card of a market whose most used ids are the least used ones here
    often = np.sort(known["s1"])
    s1 = np.empty_like(often)
    s1[np.argsort(known["s1"])] = often[::-1]
    model = make_model(folder / "shifted", **CARD, tokens=known | {"s1": s1.tolist()})
    monkeypatch.setattr("kronos_qlib.model.logger", logging.getLogger("here"))  # the tests silence Qlib's
    scores = model.predict(dataset)
    (warning,) = [record for record in caplog.records if "drifted away" in record.getMessage()]
    assert warning.levelno == logging.WARNING
    pd.testing.assert_series_equal(
        scores, recorder.load_object("pred.pkl")["score"], check_exact=True, check_index_type=False
    )


def test_the_warning_of_the_cutoff_comes_once_and_the_marks_every_time(folder: Path, dataset: KlineDataset) -> None:
    model = make_model(folder / "once", **CARD)
    with pytest.warns(UserWarning, match="before_cutoff marks the rows"):
        model.predict(dataset, slice("2020-08-13", "2020-08-14"))
    assert model.before_cutoff is not None
    assert model.before_cutoff.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.predict(dataset, slice("2020-08-14", "2020-08-17"))
    days = model.before_cutoff.index.get_level_values("datetime")
    assert model.before_cutoff.tolist() == (days == pd.Timestamp("2020-08-14")).tolist()
    plain = make_model(folder / "plain")
    plain.predict(dataset, slice("2020-08-14", "2020-08-14"))
    assert plain.before_cutoff is None
    assert plain.token_drift is None
