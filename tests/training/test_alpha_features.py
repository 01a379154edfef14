"""Hidden states as features: the network's own, of the last bars, whatever the batch; kept by a hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_panel import instrument_bars, make_panel
from tiny_network import fill, model_config, tiny_networks

import kronos_qlib.training.alpha_features as alpha_features
from kronos_qlib.kronos import Kronos, normalise
from kronos_qlib.market.panel import BarPanel
from kronos_qlib.market.windows import WindowPolicy, iter_windows
from kronos_qlib.training.alpha_features import FeatureSettings, cached_features, features_key, hidden_features

POLICY = WindowPolicy(lookback=40, min_bars=12)
SETTINGS = FeatureSettings(POLICY)


@pytest.fixture(scope="module")
def panel() -> BarPanel:
    return make_panel()


def last_rows(panel: BarPanel, bars: int = 5) -> np.ndarray:
    """The last bars of every instrument."""
    return np.concatenate([np.arange(end - bars, end) for end in panel.offsets[1:]])


def features(panel: BarPanel, rows: np.ndarray, settings: FeatureSettings = SETTINGS) -> np.ndarray:
    networks = tiny_networks()
    return hidden_features(networks.model, networks.tokenizer, panel, rows, settings)


@pytest.mark.parametrize("pooled", [1, 10, 100])
def test_features_are_the_last_hidden_state_and_the_mean_of_the_last_ones(panel: BarPanel, pooled: int) -> None:
    networks, rows = tiny_networks(), last_rows(panel)
    found = features(panel, rows, FeatureSettings(POLICY, pooled_bars=pooled))
    seen = 0
    for batch in iter_windows(panel, rows, POLICY, 3):
        s1, s2 = networks.tokenizer.encode(torch.from_numpy(normalise(batch.values)[0]))
        hidden = networks.model.hidden(s1, s2, torch.from_numpy(batch.stamps))
        expected = torch.cat((hidden[:, -1], hidden[:, -pooled:].mean(dim=1)), dim=1)
        np.testing.assert_allclose(found[batch.positions], expected, rtol=1e-4, atol=1e-5)
        seen += len(batch.rows)
    assert np.isnan(found).all(axis=1).sum() == len(rows) - seen == 5  # 600003 is too young
    assert not np.isnan(found).any(axis=1)[~np.isnan(found).all(axis=1)].any()


def test_a_context_shorter_than_the_window_cuts_tokens_not_statistics(panel: BarPanel) -> None:
    networks, row = tiny_networks(), panel.offsets[1:2] - 1
    found = features(panel, row, FeatureSettings(POLICY, max_context=16))
    (batch,) = iter_windows(panel, row, POLICY, 1)
    s1, s2 = networks.tokenizer.encode(torch.from_numpy(normalise(batch.values)[0]))
    hidden = networks.model.hidden(s1[:, -16:], s2[:, -16:], torch.from_numpy(batch.stamps[:, -16:]))
    np.testing.assert_allclose(found[:, :16], hidden[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_never_depends_on_its_batch_mates(panel: BarPanel, dtype: str) -> None:
    rows, settings = last_rows(panel), FeatureSettings(POLICY, dtype=dtype)
    together = features(panel, rows, settings)
    order = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(features(panel, rows[order], settings), together[order], equal_nan=True)
    for position in (0, 7, 24):
        assert np.array_equal(features(panel, rows[[position]], settings)[0], together[position])


def test_bars_after_the_row_change_nothing() -> None:
    frames = instrument_bars()
    panel = make_panel(frames)
    cut = frames["SH600000"].index[-6]
    for frame in frames.values():
        frame.loc[frame.index > cut] *= np.random.default_rng(1).uniform(0.9, 1.1, size=(5, 6))
    changed = make_panel(frames)
    rows = panel.rows_at(list(panel.instruments), np.full(len(panel.instruments), np.datetime64(cut)))
    assert np.array_equal(features(panel, rows), features(changed, rows), equal_nan=True)
    assert not np.array_equal(features(panel, rows + 1), features(changed, rows + 1), equal_nan=True)


def test_bfloat16_is_close(panel: BarPanel) -> None:
    rows = last_rows(panel)
    wide, narrow = features(panel, rows), features(panel, rows, FeatureSettings(POLICY, dtype="bfloat16"))
    known = np.isfinite(wide).all(axis=1)
    assert not np.array_equal(wide[known], narrow[known])
    assert np.corrcoef(wide[known].ravel(), narrow[known].ravel())[0, 1] > 0.99


def test_kept_features_are_read_and_resumed(panel: BarPanel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks, rows = tiny_networks(), last_rows(panel)
    monkeypatch.setattr(alpha_features, "BLOCK_ROWS", 6)
    real, calls = alpha_features.hidden_features, []

    def counted(model: Kronos, tokenizer: object, panel: BarPanel, rows: np.ndarray, *args: object) -> np.ndarray:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(rows))
        return real(model, tokenizer, panel, rows, *args)

    monkeypatch.setattr(alpha_features, "hidden_features", counted)
    arguments = (tmp_path, networks.model, networks.tokenizer, panel, rows, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        cached_features(*arguments)
    calls.clear()
    found = cached_features(*arguments)  # three of five blocks were there
    assert calls == [6, 1]
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, features(panel, rows))
    cached_features(*arguments)
    assert calls == [6, 1]
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_the_key_knows_weights_bars_rows_and_settings(panel: BarPanel) -> None:
    networks, rows = tiny_networks(), last_rows(panel)
    other = Kronos(model_config())
    fill(other, sharpness=3.0)
    frames = instrument_bars()
    frames["SZ000001"].iloc[3] *= 1.01
    variants = [
        (networks.model, panel, rows, SETTINGS),
        (other, panel, rows, SETTINGS),
        (networks.model, make_panel(frames), rows, SETTINGS),
        (networks.model, panel, rows[::-1], SETTINGS),
        (networks.model, panel, rows, FeatureSettings(POLICY, pooled_bars=9)),
        (networks.model, panel, rows, FeatureSettings(WindowPolicy(lookback=39, min_bars=12))),
    ]
    keys = [features_key(model, networks.tokenizer, *rest) for model, *rest in variants]
    assert len(set(keys)) == len(variants)
    assert keys[0] == features_key(networks.model, networks.tokenizer, make_panel(), rows.copy(), SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "float16"}, "dtype 'float16'"), ({"pooled_bars": 0}, "pooled_bars=0"), ({"max_context": True}, "True")],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSettings(POLICY, **settings)
