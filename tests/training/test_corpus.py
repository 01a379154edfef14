"""The corpus: what is on disk is what the panels held, whole or not at all, and reused while it agrees."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_corpus import POLICY, corpus_of, daily_frame, intraday_frame

from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.market.store import write_store
from kronos_qlib.market.windows import WindowPolicy, segment_starts
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.corpus_sources import BarFiles, StoreSource


def inodes(folder: Path) -> dict[str, int]:
    """Identity of each file: a rebuilt corpus has new ones."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_arrays_are_those_of_the_panels_and_are_mapped(tmp_path: Path) -> None:
    daily, intraday = (BarPanel.from_frame(frame) for frame in (daily_frame(), intraday_frame()))
    corpus = Corpus.from_panels(tmp_path / "corpus", {"daily": daily, "15min": intraday}, POLICY)
    assert len(corpus) == len(daily) + len(intraday)
    assert corpus.source_names == ("daily", "15min")
    for number, (panel, begin) in enumerate([(daily, 0), (intraday, len(daily))]):
        here = slice(begin, begin + len(panel))
        np.testing.assert_array_equal(corpus.values[here], panel.values)
        np.testing.assert_array_equal(corpus.timestamps[here], panel.timestamps)
        np.testing.assert_array_equal(corpus.stamps[here], time_stamps(panel.timestamps))
        np.testing.assert_array_equal(corpus.segment[here], segment_starts(panel, POLICY) + begin)
        assert [corpus.instruments[code] for code in corpus.code[here]] == panel.instrument_names(np.arange(len(panel)))
        assert set(corpus.source[here]) == {number}
    assert corpus.instruments == ("SH600000", "SH600001", "SZ000001", "SH600000")
    assert all(isinstance(getattr(corpus, name), np.memmap) for name in ("values", "stamps", "segment", "timestamps"))


def test_policies_may_differ_by_source(tmp_path: Path) -> None:
    frame = daily_frame(codes=("SH600000",))
    frame.loc[30:, ["open", "high", "low", "close"]] *= 2
    panel = BarPanel.from_frame(frame)
    policies = {"limits": WindowPolicy(), "free": WindowPolicy(max_jump=None)}
    corpus = Corpus.from_panels(tmp_path / "corpus", {"limits": panel, "free": panel}, policies)
    assert sorted(set(corpus.segment)) == [0, 30, 60]
    with pytest.raises(ValueError, match="expected one for each of"):
        Corpus.from_panels(tmp_path / "corpus", {"free": panel}, policies)


def test_a_folder_that_agrees_is_reused_and_another_is_rebuilt(tmp_path: Path) -> None:
    frame = daily_frame()
    first = corpus_of(tmp_path / "corpus", daily=frame)
    before = inodes(tmp_path / "corpus")
    assert corpus_of(tmp_path / "corpus", daily=frame).fingerprint == first.fingerprint
    assert inodes(tmp_path / "corpus") == before
    frame.loc[7, "volume"] += 1
    changed = corpus_of(tmp_path / "corpus", daily=frame)
    assert changed.fingerprint != first.fingerprint
    assert changed.values[7, 4] == np.float32(frame.loc[7, "volume"])
    panel = BarPanel.from_frame(frame)
    other_gap = Corpus.from_panels(tmp_path / "corpus", {"daily": panel}, WindowPolicy(max_gap=1, max_jump=None))
    assert other_gap.fingerprint != changed.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_the_order_of_sources_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    a = corpus_of(tmp_path / "a", one=daily_frame(30), two=daily_frame(40))
    b = corpus_of(tmp_path / "b", two=daily_frame(40), one=daily_frame(30))
    assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize("damage", ["truncate", "missing", "meta"])
def test_a_damaged_corpus_is_refused_and_built_anew(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "corpus"
    good = corpus_of(folder, daily=daily_frame())
    expected = np.array(good.values)
    if damage == "truncate":
        os.truncate(folder / "values.npy", 900)
    elif damage == "missing":
        (folder / "segment.npy").unlink()
    else:
        (folder / "meta.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="build"):
        Corpus.open(folder)
    np.testing.assert_array_equal(corpus_of(folder, daily=daily_frame()).values, expected)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("thesis", encoding="utf-8")
    with pytest.raises(ValueError, match="left alone"):
        corpus_of(tmp_path, daily=daily_frame())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_build_leaves_the_old_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "corpus"
    old = corpus_of(folder, daily=daily_frame(30)).fingerprint
    save, saved = np.save, []

    def fail_later(path: Path, array: np.ndarray) -> None:
        saved.append(path)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        save(path, array)

    monkeypatch.setattr(np, "save", fail_later)
    with pytest.raises(OSError, match="what stood there before is untouched"):
        corpus_of(folder, daily=daily_frame(40))
    assert Corpus.open(folder).fingerprint == old
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_vendor_files_are_adjusted_and_indices_are_left_out(tmp_path: Path) -> None:
    frame = daily_frame(codes=("SH000300", "SH600000", "SZ399001"))
    frame["factor"] = np.where(frame.index % 60 < 30, 1.0, 2.0)
    frame.loc[len(frame)] = frame.iloc[-1].to_dict() | {"datetime": pd.Timestamp("2019-12-02"), "close": np.nan}
    file = tmp_path / "bars.parquet"
    frame.to_parquet(file)
    corpus = Corpus.from_bars(tmp_path / "corpus", file)
    stock = frame[frame["instrument"] == "SH600000"]
    assert corpus.instruments == ("SH600000",)
    np.testing.assert_allclose(corpus.values[:, 3], stock["close"] * stock["factor"], rtol=1e-6)
    np.testing.assert_allclose(corpus.values[:, 4], stock["volume"] / stock["factor"], rtol=1e-6)
    np.testing.assert_allclose(corpus.values[:, 5], stock["amount"], rtol=1e-6)
    before = inodes(tmp_path / "corpus")
    Corpus.from_bars(tmp_path / "corpus", [str(file)])
    assert inodes(tmp_path / "corpus") == before
    frame[frame["instrument"] != "SH600000"].to_parquet(file)
    with pytest.raises(ValueError, match="no index"):
        Corpus.from_bars(tmp_path / "corpus", file)
    with pytest.raises(ValueError, match="no such file"):
        Corpus.from_bars(tmp_path / "corpus", tmp_path / "absent.parquet")


def test_gaps_are_counted_in_the_markets_own_sessions(tmp_path: Path) -> None:
    """One stock suspended for 30 sessions: no other stock shows that they took place, the calendar does."""
    frame = daily_frame(n_bars=100, codes=("SH600000",)).drop(index=range(40, 70))
    frame.to_csv(tmp_path / "bars.csv", index=False)
    policy = WindowPolicy(max_gap=29, max_jump=None)
    corpus = Corpus.from_bars(tmp_path / "a", tmp_path / "bars.csv", policy=policy)
    assert sorted(set(corpus.segment)) == [0, 40]
    without = Corpus.from_bars(tmp_path / "b", tmp_path / "bars.csv", calendar=None, policy=policy)
    assert sorted(set(without.segment)) == [0]


def test_daily_and_intraday_stores_in_one_corpus(tmp_path: Path) -> None:
    write_store(daily_frame(), tmp_path / "day", calendar="XSHG")
    write_store(intraday_frame(), tmp_path / "slots", calendar="XSHG", freq="15min")
    sources = {"day": StoreSource(tmp_path / "day"), "15min": StoreSource(tmp_path / "slots", freq="15min")}
    corpus = Corpus.build(tmp_path / "corpus", sources, POLICY)
    direct = corpus_of(tmp_path / "direct", day=daily_frame(), slots=intraday_frame())
    np.testing.assert_array_equal(corpus.values, direct.values)
    np.testing.assert_array_equal(corpus.stamps, direct.stamps)
    np.testing.assert_array_equal(corpus.segment, direct.segment)
    before = inodes(tmp_path / "corpus")
    Corpus.build(tmp_path / "corpus", sources, POLICY)
    assert inodes(tmp_path / "corpus") == before
    write_store(daily_frame(50), tmp_path / "day", calendar="XSHG")
    assert len(Corpus.build(tmp_path / "corpus", sources, POLICY)) == len(corpus) - 30


def test_a_worker_gets_the_folder_and_not_the_arrays(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", daily=daily_frame())
    sent = pickle.dumps(corpus)
    assert len(sent) < 1_000
    np.testing.assert_array_equal(pickle.loads(sent).values, corpus.values)


def test_user_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Corpus.build(tmp_path / "corpus", {})
    with pytest.raises(ValueError, match="holds no corpus"):
        Corpus.open(tmp_path / "absent")
    corpus = corpus_of(tmp_path / "corpus", daily=daily_frame())
    meta = json.loads((corpus.folder / "meta.json").read_text(encoding="utf-8"))
    (corpus.folder / "meta.json").write_text(json.dumps(meta | {"version": 0}), encoding="utf-8")
    with pytest.raises(ValueError, match="version 0; expected 1"):
        Corpus.open(corpus.folder)


@pytest.mark.slow
def test_all_listed_stocks_in_well_under_a_minute(tmp_path: Path, shared_file: Callable[[str], Path]) -> None:
    corpus = Corpus.from_bars(tmp_path / "corpus", shared_file("market/ashare_pretrain.parquet"))
    assert len(corpus) == 5_674_662
    selection = corpus.select(90, 16, "2000-01-01", "2014-12-31")
    assert sum(selection.counts.values()) == 2 * selection.counts["candidates"]
    assert len(selection) > 5_000_000


def test_real_15_minute_bars(tmp_path: Path, shared_file: Callable[[str], Path]) -> None:
    source = BarFiles(shared_file("market/ashare_15min.parquet"), freq="15min")
    corpus = Corpus.build(tmp_path / "corpus", {"15min": source})
    assert len(corpus) == 768_000
    counts = corpus.select(90, 16).counts
    assert counts["idle"] > 0  # halts within the day
    assert counts["unchanged"] > 0  # days locked at the limit
    assert counts["kept"] > 0.9 * counts["candidates"]
