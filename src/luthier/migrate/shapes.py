"""How a peer's rows are read: a format of Luthier's, with the columns or templates that its fields are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.migrate.engine import Fate
from luthier.settings import FormatName


@dataclass(frozen=True, slots=True)
class Shape:
    format: FormatName
    fields: dict[str, str] = field(default_factory=dict)
    """Of the format -> a column or template; the others are told from the columns."""

    def settings(self) -> dict[str, Any]:
        """What it adds to a source."""
        return {"format": self.format} | ({"fields": self.fields} if self.fields else {})

    def fate(self) -> Fate:
        fields = ", ".join(f"{name}: {column!r}" for name, column in self.fields.items())
        return Fate("carried", f"format {self.format}" + (f" with {fields}" if fields else ""))


def fate_of(shape: Shape | None) -> Fate:
    said = "no format here reads such rows; write them as `messages`, or as prompt and completion"
    return shape.fate() if shape else Fate("not_supported", said)


def asked(instruction: str, context: str | None, between: str) -> str:
    """An instruction and what it is about, which rows may lack."""
    return f"{{{instruction}}}{between}{{{context}?}}" if context else instruction


def instruction(instruction: str, context: str | None, answer: str, between: str, system: str | None = None) -> Shape:
    """An instruction, what it is about, and the answer."""
    fields = {"prompt": asked(instruction, context, between), "completion": answer}
    return Shape("prompt_completion", fields | ({"system": system} if system else {}))
