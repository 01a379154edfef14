"""Loading checkpoints for forecasting: where the tokenizer is found, and which lengths are used (trap 20)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_panel import bars
from tiny_network import tiny_networks

import kronos_qlib
from kronos_qlib.forecast.forecaster import KronosForecaster
from kronos_qlib.forecast.pretrained import context_length, find_tokenizer, warn_of_default_lookback
from kronos_qlib.kronos import SamplingConfig, save_model, save_tokenizer

SAMPLING = SamplingConfig(n_paths=2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    networks = tiny_networks()
    save_model(networks.model, tmp_path / "mine" / "model")
    save_tokenizer(networks.tokenizer, tmp_path / "mine" / "tokenizer")
    return tmp_path / "mine"


def test_loaded_networks_forecast_as_the_ones_that_were_saved(checkpoint: Path) -> None:
    networks = tiny_networks()
    loaded = KronosForecaster.from_pretrained(checkpoint, lookback=40, max_context=64, device="cpu")
    direct = KronosForecaster(networks.model, networks.tokenizer, 40, 64, "cpu")
    frame = bars(50)
    np.testing.assert_array_equal(
        loaded.forecast_frame(frame, 3, SAMPLING, "XSHG").values,
        direct.forecast_frame(frame, 3, SAMPLING, "XSHG").values,
    )
    assert loaded.fingerprint == direct.fingerprint
    assert not loaded.model.training


def test_the_tokenizer_is_found_inside_and_beside(checkpoint: Path) -> None:
    assert find_tokenizer(checkpoint) == checkpoint / "tokenizer"
    assert find_tokenizer(checkpoint / "model") == checkpoint / "tokenizer"
    explicit = KronosForecaster.from_pretrained(
        str(checkpoint / "model"), tokenizer=str(checkpoint / "tokenizer"), device="cpu"
    )
    assert explicit.fingerprint == KronosForecaster.from_pretrained(checkpoint, device="cpu").fingerprint


def test_trap_20_lengths_of_the_caller_then_the_card_then_the_name_then_512(checkpoint: Path) -> None:
    bare = KronosForecaster.from_pretrained(checkpoint, device="cpu")
    assert (bare.lookback, bare.max_context, bare.card) == (512, 512, {})
    (checkpoint / "card.json").write_text(json.dumps({"lookback": 90, "max_context": 128, "cutoff": "2014-12-31"}))
    carded = KronosForecaster.from_pretrained(checkpoint, device="cpu")
    assert (carded.lookback, carded.max_context, carded.card["cutoff"]) == (90, 128, "2014-12-31")
    asked = KronosForecaster.from_pretrained(checkpoint, lookback=30, device="cpu")
    assert (asked.lookback, asked.max_context) == (30, 128)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NeoQuasar/Kronos-mini", 2048),
        ("NeoQuasar/Kronos-small", 512),
        ("models/kronos-base", 512),
        ("NeoQuasar/Kronos-mini-tuned", 512),
    ],
)
def test_trap_20_known_names(name: str, expected: int) -> None:
    assert context_length("max_context", {}, name) == expected
    assert context_length("lookback", {"lookback": 60}, name) == 60


def test_trap_20_a_lookback_that_nobody_named_is_said(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_default_lookback("mine", {}, 90)
    warn_of_default_lookback("mine", {"lookback": 90}, None)
    warn_of_default_lookback("NeoQuasar/Kronos-small", {}, None)
    assert not caplog.records
    warn_of_default_lookback("mine", {}, None)
    assert "no card of mine names a lookback: windows hold up to 512 bars; set --lookback" in caplog.text


def test_user_errors(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint folder at"):
        KronosForecaster.from_pretrained(tmp_path / "nothing", device="cpu")
    with pytest.raises(ValueError, match="holds a model only; give tokenizer="):
        KronosForecaster.from_pretrained("NeoQuasar/Kronos-small", revision="0" * 40, device="cpu")
    save_model(tiny_networks().model, tmp_path / "alone")
    with pytest.raises(ValueError, match="found no tokenizer in or beside"):
        KronosForecaster.from_pretrained(tmp_path / "alone", device="cpu")
    (checkpoint / "card.json").write_text('{"lookback": "90"}')
    with pytest.raises(ValueError, match="says lookback='90'"):
        KronosForecaster.from_pretrained(checkpoint, device="cpu")
    with pytest.raises(ValueError, match="found device 'gpu'"):
        KronosForecaster.from_pretrained(tmp_path / "nothing", device="gpu")


def test_public_names_are_lazy() -> None:
    code = (
        "import sys, kronos_qlib; assert 'torch' not in sys.modules; "
        "kronos_qlib.KlinePaths; print('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
    assert kronos_qlib.KronosForecaster is KronosForecaster
    assert kronos_qlib.SamplingConfig is SamplingConfig
    assert {"KlinePaths", "KronosForecaster", "SamplingConfig"} <= set(dir(kronos_qlib))
    with pytest.raises(AttributeError, match="Forecaster"):
        _ = kronos_qlib.Forecaster
