"""Configurations are validated when made: every violation is a ValueError that says what was found."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_network import model_config, tokenizer_config

from kronos_qlib.kronos import Kronos, KronosTokenizer, ModelConfig, SamplingConfig, TokenizerConfig, check_keys

# keys and values of the published config.json of Kronos-mini and its tokenizer
PUBLISHED_MODEL = {
    "s1_bits": 10,
    "s2_bits": 10,
    "n_layers": 4,
    "d_model": 256,
    "n_heads": 4,
    "ff_dim": 512,
    "ffn_dropout_p": 0.2,
    "resid_dropout_p": 0.2,
    "attn_dropout_p": 0.0,
    "token_dropout_p": 0.0,
    "learn_te": True,
}
PUBLISHED_TOKENIZER = {
    "d_in": 6,
    "d_model": 256,
    "n_heads": 4,
    "ff_dim": 512,
    "n_enc_layers": 4,
    "n_dec_layers": 4,
    "ffn_dropout_p": 0.0,
    "attn_dropout_p": 0.0,
    "resid_dropout_p": 0.0,
    "s1_bits": 10,
    "s2_bits": 10,
    "beta": 0.05,
    "gamma0": 1.0,
    "gamma": 1.1,
    "zeta": 0.05,
    "group_size": 5,
}


def test_published_configs_are_taken_and_given_back() -> None:
    assert ModelConfig(**PUBLISHED_MODEL).to_published() == PUBLISHED_MODEL
    assert TokenizerConfig(**PUBLISHED_TOKENIZER).to_dict() == PUBLISHED_TOKENIZER


@pytest.mark.parametrize(
    ("layers", "width", "heads", "ff_dim", "millions"),
    [(4, 256, 4, 512, 4.1), (8, 512, 8, 1024, 24.7), (12, 832, 16, 2048, 102.3), (18, 1664, 32, 3072, 499.2)],
)
def test_parameter_counts_of_the_published_sizes(
    layers: int, width: int, heads: int, ff_dim: int, millions: float
) -> None:
    import torch

    sizes = {"n_layers": layers, "d_model": width, "n_heads": heads, "ff_dim": ff_dim}
    with torch.device("meta"):
        model = Kronos(ModelConfig(**PUBLISHED_MODEL | sizes))
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 1) == pytest.approx(millions, abs=0.051)


@pytest.mark.parametrize("config", [model_config(), tokenizer_config(), SamplingConfig(seed=2**63 - 1, s2_top_k=4)])
def test_to_dict_and_back(config: ModelConfig | TokenizerConfig | SamplingConfig) -> None:
    values = json.loads(json.dumps(config.to_dict()))
    again = type(config)(**values)
    assert again == config
    assert hash(again) == hash(config)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize("config", [model_config(), tokenizer_config(), SamplingConfig()])
def test_configs_are_frozen(config: ModelConfig | TokenizerConfig | SamplingConfig) -> None:
    for name in config.to_dict():
        with pytest.raises(ValueError, match="frozen"):
            setattr(config, name, 1)


@pytest.mark.parametrize(
    ("kind", "wrong", "nearest"),
    [
        (SamplingConfig, "temprature", "temperature"),
        (SamplingConfig, "topk", "top_k"),
        (SamplingConfig, "n_path", "n_paths"),
        (SamplingConfig, "s2_topp", "s2_top_p"),
        (ModelConfig, "n_layer", "n_layers"),
        (ModelConfig, "dmodel", "d_model"),
        (TokenizerConfig, "n_enc_layer", "n_enc_layers"),
        (TokenizerConfig, "groupsize", "group_size"),
    ],
)
def test_an_unknown_key_names_the_nearest(kind: type, wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}: unknown key '{wrong}' \(did you mean '{nearest}'\?\)"):
        kind(**{wrong: 1})


def test_an_unknown_key_far_from_all_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown key 'qqqq'; known keys are temperature, top_k") as caught:
        SamplingConfig(qqqq=1)
    assert "did you mean" not in str(caught.value)


def test_check_keys_names_every_unknown_key() -> None:
    check_keys(["a", "b"], ["a", "b", "c"], "here")
    check_keys([], ["a"], "here")
    with pytest.raises(ValueError, match=r"^here: unknown key 'lokback' \(did you mean 'lookback'\?\), 'zz'; known"):
        check_keys(["lokback", "horizon", "zz"], ["lookback", "horizon"], "here")


@given(st.text(max_size=20).filter(lambda key: key not in SamplingConfig.model_fields))
def test_any_unknown_key_is_a_value_error(key: str) -> None:
    """Never a TypeError, which Qlib takes for a signature to try again with."""
    with pytest.raises(ValueError, match="unknown key"):
        SamplingConfig(**{key: 1})


BAD_SAMPLING = [
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": "warm"},
    {"temperature": None},
    {"top_k": -1},
    {"top_k": 2.5},
    {"top_k": None},
    {"top_p": 0.0},
    {"top_p": 1.01},
    {"top_p": -0.5},
    {"s2_temperature": -1.0},
    {"s2_top_k": -1},
    {"s2_top_p": 0.0},
    {"n_paths": 0},
    {"n_paths": -3},
    {"n_paths": []},
    {"seed": -1},
    {"seed": 2**63},
    {"scheme": "sobel"},
    {"order": "open"},
    # YAML reads "yes" and "on" as true
    {"n_paths": True},
    {"temperature": True},
    {"top_k": False},
    {"s2_top_k": True},
]


@pytest.mark.parametrize("values", BAD_SAMPLING, ids=str)
def test_sampling_settings_out_of_range(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplingConfig(**values)


@pytest.mark.parametrize(
    "values",
    [{"temperature": 0}, {"top_p": 1}, {"top_k": 10**9}, {"seed": 0}, {"n_paths": 1}, {"s2_temperature": 0.0}],
    ids=str,
)
def test_sampling_settings_at_their_ends(values: dict[str, object]) -> None:
    config = SamplingConfig(**values)
    assert {name: config.to_dict()[name] for name in values} == values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "d_model=16 over n_heads=3"),
        ({"n_heads": 16}, "even whole head width"),
        ({"d_model": 12, "n_heads": 2}, "multiple of 8"),
        ({"n_layers": 0}, "n_layers"),
        ({"s1_bits": 0}, "s1_bits"),
        ({"s2_bits": 40}, "s2_bits"),
        ({"ffn_dropout_p": 1.0}, "ffn_dropout_p"),
        ({"token_dropout_p": -0.1}, "token_dropout_p"),
        ({"dependency_rotary": "both"}, "dependency_rotary"),
        ({"n_layers": True}, "n_layers"),
        ({"learn_te": 3}, "learn_te"),
    ],
)
def test_impossible_models(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 4}, "group_size=4 must divide s1_bits . s2_bits = 6"),
        ({"n_enc_layers": 0}, "n_enc_layers"),
        ({"d_in": 0}, "d_in"),
        ({"beta": float("nan")}, "beta"),
        ({"n_heads": 5}, "n_heads=5"),
    ],
)
def test_impossible_tokenizers(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer_config(**changes)


def test_required_keys_are_named() -> None:
    with pytest.raises(ValueError, match="n_layers"):
        ModelConfig(s1_bits=3, s2_bits=3, d_model=16, n_heads=2, ff_dim=24)


def test_the_smallest_networks_are_possible() -> None:
    """One layer means one block in the model and none in the tokenizer."""
    model = Kronos(model_config(1, n_layers=1, d_model=8, n_heads=1, ff_dim=1))
    tokenizer = KronosTokenizer(tokenizer_config(1, n_enc_layers=1, n_dec_layers=1))
    assert len(model.transformer) == 1
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 0
