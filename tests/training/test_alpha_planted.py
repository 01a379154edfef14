"""On the synthetic market, whose predictability is known, a head on the bundled checkpoint finds most of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kronos_qlib.evaluation.ic import daily_rank_ic, ic_summary
from kronos_qlib.kronos import load_model, load_tokenizer
from kronos_qlib.market.synthetic import SyntheticConfig, SyntheticMarket, make_market
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.alpha_data import HeadData, purged
from kronos_qlib.training.alpha_features import FeatureSettings, feature_width, hidden_features
from kronos_qlib.training.alpha_head import AlphaHead, HeadTraining
from kronos_qlib.training.alpha_networks import FrozenNetwork
from kronos_qlib.training.alpha_training import new_head, train_head
from kronos_qlib.training.synthetic_data import market_panel

SPANS = {
    "train": ("2019-05-06", "2020-03-31"),
    "valid": ("2020-04-01", "2020-06-30"),
    "test": ("2020-07-01", "2020-12-25"),
}
EVERY = {"train": 4, "valid": 5, "test": 3}
SETTINGS = FeatureSettings(WindowPolicy(lookback=60))


@pytest.fixture(scope="module")
def market() -> SyntheticMarket:
    """Another draw of the market than the one that the checkpoint was trained on."""
    return make_market(SyntheticConfig(seed=11, n_instruments=40, n_members=40, start="2018-12-03"))


def span_data(market: SyntheticMarket, name: str) -> tuple[np.ndarray, HeadData]:
    """Features and labels of a span, purged."""
    panel = market_panel(market)
    label = market.label().loc[SPANS[name][0] : SPANS[name][1]]
    dates = pd.DatetimeIndex(label.index.get_level_values("datetime"))
    label = label[purged(dates, panel.calendar, 2, EVERY[name])]
    rows = panel.rows_at(label.index.get_level_values("instrument"), pd.DatetimeIndex(label.index.get_level_values(0)))
    model, tokenizer = load_model("bundled:synthetic"), load_tokenizer("bundled:synthetic")
    features = hidden_features(model, tokenizer, panel, rows, SETTINGS)
    position = np.where(np.isfinite(features).all(axis=1), np.arange(len(rows)), -1)
    return features, HeadData.build(label, position, name=name)


def test_it_finds_most_of_what_is_planted(market: SyntheticMarket) -> None:
    (x, train), (more, valid), (held_out, test) = (span_data(market, name) for name in SPANS)
    training = HeadTraining(epochs=20, dates_per_batch=4, rate=3e-3)
    head: AlphaHead = new_head(training, feature_width(load_model("bundled:synthetic")))
    head.fit_features(x[train.position])
    network = FrozenNetwork(head, np.concatenate([x, more]))
    train_head(network, train, HeadData(valid.label, valid.position + len(x), valid.target), training)
    score = pd.Series(head.eval().score(held_out[test.position]), test.label.index)
    found = ic_summary(daily_rank_ic(score, test.label))
    truth = market.truth["expected_return"].reindex(test.label.index)
    attainable = daily_rank_ic(truth, test.label).mean()
    shuffled = pd.Series(np.random.default_rng(0).permutation(score.to_numpy()), score.index)
    chance = ic_summary(daily_rank_ic(shuffled, test.label))
    assert found.mean > 0.5 * attainable
    assert found.newey_west_t > 3
    assert found.mean > chance.mean + 3 * chance.std / np.sqrt(chance.n_days)
