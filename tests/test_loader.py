"""The loader of Kronos factors: the values that were built, from weights that may answer, and errors Qlib respects."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qlib.contrib.data.loader import Alpha158DL
from qlib.data.dataset.loader import NestedDataLoader
from tiny_market import (
    LONG_HALT,
    SHORT_HALT,
    UNIVERSE,
    VERY_LONG_HALT,
    start_qlib,
    write_tiny_checkpoint,
    write_tiny_store,
)

from kronos_qlib.dataset import KlineDataset
from kronos_qlib.factors import FactorSettings, FactorTable
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.handler import KlineHandler
from kronos_qlib.loader import KronosFactorLoader

START, FIT_END, END = "2020-03-02", "2020-07-31", "2020-08-14"
NAMES = ("expected_return", "surprise")
CARD = {"lookback": 32, "max_context": 64}
CARDS = {
    "full": {"train_start": "2020-01-02", "cutoff": FIT_END},
    "early": {"train_start": "2015-01-01", "cutoff": "2020-02-28"},
    "late": {"train_start": "2020-05-15", "cutoff": FIT_END},
}


def table(
    places: Path, *checkpoints: str, start: str = START, end: str = END, universe: object = UNIVERSE, **settings: object
) -> FactorTable:
    start_qlib(places / "store")
    handler = KlineHandler(universe, start, end, init_data=False)
    dataset = KlineDataset(handler, segments={"all": (start, end)}, lookback=32)
    chosen = FactorSettings(
        **{"factors": NAMES, "embedding": ("last",), "n_paths": 2, "horizon": 2, "block": 3, **settings}
    )
    forecasters = [KronosForecaster.from_pretrained(places / name, device="cpu") for name in checkpoints]
    return FactorTable(dataset, "all", forecasters, chosen)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qlib store, three checkpoints, and in ``factors`` what a cross-fitted build of them gives."""
    folder = tmp_path_factory.mktemp("loader")
    write_tiny_store(folder / "store")
    for seed, (name, card) in enumerate(CARDS.items()):
        write_tiny_checkpoint(folder / name, seed, **card, **CARD)
    table(folder, *CARDS, fit_end=FIT_END).build(ForecastStore(folder / "factors"), progress=False)
    return folder


@pytest.fixture
def qlib(places: Path) -> None:
    start_qlib(places / "store")


def weights(places: Path, name: str) -> str:
    return KronosForecaster.from_pretrained(places / name, device="cpu").fingerprint


def loader(places: Path, **settings: object) -> KronosFactorLoader:
    return KronosFactorLoader(
        **{"factors": places / "factors", "fit_end_time": FIT_END, **settings}  # type: ignore[arg-type]
    )


@pytest.mark.usefixtures("qlib")
def test_it_loads_what_was_built(places: Path) -> None:
    made = loader(places, group=None)
    found = made.load(UNIVERSE, START, END)
    built = table(places, *CARDS, fit_end=FIT_END).read(ForecastStore(places / "factors"), [*NAMES], notes=True)
    pd.testing.assert_frame_equal(found[[*NAMES]], built[[*NAMES]], check_exact=True)
    notes = made.notes(UNIVERSE, START, END)
    assert notes["age"].equals(built["age"])
    assert (notes["weights_surprise"] == built["weights"]).all()
    assert not notes["in_sample"].any()
    assert made.coverage["rows"] == len(found)
    assert made.coverage["missing"] == 0
    assert made.coverage["no_window"] == (built["age"] < 0).sum() > 0
    assert sum(made.coverage["weights"].values()) == (built["age"] >= 0).sum()


@pytest.mark.usefixtures("qlib")
def test_training_rows_come_from_weights_that_never_saw_them(places: Path) -> None:
    found = loader(places).notes(UNIVERSE, START, END)
    found = found[found["age"] == 0]["weights_surprise"]
    days = found.index.get_level_values("datetime")
    assert set(found[days > FIT_END]) == {weights(places, "full")}
    assert set(found[days <= "2020-04-01"]) == {weights(places, "late")}
    assert set(found[(days > "2020-05-20") & (days <= FIT_END)]) == {weights(places, "early")}


@pytest.mark.usefixtures("qlib")
def test_a_suspended_member_keeps_its_last_values_for_a_while(places: Path) -> None:
    frame = loader(places, group=None).load(UNIVERSE, START, END)
    halted = frame.xs(SHORT_HALT[0], level="instrument")["surprise"].loc["2020-07-31":"2020-08-10"]
    assert halted.iloc[:6].nunique() == 1
    assert halted.iloc[6] != halted.iloc[5]
    long = frame.xs(VERY_LONG_HALT[0], level="instrument")["surprise"]
    assert long.loc["2020-04-20"] == long.loc["2020-03-31"]
    assert long.loc["2020-06-01":"2020-07-31"].isna().all()
    assert loader(places, carry=0).load(UNIVERSE, START, END).isna().sum().sum() > frame.isna().sum().sum()


@pytest.mark.usefixtures("qlib")
def test_a_halted_members_values_end_where_the_weights_have_seen_its_label(places: Path, tmp_path: Path) -> None:
    """Halted from Monday, 2020-08-03: its bar of Friday is carried on. The weights' training begins on 2020-08-11."""
    write_tiny_checkpoint(places / "after", 7, train_start="2020-08-11", cutoff="2020-12-31", **CARD)
    rule = {"start": "2020-07-27", "end": "2020-08-14", "universe": [LONG_HALT[0]], "fit_end": "2020-12-31"}
    one = {"factors": ("expected_return",), "embedding": (), "horizon": 1}
    built = table(places, "after", **rule, **one)
    store = ForecastStore(tmp_path)
    built.build(store, progress=False)

    def days(start: str = "2020-07-27", **settings: object) -> list[str]:
        made = loader(places, factors=tmp_path, group=None, fit_end_time="2020-12-31", **settings)
        return given(made.load([LONG_HALT[0]], start, "2020-08-14"))

    def given(frame: pd.DataFrame) -> list[str]:
        return [f"{day:%m-%d}" for day, _ in frame.index[frame["expected_return"].notna()]]

    traded = ["07-27", "07-28", "07-29", "07-30", "07-31"]
    two = ["08-03", "08-04", "08-05", "08-06"]  # the label of the last, two bars ahead, ends on the 10th
    assert given(built.read(store)) == traded + two
    assert days() == traded + two  # not by the forecast's one bar: Qlib's default label reads two
    assert days("2020-08-03") == two
    assert days(horizon=1) == [*traded, *two, "08-07"]
    assert days(horizon=3) == traded + two[:-1]
    assert given(table(places, "after", **rule, **one, label_horizon=3).read(store)) == traded + two[:-1]
    everything = [*traded, *two, "08-07", "08-10", "08-11", "08-12", "08-13", "08-14"]
    assert days(allow_in_sample=True) == everything
    with pytest.raises(ValueError, match="at least 1 bar"):
        loader(places, horizon=0)


@pytest.mark.usefixtures("qlib")
def test_columns_are_names_and_patterns_in_a_group(places: Path) -> None:
    codes = ["SH600002", "SH600005"]  # which trade every day
    assert list(loader(places).load(codes, "2020-08-03", END).columns) == [("feature", name) for name in NAMES]
    one = loader(places, columns=["exp*"], group="view").load(codes, "2020-08-03", END)
    assert list(one.columns) == [("view", "expected_return")]
    both = loader(places, columns=["surprise", "emb_*"], group=None).load(codes, "2020-08-03", END)
    assert list(both.columns) == ["surprise", *(f"emb_{i:03d}" for i in range(32))]


@pytest.mark.usefixtures("qlib")
def test_a_row_does_not_depend_on_the_range_it_is_loaded_in(places: Path) -> None:
    whole = loader(places, group=None).load(UNIVERSE, START, END)
    part = loader(places, group=None).load(UNIVERSE, "2020-06-01", "2020-06-30")
    pd.testing.assert_frame_equal(part, whole.loc["2020-06-01":"2020-06-30"], check_exact=True)
    codes = ["SH600005", "SH600001"]
    listed = loader(places, group=None).load(codes, "2020-06-01", "2020-06-30")
    assert set(listed.index.get_level_values("instrument")) == set(codes)
    pd.testing.assert_frame_equal(listed, part.loc[(slice(None), sorted(codes)), :], check_exact=True)


@pytest.mark.usefixtures("qlib")
def test_nested_with_alpha158(places: Path) -> None:
    alone = Alpha158DL().load(UNIVERSE, START, END)
    nested = NestedDataLoader([Alpha158DL(), loader(places)]).load(UNIVERSE, START, END)
    assert nested.index.equals(alone.index)
    assert set(nested.columns) == {*alone.columns, *(("feature", name) for name in NAMES)}
    pd.testing.assert_frame_equal(nested[alone.columns], alone)
    mine = loader(places).load(UNIVERSE, START, END)
    pd.testing.assert_frame_equal(nested[mine.columns], mine.reindex(alone.index))
    by_config = NestedDataLoader(
        [
            {"class": "qlib.contrib.data.loader.Alpha158DL"},
            {
                "class": "KronosFactorLoader",
                "module_path": "kronos_qlib.loader",
                "kwargs": {"factors": str(places / "factors"), "fit_end_time": FIT_END, "columns": ["surprise"]},
            },
        ]
    )
    assert by_config.load(UNIVERSE, "2020-08-03", END)[("feature", "surprise")].notna().any()


@pytest.mark.usefixtures("qlib")
def test_errors_are_value_errors_also_when_nested(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="did you mean 'columns'"):
        loader(places, colums=["surprise"])
    with pytest.raises(ValueError, match="KRONOS_FACTORS"):
        KronosFactorLoader("")
    with pytest.raises(ValueError, match="must be a list of names"):
        loader(places, columns="surprise")
    with pytest.raises(ValueError, match="may_miss"):
        loader(places, may_miss="row")
    with pytest.raises(ValueError, match="align"):
        loader(places, align="procrustean")
    with pytest.raises(ValueError, match="did you mean 'surprise'"):
        loader(places, columns=["suprise"]).load(UNIVERSE, START, END)
    with pytest.raises(ValueError, match="no market 'csi301'"):
        loader(places).load("csi301", START, END)
    with pytest.raises(ValueError, match="holds no factors; build them: kronos-qlib factors build"):
        loader(places, factors=places / "nothing").load(UNIVERSE, START, END)

    def broken(*_: object) -> None:
        raise KeyError("a column")

    monkeypatch.setattr("kronos_qlib.loader.find_groups", broken)
    with pytest.raises(ValueError, match=r"a column.* was not found"):
        NestedDataLoader([Alpha158DL(), loader(places)]).load(UNIVERSE, "2020-08-03", END)


@pytest.mark.usefixtures("qlib")
def test_what_is_missing_is_said_with_the_command_that_builds_it(places: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'expected_return'.*factors build .*--start 2020-09-01 --end 2020-09-30"):
        loader(places, may_miss="dates").load(UNIVERSE, "2020-09-01", "2020-09-30")
    with pytest.raises(ValueError, match=r"33 whole dates missing, 2020-08-17 to 2020-09-30; .*--fit-end 2020-07-31"):
        loader(places).load(UNIVERSE, START, "2020-09-30")
    made = loader(places, may_miss="dates")
    frame = made.load(UNIVERSE, START, "2020-09-30").loc["2020-08-17":]
    age = made.notes(UNIVERSE, START, "2020-09-30")["age"].loc["2020-08-17":]
    carried = age > np.array([(frame.index.unique(0) <= day).sum() - 1 for day in frame.index.get_level_values(0)])
    assert carried.sum() > 0  # the halted member holds the value of its last bar, which is there
    assert frame.notna().all(axis=1).equals(carried)
    assert made.coverage["missing"] == ((age >= 0) & ~carried).sum()
    codes = ["SH600002", "SH600005", "SH600007"]  # the last was never a member
    with pytest.raises(ValueError, match="10 rows missing, 2020-08-03 to 2020-08-14"):
        loader(places, may_miss="nothing").load(codes, "2020-08-03", END)
    assert loader(places).load(codes, "2020-08-03", END).xs("SH600007", level="instrument").isna().all(axis=None)


@pytest.mark.usefixtures("qlib")
def test_a_leaking_combination_is_an_error_unless_allowed(places: Path, tmp_path: Path) -> None:
    table(places, "full", start="2020-07-20", embedding=()).build(ForecastStore(tmp_path), progress=False)
    for fit_end in (FIT_END, None):
        with pytest.raises(ValueError, match="allow_in_sample: true"):
            loader(places, factors=tmp_path, fit_end_time=fit_end).load(UNIVERSE, "2020-07-20", END)
    thin = loader(places, factors=tmp_path, group=None, may_miss="dates")
    left = thin.load(UNIVERSE, "2020-07-20", END)["surprise"]
    assert left.loc[:FIT_END].isna().all()
    assert left.loc["2020-08-03":].notna().any()
    clean = loader(places, factors=tmp_path, group=None).load(UNIVERSE, "2020-08-03", END)["surprise"].unstack()
    assert clean["SH600005"].notna().all()
    assert clean[SHORT_HALT[0]].isna().tolist() == [True] * 5 + [False] * 5  # its last bar before is in-sample
    allowed = loader(places, factors=tmp_path, allow_in_sample=True)
    notes = allowed.notes(UNIVERSE, "2020-07-20", END)
    days = notes.index.get_level_values("datetime")
    # a member suspended since before the cutoff carries an in-sample value beyond it
    assert notes["in_sample"][(days <= FIT_END) & (notes["age"] >= 0)].all()
    assert not notes["in_sample"][(days > FIT_END) & (notes["age"] == 0)].any()
    assert allowed.coverage["in_sample"] == notes["in_sample"].sum() > 0


@pytest.mark.usefixtures("qlib")
def test_clean_rows_are_preferred_to_in_sample_ones(places: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(places / "factors", both)
    table(places, "full", end=FIT_END).build(ForecastStore(both), progress=False)
    clean = loader(places).load(UNIVERSE, START, END)
    pd.testing.assert_frame_equal(loader(places, factors=both).load(UNIVERSE, START, END), clean, check_exact=True)
    allowed = loader(places, factors=both, allow_in_sample=True)
    pd.testing.assert_frame_equal(allowed.load(UNIVERSE, START, END), clean, check_exact=True)
    full = [source.fingerprint for source in ForecastStore(both).ls() if source.weights == weights(places, "full")]
    control = loader(places, factors=both, sources=full, allow_in_sample=True)
    assert not control.load(UNIVERSE, START, END).equals(clean)
    assert set(control.coverage["weights"]) == {weights(places, "full")}


@pytest.mark.usefixtures("qlib")
def test_weights_without_a_card_are_refused(places: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "blank", 5, **CARD)
    shutil.copytree(places / "store", tmp_path / "store")
    table(tmp_path, "blank", start="2020-08-03", embedding=()).build(ForecastStore(tmp_path / "f"), progress=False)
    with pytest.raises(ValueError, match=r"card\.json with train_start and cutoff"):
        loader(places, factors=tmp_path / "f").load(UNIVERSE, "2020-08-03", END)
    shutil.rmtree(tmp_path / "f" / "weights")
    with pytest.raises(ValueError, match="has no card of the weights"):
        loader(places, factors=tmp_path / "f").load(UNIVERSE, "2020-08-03", END)
    made = loader(places, factors=tmp_path / "f", allow_in_sample=True)
    assert made.load(UNIVERSE, "2020-08-03", END).notna().any(axis=None)
    assert made.coverage["in_sample"] > 0


@pytest.mark.usefixtures("qlib")
def test_a_column_of_two_settings_needs_a_choice(places: Path, tmp_path: Path) -> None:
    store = ForecastStore(tmp_path)
    one = table(places, "early", start="2020-08-03", factors=("surprise",), embedding=())
    two = table(places, "early", start="2020-08-03", factors=("surprise",), embedding=(), block=1)
    one.build(store, progress=False)
    two.build(store, progress=False)
    with pytest.raises(ValueError, match=r"block: .*sources: \[\.\.\.\]"):
        loader(places, factors=tmp_path).load(UNIVERSE, "2020-08-03", END)
    chosen = loader(places, factors=tmp_path, sources=[two.fingerprints[0][:8]], group=None)
    pd.testing.assert_frame_equal(chosen.load(UNIVERSE, "2020-08-03", END), two.read(store), check_exact=True)


@pytest.mark.usefixtures("qlib")
def test_sources_that_differ_in_their_columns_alone_are_read_as_one(places: Path, tmp_path: Path) -> None:
    store = ForecastStore(tmp_path)
    days = {"start": "2020-08-03", "embedding": ()}
    thin = table(places, "early", factors=("surprise",), **days)
    thin.build(store, progress=False)
    wide = table(places, "early", factors=("surprise", "entropy_s1"), **days)
    wide.build(store, progress=False)
    assert len(store.ls()) == 2

    def load(**settings: object) -> pd.DataFrame:
        return loader(places, factors=tmp_path, group=None, **settings).load(UNIVERSE, "2020-08-03", END)

    pd.testing.assert_frame_equal(load(), wide.read(store), check_exact=True)
    pd.testing.assert_frame_equal(load(columns=["surprise"]), thin.read(store), check_exact=True)
    store.rm(thin.fingerprints[0])
    pd.testing.assert_frame_equal(load(columns=["surprise"]), wide.read(store)[["surprise"]], check_exact=True)
    assert list(thin.read(store).columns) == ["surprise"]

    thin.build(store, progress=False)  # in the wider one
    assert len(store.ls()) == 1
    path = next(tmp_path.glob("sources/*/months/2020-08.parquet"))
    kept = pq.read_table(path)
    shutil.copytree(path.parent.parent, tmp_path / "aside")
    store.rm(wide.fingerprints[0])
    thin.build(store, progress=False)
    shutil.copytree(tmp_path / "aside", tmp_path / "sources" / wide.fingerprints[0])
    keys = pa.array(kept["key"].to_numpy() + np.uint64(1))  # as if its bars had been others
    changed = kept.set_column(kept.column_names.index("key"), "key", keys)
    pq.write_table(changed, tmp_path / "sources" / wide.fingerprints[0] / "months" / "2020-08.parquet")
    with pytest.raises(ValueError, match="rows of the same settings from different bars"):
        load(columns=["surprise"])
    named = load(columns=["surprise"], sources=[thin.fingerprints[0]])
    pd.testing.assert_frame_equal(named, thin.read(store), check_exact=True)


@pytest.mark.usefixtures("qlib")
def test_a_source_of_fewer_columns_adds_its_weights_where_it_has_them(places: Path, tmp_path: Path) -> None:
    store = ForecastStore(tmp_path)
    days = {"embedding": (), "fit_end": FIT_END}
    both = table(places, *CARDS, factors=("surprise", "entropy_s1"), **days)
    both.build(store, progress=False)
    full = [found.fingerprint for found in store.ls() if found.weights == weights(places, "full")]
    store.rm(full[0])
    one = table(places, *CARDS, factors=("surprise",), **days)
    assert "2 columns" not in str(one.build(store, progress=False)[0].plans[0])  # nobody has these weights: its own
    # token factors name no horizon, so the loader is told the build's
    made = loader(places, factors=tmp_path, group=None, columns=["surprise"], horizon=2)
    pd.testing.assert_frame_equal(made.load(UNIVERSE, START, END), one.read(store), check_exact=True)
    with pytest.raises(ValueError, match="whole dates missing"):
        loader(places, factors=tmp_path, columns=["entropy_s1"]).load(UNIVERSE, START, END)


@pytest.mark.usefixtures("qlib")
def test_embeddings_of_several_weights_are_refused_or_aligned(places: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="component by component they mean different things"):
        loader(places, columns=["emb_*"]).load(UNIVERSE, START, END)
    with pytest.raises(ValueError, match="rows that both networks have read"):
        loader(places, columns=["emb_*"], align="procrustes").load(UNIVERSE, START, END)
    both = tmp_path / "both"
    shutil.copytree(places / "factors", both)
    table(places, "full", end=FIT_END).build(ForecastStore(both), progress=False)  # in-sample, to align by
    made = loader(places, factors=both, columns=["*"], align="procrustes", group=None)
    found = made.load(UNIVERSE, START, END)
    assert set(made.alignment) == {weights(places, "early"), weights(places, "late")}
    assert all(0 < figures["explained"] <= 1 for figures in made.alignment.values())
    names = [f"emb_{i:03d}" for i in range(32)]
    sources = [source.fingerprint for source in ForecastStore(both).ls() if source.weights == weights(places, "full")]
    basis = loader(places, factors=both, columns=["emb_*"], sources=sources, allow_in_sample=True, group=None)
    wanted = basis.load(UNIVERSE, START, END)
    late = found.index.get_level_values("datetime") > FIT_END
    carried = made.notes(UNIVERSE, START, END)["age"] != 0
    pd.testing.assert_frame_equal(found[names][late & ~carried], wanted[late & ~carried], check_exact=True)
    before = wanted[~late].dropna().index
    raw = _raw_embedding(places, both, names)
    error = {
        name: float(((frame.loc[before, names] - wanted.loc[before]) ** 2).sum().sum())
        for name, frame in (("aligned", found), ("raw", raw))
    }
    assert error["aligned"] < 0.6 * error["raw"]
    factors = loader(places).load(UNIVERSE, START, END)["feature"]
    pd.testing.assert_frame_equal(found[[*NAMES]], factors, check_exact=True)


def _raw_embedding(places: Path, store: Path, names: list[str]) -> pd.DataFrame:
    built = table(places, *CARDS, fit_end=FIT_END)
    return built.read(ForecastStore(store), names)


@pytest.mark.usefixtures("qlib")
def test_it_pickles_small_and_loads_again(places: Path) -> None:
    made = loader(places)
    found = made.load(UNIVERSE, "2020-08-03", END)
    dumped = pickle.dumps(made)
    assert len(dumped) < 2_000
    pd.testing.assert_frame_equal(pickle.loads(dumped).load(UNIVERSE, "2020-08-03", END), found, check_exact=True)
    assert np.isfinite(found.to_numpy()).any()
