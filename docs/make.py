"""Writes docs/recipe.md from the recipe's own tree, and the tables of docs/migrate.md from the rules of migration, so
that page and program cannot disagree: `make docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from luthier.migrate import PEERS
from luthier.migrate.engine import Rule, Table
from luthier.migrate.llamafactory_data import DATASET, INFO
from luthier.settings import Recipe

PAGE = Path(__file__).with_name("recipe.md")
MIGRATE_PAGE = Path(__file__).with_name("migrate.md")
HEAD = """# The recipe: every setting

Written by `make docs` from `luthier/settings/`. Recipes are YAML 1.2, read strictly: an unknown setting or a number in
quotes is an error before anything runs. So is a rule on a metric that nobody measures, where `evaluate.metrics` names
the metrics; where it does not, as soon as the data is prepared. None is written `null`. Paths count from the recipe.
`luthier init` writes a commented example.
"""
LIMITS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
Sections = dict[type[BaseModel], str]
"""Each section with its title."""


def page() -> str:
    sections: Sections = {Recipe: "Recipe"}
    sections |= _sections(Recipe, "")
    return HEAD + "".join("".join(_table(title, model, sections)) for model, title in sections.items())


def _sections(model: type[BaseModel], place: str) -> Iterator[tuple[type[BaseModel], str]]:
    """A section that is one of several is named by its method too."""
    for name, field in model.model_fields.items():
        inner = list(_models(field.annotation))
        for one in inner:
            yield one, f"{place}{name}" + (f" ({_method(one)})" if len(inner) > 1 else "")
            yield from _sections(one, f"{place}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _method(model: type[BaseModel]) -> str:
    kinds = [get_args(model.model_fields[name].annotation) for name in ("method", "use") if name in model.model_fields]
    return next((str(kind[0]) for kind in kinds if kind), model.__name__.lower())


def _table(title: str, model: type[BaseModel], sections: Sections) -> Iterator[str]:
    about = f"{_line(model.__doc__)}\n\n" if model.__doc__ else ""
    yield f"\n## {title}\n\n{about}| setting | values | default | |\n|---|---|---|---|\n"
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        values = _either(_values(field.annotation, field.metadata, sections))
        yield f"| `{name}` | {values} | {default} | {_line(field.description)} |\n"


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return f"`{{method: {value.method}}}`" if hasattr(value, "method") else "its defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(str(getattr(item, 'name', item)) for item in value)}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else ""


def _values(annotation: Any, metadata: Any, sections: Sections) -> list[str]:
    """What a setting may be: one text for each alternative."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(inner[0], annotation.__metadata__, sections)
    if origin in (Union, UnionType):
        return [text for one in inner for text in _values(one, (), sections)]
    if origin is Literal:
        return [repr(value) for value in inner]
    if origin is tuple:
        parts = [_either(_values(one, (), sections)) for one in inner if one is not ...]
        return [f"list of {parts[0]}" if inner[-1] is ... else f"[{', '.join(parts)}]"]
    if origin is dict:
        return [f"dict[{', '.join(_either(_values(one, (), sections)) for one in inner)}]"]
    if annotation in sections:
        title = sections[annotation]
        return [f"[{title}](#{re.sub(r'[^a-z_ -]', '', title.lower()).replace(' ', '-')})"]
    name = {type(None): "None", Any: "anything"}.get(annotation) or annotation.__name__
    return [f"{name} {' and '.join(_limits(metadata))}".strip()]


def _limits(metadata: Any) -> Iterator[str]:
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from _limits(one.metadata)
        yield from (f"{sign} {getattr(one, k)}" for k, sign in LIMITS.items() if getattr(one, k, None) is not None)


def _either(texts: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


# -- docs/migrate.md ---------------------------------------------------------------------------------------


def migrate_page(text: str) -> str:
    """The page with the tables of keys between its marks."""
    for key, peer in PEERS.items():
        marks = re.compile(rf"(<!-- keys of {key} -->\n).*?(<!-- end of keys -->)", flags=re.DOTALL)
        assert marks.search(text), f"no place for the keys of {key}"
        found = [*_tables(peer.table), *(_tables(DATASET, f"{INFO}: NAME.") if key == "llamafactory" else ())]
        tables = "\n".join("".join(_keys(table, title)) for title, table in found)
        text = marks.sub(lambda found, tables=tables: f"{found[1]}\n{tables}\n{found[2]}", text)
    return text


def _tables(table: Table, title: str = "") -> Iterator[tuple[str, Table]]:
    """The table, and those of the mappings inside, each once."""
    yield title, table
    inner: dict[int, tuple[list[str], Table]] = {}
    for key, rule in table.items():
        if rule.inner is not None:
            inner.setdefault(id(rule.inner), ([], rule.inner))[0].append(key)
    for names, one in inner.values():
        yield from _tables(one, f"{title}{', '.join(names)}.")


def _keys(table: Table, title: str) -> Iterator[str]:
    if title:
        yield f"In `{title.rstrip('.')}`:\n\n"
    yield "| key | becomes |\n|---|---|\n"
    rules: dict[int, tuple[list[str], Rule]] = {}
    for key, rule in table.items():
        rules.setdefault(id(rule), ([], rule))[0].append(key)
    for names, rule in sorted(rules.values(), key=lambda found: not found[1].doc.startswith("`")):
        said = ", ".join(rule.default) if isinstance(rule.default, list) else rule.default
        default = f"; where nothing is said: {said}" if said not in (None, False) else ""
        yield f"| {', '.join(f'`{name}`' for name in names)} | {_line(rule.doc)}{default} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    MIGRATE_PAGE.write_text(migrate_page(MIGRATE_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE, MIGRATE_PAGE, sep="\n")
