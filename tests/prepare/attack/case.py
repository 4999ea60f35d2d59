"""A case: the files and the recipe's `data` that `prepare` is given, and what is known of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Said = tuple[tuple[str, str], ...]
"""Role and text of each turn."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of rows that carry their number in the column `nr`."""

    format: str
    fields: dict[str, str]
    """Those of the format that decide what a row says."""
    said: dict[int, tuple[Said, Said]]
    """Of each good row, by its number: its turns, and those of the rejected answer."""
    n_rows: int


@dataclass(frozen=True, slots=True)
class Case:
    kind: str
    """For the table of results."""
    files: dict[str, bytes]
    data: dict[str, Any] = field(default_factory=dict)
    """The recipe's `data`; without any, a recipe is derived."""
    known: Known | None = None

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        if self.data:
            recipe = json.dumps(recipe_tree(self.data), indent=2)  # JSON is YAML
            (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")


def recipe_tree(data: dict[str, Any]) -> dict[str, Any]:
    return {"name": "attack", "data": data, "release": {"rules": [{"metric": "token_f1", "must": "beat_baseline"}]}}
