"""The base of this part's settings: frozen, and strict about names."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from kronos_qlib.kronos.config import check_keys


class Settings(BaseModel):
    """Frozen settings; an unknown key is a ``ValueError`` that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            check_keys(data, cls.model_fields, cls.__name__)
        return data

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return self.model_dump(mode="json")
