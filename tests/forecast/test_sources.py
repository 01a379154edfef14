"""Sources of factors: no column looks ahead or depends on its batch, and a data key changes exactly with the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from small_panel import instrument_bars, make_panel
from tiny_network import tiny_networks

from kronos_qlib.alpha.factors import FACTORS, compute_factors
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.sources import PathFactorSource, TokenFactorSource
from kronos_qlib.forecast.store_source import FactorSource, source_fingerprint
from kronos_qlib.forecast.token_factors import TOKEN_FACTORS
from kronos_qlib.kronos import normalise
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy

POLICY = WindowPolicy(lookback=40, min_bars=30)
BLOCK = 5
KINDS = ("path", "exact", "block")
EMBEDDING = ("last", "mean", "code")
WIDTH = 16 + 16 + 6
COLUMNS = {
    "path": tuple(FACTORS),
    "exact": (*TOKEN_FACTORS, *(f"emb_{i:03d}" for i in range(WIDTH))),
    "block": (*TOKEN_FACTORS, *(f"emb_{i:03d}" for i in range(WIDTH))),
}
EVERY_COLUMN = [(kind, name) for kind in KINDS for name in COLUMNS[kind]]
CUT = pd.Timestamp("2020-01-16")  # a Thursday: the future begins inside a block


@cache
def forecaster() -> KronosForecaster:
    networks = tiny_networks()
    return KronosForecaster(networks.model, networks.tokenizer, lookback=40, max_context=64, device="cpu")


def make_source(kind: str, panel: BarPanel, **options: object) -> FactorSource:
    if kind == "path":
        sampling = {"n_paths": 6, "seed": 3}
        return PathFactorSource(forecaster(), panel, policy=POLICY, horizon=6, sampling=sampling, **options)
    block = BLOCK if kind == "block" else 1
    return TokenFactorSource(forecaster(), panel, policy=POLICY, embedding=EMBEDDING, block=block, **options)


def frame_of(source: FactorSource, panel: BarPanel, rows: np.ndarray) -> pd.DataFrame:
    names = ["instrument", "datetime"]
    index = pd.MultiIndex.from_arrays([panel.instrument_names(rows), panel.timestamps[rows]], names=names)
    return pd.DataFrame(source.compute(rows), index=index, columns=list(source.columns))


def late_rows(panel: BarPanel) -> np.ndarray:
    return np.flatnonzero(panel.timestamps >= np.datetime64("2020-01-06"))


@cache
def whole(kind: str) -> pd.DataFrame:
    panel = make_panel()
    return frame_of(make_source(kind, panel), panel, late_rows(panel))


def altered(frame: pd.DataFrame) -> pd.DataFrame:
    later = frame.index > CUT
    changed = frame.copy()
    changed.loc[later, ["open", "high", "low", "close"]] *= np.linspace(1.02, 1.2, later.sum())[:, None]
    changed.loc[later, ["volume", "amount"]] *= 3
    return changed


def removed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame.index <= CUT]


@cache
def with_other_future(kind: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    panel = make_panel({code: change(frame) for code, frame in instrument_bars().items()})
    return frame_of(make_source(kind, panel), panel, late_rows(panel))


def test_columns_are_the_registries() -> None:
    for kind in KINDS:
        assert tuple(whole(kind).columns) == COLUMNS[kind]
    free = make_panel({f"US{code}": frame for code, frame in instrument_bars().items()})
    limits = [name for name, found in FACTORS.items() if found.needs_limit]
    # where no instrument has a price limit, factors about limits would be empty
    assert make_source("path", free, calendar="XSHG").columns == tuple(name for name in FACTORS if name not in limits)


@pytest.mark.parametrize("change", [altered, removed])
@pytest.mark.parametrize(("kind", "name"), EVERY_COLUMN)
def test_bars_after_t_leave_a_factor_dated_t_bit_identical(
    kind: str, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    original, other = whole(kind)[name], with_other_future(kind, change)[name]
    until = original[original.index.get_level_values("datetime") <= CUT]
    assert until.notna().sum() > 20
    np.testing.assert_array_equal(other[until.index].to_numpy(), until.to_numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_shows_after_t(kind: str) -> None:
    after = whole(kind).index.get_level_values("datetime") > CUT
    original, other = whole(kind)[after], with_other_future(kind, altered)[after]
    changed = (original != other) & original.notna()
    names = [name for name in COLUMNS[kind] if not name.startswith("emb_")]
    # a rare event may not occur among few paths of a random network
    assert changed[names].any().mean() > 0.9


@cache
def piecewise(kind: str) -> pd.DataFrame:
    """Rows one by one or in odd groups, backwards, the history cut at another place."""
    panel = make_panel({code: frame.iloc[-58:] for code, frame in instrument_bars().items()})
    source, rows = make_source(kind, panel), late_rows(panel)[::-1]
    return pd.concat([frame_of(source, panel, part) for part in np.split(rows, [1, 2, 5, 24])])


@pytest.mark.parametrize(("kind", "name"), EVERY_COLUMN)
def test_a_factor_does_not_depend_on_its_batch(kind: str, name: str) -> None:
    found = piecewise(kind)[name]
    np.testing.assert_array_equal(found.to_numpy(), whole(kind)[name][found.index].to_numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_nothing(kind: str) -> None:
    panel = make_panel()
    rows, before = late_rows(panel), torch.get_num_threads()
    try:
        torch.set_num_threads(3 if before != 3 else 2)
        found = make_source(kind, panel).compute(rows)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, whole(kind).to_numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_window_are_nan(kind: str) -> None:
    panel = make_panel()
    source = make_source(kind, panel)
    short = panel.locate("SH600003", ["2020-01-23"])
    rows = np.concatenate([short, [-1], late_rows(panel)[:1]])
    found = source.compute(rows)
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2]).any()
    assert found.dtype == np.float32
    keys = source.data_keys(rows)
    assert keys.dtype == np.uint64
    assert keys[:2].tolist() == [0, 0]
    assert keys[2] != 0
    assert source.compute(rows[:0]).shape == (0, len(source.columns))


@pytest.mark.parametrize("kind", KINDS)
def test_the_description_is_json_and_names_what_matters(kind: str) -> None:
    panel = make_panel()
    found = make_source(kind, panel).description
    assert json.loads(json.dumps(found)) == found
    assert found["weights"] == forecaster().fingerprint
    assert found["window_policy"] == POLICY.to_dict()
    assert all(value == {"version": 1} for value in found["factors"].values())
    if kind == "path":
        assert found["sampling"]["n_paths"] == 6
        assert found["horizon"] == 6
    else:
        assert found["block"] == (BLOCK if kind == "block" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_changes_with_the_bars_of_its_window_and_with_no_other(kind: str) -> None:
    frames = instrument_bars()
    panel = make_panel(frames)
    rows = late_rows(panel)
    keys = make_source(kind, panel).data_keys(rows)
    valid = np.flatnonzero(keys)
    assert len(np.unique(keys[valid])) == len(valid)
    changed = frames["SH600000"].copy()
    changed.loc["2020-01-10", "low"] *= 0.999
    other = make_panel(frames | {"SH600000": changed})
    moved = make_source(kind, other).data_keys(rows) != keys
    names, dates = np.array(panel.instrument_names(rows)), panel.timestamps[rows]
    np.testing.assert_array_equal(moved, (names == "SH600000") & (dates >= np.datetime64("2020-01-10")))
    # more history than any window needs, and other instruments, do not count
    fewer = {code: frame.iloc[-58:] for code, frame in frames.items() if code != "SZ000001"}
    small = make_panel(fewer)
    here = [small.locate(code, [date])[0] for code, date in zip(names, dates, strict=True) if code in fewer]
    np.testing.assert_array_equal(make_source(kind, small).data_keys(np.array(here)), keys[names != "SZ000001"])


def test_path_factors_are_those_of_the_forecast() -> None:
    panel = make_panel()
    rows = late_rows(panel)[:3]
    source = make_source("path", panel, factors=["expected_return", "probability_limit_up"])
    ((_, paths),) = forecaster().forecast_batches(
        panel, rows, policy=POLICY, horizon=6, sampling={"n_paths": 6, "seed": 3}, progress=False
    )
    expected = compute_factors(["expected_return", "probability_limit_up"], paths, limit_fraction=np.full(3, 0.1))
    np.testing.assert_array_equal(source.compute(rows), expected.astype(np.float32))


@torch.inference_mode()
def test_block_mode_is_the_network_run_once_over_window_and_block() -> None:
    panel = make_panel()
    source = make_source("block", panel)
    assert isinstance(source, TokenFactorSource)
    rows = panel.locate("SH600000", pd.DatetimeIndex(["2020-01-13", "2020-01-16"]))
    anchor = rows[0]  # a Monday
    index = np.arange(anchor - 39, rows[1] + 1)
    values = panel.values[index]
    _, center, scale = normalise(values[:40])
    x = torch.from_numpy(np.clip((values - center) / scale, -5, 5))[None]
    networks = tiny_networks()
    s1, s2 = networks.tokenizer.encode(x)
    stamps = np.array([[0, 0, t.weekday(), t.day, t.month] for t in pd.DatetimeIndex(panel.timestamps[index])])
    hidden = networks.model.hidden(s1, s2, torch.from_numpy(stamps)[None])
    found = frame_of(source, panel, rows)
    np.testing.assert_allclose(found.iloc[:, -WIDTH : -WIDTH + 16], hidden[0, [39, 42]].numpy(), rtol=1e-4, atol=1e-5)
    # on a block's first day, block and exact mode are the same window
    exact = whole("exact").loc[[found.index[0]]]
    np.testing.assert_allclose(found.iloc[[0]], exact, rtol=1e-3, atol=1e-5)
    assert not np.allclose(found.iloc[[1]], whole("exact").loc[[found.index[1]]], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_is_the_same_without_its_neighbours(kind: str) -> None:
    """A store reads a column from a source that has others beside it, so its bits must not depend on them."""
    panel = make_panel()
    rows = late_rows(panel)
    source = make_source(kind, panel)
    few, keys = rows[::12], source.data_keys(rows)
    named = source.description["factors"]
    # sampling knows no factors, and the next test has all of them
    for name in named if kind != "path" else ("expected_return", "skew", "probability_limit_up"):
        alone = source.widened([name], {"factors": {name: named[name]}, "embedding": []})
        assert alone.columns == (name,)
        found = alone.compute(few)[:, 0].view(np.uint32)
        np.testing.assert_array_equal(found, whole(kind)[name].to_numpy()[::12].view(np.uint32), err_msg=name)
        np.testing.assert_array_equal(alone.data_keys(few), keys[::12])


def test_a_path_factor_is_the_same_without_its_neighbours() -> None:
    panel = make_panel()
    rows = late_rows(panel)[::12]
    sampling = {"n_paths": 6, "seed": 3}
    for _, paths in forecaster().forecast_batches(panel, rows, policy=POLICY, horizon=6, sampling=sampling):
        limits = np.full(len(paths.values), 0.1)
        everything = compute_factors(tuple(FACTORS), paths, limit_fraction=limits)
        for number, name in enumerate(FACTORS):
            alone = compute_factors([name], paths, limit_fraction=limits)[:, 0]
            np.testing.assert_array_equal(alone.view(np.uint64), everything[:, number].view(np.uint64), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_widened_to_a_stored_one_is_that_one(kind: str) -> None:
    panel = make_panel()
    wide = make_source(kind, panel)
    name = "skew" if kind == "path" else "surprise"
    thin = wide.widened([name], {"factors": {name: {"version": 1}}, "embedding": []})
    assert source_fingerprint(thin) != source_fingerprint(wide)
    again = thin.widened(wide.columns, wide.description)
    assert source_fingerprint(again) == source_fingerprint(wide)
    assert thin.columns == (name,)
    np.testing.assert_array_equal(again.compute(late_rows(panel)[:4]), whole(kind).to_numpy()[:4])
    with pytest.raises(ValueError, match="did you mean"):
        thin.widened([f"{name}s"], {"factors": {f"{name}s": {"version": 1}}, "embedding": []})


@pytest.mark.parametrize("kind", ["exact", "block"])
def test_embeddings_are_the_same_without_what_follows(kind: str) -> None:
    panel = make_panel()
    block = BLOCK if kind == "block" else 1
    rows = late_rows(panel)[::12]
    for kinds, width in ((("last",), 16), (("last", "mean"), 32)):
        only = TokenFactorSource(forecaster(), panel, policy=POLICY, factors=(), embedding=kinds, block=block)
        names = [f"emb_{i:03d}" for i in range(width)]
        np.testing.assert_array_equal(only.compute(rows), whole(kind)[names].to_numpy()[::12])


def test_a_code_stands_alone() -> None:
    panel = make_panel()
    only = TokenFactorSource(forecaster(), panel, policy=POLICY, factors=(), embedding="code")
    assert only.columns == tuple(f"emb_{i:03d}" for i in range(6))
    assert set(np.unique(only.compute(late_rows(panel)[:5]))) == {-1.0, 1.0}


def test_averages_over_more_bars_than_a_window_predicts_are_nan() -> None:
    panel = make_panel()
    policy = WindowPolicy(lookback=15, min_bars=12)
    source = TokenFactorSource(forecaster(), panel, policy=policy)
    found = frame_of(source, panel, late_rows(panel)[:4])
    long = [factor.name for factor in TOKEN_FACTORS.values() if factor.bars > 14]
    assert long
    assert found[long].isna().all(axis=None)
    assert found.drop(columns=long).notna().all(axis=None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda panel: make_source("path", panel, factors=["skw"]), "did you mean 'skew'"),
        (lambda panel: make_source("exact", panel, factors=["surprize"]), "did you mean 'surprise'"),
        (lambda panel: TokenFactorSource(forecaster(), panel, embedding="las"), "did you mean 'last'"),
        (lambda panel: TokenFactorSource(forecaster(), panel, factors=()), "at least one column"),
        (lambda panel: TokenFactorSource(forecaster(), panel, block=30), "max_context=64; take a shorter lookback"),
        (lambda panel: TokenFactorSource(forecaster(), panel, policy=WindowPolicy(20, 1)), "at least 2"),
        (lambda panel: make_source("exact", panel).compute(np.array([10**6])), "rows outside the panel"),
    ],
)
def test_user_errors_say_what_to_do(make: Callable[[BarPanel], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(make_panel())
