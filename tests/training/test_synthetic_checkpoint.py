"""The bundled checkpoint: its card is true, and it reads what the synthetic market plants, after its cutoff."""

from __future__ import annotations

import dataclasses
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import torch

from kronos_qlib.alpha.signals import compute_signal
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.kronos import Kronos, SamplingConfig, fingerprint, load_card, load_model, load_tokenizer
from kronos_qlib.market.calendars import get_calendar
from kronos_qlib.market.synthetic import SyntheticConfig, SyntheticMarket, make_market
from kronos_qlib.market.synthetic_members import members_on
from kronos_qlib.market.synthetic_truth import daily_correlations
from kronos_qlib.market.windows import POLICY_VERSION, WindowPolicy
from kronos_qlib.training.synthetic_data import market_panel
from kronos_qlib.training.synthetic_recipe import Recipe

CHECKPOINT = "bundled:synthetic"
SAMPLING = SamplingConfig(n_paths=10, top_p=0.9, scheme="stratified", order="close")


@pytest.fixture(scope="module")
def market() -> SyntheticMarket:
    return make_market()


def member_scores(market: SyntheticMarket, forecaster: KronosForecaster, days: pd.DatetimeIndex) -> pd.Series:
    """Expected return of every member with a window on the given days."""
    panel = market_panel(market)
    rows = np.flatnonzero(np.isin(panel.timestamps, days.to_numpy()))
    stamps = pd.DatetimeIndex(panel.timestamps[rows])
    names = panel.instrument_names(rows)
    index = pd.MultiIndex.from_arrays([stamps, names], names=["datetime", "instrument"])
    rows = rows[members_on(market.members, index)]
    scores = [
        pd.Series(compute_signal("expected_return", paths), index=paths.index)
        for _, paths in forecaster.forecast_batches(
            panel,
            rows,
            policy=WindowPolicy(lookback=forecaster.lookback),
            horizon=forecaster.card["horizon"],
            sampling=SAMPLING,
            calendar=get_calendar("XSHG"),
            progress=False,
        )
    ]
    return pd.concat(scores)


def test_card_is_that_of_these_weights_this_market_and_this_recipe() -> None:
    """A changed default market or recipe needs a new checkpoint; this says so."""
    card = load_card(CHECKPOINT)
    tokenizer, model = load_tokenizer(CHECKPOINT), load_model(CHECKPOINT)
    assert card["fingerprint"] == {"tokenizer": fingerprint(tokenizer), "model": fingerprint(model)}
    assert card["market"] == dataclasses.asdict(SyntheticConfig())
    assert card["recipe"] == dataclasses.asdict(Recipe())
    assert card["window_policy"] == POLICY_VERSION
    assert model.config == Recipe().model_config()
    assert tokenizer.config == Recipe().tokenizer_config()


def test_checkpoint_takes_at_most_a_megabyte() -> None:
    folder = resources.files("kronos_qlib") / "checkpoints" / "synthetic"
    sizes = [len((folder / part / "model.safetensors").read_bytes()) for part in ("tokenizer", "model")]
    assert sum(sizes) <= 1_000_000


def test_checkpoint_reads_the_planted_signal_after_its_cutoff_and_random_weights_do_not(
    market: SyntheticMarket,
) -> None:
    """Correlation with the truth is what the share of the planted IC estimates, with far less noise.

    Twelve days of 2019. Measured over half the year: .64 for the checkpoint, -.22 for random weights.
    """
    forecaster = KronosForecaster.from_pretrained(CHECKPOINT, device="cpu")
    cutoff = pd.Timestamp(forecaster.card["cutoff"])
    days = market.sessions[market.sessions > cutoff][:240:20]
    truth = market.truth["expected_return"]
    score = member_scores(market, forecaster, days)
    assert len(score) > 700
    assert daily_correlations(score, truth)["rank_ic"].mean() > 0.5

    torch.manual_seed(0)
    untrained = Kronos(forecaster.model.config).eval()
    forecaster.model = untrained
    assert daily_correlations(member_scores(market, forecaster, days), truth)["rank_ic"].mean() < 0.2


@pytest.mark.slow
def test_checkpoint_reaches_half_of_the_planted_ic_in_the_year_after_its_cutoff(market: SyntheticMarket) -> None:
    """What the quickstart promises, on every fourth day of 2019."""
    forecaster = KronosForecaster.from_pretrained(CHECKPOINT, device="cpu")
    days = market.sessions[market.sessions.year == 2019]
    score = member_scores(market, forecaster, days[::4])
    label = market.label()
    reached = daily_correlations(score, label).mean()
    planted = daily_correlations(market.truth["expected_return"].reindex(score.index), label).mean()
    assert reached["ic"] > 0.5 * planted["ic"]
    assert reached["rank_ic"] > 0.5 * planted["rank_ic"]
