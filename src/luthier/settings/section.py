"""What every section of a recipe is made of: strict, frozen, and with its fields' docstrings as their descriptions."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def located(path: str, folder: Path) -> Path:
    """Where a path of a recipe lies: it counts from `folder`; a `~` of nobody known stays as it is."""
    return folder / os.path.expanduser(path)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Use(Section):
    """A plug-in and its parameters: `rouge1` or `{use: rouge1, stem: true}`."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    use: str
    """Its name, or `module:function` for one of your own; its parameters stand beside it."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def names(self) -> tuple[str, ...]:
        """Its own, and that of a plug-in that it is made `of`, as `group_gap` is."""
        of = self.params.get("of")
        inner = of.get("use") if isinstance(of, dict) else of
        return (self.use, inner) if isinstance(inner, str) else (self.use,)


def fingerprint(value: BaseModel | Any) -> str:
    """SHA-256 of a settings tree's canonical JSON."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
