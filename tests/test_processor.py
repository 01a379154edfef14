"""EmbeddingPCA as a Qlib processor: fitted on the training segment alone, the same in every run."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.data.handler import check_transform_proc
from qlib.utils import init_instance_by_config

from kronos_qlib.processor import EmbeddingPCA, EverySession, TableFactors

DAYS = pd.bdate_range("2020-01-01", periods=40, name="datetime")
FIT = {"fit_start_time": "2020-01-01", "fit_end_time": "2020-01-31"}


def frame(width: int = 6, groups: bool = True) -> pd.DataFrame:
    index = pd.MultiIndex.from_product([DAYS, ["A", "B", "C"]], names=["datetime", "instrument"])
    random = np.random.default_rng(0)
    values = random.normal(size=(len(index), width + 1)).astype(np.float32) * np.arange(1, width + 2, dtype=np.float32)
    names = [*(f"emb_{i:03d}" for i in range(width)), "surprise"]
    made = pd.DataFrame(values, index=index, columns=names)
    if groups:
        made.columns = pd.MultiIndex.from_product([["feature"], names])
        made["label", "LABEL0"] = 1.0
    return made


def pca(**settings: Any) -> EmbeddingPCA:
    return EmbeddingPCA(**{**FIT, "n_components": 3, **settings})


def test_components_replace_the_embedding_and_nothing_else() -> None:
    given = frame()
    copy = given.copy()
    processor = pca()
    processor.fit(given)
    found = processor(given)
    pd.testing.assert_frame_equal(given, copy)
    assert set(found["feature"].columns) == {"surprise", "emb_pca_00", "emb_pca_01", "emb_pca_02"}
    pd.testing.assert_series_equal(found["feature", "surprise"], given["feature", "surprise"])
    assert found["label", "LABEL0"].eq(1).all()
    assert found.index.equals(given.index)
    assert found["feature", "emb_pca_00"].dtype == np.float32


def test_only_the_training_segment_is_learned_from() -> None:
    given = frame()
    changed = given.copy()
    changed.loc["2020-02-01":] = changed.loc["2020-02-01":] * 100 + 7
    one, two = pca(), pca()
    one.fit(given)
    two.fit(changed)
    early = slice("2020-01-01", "2020-01-31")
    pd.testing.assert_frame_equal(one(given).loc[early], two(changed).loc[early], check_exact=True)
    changed.loc["2020-01-31"] = 50.0  # the last day belongs to it
    two.fit(changed)
    assert not one(given).loc["2020-01-02"].equals(two(changed).loc["2020-01-02"])


def test_nan_rows_give_nan_and_are_not_learned_from() -> None:
    given = frame()
    holed = given.copy()
    holed.iloc[4, 2] = np.nan
    one, two = pca(), pca()
    one.fit(holed)
    two.fit(given.drop(index=given.index[4]))
    found = one(holed)
    names = [column for column in found.columns if str(column[1]).startswith("emb_pca")]
    assert found[names].isna().all(axis=1).to_numpy().nonzero()[0].tolist() == [4]
    rest = given.index.delete(4)
    pd.testing.assert_frame_equal(found.loc[rest], two(given).loc[rest], check_exact=True)


def test_raw_embeddings_pass_through() -> None:
    processor = pca(n_components=None)
    processor.fit(frame())
    pd.testing.assert_frame_equal(processor(frame()), frame())


def test_a_frame_without_groups() -> None:
    given = frame(groups=False)
    processor = pca(fields_group=None)
    processor.fit(given)
    assert list(processor(given).columns) == ["emb_pca_00", "emb_pca_01", "emb_pca_02", "surprise"]


def test_a_handler_configures_it_and_its_pickle_keeps_what_was_learned() -> None:
    config = {"class": "EmbeddingPCA", "module_path": "kronos_qlib.processor", "kwargs": {"n_components": 2}}
    (filled,) = check_transform_proc([config], "2020-01-01", "2020-01-31")
    processor = init_instance_by_config(filled)
    processor.fit(frame())
    again = pickle.loads(pickle.dumps(processor))
    pd.testing.assert_frame_equal(again(frame()), processor(frame()), check_exact=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_component": 2}, "did you mean 'n_components'"),
        ({"n_components": 0}, "whole number >= 1"),
        ({"fit_end_time": None}, "needs fit_start_time and fit_end_time"),
    ],
)
def test_bad_settings_are_value_errors(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pca(**settings)


def test_bad_frames_are_value_errors() -> None:
    with pytest.raises(ValueError, match="no column matches"):
        pca(pattern="hidden_*").fit(frame())
    with pytest.raises(ValueError, match="no group 'view'"):
        pca(fields_group="view").fit(frame())
    with pytest.raises(ValueError, match="no row between"):
        pca(fit_start_time="2010-01-01", fit_end_time="2010-02-01").fit(frame())
    with pytest.raises(ValueError, match="expected 1 to 6"):
        pca(n_components=7).fit(frame())
    processor = pca()
    with pytest.raises(ValueError, match="fit it first"):
        processor(frame())
    processor.fit(frame())
    with pytest.raises(ValueError, match="was fitted on columns"):
        processor(frame(width=5))


@pytest.mark.parametrize("groups", [True, False])
def test_a_forecast_minus_the_one_of_the_session_before(groups: bool) -> None:
    given = frame(groups=groups).rename(columns={"surprise": "expected_return"})
    found = TableFactors()(given)
    new = found["feature"] if groups else found
    values = (given["feature"] if groups else given)["expected_return"].unstack()
    np.testing.assert_allclose(new["expected_return_change"].unstack().to_numpy(), values.diff().to_numpy(), rtol=1e-4)
    assert new["expected_return_change"].dtype == np.float32
    assert found.shape[1] == given.shape[1] + 1
    pd.testing.assert_frame_equal(found[given.columns], given)


def test_a_change_never_sees_a_later_session() -> None:
    given = frame().rename(columns={"surprise": "dispersion"})
    early = given.loc[: DAYS[20]]
    whole = TableFactors(["dispersion_change"])(given).loc[: DAYS[20]]
    pd.testing.assert_frame_equal(TableFactors(["dispersion_change"])(early), whole, check_exact=True)


def test_table_factors_say_what_they_lack() -> None:
    with pytest.raises(ValueError, match="none of"):
        TableFactors()(frame())
    with pytest.raises(ValueError, match="lacks expected_return"):
        TableFactors(["expected_return_change"])(frame())
    with pytest.raises(ValueError, match="did you mean 'dispersion_change'"):
        TableFactors(["dispersion_chang"])


def test_every_fifth_training_session_is_learned_from_and_other_rows_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calendar = pd.bdate_range("2019-12-02", periods=80)
    monkeypatch.setattr("kronos_qlib.processor.D.calendar", lambda freq: calendar, raising=False)
    given = frame()
    processor = EverySession(5, **FIT)
    found = processor(given)
    days = found.index.unique("datetime")
    inside = days[days <= "2020-01-31"]
    assert list(inside) == [day for day in calendar[::5] if "2020-01-01" <= f"{day:%Y-%m-%d}" <= "2020-01-31"]
    assert found.loc["2020-02-01":].equals(given.loc["2020-02-01":])
    assert not processor.is_for_infer()
    whole = EverySession(1, **FIT)(given)
    pd.testing.assert_frame_equal(whole, given)


def test_every_session_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="whole number"):
        EverySession(0, **FIT)
    with pytest.raises(ValueError, match="fit_start_time"):
        EverySession(5)
    with pytest.raises(ValueError, match="evry"):
        EverySession(5, **FIT, evry=2)
