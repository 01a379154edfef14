"""The alpha head learns a planted order, is chosen on valid, repeats to the bit and goes on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_panel import make_panel
from tiny_network import tiny_networks

import kronos_qlib.training.alpha_training as alpha_training
from kronos_qlib.evaluation.ic import daily_rank_ic
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, window_lengths
from kronos_qlib.training.alpha_data import HeadData
from kronos_qlib.training.alpha_features import FeatureSettings, hidden_features
from kronos_qlib.training.alpha_head import AlphaHead, HeadConfig, HeadTraining
from kronos_qlib.training.alpha_losses import LOSSES
from kronos_qlib.training.alpha_networks import FrozenNetwork, TunedNetwork, tuned_names
from kronos_qlib.training.alpha_training import HeadFit, new_head, train_head

WIDTH, NAMES = 8, 20
SETTINGS = FeatureSettings(WindowPolicy(lookback=30, min_bars=12))


def planted(dates: int, seed: int, noise: float = 2.0) -> tuple[np.ndarray, HeadData, np.ndarray]:
    """Features, labelled rows and the true score: a column less another, beside a shift of the whole date."""
    random = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product(
        [pd.date_range("2020-01-01", periods=dates), [f"S{i:02d}" for i in range(NAMES)]],
        names=["datetime", "instrument"],
    )
    features = random.normal(size=(len(index), WIDTH)).astype(np.float32)
    truth = features[:, 0] - features[:, 3]
    shift = np.repeat(random.normal(size=dates) * 10, NAMES)
    label = pd.Series(truth + shift + noise * random.normal(size=len(index)), index)
    return features, HeadData.build(label, np.arange(len(index))), truth


def fit(training: HeadTraining, state: Path | None = None, dates: int = 60) -> tuple[FrozenNetwork, HeadFit]:
    """Train on a planted signal: train and valid in one table."""
    features, train, _ = planted(dates, seed=1)
    more, valid, _ = planted(30, seed=2)
    valid = HeadData(valid.label, valid.position + len(features), valid.target)
    network = FrozenNetwork(new_head(training, WIDTH), np.concatenate([features, more]))
    network.head.fit_features(features)
    return network, train_head(network, train, valid, training, state=state)


def settings(**changes: Any) -> HeadTraining:
    return HeadTraining(**{"epochs": 12, "rate": 0.02, "dates_per_batch": 8, **changes})


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hidden", [0, 8])
def test_each_loss_finds_the_planted_order(loss: str, hidden: int) -> None:
    network, found = fit(settings(loss=loss, hidden=hidden))
    features, data, truth = planted(60, seed=3)
    attainable = daily_rank_ic(pd.Series(truth, data.label.index), data.label).mean()
    score = pd.Series(network.head.score(features), data.label.index)
    # held out from training and from choosing; chance is 0 with a standard error of about .03
    assert daily_rank_ic(score, data.label).mean() > 0.85 * attainable > 0.4
    assert found.valid.newey_west_t > 5


def test_shuffled_labels_teach_nothing() -> None:
    features, train, _ = planted(60, seed=1)
    shuffled = np.random.default_rng(0).permutation(train.target)
    train = HeadData(train.label, train.position, shuffled)
    more, valid, _ = planted(60, seed=2)
    valid = HeadData(valid.label, valid.position + len(features), valid.target)
    network = FrozenNetwork(new_head(settings(epochs=3), WIDTH), np.concatenate([features, more]))
    train_head(network, train, valid, settings(epochs=3))
    features, data, _ = planted(60, seed=3)
    score = pd.Series(network.head.score(features), data.label.index)
    assert abs(daily_rank_ic(score, data.label).mean()) < 0.25


def test_training_repeats_to_the_bit_and_another_seed_differs() -> None:
    (first, found), (second, again) = (fit(settings(dropout=0.3)) for _ in range(2))
    assert found == again
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    other, _ = fit(settings(dropout=0.3, seed=1))
    assert not torch.equal(first.head.members[0].score.weight, other.head.members[0].score.weight)


def test_the_best_epoch_is_kept_and_patience_ends_the_training() -> None:
    _, found = fit(settings(epochs=200, rate=0.3, patience=3, weight_decay=0.0))
    values = [entry["valid_rank_ic"] for entry in found.history]
    assert len(values) < 200
    assert found.best_epoch == int(np.argmax(values)) + 1 == len(values) - 3
    assert found.valid.mean == max(values)


@pytest.mark.parametrize("killed_after", [1, 4])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, state = settings(dropout=0.2, n_heads=2, hidden=4), tmp_path / "head.state.safetensors"
    whole, expected = fit(training)
    real, calls = alpha_training._epoch, []

    def dying(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) > killed_after:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(alpha_training, "_epoch", dying)
        with pytest.raises(KeyboardInterrupt):
            fit(training, state)
    assert state.is_file()
    with pytest.raises(ValueError, match="belongs to another training"):
        fit(settings(dropout=0.2, n_heads=2, hidden=4, seed=9), state)
    resumed, found = fit(training, state)
    assert found == expected
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not state.exists()


def test_several_heads_are_averaged_in_one_unit() -> None:
    network, _ = fit(settings(n_heads=3))
    head, features = network.head, planted(30, seed=4)[0]
    with torch.no_grad():
        raw = head(torch.from_numpy(features))
    assert len({tuple(row.tolist()) for row in raw}) == 3
    standard = (raw - head.score_center[:, None]) / head.score_spread[:, None]
    assert standard.std(dim=1).numpy() == pytest.approx(1.0, abs=0.2)
    np.testing.assert_allclose(head.score(features), standard.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_a_score_never_depends_on_the_rows_beside_it_and_nan_stays_nan() -> None:
    head = AlphaHead(HeadConfig(n_features=WIDTH, hidden=8, n_heads=2)).eval()
    features = np.random.default_rng(0).normal(size=(700, WIDTH)).astype(np.float32)
    features[5, 2] = np.nan
    scores = head.score(features)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [5]
    order = np.random.default_rng(1).permutation(700)
    assert np.array_equal(head.score(features[order]), scores[order], equal_nan=True)
    assert head.score(features[[699]])[0] == scores[699]
    assert len(head.score(features[:0])) == 0


def test_a_valid_span_without_an_ic_is_refused() -> None:
    features, train, _ = planted(10, seed=1)
    flat = HeadData(train.label * 0 + 1.0, train.position, train.target)
    with pytest.raises(ValueError, match="no valid day has a Rank IC"):
        train_head(FrozenNetwork(new_head(settings(), WIDTH), features), train, flat, settings())


def tuned_data(panel: BarPanel) -> tuple[np.ndarray, HeadData]:
    """Windows of many rows, whose label is their last bar's body: something hidden states know."""
    rows = np.flatnonzero(window_lengths(panel, np.arange(len(panel)), SETTINGS.policy) > 0)
    values = panel.values[rows]
    index = pd.MultiIndex.from_arrays(
        [panel.timestamps[rows], panel.instrument_names(rows)], names=["datetime", "instrument"]
    )
    return rows, HeadData.build(pd.Series(values[:, 3] / values[:, 0] - 1, index), np.arange(len(rows)))


@pytest.mark.parametrize("unfreeze", [1, 2])
def test_a_tuned_trunk_moves_in_its_last_layers_only(unfreeze: int) -> None:
    networks, panel = tiny_networks(), make_panel()
    rows, data = tuned_data(panel)
    before = {name: value.clone() for name, value in networks.model.named_parameters()}
    training = settings(unfreeze=unfreeze, trunk_rate=1e-2, epochs=3, dates_per_batch=4, min_names=3)
    head = new_head(training, 32)
    network = TunedNetwork(head, networks.model, networks.tokenizer, panel, rows, SETTINGS, unfreeze)
    network.eval()
    with torch.no_grad():
        start = network(np.arange(len(rows)))
    expected = head(torch.from_numpy(hidden_features(networks.model, networks.tokenizer, panel, rows, SETTINGS)))
    torch.testing.assert_close(start, expected, rtol=1e-3, atol=1e-4)
    found = train_head(network, data, data, training)
    assert found.history[-1]["train_loss"] < found.history[0]["train_loss"]
    tuned = tuned_names(networks.model, unfreeze)
    for name, value in network.trunk.named_parameters():
        assert torch.equal(value, before[name]) is (name not in tuned), name
    for name, value in networks.model.named_parameters():
        assert torch.equal(value, before[name])


def test_unfreezing_more_layers_than_there_are_is_refused() -> None:
    networks, panel = tiny_networks(), make_panel()
    rows, _ = tuned_data(panel)
    with pytest.raises(ValueError, match="unfreeze is 3, the trunk has 2 layers"):
        TunedNetwork(new_head(settings(), 32), networks.model, networks.tokenizer, panel, rows, SETTINGS, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"los": "ic"}, "did you mean 'loss'"), ({"loss": "mse"}, "loss"), ({"epochs": 0}, "epochs")],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadTraining(**changes)
