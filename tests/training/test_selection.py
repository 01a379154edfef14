"""Which windows are chosen: dates, segments, names, and stretches that teach nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import corpus_of, daily_frame, intraday_frame

from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.augment import Augmentation
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.stagnant import StretchFilter, longest_run_within
from kronos_qlib.training.stream import WindowStream
from kronos_qlib.training.synthetic_data import TrainingWindows

OFF = StretchFilter.off()


@pytest.fixture
def one(tmp_path: Path) -> Corpus:
    """One instrument with 60 bars."""
    return corpus_of(tmp_path / "one", daily=daily_frame(codes=("SH600000",)))


def day(corpus: Corpus, row: int) -> pd.Timestamp:
    return pd.Timestamp(corpus.timestamps[row])


def test_bars_to_predict_lie_inside_the_span(one: Corpus) -> None:
    # windows of 5 + 2 bars whose last two lie at rows 10 … 14
    assert one.ends(5, 2, day(one, 10), day(one, 14)).tolist() == [11, 12, 13, 14]
    # the first window of all ends at row 6
    assert one.ends(5, 2, None, day(one, 7)).tolist() == [6, 7]
    assert one.ends(5, 2, day(one, 58)).tolist() == [59]
    assert one.ends(5, 0, day(one, 58)).tolist() == [58, 59]


def test_a_context_can_be_kept_from_reaching_back(one: Corpus) -> None:
    """Cross-fitting: weights of the later years may not see the earlier ones, not even as context."""
    start = day(one, 20)
    assert one.ends(5, 2, start)[0] == 21
    ends = one.ends(5, 2, start, earliest=start)
    assert ends[0] - 5 - 2 + 1 == 20
    assert ends.tolist() == list(range(26, 60))
    with pytest.raises(ValueError, match="to the last bar and no bar before 2019-"):
        one.ends(5, 2, earliest=str(day(one, 55).date()))


def test_windows_are_those_of_the_window_policy(one: Corpus) -> None:
    """The same ends and the same numbers as the windows of one panel, cut by ``market.windows``."""
    panel = BarPanel.from_frame(daily_frame(codes=("SH600000",)))
    windows = TrainingWindows.between(panel, WindowPolicy(lookback=9, min_bars=5), 3, day(one, 14), day(one, 50))
    ends = one.ends(9, 3, day(one, 14), day(one, 50), filters=OFF)
    np.testing.assert_array_equal(ends, windows.ends)
    stream = WindowStream(
        one, ends, lookback=9, horizon=3, batch_size=len(ends), seed=0, augmentation=Augmentation.off()
    )
    batch = stream.batch(0)
    x, stamps = windows.batch(np.searchsorted(ends, batch.rows))
    np.testing.assert_array_equal(batch.x, x)
    np.testing.assert_array_equal(batch.stamps, stamps)


def test_a_last_day_means_all_of_its_bars(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", slots=intraday_frame(48))  # three days of 16 bars
    days = sorted(set(corpus.timestamps.astype("datetime64[D]")))
    ends = corpus.ends(4, 2, str(days[1]), str(days[1]), filters=OFF)
    assert ends.tolist() == list(range(17, 32))
    noon = pd.Timestamp(days[1]) + pd.Timedelta("11:30:00")
    assert corpus.ends(4, 2, str(days[1]), noon, filters=OFF).tolist() == list(range(17, 24))


def test_no_window_leaves_its_segment(tmp_path: Path) -> None:
    frame = daily_frame(n_bars=150, codes=("SH600000", "SH600001"))
    gap = frame[(frame["instrument"] == "SH600000")].index[40:110]
    corpus = corpus_of(tmp_path / "corpus", daily=frame.drop(index=gap))
    ends = corpus.ends(8, 3, filters=OFF)
    # rows: 40 bars, 70 suspended sessions, 40 bars; then 150 bars of the other stock
    assert ends.tolist() == [*range(10, 40), *range(50, 80), *range(90, 230)]
    assert corpus.select(8, 3, filters=OFF).counts["segment"] == 30


def test_names_choose_instruments_and_sources(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", daily=daily_frame(), slots=intraday_frame())
    everywhere = corpus.ends(8, 2, codes=["SH600000"])
    assert {corpus.instruments[code] for code in corpus.code[everywhere]} == {"SH600000"}
    assert set(corpus.source[everywhere]) == {0, 1}
    assert set(corpus.source[corpus.ends(8, 2, sources=["slots"])]) == {1}
    every = corpus.ends(8, 2)
    parts = [corpus.ends(8, 2, sources=[name]) for name in corpus.source_names]
    np.testing.assert_array_equal(np.concatenate(parts), every)


def test_user_errors(one: Corpus) -> None:
    with pytest.raises(ValueError, match="nearest to 'SH60000' is 'SH600000'"):
        one.ends(5, 2, codes=["SH60000"])
    with pytest.raises(ValueError, match="list of names"):
        one.ends(5, 2, codes="SH600000")
    with pytest.raises(ValueError, match="codes: 0 of 0"):
        one.ends(5, 2, codes=[])
    with pytest.raises(ValueError, match=r"sources: 1 of 1 are not in the corpus: \['day'\].*'daily'"):
        one.ends(5, 2, sources=["day"])
    with pytest.raises(ValueError, match="found start='soon'; expected a date such as"):
        one.ends(5, 2, "soon")
    with pytest.raises(
        ValueError, match="found start=2020-01-01, earliest=None, end=2019-01-01; expected none after the end"
    ):
        one.ends(5, 2, "2020-01-01", "2019-01-01")
    with pytest.raises(ValueError, match="without a zone"):
        one.ends(5, 2, pd.Timestamp("2019-01-01", tz="UTC"))
    with pytest.raises(ValueError, match="no window of 7 bars has its last 2 bars from 2030-01-01 to the last bar"):
        one.ends(5, 2, "2030-01-01")
    with pytest.raises(ValueError, match=r"no window of 102 bars.*left out: segment 60"):
        one.ends(100, 2)
    with pytest.raises(ValueError, match="lookback >= 2"):
        one.ends(1, 2)
    with pytest.raises(ValueError, match="did you mean 'max_idle'"):
        StretchFilter(max_idel=3)  # type: ignore[call-arg]


def test_idle_stretches_are_left_out(tmp_path: Path) -> None:
    frame = daily_frame(codes=("SH600000",))
    frame.loc[20:22, "volume"] = 0.0  # three bars: allowed
    frame.loc[40:43, "amount"] = 0.0  # four: too many
    corpus = corpus_of(tmp_path / "corpus", daily=frame)
    selection = corpus.select(8, 2, filters=StretchFilter(max_idle=3))
    # a window of 10 bars holds all of 40 … 43 if it ends at 43 … 49
    assert selection.ends.tolist() == [*range(9, 43), *range(50, 60)]
    assert selection.counts == {"candidates": 60, "segment": 9, "dates": 0, "idle": 7, "unchanged": 0, "kept": 44}
    assert len(corpus.ends(8, 2, filters=OFF)) == 51
    # three bars in a row are now too many: windows that end at 22 … 29, and at 42 … 50
    assert corpus.select(8, 2, filters=StretchFilter(max_idle=2)).counts["idle"] == 8 + 9


def test_a_market_without_volume_is_not_idle(tmp_path: Path) -> None:
    frame = daily_frame(codes=("EURUSD",)).assign(volume=0.0, amount=0.0)
    corpus = corpus_of(tmp_path / "corpus", fx=frame, daily=daily_frame(codes=("SH600000",)))
    assert corpus.select(8, 2).counts["idle"] == 0


def test_stagnant_stretches_are_left_out(tmp_path: Path) -> None:
    frame = daily_frame(codes=("SH600000",))
    frame.loc[20:25, "close"] = frame.loc[20, "close"]  # five bars close where the one before closed
    corpus = corpus_of(tmp_path / "corpus", daily=frame)
    # the window must hold bars 20 … 25 to show five unchanged ones; it has 12 bars
    kept = corpus.ends(10, 2, filters=StretchFilter(max_unchanged=4))
    assert sorted(set(range(11, 60)) - set(kept)) == list(range(25, 32))
    assert corpus.select(10, 2, filters=StretchFilter(max_unchanged=5)).counts["unchanged"] == 0
    # a context of six bars that never moves has no scale, whatever the limit
    assert corpus.select(6, 2, filters=StretchFilter(max_unchanged=50)).counts["unchanged"] > 0


def test_young_listings_can_be_skipped(one: Corpus) -> None:
    assert one.ends(5, 2, filters=StretchFilter(min_history=20)).tolist() == list(range(19, 60))


def test_choice_depends_on_a_windows_own_bars(tmp_path: Path) -> None:
    """Whatever follows a window, it stays chosen or left out."""
    frame = daily_frame(codes=("SH600000",))
    frame.loc[38:50, "volume"] = 0.0
    frame.loc[38:50, "close"] = 10.0
    whole = corpus_of(tmp_path / "whole", daily=frame).ends(8, 2)
    part = corpus_of(tmp_path / "part", daily=frame[:41]).ends(8, 2)
    np.testing.assert_array_equal(whole[whole <= 40], part)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 6), st.integers(1, 12))
def test_runs_are_counted_inside_the_window_alone(flags: list[bool], limit: int, length: int) -> None:
    ends = np.arange(min(length, len(flags)) - 1, len(flags))
    firsts = ends - min(length, len(flags)) + 1
    expected = []
    for first, end in zip(firsts, ends, strict=True):
        text = "".join("x" if flag else " " for flag in flags[first : end + 1])
        expected.append(max(map(len, text.split(" "))) <= limit)
    assert longest_run_within(np.array(flags), firsts, ends, limit).tolist() == expected
