"""A checkpoint's card: whole, consistent, and about the networks beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_market import write_tiny_checkpoint

from kronos_qlib.forecast.pretrained import load_pretrained
from kronos_qlib.kronos import Kronos, KronosTokenizer, fingerprint, load_card, load_model, load_tokenizer, save_model
from kronos_qlib.kronos.token_statistics import TokenCounter, TokenStatistics, perplexity
from kronos_qlib.market.windows import WindowPolicy
from kronos_qlib.training.card import CheckpointCard, make_card, token_statistics
from kronos_qlib.training.card_files import read_card, write_card

FACTS: dict[str, Any] = {
    "name": "tiny",
    "lookback": 40,
    "horizon": 10,
    "max_context": 64,
    "train_start": "2000-01-01",
    "cutoff": "2014-12-31",
    "valid_start": "2015-01-01",
    "valid_end": "2016-12-31",
    "universe": "all A-shares",
    "bars_seen": 1_000,
    "sources": [{"name": "bars.parquet", "fingerprint": "ab12", "bars": 5_000}],
    "policy": WindowPolicy(),
    "valid_figures": {"cross_entropy": {"s1": 3.2, "s2": 0.8}},
    "command": "kronos-qlib pretrain",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("card") / "tiny")


@pytest.fixture(scope="module")
def networks(folder: Path) -> tuple[KronosTokenizer, Kronos]:
    return load_tokenizer(folder), load_model(folder)


def statistics(tokenizer: KronosTokenizer) -> TokenStatistics:
    return token_statistics(tokenizer, [windows(4, 50)], lookback=40)


def windows(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, length, 6, generator=torch.Generator().manual_seed(seed)).clamp(-5, 5)


def card_of(networks: tuple[KronosTokenizer, Kronos], **changes: Any) -> CheckpointCard:
    tokenizer, model = networks
    return make_card(tokenizer, model, **({"tokens": statistics(tokenizer)} | FACTS | changes))


def test_a_card_comes_back_as_it_was_written(networks: tuple[KronosTokenizer, Kronos], folder: Path) -> None:
    card = card_of(networks, recipe={"seed": 0})
    path = write_card(card, folder)
    assert read_card(folder) == card
    assert card.windows["lookback"] == 40  # not the policy's own 90
    assert card.fingerprint.model == fingerprint(networks[1])
    assert load_pretrained(folder).lookback == 40  # what forecasting reads
    assert max(map(len, path.read_text().splitlines())) > 30
    histogram = next(line for line in path.read_text().splitlines() if '"s1": [' in line)
    assert histogram.count(",") == 16  # a histogram is one line, not sixteen
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("name", ["synthetic"])
def test_cards_of_an_older_make_still_load(name: str) -> None:
    values = read_card(f"bundled:{name}")
    assert isinstance(values, dict)
    assert values == load_card(f"bundled:{name}")
    assert values["cutoff"] == "2018-12-31"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name"),
        ({"cutoff": "1999-12-31"}, "train_start 2000-01-01 lies after the cutoff 1999-12-31"),
        ({"cutoff": "the end"}, "found the date 'the end'"),
        ({"valid_end": "2014-01-01"}, "valid_start 2015-01-01 lies after valid_end"),
        ({"bars_seen": 0}, "bars_seen"),
        ({"sources": []}, "sources"),
        ({"sources": [{"name": "a", "fingerprnt": "b", "bars": 1}]}, "did you mean 'fingerprint'"),
        ({"horizon": 64}, "horizon 64 must be below max_context 64"),
        ({"lookback": 30}, "tokens were counted in windows of 40 bars, lookback is 30"),
        ({"valid_figures": {}}, "valid_figures"),
        ({"valid_figures": {"loss": float("nan")}}, "no JSON"),
        ({"command": ""}, "command"),
    ],
)
def test_a_bad_card_is_a_value_error(
    networks: tuple[KronosTokenizer, Kronos], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        card_of(networks, **changes)


@pytest.mark.parametrize("key", ["cutoff", "tokens", "fingerprint", "universe", "windows", "configuration", "commit"])
def test_a_card_with_a_value_missing_is_refused(
    networks: tuple[KronosTokenizer, Kronos], tmp_path: Path, key: str
) -> None:
    values = card_of(networks).to_dict()
    del values[key]
    (tmp_path / "card.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=key):
        read_card(tmp_path)


def test_a_card_that_contradicts_itself_is_refused(networks: tuple[KronosTokenizer, Kronos]) -> None:
    values = card_of(networks).to_dict()
    with pytest.raises(ValueError, match="windows hold 50 bars, lookback says 40"):
        CheckpointCard(**{**values, "windows": {**values["windows"], "lookback": 50}})
    with pytest.raises(ValueError, match="window_policy is '2'"):
        CheckpointCard(**{**values, "window_policy": "2"})
    wide = {**values["configuration"], "model": {**values["configuration"]["model"], "s1_bits": 5}}
    with pytest.raises(ValueError, match="4 bits for s1, the model 5"):
        CheckpointCard(**{**values, "configuration": wide})
    short = {**values["tokens"], "s1": [values["tokens"]["bars"], 0]}
    with pytest.raises(ValueError, match="histogram of s1 has 2 ids, not 16"):
        CheckpointCard(**{**values, "tokens": short})
    with pytest.raises(ValueError, match="histogram of s2 sums to"):
        CheckpointCard(**{**values, "tokens": {**values["tokens"], "s2": [1] * 16}})


def test_a_card_of_other_weights_is_not_written(networks: tuple[KronosTokenizer, Kronos], tmp_path: Path) -> None:
    """Rounding to bfloat16 makes other weights: a card made before saving would not be theirs."""
    place = write_tiny_checkpoint(tmp_path / "tiny")
    card = card_of(networks)
    write_card(card, place)
    (place / "card.json").unlink()
    save_model(networks[1], place / "model", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"the model in .* the card says"):
        write_card(card, place)
    assert not (place / "card.json").exists()
    write_card(card_of((load_tokenizer(place), load_model(place))), place)


def test_an_old_card_with_a_broken_value_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(json.dumps({"cutoff": "soon"}))
    with pytest.raises(ValueError, match="found the date 'soon'"):
        read_card(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"lookback": "90"}))
    with pytest.raises(ValueError, match="lookback='90'"):
        read_card(tmp_path)
    (tmp_path / "card.json").unlink()
    assert read_card(tmp_path) == {}


def test_tokens_are_counted_on_context_bars_whatever_the_batches(networks: tuple[KronosTokenizer, Kronos]) -> None:
    tokenizer = networks[0]
    x = windows(6, 50)
    x[0, 3, 4] = x[0, 7, 4] = x[1, 0, 0] = 5.0  # clipped: two volumes of one window, one open of another
    x[2, 45, 4] = -5.0  # after the context: not counted
    whole = token_statistics(tokenizer, [x], lookback=40)
    parts = token_statistics(tokenizer, (part for part in x.split(2)), lookback=40)
    assert whole == parts
    assert (whole.windows, whole.bars, whole.lookback) == (6, 240, 40)
    s1, s2 = tokenizer.encode(x[:, :40])
    assert whole.s1 == torch.bincount(s1.flatten(), minlength=16).tolist()
    assert whole.s2 == torch.bincount(s2.flatten(), minlength=16).tolist()
    assert whole.clipped_values["volume"] == 2 / 240
    assert whole.clipped_windows["volume"] == 1 / 6
    assert whole.clipped_values["open"] == 1 / 240
    assert whole.clipped_values["amount"] == 0


def test_token_statistics_refuse_what_they_cannot_count(networks: tuple[KronosTokenizer, Kronos], folder: Path) -> None:
    with pytest.raises(ValueError, match="no window"):
        token_statistics(networks[0], [], lookback=40)
    with pytest.raises(ValueError, match="windows of 39 bars"):
        token_statistics(networks[0], [windows(2, 39)], lookback=40)
    with pytest.raises(ValueError, match="training mode"):
        token_statistics(load_tokenizer(folder).train(), [windows(2, 40)], lookback=40)
    with pytest.raises(ValueError, match="found bars"):
        TokenCounter(4, 4).add(torch.zeros(2, 3, 5), torch.zeros(2, 3).long(), torch.zeros(2, 3).long())


def test_perplexity_counts_evenly_used_ids() -> None:
    import numpy as np

    assert perplexity(np.array([5, 5, 5, 5, 0])) == pytest.approx(4)
    assert perplexity(np.array([0, 7])) == pytest.approx(1)
    assert perplexity(np.array([3, 1])) == pytest.approx(4 / 27**0.25)
