"""Configurations of the tokenizer, the model and the sampler, validated when constructed.

The keys of :class:`TokenizerConfig` and :class:`ModelConfig` are those of published ``config.json`` files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise a ValueError that names every key of ``given`` that is not in ``known``, with the nearest known one."""
    known = list(known)
    unknown = [key for key in given if key not in known]
    if not unknown:
        return
    hints = []
    for key in unknown:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hints.append(f"{key!r} (did you mean {near[0]!r}?)" if near else repr(key))
    raise ValueError(f"{where}: unknown key {', '.join(hints)}; known keys are {', '.join(known)}")


class _Config(BaseModel):
    """Frozen, strict about names; every violation is a ValueError."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            check_keys(data, cls.model_fields, cls.__name__)
            for key, value in data.items():
                # YAML reads yes and on as true, which would pass for the number 1
                if isinstance(value, bool) and cls.model_fields[key].annotation is not bool:
                    raise ValueError(f"{cls.__name__}: {key} is {value}, expected a number or a name")
        return data

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON types."""
        return self.model_dump()


class NetworkConfig(_Config):
    """What both networks share."""

    s1_bits: int = Field(ge=1, le=16)
    s2_bits: int = Field(ge=1, le=16)
    d_model: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    ff_dim: int = Field(ge=1)
    ffn_dropout_p: float = Field(0.0, ge=0.0, lt=1.0)
    attn_dropout_p: float = Field(0.0, ge=0.0, lt=1.0)
    resid_dropout_p: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model={self.d_model} over n_heads={self.n_heads} must give an even whole head width; change one"
            )
        return self


class TokenizerConfig(NetworkConfig):
    """Shape of a Kronos tokenizer; the code builds ``n_enc_layers - 1`` and ``n_dec_layers - 1`` blocks."""

    d_in: int = Field(6, ge=1)
    n_enc_layers: int = Field(ge=1)
    n_dec_layers: int = Field(ge=1)
    beta: float = 0.05
    gamma0: float = 1.0
    gamma: float = 1.1
    zeta: float = 0.05
    group_size: int = Field(ge=1)

    @model_validator(mode="after")
    def _groups_divide_bits(self) -> Self:
        bits = self.s1_bits + self.s2_bits
        if bits % self.group_size:
            raise ValueError(f"group_size={self.group_size} must divide s1_bits + s2_bits = {bits}")
        return self


class ModelConfig(NetworkConfig):
    """Shape of a Kronos model.

    ``dependency_rotary`` is ours: ``"published"`` rotates queries and keys of the dependency layer in training and
    neither in decoding, as the original does; ``"rotated"`` and ``"unrotated"`` do the same in both.
    """

    n_layers: int = Field(ge=1)
    token_dropout_p: float = Field(0.0, ge=0.0, lt=1.0)
    learn_te: bool = True
    dependency_rotary: Literal["published", "rotated", "unrotated"] = "published"

    @model_validator(mode="after")
    def _dependency_heads(self) -> Self:
        if self.d_model % 8:
            raise ValueError(f"d_model={self.d_model} must be a multiple of 8: the dependency layer has four heads")
        return self

    def to_published(self) -> dict[str, Any]:
        """Keys of the published ``config.json``; our own keys appear only when they differ from the original."""
        values = self.model_dump()
        if self.dependency_rotary == "published":
            del values["dependency_rotary"]
        return values


class SamplingConfig(_Config):
    """How paths are drawn.

    Parameters
    ----------
    temperature : float
        Logits are divided by it; 0 is greedy (the most likely token, the lowest id on a tie).
    top_k, top_p : int, float
        Keep the ``top_k`` most likely tokens (0: all), then the smallest set of them whose probability exceeds
        ``top_p`` (1: all). Both compose; the original drops ``top_p`` when ``top_k`` is given.
    s2_temperature, s2_top_k, s2_top_p : optional
        Separate settings for the second half of the token; None means as for the first.
    n_paths : int
        Paths of each window.
    seed : int
        With the window's key it fixes every draw, whatever the batch.
    scheme : str
        How uniforms are spread over a window's paths: ``independent``, ``antithetic``, ``stratified`` or ``sobol``.
        Each single draw is uniform on [0, 1) in all of them.
    order : str
        Token order of the inverse CDF: by ``token`` id, or by the ``close`` a token decodes to, which makes
        stratified draws spread over outcomes. The distribution is the same.
    """

    temperature: float = Field(1.0, ge=0.0)
    top_k: int = Field(0, ge=0)
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    s2_temperature: float | None = Field(None, ge=0.0)
    s2_top_k: int | None = Field(None, ge=0)
    s2_top_p: float | None = Field(None, gt=0.0, le=1.0)
    n_paths: int = Field(10, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    scheme: Literal["independent", "antithetic", "stratified", "sobol"] = "independent"
    order: Literal["token", "close"] = "token"

    def filters(self, which: Literal["s1", "s2"]) -> tuple[float, int, float]:
        """(temperature, top_k, top_p) of one half of the token."""
        if which == "s1":
            return self.temperature, self.top_k, self.top_p
        temperature = self.temperature if self.s2_temperature is None else self.s2_temperature
        top_k = self.top_k if self.s2_top_k is None else self.s2_top_k
        top_p = self.top_p if self.s2_top_p is None else self.s2_top_p
        return temperature, top_k, top_p
