"""The weights that come with the package: small, whole, honest about what they have seen."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from kronos_qlib import resources
from kronos_qlib.kronos import fingerprint, load_model, load_tokenizer
from kronos_qlib.kronos.export import export_published
from kronos_qlib.training.card import CheckpointCard
from kronos_qlib.training.card_files import read_card

TRAINED = ["ashare", "ashare_wide", "ashare_2000_2010", "ashare_2011_2014"]
MEGABYTE = 1_000_000


@pytest.mark.parametrize("name", TRAINED)
def test_a_bundled_checkpoint_is_what_its_card_says(name: str) -> None:
    card = read_card(f"bundled:{name}")
    assert isinstance(card, CheckpointCard)
    model, tokenizer = load_model(f"bundled:{name}"), load_tokenizer(f"bundled:{name}")
    assert (card.fingerprint.model, card.fingerprint.tokenizer) == (fingerprint(model), fingerprint(tokenizer))
    assert card.configuration.model == model.config
    assert card.cutoff < card.valid_start
    assert sum(card.tokens.s1) == sum(card.tokens.s2) > 0


@pytest.mark.parametrize("name", TRAINED)
def test_a_bundled_checkpoint_is_small_and_tells_no_folders(name: str) -> None:
    folder = resources.checkpoint_path(name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6 * MEGABYTE
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert "/" not in read_card(folder).command


@pytest.mark.parametrize("name", ["ashare", "ashare_wide"])
def test_the_csi300_weights_end_before_valid_begins(name: str) -> None:
    """Learned on train, chosen on valid, reported on test."""
    card = read_card(f"bundled:{name}")
    assert (card.train_start, card.cutoff) == (datetime.date(2000, 1, 1), datetime.date(2014, 12, 31))
    assert (card.valid_start, card.valid_end) == (datetime.date(2015, 1, 1), datetime.date(2016, 12, 31))
    assert card.lookback == 90


def test_the_wide_weights_read_the_tokens_of_the_others() -> None:
    wide, plain = read_card("bundled:ashare_wide"), read_card("bundled:ashare")
    assert isinstance(wide, CheckpointCard)
    assert isinstance(plain, CheckpointCard)
    assert wide.fingerprint.tokenizer == plain.fingerprint.tokenizer
    assert wide.configuration.model.d_model > plain.configuration.model.d_model


def test_the_two_halves_share_no_bar_and_leave_room_for_a_window() -> None:
    early, late = read_card("bundled:ashare_2000_2010"), read_card("bundled:ashare_2011_2014")
    assert isinstance(early, CheckpointCard)
    assert isinstance(late, CheckpointCard)
    assert (late.train_start, late.cutoff) == (datetime.date(2011, 1, 1), datetime.date(2014, 12, 31))
    # a window of 90 bars and what follows fit between them, so that the early half answers from 2011 on
    sessions = np.busday_count(early.cutoff, late.train_start)
    assert early.lookback + early.horizon <= sessions
    whole = read_card("bundled:ashare")
    assert isinstance(whole, CheckpointCard)
    assert early.configuration.model == late.configuration.model == whole.configuration.model


def test_a_variant_of_ours_is_not_exported_as_the_published_format(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match="unrotated"):
        export_published("bundled:ashare", tmp_path_factory.mktemp("export") / "out")
