"""The original predictor's interface: equal to the original on golden figures, and without its traps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from golden_network import FOLDER, load_golden
from tiny_network import tiny_networks

from kronos_qlib.compat import KronosPredictor
from kronos_qlib.kronos import SamplingConfig, generate, normalise
from kronos_qlib.market.fields import BAR_FIELDS, PRICE_FIELDS
from kronos_qlib.market.stamps import time_stamps

GREEDY = {"T": 1.0, "top_k": 1, "top_p": 1.0, "sample_count": 1, "verbose": False}


@pytest.fixture(scope="module")
def bars() -> pd.DataFrame:
    return pd.read_csv(Path(FOLDER) / "sh600977_5min.csv", parse_dates=["timestamps"])


@pytest.fixture(scope="module")
def predictor() -> KronosPredictor:
    networks = tiny_networks()
    return KronosPredictor(networks.model, networks.tokenizer, device="cpu")


def split(bars: pd.DataFrame, start: int, length: int, horizon: int) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Context, its times, and the times of the next bars."""
    end = start + length
    return (
        bars.loc[start : end - 1, list(BAR_FIELDS)],
        bars.loc[start : end - 1, "timestamps"],
        bars.loc[end : end + horizon - 1, "timestamps"],
    )


@pytest.mark.parametrize("size", ["tiny", "mini"])
@pytest.mark.parametrize(
    ("figure", "columns"), [("predict_40_6", BAR_FIELDS), ("predict_40_6_no_volume", PRICE_FIELDS)]
)
def test_equal_to_the_original(bars: pd.DataFrame, size: str, figure: str, columns: tuple[str, ...]) -> None:
    golden = load_golden(size)
    predictor = KronosPredictor(
        golden.model, golden.tokenizer, device="cpu", max_context=golden.description["max_context"]
    )
    context, past, future = split(bars, 0, 40, 6)
    found = predictor.predict(context[list(columns)], past, future, 6, **GREEDY)
    assert list(found.columns) == list(BAR_FIELDS)
    assert list(found.index) == list(future)
    np.testing.assert_allclose(found.to_numpy(), golden.figures[figure], rtol=1e-5, atol=1e-6)


def test_a_datetime_index_is_accepted(bars: pd.DataFrame, predictor: KronosPredictor) -> None:
    context, past, future = split(bars, 0, 40, 4)
    expected = predictor.predict(context, past, future, 4, verbose=False)
    found = predictor.predict(context, pd.DatetimeIndex(past), pd.DatetimeIndex(future), 4, verbose=False)
    np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())
    assert isinstance(found.index, pd.DatetimeIndex)


def test_the_defaults_are_the_originals(bars: pd.DataFrame, predictor: KronosPredictor) -> None:
    context, past, future = split(bars, 0, 40, 4)
    explicit = predictor.predict(context, past, future, 4, 1.0, 0, 0.9, 1, False)
    pd.testing.assert_frame_equal(predictor.predict(context, past, future, pred_len=4), explicit)


def test_batch_equals_single_also_for_unequal_lengths_and_in_the_given_order(
    bars: pd.DataFrame, predictor: KronosPredictor
) -> None:
    windows = [split(bars, start, length, 4) for start, length in ((0, 40), (3, 33), (4, 40), (1, 42))]
    batch = predictor.predict_batch(*map(list, zip(*windows, strict=True)), 4, sample_count=3, verbose=False)
    for window, found in zip(windows, batch, strict=True):
        pd.testing.assert_frame_equal(found, predictor.predict(*window, 4, sample_count=3, verbose=False))
    assert predictor.predict_batch([], [], [], 4, verbose=False) == []


def test_trap_6_the_result_is_the_mean_over_samples(bars: pd.DataFrame, predictor: KronosPredictor) -> None:
    context, past, future = split(bars, 0, 40, 4)
    values = np.asfortranarray(context.to_numpy(dtype=np.float32))
    x, center, scale = normalise(values)
    paths = generate(
        predictor.model, predictor.tokenizer, x[None], time_stamps(pd.DatetimeIndex(past))[None],
        time_stamps(pd.DatetimeIndex(future))[None], SamplingConfig(n_paths=5), 512,
    ).numpy()  # fmt: skip
    found = predictor.predict(context, past, future, 4, sample_count=5, verbose=False)
    np.testing.assert_allclose(found, paths[0].mean(axis=0) * scale + center, rtol=1e-5)
    assert len(np.unique(paths[0, :, 0, 3])) > 1


def test_trap_1_dropout_is_off(bars: pd.DataFrame) -> None:
    networks = tiny_networks()
    networks.model.train()
    networks.tokenizer.train()
    predictor = KronosPredictor(networks.model, networks.tokenizer, device="cpu")
    assert not predictor.model.training
    assert not predictor.tokenizer.training


def test_trap_7_greedy_and_filters(bars: pd.DataFrame, predictor: KronosPredictor) -> None:
    window = split(bars, 0, 40, 4)
    greedy = predictor.predict(*window, 4, T=0.0, verbose=False)
    pd.testing.assert_frame_equal(predictor.predict(*window, 4, T=1.0, top_k=1, top_p=1.0, verbose=False), greedy)
    # a top_p that keeps one token is obeyed beside a top_k that keeps five
    pd.testing.assert_frame_equal(predictor.predict(*window, 4, top_k=5, top_p=1e-6, verbose=False), greedy)


def test_trap_13_results_repeat_and_the_seed_matters(bars: pd.DataFrame, predictor: KronosPredictor) -> None:
    window = split(bars, 0, 40, 4)
    first = predictor.predict(*window, 4, verbose=False)
    pd.testing.assert_frame_equal(predictor.predict(*window, 4, verbose=False), first)
    other = KronosPredictor(predictor.model, predictor.tokenizer, device="cpu", seed=1)
    assert not other.predict(*window, 4, verbose=False).equals(first)


def test_the_frame_is_left_as_it_is(bars: pd.DataFrame, predictor: KronosPredictor) -> None:
    context, past, future = split(bars, 0, 40, 4)
    prices = context[list(PRICE_FIELDS)]
    before = prices.copy()
    predictor.predict(prices, past, future, 4, verbose=False)
    pd.testing.assert_frame_equal(prices, before)


def test_user_errors(bars: pd.DataFrame, predictor: KronosPredictor) -> None:
    context, past, future = split(bars, 0, 40, 4)
    broken = context.copy()
    broken.loc[7, "close"] = np.nan
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((context.to_numpy(), past, future, 4), {}, "frame 0 is a ndarray"),
        ((context.drop(columns="open"), past, future, 4), {}, "frame 0 has no column open"),
        ((broken, past, future, 4), {}, "NaN or infinity in 1 bars, first at row 7"),
        ((context, past[:-1], future, 4), {}, "40 bars, 39 times of them"),
        ((context, past, future, 5), {}, "4 to come; expected one time a bar and pred_len=5"),
        ((context, list(past), future, 4), {}, "times of frame 0 are a list"),
        ((context, past, future, 4), {"T": -1.0}, "temperature"),
        ((context, past, future, 4), {"top_p": 0.0}, "top_p"),
        ((context, past, future, 4), {"sample_count": 0}, "n_paths"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            predictor.predict(*arguments, verbose=False, **options)
    with pytest.raises(ValueError, match="must be lists or tuples"):
        predictor.predict_batch(context, [past], [future], 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected equally many"):
        predictor.predict_batch([context], [past, past], [future], 4)
