"""Writes docs/recipe.md from the recipe's own tree, so that page and program cannot disagree: `make docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from luthier.settings import AdaLora, Bottleneck, Full, Lora, Partial, Peft, Recipe

PAGE = Path(__file__).with_name("recipe.md")
HEAD = """# The recipe: every setting

Written by `make docs` from `luthier/settings/`. Recipes are YAML 1.2, read strictly: an unknown setting, a number
in quotes or a rule on a metric that nobody measures is an error before anything runs. Paths count from the recipe.
`luthier init` writes a commented example.
"""
UNIONS: dict[str, type[BaseModel]] = {
    "model.adapt (lora)": Lora,
    "model.adapt (adalora)": AdaLora,
    "model.adapt (peft)": Peft,
    "model.adapt (bottleneck)": Bottleneck,
    "model.adapt (partial)": Partial,
    "model.adapt (full)": Full,
}


def page() -> str:
    return HEAD + "".join(_table("Recipe", Recipe)) + "".join("".join(_table(n, s)) for n, s in _sections(Recipe, ""))


def _sections(model: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is not None:
            yield f"{place}{name}", inner
            yield from _sections(inner, f"{place}{name}.")
        yield from ((n, s) for n, s in UNIONS.items() if n.split(" ")[0] == f"{place}{name}")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """A section, also where it may be absent."""
    found = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
    return found[0] if len(found) == 1 else None


def _table(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"\n## {title}\n\n| setting | values | default | |\n|---|---|---|---|\n"
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        about = " ".join((field.description or "").split())
        yield f"| `{name}` | {_values(field)} | {default} | {about} |\n"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        value = [item.name for item in value]
    return f"`{list(value) if isinstance(value, tuple) else value}`" if value is not PydanticUndefined else ""


def _values(field: Any) -> str:
    text = re.sub(r"luthier\.settings\.\w+\.", "", str(field.annotation).replace("typing.", ""))
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    text = re.sub(r", (FieldInfo|annotation)\(?.*$", "", text).replace("Annotated[", "").replace("NoneType", "None")
    text = re.sub(r"(Optional|Union)\[(.*?)\]*$", r"\2", text) + (" or None" if "Optional" in text else "")
    limits = [f"{k} {getattr(m, k)}" for m in field.metadata for k in ("gt", "ge", "lt", "le") if hasattr(m, k)]
    words = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    limit = ", ".join(f"{words[x.split()[0]]} {x.split()[1]}" for x in limits)
    shown = text if len(text) < 60 else "see below"
    return f"{shown} {limit}".strip().replace("|", "or")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
