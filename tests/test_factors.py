"""Factors of a universe, from the command line to Qlib's expressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_market import LONG_HALT, SHORT_HALT, UNIVERSE, start_qlib, write_tiny_checkpoint, write_tiny_store
from typer.testing import CliRunner

from kronos_qlib.cli import app
from kronos_qlib.dataset import KlineDataset
from kronos_qlib.factors import FactorSettings, FactorTable
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.store import ForecastStore
from kronos_qlib.handler import KlineHandler
from kronos_qlib.market.store import store_metadata

START, END = "2020-07-27", "2020-08-14"
LOOK = {"lookback": 32}
NAMES = ("expected_return", "terminal_return_1", "surprise")
CARD = {"lookback": 32, "max_context": 64}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qlib store and two checkpoints, of which one has seen what the other has not."""
    folder = tmp_path_factory.mktemp("factors")
    write_tiny_store(folder / "store")
    write_tiny_checkpoint(folder / "early", 0, train_start="2015-01-01", cutoff="2016-12-31", **CARD)
    write_tiny_checkpoint(folder / "late", 1, train_start="2020-06-15", cutoff="2020-08-05", **CARD)
    return folder


def options(places: Path, out: Path, *more: str) -> list[str]:
    return [
        "--store", str(places / "store"), "--out", str(out), "--checkpoint", str(places / "early"),
        "--start", START, "--end", END, "--factors", ",".join(NAMES), "--n-paths", "2", "--horizon", "2",
        "--block", "3", *more,
    ]  # fmt: skip


def invoke(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["factors", *arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


def table(places: Path, *checkpoints: str, **settings: object) -> FactorTable:
    start_qlib(places / "store")
    handler = KlineHandler(UNIVERSE, START, END, init_data=False)
    dataset = KlineDataset(handler, segments={"all": (START, END)}, **LOOK)
    chosen = FactorSettings(factors=NAMES, n_paths=2, horizon=2, block=3, **settings)
    forecasters = [KronosForecaster.from_pretrained(places / name, device="cpu") for name in checkpoints]
    return FactorTable(dataset, "all", forecasters, chosen)


def test_the_commands_build_verify_list_and_remove(places: Path, tmp_path: Path) -> None:
    out = tmp_path / "factors"
    first = invoke("build", *options(places, out))
    assert "the store has no source yet" in first
    again = invoke("build", *options(places, out))
    assert again.count("0 rows computed in") == 2
    assert "40 rows recomputed: 0 differ" in invoke("verify", *options(places, out), "--sample", "20")
    assert "sampling.seed: 0 -> 1" in invoke("build", *options(places, out, "--seed", "1"))
    listed = [line.split()[0] for line in invoke("ls", str(out)).splitlines() if not line.startswith(" ")]
    assert len(listed) == 3  # two of sampled paths, one of tokens
    assert "Removed" in invoke("rm", str(out), *listed[:2])
    assert len(ForecastStore(out).ls()) == 1


def test_two_processes_build_what_one_does(places: Path, tmp_path: Path) -> None:
    factors = table(places, "early")
    one, two = ForecastStore(tmp_path / "one"), ForecastStore(tmp_path / "two")
    factors.build(one, progress=False)
    group = factors.groups[0]
    report = two.build(group, factors.panel, jobs=2, batch_rows=20, progress=False)
    assert report.computed == len(factors.rows)
    names = list(group[0][0].columns)
    pd.testing.assert_frame_equal(two.read(), one.read(names, sources=report.fingerprints), check_exact=True)


def test_every_second_session_has_the_values_of_all_of_them(places: Path, tmp_path: Path) -> None:
    whole, thin = table(places, "early"), table(places, "early", every=2)
    sessions = whole.panel.calendar
    stores = ForecastStore(tmp_path / "whole"), ForecastStore(tmp_path / "thin")
    for factors, store in zip((whole, thin), stores, strict=True):
        factors.build(store, progress=False)
    expected, found = whole.read(stores[0]), thin.read(stores[1])
    days = found.index.unique("datetime")
    assert (sessions.get_indexer(days) % 2 == 0).all()
    assert len(days) == 8
    pd.testing.assert_frame_equal(found, expected[expected.index.get_level_values("datetime").isin(days)])
    assert "0 rows computed in" in str(thin.build(stores[0], progress=False)[0])
    with pytest.raises(ValueError, match="every=0"):
        FactorSettings(every=0)


def test_bfloat16_is_a_source_of_its_own(places: Path, tmp_path: Path) -> None:
    out = tmp_path / "factors"
    invoke("build", *options(places, out))
    assert "dtype: float32 -> bfloat16" in invoke("build", *options(places, out, "--dtype", "bfloat16"))
    assert "differ" in invoke("verify", *options(places, out, "--dtype", "bfloat16"), "--sample", "5")


def test_member_rows_carry_the_last_bar(places: Path, tmp_path: Path) -> None:
    factors = table(places, "early")
    store = ForecastStore(tmp_path / "factors")
    with pytest.raises(ValueError, match="no source"):
        factors.read(store)
    factors.build(store, progress=False)
    frame = factors.read(store, notes=True)
    assert list(frame.columns) == [*NAMES, "weights", "age"]
    assert (frame.dtypes[list(NAMES)] == np.float32).all()
    halted = frame.xs(SHORT_HALT[0], level="instrument").loc["2020-07-31":"2020-08-10"]
    assert halted["age"].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert halted["expected_return"].iloc[:6].nunique() == 1
    assert halted["expected_return"].iloc[6] != halted["expected_return"].iloc[5]
    assert set(frame["weights"]) == {KronosForecaster.from_pretrained(places / "early").fingerprint, ""}
    assert (frame["weights"] == "").equals(frame["expected_return"].isna())
    pd.testing.assert_frame_equal(factors.read(store, ["surprise"]), frame[["surprise"]])


def test_each_row_gets_weights_that_have_not_seen_it(places: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_in_sample"):
        table(places, "late", fit_end="2020-12-31")
    factors = table(places, "early", "late")  # nothing is fitted: the latest cutoff before the row
    store = ForecastStore(tmp_path / "factors")
    factors.build(store, progress=False)
    frame = factors.read(store, notes=True)
    frame = frame[frame["age"] == 0]
    by_day = frame.groupby("datetime")["weights"].agg(["nunique", "first"])
    assert (by_day["nunique"] == 1).all()
    early, late = (KronosForecaster.from_pretrained(places / name).fingerprint for name in ("early", "late"))
    assert (by_day["first"] == np.where(by_day.index <= "2020-08-05", early, late)).all()
    assert len(store.ls()) == 4
    factors.refuse_mixed_embeddings()  # there are none
    table(places, "late", embedding=("last",)).refuse_mixed_embeddings()
    with pytest.raises(ValueError, match="embeddings from 2 sets of weights"):
        table(places, "early", "late", embedding=("last",)).refuse_mixed_embeddings()
    assert table(places, "early", "late", fit_end="2020-12-31").fingerprints == table(places, "early").fingerprints


def test_rows_that_all_weights_have_seen_are_left_out_where_asked(places: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--leave-out"):
        table(places, "late", fit_end="2020-08-10")
    factors = table(places, "early", "late", fit_end="2020-12-31", leave_out=True)
    assert factors.fingerprints == table(places, "early").fingerprints  # early has seen none of these rows
    thin = table(places, "late", fit_end="2020-08-10", leave_out=True)
    store = ForecastStore(tmp_path / "factors")
    thin.build(store, progress=False)
    frame = thin.read(store, notes=True)
    answered = frame[frame["weights"] != ""].index.get_level_values("datetime")
    assert f"{answered.min():%Y-%m-%d}" == "2020-08-11"  # the cutoff is before fit_end, and so are the windows
    assert frame.loc[:"2020-08-10", list(NAMES)].isna().all().all()


def test_rows_are_purged_by_what_the_label_reaches(places: Path) -> None:
    """Weights that begin on 2020-06-15 have seen the label of 2020-06-10 when it reaches three sessions, not two."""
    write_tiny_checkpoint(places / "begun", 2, train_start="2020-06-15", cutoff="2020-12-31", **CARD)
    start_qlib(places / "store")
    handler = KlineHandler(UNIVERSE, "2020-06-10", "2020-06-10", init_data=False)
    dataset = KlineDataset(handler, segments={"all": ("2020-06-10", "2020-06-10")}, **LOOK)
    forecasters = [KronosForecaster.from_pretrained(places / "begun", device="cpu")]
    settings = {"factors": NAMES, "n_paths": 2, "horizon": 2, "fit_end": "2020-12-31"}
    assert FactorTable(dataset, "all", forecasters, FactorSettings(**settings, label_horizon=1)).fingerprints
    with pytest.raises(ValueError, match="allow_in_sample"):
        FactorTable(dataset, "all", forecasters, FactorSettings(**settings, label_horizon=3))


def test_fields_are_features_of_the_qlib_store(places: Path, tmp_path: Path) -> None:
    from qlib.data import D

    store = write_tiny_store(tmp_path / "store")
    told = invoke("build", *options(places, tmp_path / "factors", "--store", str(store), "--fields"))
    assert "Wrote 3 fields" in told
    factors = table(places, "early").read(ForecastStore(tmp_path / "factors"))
    start_qlib(store)
    pair = "Corr($kronos_surprise, $close, 3)"  # Qlib lays both side by side without aligning them
    expressions = ["$kronos_expected_return", "Mean($kronos_surprise, 3)", "$close", pair]
    frame = D.features(["SH600002", SHORT_HALT[0], LONG_HALT[0]], expressions, START, END)
    found = frame["$kronos_expected_return"].swaplevel().sort_index()
    wanted = factors["expected_return"].reindex(found.index)
    np.testing.assert_array_equal(found.to_numpy(dtype=np.float32), wanted.to_numpy())
    one = factors["surprise"].xs("SH600002", level="instrument")
    mean = frame.loc["SH600002"]["Mean($kronos_surprise, 3)"]
    np.testing.assert_allclose(mean.to_numpy(), one.rolling(3, min_periods=1).mean().to_numpy(), rtol=1e-5)
    close = frame.loc["SH600002"]["$close"]
    wanted = one.astype(float).set_axis(close.index).rolling(3, min_periods=1).corr(close.astype(float))
    np.testing.assert_allclose(frame.loc["SH600002"][pair].to_numpy()[2:], wanted.to_numpy()[2:], rtol=1e-3, atol=1e-3)
    before = (store / "features" / "sh600002" / "close.day.bin").read_bytes()
    invoke("build", *options(places, tmp_path / "factors", "--store", str(store), "--fields"))
    assert (store / "features" / "sh600002" / "close.day.bin").read_bytes() == before


def test_a_few_factors_after_a_build_of_all_are_read_from_it(places: Path, tmp_path: Path) -> None:
    """Neither --fields with two of them nor a build without --embedding computes a window again."""
    from qlib.data import D

    store, out = write_tiny_store(tmp_path / "store"), tmp_path / "factors"

    def arguments(*more: str) -> list[str]:
        given = options(places, out, "--store", str(store), *more)
        given[given.index("--factors") + 1] = "default"  # an option given again below wins
        return given

    invoke("build", *arguments("--embedding", "last"))
    wide = [source.fingerprint for source in ForecastStore(out).ls()]
    assert len(wide) == 2
    told = invoke("build", *arguments("--factors", "expected_return,surprise", "--fields"))
    assert told.count("0 rows computed in") == 2
    assert "in the store (1 of its 52 columns wanted)" in told
    assert "Wrote 2 fields" in told
    assert "0 rows computed in" in invoke("build", *arguments())  # all factors, no embedding
    assert "0 differ" in invoke("verify", *arguments("--factors", "surprise,expected_return", "--sample", "10"))
    assert [source.fingerprint for source in ForecastStore(out).ls()] == wide

    chosen = table(places, "early")
    found, alone = chosen.read(ForecastStore(out)), ForecastStore(tmp_path / "alone")
    assert set(chosen.served_by(ForecastStore(out))) == set(wide)
    chosen.build(alone, progress=False)
    pd.testing.assert_frame_equal(found, chosen.read(alone), check_exact=True)
    start_qlib(store)
    field = D.features(["SH600002"], ["$kronos_expected_return"], START, END)["$kronos_expected_return"]
    wanted = found["expected_return"].xs("SH600002", level="instrument")
    np.testing.assert_array_equal(field.to_numpy(dtype=np.float32), wanted.to_numpy())
    noted = store_metadata(store)["columns"]
    assert set(noted) == {"kronos_expected_return", "kronos_surprise"}
    assert set(noted["kronos_surprise"]["sources"]) == set(wide)


def test_fields_of_rows_that_their_weights_have_seen_are_refused(places: Path, tmp_path: Path) -> None:
    """Nothing marks a field: a learner would take what the weights remember for a forecast."""
    from qlib.data import D

    store, out = write_tiny_store(tmp_path / "store"), tmp_path / "factors"
    seen = options(places, out, "--store", str(store), "--fields")
    seen[seen.index(str(places / "early"))] = str(places / "late")  # its cutoff is 2020-08-05
    before = sorted(path.name for path in (store / "features" / "sh600002").iterdir())
    with pytest.raises(ValueError, match="dated 2020-07-27 to 2020-08-05, have factors from weights that have seen"):
        CliRunner().invoke(app, ["factors", "build", *seen], catch_exceptions=False)
    assert not out.exists()
    assert sorted(path.name for path in (store / "features" / "sh600002").iterdir()) == before

    assert "Wrote 3 fields" in invoke("build", *seen, "--leave-out")
    start_qlib(store)
    field = D.features(["SH600002"], ["$kronos_surprise"], START, END).droplevel("instrument").iloc[:, 0]
    assert field[:"2020-08-05"].isna().all()
    assert field["2020-08-06":].notna().all()
    assert "Wrote 3 fields" in invoke("build", *seen, "--allow-in-sample")
    start_qlib(store)
    assert D.features(["SH600002"], ["$kronos_surprise"], START, END).notna().all().all()


def test_cross_fitting_covers_fields_and_an_unknown_cutoff_does_not(places: Path) -> None:
    table(places, "early", "late").refuse_in_sample()
    table(places, "early", "late", fit_end="2020-12-31").refuse_in_sample()
    table(places, "late", fit_end="2020-08-10", leave_out=True).refuse_in_sample()
    with pytest.raises(ValueError, match="--allow-in-sample"):
        table(places, "late", fit_end="2020-12-31", allow_in_sample=True).refuse_in_sample()
    write_tiny_checkpoint(places / "undated", 3, **CARD)
    with pytest.raises(ValueError, match="whose card names no cutoff"):
        table(places, "undated").refuse_in_sample()


def test_unknown_factors_are_refused_with_the_nearest(places: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'surprise'"):
        FactorSettings(factors=("suprise",))
