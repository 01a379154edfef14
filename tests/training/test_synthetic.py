"""The quickstart's training script: which bars it reads, that it learns, and that it repeats itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.kronos import Kronos, fingerprint, load_card, load_model, load_tokenizer, normalise
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.synthetic import INDEX_CODE, SyntheticConfig, make_market
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.synthetic import (
    Tokens,
    batches,
    main,
    make_checkpoint,
    make_spans,
    next_token_loss,
)
from kronos_qlib.training.synthetic_data import TrainingWindows, market_panel
from kronos_qlib.training.synthetic_recipe import Recipe

MARKET = SyntheticConfig(n_instruments=6, n_members=4, start="2016-01-01", end="2019-06-28")
TINY = Recipe(
    lookback=20,
    horizon=4,
    train_start="2016-01-01",
    bits=4,
    tokenizer_width=16,
    width=16,
    layers=1,
    batch_size=16,
    tokenizer_steps=90,
    steps=30,
    valid_windows=64,
    valid_every=15,
)


def line_panel(n_bars: int = 30, gap_after: int | None = None) -> BarPanel:
    """One instrument whose close counts its bars."""
    calendar = pd.bdate_range("2020-01-01", periods=n_bars + 100)
    positions = np.arange(n_bars)
    if gap_after is not None:
        positions[gap_after:] += 80
    frame = pd.DataFrame({"datetime": calendar[positions], "instrument": "A"})
    for offset, name in enumerate(("open", "high", "low", "close", "volume", "amount")):
        frame[name] = 100.0 + np.arange(n_bars) + offset
    return BarPanel.from_frame(frame, calendar=calendar)


def between(panel: BarPanel, first: int, last: int, lookback: int = 5, horizon: int = 2) -> TrainingWindows:
    days = panel.timestamps
    policy = WindowPolicy(lookback=lookback, min_bars=2)
    return TrainingWindows.between(panel, policy, horizon, pd.Timestamp(days[first]), pd.Timestamp(days[last]))


def test_bars_to_predict_lie_inside_the_span() -> None:
    # windows of 7 bars; the last two are predicted: they end at rows 11 (bars 10, 11) to 14 (bars 13, 14)
    assert between(line_panel(), 10, 14).ends.tolist() == [11, 12, 13, 14]
    # the first window of all ends at row 6
    assert between(line_panel(), 0, 7).ends.tolist() == [6, 7]


def test_no_window_crosses_a_long_suspension() -> None:
    assert between(line_panel(gap_after=10), 0, 20).ends.tolist() == [6, 7, 8, 9, 16, 17, 18, 19, 20]


def test_trap_14_a_validation_span_without_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="no window of 7 bars has its last 2 bars from 2020-01-02 to 2020-01-03"):
        between(line_panel(), 1, 2)


def test_statistics_come_from_the_context_alone() -> None:
    """Trap 5: the bars to predict never move the z-score."""
    panel = line_panel()
    x, stamps = between(panel, 10, 10 + 4).batch(np.array([0]))
    context, center, scale = normalise(panel.values[5:10])
    np.testing.assert_array_equal(x[0, :5], context)
    np.testing.assert_allclose(x[0, 5:], (panel.values[10:12] - center) / scale, rtol=1e-6)
    days = pd.DatetimeIndex(panel.timestamps[5:12])
    np.testing.assert_array_equal(stamps[0, :, 3], days.day)


def test_bars_are_read_in_store_units() -> None:
    market = make_market(MARKET)
    panel = market_panel(market)
    assert set(panel.instruments) == set(market.listings.index)
    stocks = market.bars[market.bars["instrument"] != INDEX_CODE]  # sorted as the panel is
    assert stocks["factor"].max() > 1
    np.testing.assert_allclose(panel.values[:, 3], stocks["close"] * stocks["factor"], rtol=1e-6)
    np.testing.assert_allclose(panel.values[:, 4], stocks["volume"] / stocks["factor"], rtol=1e-6)
    np.testing.assert_allclose(panel.values[:, 5], stocks["amount"], rtol=1e-6)


def test_nothing_after_the_cutoff_is_read() -> None:
    spans = make_spans(TINY, MARKET)
    times = spans.train.panel.timestamps
    assert times[spans.train.ends].max() < np.datetime64(TINY.valid_start)
    assert times[spans.valid.ends].max() <= np.datetime64(TINY.cutoff)
    assert times[spans.valid.ends - TINY.horizon + 1].min() >= np.datetime64(TINY.valid_start)
    assert times.max() > np.datetime64(TINY.cutoff)  # there was something to leave out


def test_batches_pass_over_everything_before_anything_again() -> None:
    stream = batches(10, 5, np.random.default_rng(0))
    assert sorted(np.concatenate([next(stream), next(stream)])) == list(range(10))
    assert len(next(batches(3, 5, np.random.default_rng(0)))) == 3


def test_loss_is_the_mean_cross_entropy_of_the_weighted_bars() -> None:
    torch.manual_seed(0)
    model = Kronos(TINY.model_config()).eval()
    s1, s2 = torch.randint(0, 16, (2, 3, 6)).unbind(0)
    stamps = torch.ones(3, 6, 5, dtype=torch.int64)
    only_last = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0])
    s1_logits, s2_logits = model(s1[:, :-1], s2[:, :-1], stamps[:, :-1], s1[:, 1:])
    rows = torch.arange(3)
    expected = -(
        s1_logits[:, -1].log_softmax(-1)[rows, s1[:, -1]] + s2_logits[:, -1].log_softmax(-1)[rows, s2[:, -1]]
    ).mean()
    torch.testing.assert_close(next_token_loss(model, Tokens(s1, s2, stamps), only_last), expected)


def test_a_run_learns_saves_and_repeats(tmp_path: Path) -> None:
    card = make_checkpoint(tmp_path / "one", TINY, MARKET, command="test")
    again = make_checkpoint(tmp_path / "two", TINY, MARKET, command="test")
    assert card == again
    for part in ("tokenizer", "model"):
        one, two = ((tmp_path / name / part / "model.safetensors").read_bytes() for name in ("one", "two"))
        assert one == two
    assert card == load_card(tmp_path / "one") == json.loads((tmp_path / "one" / "card.json").read_text())
    assert (card["lookback"], card["cutoff"], card["market"]) == (20, "2018-12-31", dataclasses.asdict(MARKET))
    tokenizer, model = load_tokenizer(tmp_path / "one"), load_model(tmp_path / "one")
    assert card["fingerprint"] == {"tokenizer": fingerprint(tokenizer), "model": fingerprint(model)}
    uniform = 2 * np.log(2**TINY.bits)
    assert card["valid_loss"]["next_token_cross_entropy"] < uniform - 0.5
    assert card["valid_loss"]["tokenizer_reconstruction_mse"] < 0.8  # the bars' own variance is about 1


def test_the_command_writes_a_checkpoint_and_its_own_recipe(tmp_path: Path) -> None:
    options = {"steps": 2, "tokenizer-steps": 2, "valid-windows": 8, "bits": 3, "tokenizer-width": 8, "width": 8}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    main(["--out", str(tmp_path / "made"), *flags, "--train-start", "2017-06-01", "--layers", "1"])
    card = load_card(tmp_path / "made")
    assert card["recipe"]["steps"] == 2
    assert "--train-start 2017-06-01" in card["command"]
    assert "--rate" not in card["command"]  # defaults stay out
