"""Batches as a function of the step: order, statistics, ranks, workers, augmentation."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpus import corpus_of, daily_frame, intraday_frame

from kronos_qlib.kronos import normalise
from kronos_qlib.market.stamps import time_stamps
from kronos_qlib.training.augment import Augmentation
from kronos_qlib.training.corpus import Corpus
from kronos_qlib.training.stream import TrainingBatch, WindowStream, batches

LOOKBACK, HORIZON = 12, 3
PLAIN = Augmentation.off()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """135 daily windows (three stocks) and 50 of 15 minutes."""
    return corpus_of(tmp_path_factory.mktemp("stream") / "corpus", daily=daily_frame(), slots=intraday_frame())


def make(corpus: Corpus, batch_size: int = 8, seed: int = 3, **settings: object) -> WindowStream:
    ends = settings.pop("ends", None)
    if ends is None:
        ends = corpus.ends(LOOKBACK, HORIZON)
    chosen = {"augmentation": PLAIN, **settings}
    return WindowStream(
        corpus,
        ends,
        lookback=LOOKBACK,
        horizon=HORIZON,
        batch_size=batch_size,
        seed=seed,
        **chosen,  # type: ignore[arg-type]
    )


def assert_equal(found: TrainingBatch, expected: TrainingBatch) -> None:
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.stamps, expected.stamps)
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert found.context == expected.context


def joined(parts: Sequence[TrainingBatch]) -> TrainingBatch:
    return TrainingBatch(
        torch.cat([part.x for part in parts]),
        torch.cat([part.stamps for part in parts]),
        np.concatenate([part.rows for part in parts]),
        parts[0].context,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 185), st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 50))
def test_every_window_once_a_pass_and_every_batch_full(
    corpus: Corpus, windows: int, batch_size: int, seed: int, pass_: int
) -> None:
    ends = corpus.ends(LOOKBACK, HORIZON)[:windows]
    stream = make(corpus, batch_size, seed, ends=ends)
    first = pass_ * windows // batch_size
    last = -(-(pass_ + 1) * windows // batch_size)
    rows = np.concatenate([stream.rows(step) for step in range(first, last)])
    assert len(rows) == (last - first) * batch_size
    begin = pass_ * windows - first * batch_size
    assert sorted(rows[begin : begin + windows]) == ends.tolist()


def test_passes_and_seeds_have_their_own_order(corpus: Corpus) -> None:
    n = len(corpus.ends(LOOKBACK, HORIZON))
    stream = make(corpus, batch_size=n)
    orders = [tuple(stream.rows(pass_)) for pass_ in range(5)] + [tuple(make(corpus, n, seed=4).rows(0))]
    assert len(set(orders)) == 6


def test_a_batch_needs_no_earlier_batch(corpus: Corpus) -> None:
    """Resuming at step 1000 gives what an uninterrupted run gives."""
    everything = Augmentation(mask_volume=0.3, short_context=0.5, min_bars=4, shift_time=0.5)
    uninterrupted = make(corpus, augmentation=everything)
    for step in range(1000):
        uninterrupted.rows(step)
    assert_equal(make(corpus, augmentation=everything).batch(1000), uninterrupted.batch(1000))
    resumed = list(batches(make(corpus, augmentation=everything), 5, 8))
    for step, batch in enumerate(resumed, start=5):
        assert_equal(batch, uninterrupted.batch(step))


def test_content_is_what_the_corpus_holds(corpus: Corpus) -> None:
    batch = make(corpus).batch(2)
    assert batch.x.shape == (8, LOOKBACK + HORIZON, 6)
    assert batch.stamps.shape == (8, LOOKBACK + HORIZON, 5)
    assert (batch.x.dtype, batch.stamps.dtype) == (torch.float32, torch.int64)
    for place, end in enumerate(batch.rows):
        window = slice(end - LOOKBACK - HORIZON + 1, end + 1)
        context, center, scale = normalise(corpus.values[window][:LOOKBACK])
        np.testing.assert_array_equal(batch.x[place, :LOOKBACK], context)
        future = np.clip((corpus.values[window][LOOKBACK:] - center) / scale, -5, 5)
        np.testing.assert_array_equal(batch.x[place, LOOKBACK:], future)
        np.testing.assert_array_equal(batch.stamps[place], time_stamps(corpus.timestamps[window]))


def test_trap_5_bars_to_predict_move_no_statistic_and_later_bars_nothing(tmp_path: Path) -> None:
    frame = daily_frame(codes=("SH600000",))
    prices = ["open", "high", "low", "close", "volume", "amount"]
    future, later = frame.copy(), frame.copy()
    future.loc[27:29, prices] *= 1.3  # the last three bars of the window that ends at row 29
    later.loc[30:, prices] *= 1.3
    found = []
    for name, bars in {"as it was": frame, "future": future, "later": later}.items():
        one = corpus_of(tmp_path / name, daily=bars)
        found.append(make(one, batch_size=1, ends=[29]).batch(0).x[0])
    assert torch.equal(found[1][:LOOKBACK], found[0][:LOOKBACK])
    assert not torch.equal(found[1][LOOKBACK:], found[0][LOOKBACK:])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_ranks_hold_contiguous_parts_of_the_batch(corpus: Corpus, world: int) -> None:
    stream = make(corpus, augmentation=Augmentation(mask_volume=0.3, short_context=0.5, min_bars=4, shift_time=0.5))
    for step in (0, 22, 23, 24):  # the first pass ends inside step 23
        parts = [stream.batch(step, rank, world) for rank in range(world)]
        assert_equal(joined(parts), stream.batch(step))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_is_the_same_for_any_number_of_workers(corpus: Corpus, workers: int) -> None:
    stream = make(corpus, augmentation=Augmentation(mask_volume=0.3, short_context=0.5, min_bars=4, shift_time=0.5))
    torch.manual_seed(0)
    expected = [stream.batch(step, 1, 2) for step in range(3, 13)]
    state = torch.get_rng_state()
    found = list(batches(stream, 3, 13, rank=1, world=2, workers=workers))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_survives_the_way_to_a_spawned_worker(corpus: Corpus) -> None:
    stream = make(corpus)
    assert_equal(pickle.loads(pickle.dumps(stream)).batch(4), stream.batch(4))


def test_about_5_percent_of_windows_lose_their_volume_and_the_same_ones_again(corpus: Corpus) -> None:
    stream = make(corpus, batch_size=100, augmentation=None)
    shares = []
    for step in range(200):
        batch = stream.batch(step)
        masked = (batch.x[:, :, 4:] == 0).all(dim=2).all(dim=1)
        shares.append(masked.float().mean().item())
        if step % 50 == 0:
            assert_equal(stream.batch(step), batch)
            plain = make(corpus, batch_size=100).batch(step)
            assert torch.equal(batch.x[..., :4], plain.x[..., :4])
            assert torch.equal(batch.x[~masked], plain.x[~masked])
    # 20 000 draws: the standard error is 0.15 %
    assert np.mean(shares) == pytest.approx(0.05, abs=0.007)


def test_a_masked_window_is_that_of_a_market_without_volume(tmp_path: Path) -> None:
    frame = daily_frame(codes=("SH600000",))
    silent = corpus_of(tmp_path / "silent", daily=frame.assign(volume=0.0, amount=0.0))
    loud = corpus_of(tmp_path / "loud", daily=frame)
    masked = make(loud, augmentation=Augmentation(mask_volume=1.0))
    assert_equal(masked.batch(0), make(silent, ends=masked.ends).batch(0))


def test_short_contexts_keep_the_bars_to_predict(corpus: Corpus) -> None:
    plain = make(corpus)
    stream = make(corpus, augmentation=Augmentation(mask_volume=0, short_context=0.5, min_bars=5))
    lengths = []
    for step in range(300):
        batch = stream.batch(step)
        lengths.append(batch.context)
        assert batch.x.shape[1] == batch.context + HORIZON
        if step < 20:
            whole = plain.batch(step)
            np.testing.assert_array_equal(batch.rows, whole.rows)
            assert torch.equal(batch.stamps[:, batch.context :], whole.stamps[:, LOOKBACK:])
            window = corpus.values[batch.rows[0] - HORIZON - batch.context + 1 : batch.rows[0] - HORIZON + 1]
            np.testing.assert_array_equal(batch.x[0, : batch.context], normalise(window)[0])
    assert set(lengths) == set(range(5, LOOKBACK + 1))
    # half of the batches, and an eighth of those is drawn at full length
    assert np.mean(np.array(lengths) < LOOKBACK) == pytest.approx(0.5 * 7 / 8, abs=0.09)


def test_time_shifts_keep_weekdays_and_hours(corpus: Corpus) -> None:
    stream = make(corpus, batch_size=100, augmentation=Augmentation(mask_volume=0, shift_time=0.4, max_shift=3))
    moves, shares = set(), []
    for step in range(20):
        batch, plain = stream.batch(step), make(corpus, batch_size=100).batch(step)
        assert torch.equal(batch.x, plain.x)
        assert torch.equal(batch.stamps[..., :3], plain.stamps[..., :3])
        changed = (batch.stamps != plain.stamps).flatten(1).any(dim=1)
        shares.append(changed.float().mean().item())
        for place in np.flatnonzero(changed):
            times = pd.DatetimeIndex(
                corpus.timestamps[batch.rows[place] - LOOKBACK - HORIZON + 1 :][: LOOKBACK + HORIZON]
            )
            fitting = [
                weeks
                for weeks in (-3, -2, -1, 1, 2, 3)
                if np.array_equal(time_stamps(times + pd.Timedelta(weeks=weeks)), batch.stamps[place])
            ]
            assert len(fitting) == 1
            moves.update(fitting)
    assert moves == {-3, -2, -1, 1, 2, 3}
    assert np.mean(shares) == pytest.approx(0.4, abs=0.05)


def test_weights_mix_frequencies(corpus: Corpus) -> None:
    stream = make(corpus, batch_size=10, weights={"daily": 1.0, "slots": 4.0})
    rows = np.stack([stream.rows(step) for step in range(60)])
    sources = corpus.source[rows]
    # every batch has two daily windows and eight of 15 minutes
    assert set((sources == 0).sum(axis=1)) == {2}
    for number in (0, 1):
        drawn = rows[sources == number]
        windows = stream.ends[corpus.source[stream.ends] == number]
        for begin in range(0, len(drawn) - len(windows) + 1, len(windows)):
            assert sorted(drawn[begin : begin + len(windows)]) == windows.tolist()
    parts = np.concatenate([stream.rows(7, rank, 2) for rank in range(2)])
    np.testing.assert_array_equal(parts, stream.rows(7))


def test_user_errors(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="expected at least one window"):
        make(corpus, ends=np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match="fewer than lookback"):
        make(corpus, ends=[61])
    with pytest.raises(ValueError, match="occur twice"):
        make(corpus, ends=[20, 20])
    with pytest.raises(ValueError, match="window ends from -1"):
        make(corpus, ends=[-1])
    with pytest.raises(ValueError, match="batch_size=0"):
        make(corpus, batch_size=0)
    with pytest.raises(ValueError, match="min_bars=13 above lookback=12"):
        make(corpus, augmentation=Augmentation(short_context=0.1, min_bars=13))
    with pytest.raises(ValueError, match="did you mean 'mask_volume'"):
        Augmentation(mask_volumes=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="multiple of 3"):
        make(corpus).batch(0, 0, 3)
    with pytest.raises(ValueError, match="expected step >= 0"):
        make(corpus).batch(-1)
    with pytest.raises(ValueError, match="first_step=5"):
        next(batches(make(corpus), 5, 4))
    with pytest.raises(ValueError, match="weights: unknown key 'slot'"):
        make(corpus, weights={"slot": 1.0})
    with pytest.raises(ValueError, match="windows of \\['daily', 'slots'\\]"):
        make(corpus, weights={"slots": 1.0})
    assert not list(batches(make(corpus), 4, 4, workers=2))
