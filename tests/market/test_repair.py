"""Repairs on tables with known results, and their properties: idempotent, counted, and without later bars."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos_qlib.market.contract import check_bars, read_bars
from kronos_qlib.market.events import Event, event_bits
from kronos_qlib.market.repair import POLICIES, RepairPolicy, repair_bars, repair_policy

NAN = np.nan
NUMBERS = ["open", "high", "low", "close", "volume", "amount", "factor"]


def bars(rows: list[list[float]], instrument: str = "SH600000") -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=NUMBERS, dtype=float)
    frame.insert(0, "datetime", pd.bdate_range("2024-01-01", periods=len(rows)))
    frame.insert(0, "instrument", instrument)
    return frame


def good(count: int = 5, instrument: str = "SH600000", price: float = 10.0) -> pd.DataFrame:
    return bars([[price, price + 0.5, price - 0.5, price, 100.0, 100 * price, 1.0]] * count, instrument)


def put(frame: pd.DataFrame, row: int, **values: float) -> pd.DataFrame:
    frame = frame.copy()
    for name, value in values.items():
        frame.loc[row, name] = value
    return frame


def row_of(frame: pd.DataFrame, row: int) -> list[float]:
    return [float(value) for value in frame.loc[row, NUMBERS]]


def test_a_faultless_frame_comes_back_as_it_was() -> None:
    for name in POLICIES:
        repaired, report = repair_bars(good(), name)
        pd.testing.assert_frame_equal(repaired.drop(columns="repaired"), good())
        assert not repaired["repaired"].any()
        assert (report.total, report.counts) == (0, {})


def test_bad_bars_are_dropped() -> None:
    frame = put(put(good(), 1, close=NAN), 3, high=9.0)
    repaired, report = repair_bars(frame, "default")
    assert repaired["datetime"].tolist() == [good()["datetime"][row] for row in (0, 2, 4)]
    assert report.counts == {"bad_bars_dropped": 2}
    assert (report.rows_in, report.rows_out) == (5, 3)


FORWARD: dict[str, tuple[dict[str, float], list[float], dict[str, int]]] = {
    # what is broken of 10, 10.5, 9.5, 10 (the close before: 12, after a split 6) -> open, high, low, close
    "close": ({"close": NAN}, [10.0, 10.5, 9.5, 10.0], {"close_filled": 1}),
    "open": ({"open": 0.0}, [6.0, 10.5, 6.0, 10.0], {"open_filled": 1, "low_widened": 1}),
    "high": ({"high": np.inf}, [10.0, 10.0, 9.5, 10.0], {"high_filled": 1}),
    "low": ({"low": -1.0}, [10.0, 10.5, 10.0, 10.0], {"low_filled": 1}),
    "high under low": ({"high": 9.0, "low": 11.0}, [10.0, 11.0, 9.0, 10.0], {"high_widened": 1, "low_widened": 1}),
    "close over high": ({"close": 11.0}, [10.0, 11.0, 9.5, 11.0], {"high_widened": 1}),
    "all": (
        {"open": NAN, "high": NAN, "low": NAN, "close": NAN},
        [6.0, 6.0, 6.0, 6.0],
        {"open_filled": 1, "high_filled": 1, "low_filled": 1, "close_filled": 1},
    ),
}


@pytest.mark.parametrize("case", FORWARD)
def test_prices_are_filled_with_the_last_one_known(case: str) -> None:
    broken, prices, counts = FORWARD[case]
    frame = put(put(good(), 1, open=12.0, high=12.0, low=12.0, close=12.0), 2, **broken)
    frame["factor"] = [1.0, 1.0, 2.0, 2.0, 2.0]
    repaired, report = repair_bars(frame, "forward_fill")
    assert row_of(repaired, 2)[:4] == prices
    assert report.counts == counts
    assert repaired["repaired"].tolist() == [False, False, True, False, False]
    assert np.flatnonzero(event_bits(repaired) & Event.REPAIRED).tolist() == [2]


def test_a_fill_never_crosses_instruments_and_needs_a_past() -> None:
    frame = pd.concat([good(2), put(good(2, "SZ000001"), 0, open=NAN, close=NAN)], ignore_index=True)
    repaired, report = repair_bars(frame, "forward_fill")
    assert report.counts == {"dropped_without_past": 1}
    assert repaired["instrument"].tolist() == ["SH600000", "SH600000", "SZ000001"]


def test_interpolation_is_a_line_between_neighbours_in_adjusted_prices() -> None:
    frame = put(good(4), 0, open=10.0, close=10.0)
    frame = put(frame, 3, open=6.5, high=6.5, low=6.5, close=6.5)  # adjusted: 13
    frame["factor"] = [1.0, 1.0, 2.0, 2.0]
    for row in (1, 2):
        frame = put(frame, row, open=NAN, high=NAN, low=NAN, close=NAN)
    repaired, _ = repair_bars(frame, "interpolate")
    assert row_of(repaired, 1)[:4] == [11.0] * 4
    assert row_of(repaired, 2)[:4] == [6.0] * 4


def test_interpolation_is_marked_and_refused_for_inference() -> None:
    assert [name for name, policy in POLICIES.items() if policy.uses_future] == ["interpolate"]
    with pytest.raises(ValueError, match="from later bars"):
        repair_bars(good(), "interpolate", for_inference=True)
    repair_bars(good(), "forward_fill", for_inference=True)


def test_volumes_take_the_median_of_the_instruments_own_past() -> None:
    frame = good(6)
    frame["volume"] = [10.0, 30.0, 20.0, NAN, 5000.0, -1.0]
    frame["amount"] = [1.0, 3.0, 2.0, np.inf, 9.0, 4.0]
    repaired, report = repair_bars(frame, RepairPolicy(median_bars=3))
    assert repaired["volume"].tolist() == [10.0, 30.0, 20.0, 20.0, 5000.0, 30.0]  # row 5: of 30, 20, 5000
    assert repaired["amount"].tolist() == [1.0, 3.0, 2.0, 2.0, 9.0, 4.0]
    assert report.counts == {"volume_instrument_median": 2, "amount_instrument_median": 1}
    assert repaired["repaired"].tolist() == [False, False, False, True, False, True]


def test_a_median_of_volumes_counts_todays_shares() -> None:
    frame = put(good(3), 2, volume=NAN).assign(factor=[1.0, 1.0, 2.0])
    repaired, _ = repair_bars(frame)
    assert repaired["volume"].tolist() == [100.0, 100.0, 200.0]


def test_volumes_without_a_past_become_zero_and_are_counted_apart() -> None:
    frame = pd.concat([good(2), put(good(2, "SZ000001"), 0, volume=NAN)], ignore_index=True)
    repaired, report = repair_bars(frame)  # the bars of another instrument are no past
    assert repaired["volume"].tolist() == [100.0, 100.0, 0.0, 100.0]
    assert report.counts == {"volume_zero_for_want_of_values": 1}


def test_volumes_take_the_median_of_the_cross_section() -> None:
    frames = [good(2, code).assign(volume=volume) for code, volume in (("SH600001", 10.0), ("SH600002", 40.0))]
    index = good(2, "SH000300").assign(volume=1e9)
    frame = pd.concat([index, put(good(2), 1, volume=NAN), *frames], ignore_index=True)
    repaired, report = repair_bars(frame, {"volume": "cross_section_median"})
    own = repaired[repaired["instrument"] == "SH600000"]
    assert own["volume"].tolist() == [100.0, 25.0]
    assert report.counts == {"volume_cross_section_median": 1}


def test_volumes_become_zero_as_in_the_original() -> None:
    repaired, report = repair_bars(put(good(3), 1, volume=NAN, amount=-1.0), "original")
    assert row_of(repaired, 1)[4:6] == [0.0, 0.0]
    assert report.counts == {"volume_zero": 1, "amount_zero": 1}


def test_empty_bars_are_suspended_days() -> None:
    empty = put(good(3), 1, open=NAN, high=NAN, low=NAN, close=NAN, volume=0.0, amount=NAN)
    for name in POLICIES:
        repaired, report = repair_bars(empty, name)
        assert len(repaired) == 2
        assert report.counts == {"empty_bars_dropped": 1}


def test_duplicates_are_refused_or_the_last_one_is_kept() -> None:
    frame = pd.concat([good(2), good(2).assign(close=10.2)], ignore_index=True)
    with pytest.raises(ValueError, match="2 bars occur more than once, first SH600000 at 2024-01-01"):
        repair_bars(frame)
    repaired, report = repair_bars(frame, "forward_fill")
    assert repaired["close"].tolist() == [10.2, 10.2]
    assert report.counts["duplicates_dropped"] == 2


def test_unsorted_bars_are_sorted_and_counted() -> None:
    repaired, report = repair_bars(good(4).iloc[[0, 2, 1, 3]])
    pd.testing.assert_frame_equal(repaired[good().columns], good(4))
    assert report.counts == {"unsorted_sorted": 1}


def test_bars_without_a_key_are_dropped_and_counted() -> None:
    frame = good(3)
    frame.loc[1, "datetime"] = pd.NaT
    repaired, report = repair_bars(frame)
    assert len(repaired) == 2
    assert report.counts == {"keyless_dropped": 1}


def test_dtypes_and_other_columns_survive(tmp_path: Path) -> None:
    frame = put(good(3), 1, close=NAN).astype(dict.fromkeys(NUMBERS, np.float32))
    frame = frame.astype({"instrument": "category"}).assign(note=["a", "b", "c"])
    repaired, report = repair_bars(frame, "forward_fill")
    assert repaired.drop(columns="repaired").dtypes.equals(frame.dtypes)
    assert repaired["note"].tolist() == ["a", "b", "c"]
    report.to_json(tmp_path / "repair.json")
    assert json.loads((tmp_path / "repair.json").read_text()) == report.to_dict()
    assert "close_filled" in str(report)


def test_whole_number_volumes_are_filled_as_floats() -> None:
    frame = put(good(3), 1, close=NAN).astype({"volume": np.int64})
    repaired, _ = repair_bars(frame, "forward_fill")
    assert repaired["volume"].dtype == np.float64


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("forward-fill", "unknown repair policy 'forward-fill'.*Did you mean 'forward_fill'"),
        ({"pricee": "drop"}, "unknown key 'pricee'.*Did you mean 'price'"),
        ({"price": "ffil"}, "price='ffil'.*Did you mean 'ffill'"),
        ({"volume": "median"}, "volume='median'; expected one of"),
        ({"duplicates": "keep_first"}, "Did you mean 'keep_last'"),
        ({"median_bars": 0}, "median_bars=0"),
        ({"median_bars": True}, "median_bars=True"),
    ],
)
def test_policies_with_a_mistake(policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        repair_policy(policy)


def broken_frame(seed: int, faults: int) -> pd.DataFrame:
    """Random bars of three instruments with random faults, in random order."""
    generator = np.random.default_rng(seed)
    frames = []
    for instrument in ("SH600000", "SZ000001", "SZ300001"):
        close = np.round(10 + generator.normal(0, 0.1, 12).cumsum(), 2)
        rows = np.stack([close, close + 0.3, close - 0.3, close, 100 + 0 * close, 100 * close, 1 + 0 * close], axis=1)
        frames.append(bars(rows.tolist(), instrument))
    frame = pd.concat(frames, ignore_index=True)
    for _ in range(faults):
        value = generator.choice([NAN, np.inf, -1.0, 0.0, 3.0, 99.0])
        frame.loc[generator.integers(len(frame)), generator.choice(NUMBERS)] = value
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


SEEDS = st.integers(0, 10_000)
FAULTS = st.integers(0, 12)
CHOSEN = st.sampled_from(
    [
        RepairPolicy(price=price, volume=volume, median_bars=3)
        for price in ("drop", "ffill", "interpolate")
        for volume in ("instrument_median", "cross_section_median", "zero")
    ]
)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, faults=FAULTS, policy=CHOSEN)
def test_a_repaired_frame_has_no_errors_and_nothing_left_to_repair(
    seed: int, faults: int, policy: RepairPolicy
) -> None:
    frame = broken_frame(seed, faults)
    before = frame.copy()
    once, first = repair_bars(frame, policy)
    pd.testing.assert_frame_equal(frame, before)
    errors = [error.name for error in check_bars(once).errors]
    assert errors in ([], ["average_price"])  # repairs mend values, not units
    twice, second = repair_bars(once, policy)
    assert second.total == 0
    pd.testing.assert_frame_equal(once, twice)
    assert first.rows_out == len(once)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, faults=FAULTS, policy=CHOSEN)
def test_no_value_changes_without_a_count_and_a_mark(seed: int, faults: int, policy: RepairPolicy) -> None:
    frame = broken_frame(seed, faults)
    repaired, report = repair_bars(frame, policy)
    both = repaired.merge(frame, on=["instrument", "datetime"], suffixes=("", "_before"))
    differs = np.stack([both[name].to_numpy() != both[f"{name}_before"].to_numpy() for name in NUMBERS])
    np.testing.assert_array_equal(differs.any(axis=0), both["repaired"].to_numpy())
    counted = sum(count for name, count in report.counts.items() if "dropped" not in name and "sorted" not in name)
    assert counted == differs.sum()
    dropped = sum(count for name, count in report.counts.items() if "dropped" in name)
    assert dropped == len(frame) - len(repaired)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, faults=FAULTS, policy=CHOSEN.filter(lambda one: not one.uses_future), cut=st.integers(1, 11))
def test_no_repair_uses_later_bars(seed: int, faults: int, policy: RepairPolicy, cut: int) -> None:
    frame = broken_frame(seed, faults)
    last = pd.bdate_range("2024-01-01", periods=12)[cut - 1]
    late = frame["datetime"] > last
    changed = frame.copy()
    changed.loc[late, NUMBERS] = changed.loc[late, NUMBERS] * 1.3 + 2
    results = [repair_bars(given, policy)[0] for given in (frame, frame[~late], changed)]
    past = [result[result["datetime"] <= last].reset_index(drop=True) for result in results]
    pd.testing.assert_frame_equal(past[0], past[1])
    pd.testing.assert_frame_equal(past[0], past[2])


def test_interpolation_does_use_later_bars() -> None:
    frame = put(good(3), 1, close=NAN)
    later = put(frame, 2, open=10.4, close=10.4)
    one, two = (repair_bars(given, "interpolate")[0]["close"][1] for given in (frame, later))
    assert (one, two) == (10.0, pytest.approx(10.2))


def test_faults_planted_in_real_bars_are_counted(shared_file: Callable[[str], Path]) -> None:
    frame = read_bars(shared_file("market/us_daily.parquet"))
    frame.loc[[10, 20, 30], "close"] = [NAN, -1.0, np.inf]
    frame.loc[[40, 50], "volume"] = [NAN, -1.0]
    repaired, report = repair_bars(frame, "forward_fill")
    assert report.counts == {"empty_bars_dropped": 3, "close_filled": 3, "volume_instrument_median": 2}
    assert np.flatnonzero(repaired["repaired"]).tolist() == [10, 20, 30, 40, 50]
    assert not check_bars(repaired, region="us").has_errors
