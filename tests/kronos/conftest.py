"""Fixtures of the network's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_network import tiny_networks

from kronos_qlib.kronos import save_model, save_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint: model/, tokenizer/ and a card."""
    networks = tiny_networks()
    save_model(networks.model, tmp_path / "model")
    save_tokenizer(networks.tokenizer, tmp_path / "tokenizer")
    (tmp_path / "card.json").write_text(json.dumps({"name": "tiny", "lookback": 90}))
    return tmp_path
