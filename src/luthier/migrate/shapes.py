"""The shapes that a peer's rows have, and the formats of Luthier's that read them.

The one table of this is FORMATS. A shape whose format `data.format` does not allow yet is not supported, with what to
do meanwhile; it is carried as soon as the settings allow it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

from luthier.migrate.engine import Fate
from luthier.settings import FormatName

ALLOWED: tuple[str, ...] = get_args(FormatName)

AS_MESSAGES = "write the rows as `messages` of role and content"
FORMATS = {
    "chat": ("messages", ""),
    "pair": ("prompt_completion", ""),
    "text": ("text", ""),
    "sharegpt": ("sharegpt", AS_MESSAGES),
    "history": ("alpaca", f"{AS_MESSAGES}, the earlier turns first"),
    "preference": ("preference", "to learn the chosen answers alone, write prompt and chosen as prompt and completion"),
    "rated": ("rated", "to learn the good answers alone, write them as prompt and completion"),
    "tokens": ("tokens", "write the texts that the ids stand for"),
}
"""Shape of a peer's rows -> format of Luthier's, and what to do where `data.format` does not allow it yet."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows are read: one of FORMATS, with the fields that the format reads (its field -> a column or template)."""

    name: str
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def format(self) -> str:
        return FORMATS[self.name][0]

    @property
    def readable(self) -> bool:
        return self.format in ALLOWED

    def settings(self) -> dict[str, Any]:
        """What it adds to a source."""
        if not self.readable:
            return {}
        return {"format": self.format} | ({"fields": self.fields} if self.fields else {})

    def fate(self) -> Fate:
        if self.readable:
            return Fate("carried", self.in_words())
        return Fate("not_supported", f"rows of the format {self.format} are not read yet; {FORMATS[self.name][1]}")

    def in_words(self) -> str:
        fields = ", ".join(f"{name}: {column!r}" for name, column in self.fields.items())
        return f"format {self.format}" + (f" with {fields}" if fields else "")


def instruction(instruction: str, context: str | None, answer: str, between: str, system: str | None = None) -> Shape:
    """An instruction, what it is about (which rows may lack), and the answer."""
    prompt = f"{{{instruction}}}{between}{{{context}?}}" if context else instruction
    return Shape("pair", {"prompt": prompt, "completion": answer} | ({"system": system} if system else {}))
