"""Labels of whole dates: normalised within the date, purged at the end of a span, batched without a split date."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.training.alpha_data import HeadData, normalise_labels, purged

DAYS = pd.date_range("2020-01-01", periods=6, freq="D")


def labels(counts: tuple[int, ...] = (4, 3, 5, 2, 4, 3), seed: int = 0) -> pd.Series:
    pairs = [(day, f"S{i}") for day, count in zip(DAYS, counts, strict=True) for i in range(count)]
    index = pd.MultiIndex.from_tuples(pairs, names=["datetime", "instrument"])
    return pd.Series(np.random.default_rng(seed).normal(size=len(index)), index)


def test_ranks_by_hand() -> None:
    index = pd.MultiIndex.from_product([DAYS[:1], list("abcd")], names=["datetime", "instrument"])
    found = normalise_labels(pd.Series([0.3, -1.0, 9.0, 0.3], index), "rank")
    # ranks 2.5, 1, 4, 2.5, centre 2.5
    np.testing.assert_allclose(found, np.sqrt(12) * np.array([0, -1.5, 1.5, 0]) / 4)


def test_z_scores_by_hand_and_equal_labels() -> None:
    index = pd.MultiIndex.from_product([DAYS[:2], list("ab")], names=["datetime", "instrument"])
    found = normalise_labels(pd.Series([1.0, 3.0, 5.0, 5.0], index), "zscore")
    assert found.tolist() == [-1, 1, 0, 0]
    with pytest.raises(ValueError, match="'rank' or 'zscore'"):
        normalise_labels(found, "log")


def test_a_date_is_normalised_by_itself() -> None:
    label = labels()
    other = label.copy()
    other.loc[DAYS[2]] = 100.0
    for scale in ("rank", "zscore"):
        changed = normalise_labels(other, scale).drop(DAYS[2])
        pd.testing.assert_series_equal(changed, normalise_labels(label, scale).drop(DAYS[2]))


def test_rows_without_label_or_window_and_thin_dates_are_left_out() -> None:
    label = labels()
    label.iloc[0] = np.nan  # day 0 keeps 3
    position = np.arange(len(label))
    position[4] = -1  # day 1 keeps 2 and falls out, as day 3 does
    data = HeadData.build(label, position)
    assert data.label.index.get_level_values(0).unique().tolist() == [DAYS[0], DAYS[2], DAYS[4], DAYS[5]]
    assert data.position.tolist() == [1, 2, 3, 7, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20]
    assert np.isfinite(data.target).all()


def test_rows_in_instrument_order_are_put_in_date_order() -> None:
    label = labels()
    shuffled = label.sort_index(level="instrument", sort_remaining=True)
    place = pd.Series(np.arange(len(label)), label.index)[shuffled.index].to_numpy()
    data, expected = (
        HeadData.build(shuffled, place, min_names=2),
        HeadData.build(label, np.arange(len(label)), min_names=2),
    )
    assert data.label.index.get_level_values(0).is_monotonic_increasing
    assert dict(zip(data.label.index, data.position, strict=True)) == dict(
        zip(expected.label.index, expected.position, strict=True)
    )


def test_batches_hold_whole_dates_and_each_date_once() -> None:
    label = labels()
    data = HeadData.build(label, np.arange(len(label)), min_names=2)
    assert data.n_dates == 6
    seen = []
    for chosen in (np.array([5, 0, 2]), np.array([3, 1, 4])):
        rows, mask = data.batch(chosen)
        for date, own, inside in zip(chosen, rows, mask, strict=True):
            days = data.label.index.get_level_values(0)[own]
            assert (days == DAYS[date]).all()  # padding, too, stays within the date
            assert inside.sum() == (label.index.get_level_values(0) == DAYS[date]).sum()
        seen.extend(rows[mask])
    assert sorted(seen) == list(range(len(label)))


def test_an_empty_span_is_refused() -> None:
    label = labels()
    with pytest.raises(ValueError, match="the valid span holds no date with 3 rows"):
        HeadData.build(label * np.nan, np.arange(len(label)), name="valid")
    with pytest.raises(ValueError, match="the valid span holds no date"):
        HeadData.build(label.iloc[:0], np.arange(0), name="valid")
    with pytest.raises(ValueError, match="must be indexed by"):
        HeadData.build(label.swaplevel(), np.arange(len(label)))


def test_the_last_sessions_of_a_span_are_purged_by_the_labels_reach() -> None:
    sessions = pd.date_range("2020-01-01", periods=20, freq="D")
    dates = sessions[3:13].repeat(2)
    assert dates[purged(dates, sessions, 2)].unique().tolist() == sessions[3:11].tolist()
    # labels of the kept rows use bars up to the span's last session at most
    assert sessions.get_indexer(dates[purged(dates, sessions, 2)]).max() + 2 == 12
    assert dates[purged(dates, sessions, 2, every=3)].unique().tolist() == [sessions[i] for i in (3, 6, 9)]
    with pytest.raises(ValueError, match="not a session"):
        purged(dates + pd.Timedelta(hours=1), sessions, 2)
