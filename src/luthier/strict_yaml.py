"""YAML 1.2 as recipes use it: plain values, no tags, no aliases that multiply, no depth without end."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError, first_line, printable

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
"""Values in a recipe, those of an alias counted wherever it stands."""
MAX_DEPTH = 64
PLAIN_TAG = r"tag:yaml\.org,2002:(?!python|ruby|java|perl).*"


def read_mapping(path: Path, what: str, advice: str = "") -> dict[str, Any]:
    """The mapping that a YAML file holds: `what` it should be. Raises RecipeError LU-R001 to LU-R005."""
    tree = parse_yaml(read_text(path, what, advice), str(path))
    if not isinstance(tree, dict):
        raise RecipeError.of("LU-R002", str(path), f"{what} is a mapping of settings, this is {_kind(tree)}")
    return tree


def read_text(path: Path, what: str, advice: str = "") -> str:
    """The text of a file that is small and UTF-8. Raises RecipeError LU-R001, LU-R002."""
    if not path.is_file():
        raise RecipeError.of("LU-R001", str(path), f"no such {what.removeprefix('a ')} file", advice)
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError.of("LU-R002", str(path), f"is over {MAX_BYTES} bytes; this is no {what.removeprefix('a ')}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"{path}: byte {error.start}"
        raise RecipeError.of("LU-R002", found, "is not UTF-8", "save it as UTF-8") from None


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "empty"}.get(type(value), type(value).__name__)


def parse_yaml(text: str, where: str) -> Any:
    """YAML 1.2 to plain data. Raises RecipeError LU-R002 to LU-R005."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        size = _Size(where)
        for event in YAML(typ="safe", pure=True).parse(io.StringIO(text)):
            size.add(event)
            tag = getattr(event, "tag", None)
            if tag is not None and not re.fullmatch(PLAIN_TAG, str(tag)):
                raise RecipeError.of(
                    "LU-R004", _at(where, event), f"YAML tag {printable(str(tag))}", "recipes hold plain values only"
                )
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise RecipeError.of("LU-R003", place, f"not YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, KeyError) as error:  # a day that is none, a number of thousands of digits, `!!bool maybe`
        raise RecipeError.of("LU-R003", where, f"a value that is none of its kind: {first_line(error)}") from None


class _Size:
    """Counts values while YAML is parsed, and stops before aliases that multiply, or endless nesting, are built."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._n_nodes = 0
        self._open: list[tuple[str | None, int]] = []  # anchor, and nodes before it
        self._anchored: dict[str, int] = {}  # nodes of a closed value

    def add(self, event: Any) -> None:
        """Raises RecipeError LU-R003, LU-R005."""
        from ruamel.yaml import events

        anchor: Any = getattr(event, "anchor", None)
        if isinstance(event, events.AliasEvent):
            self._n_nodes += self._anchored.get(anchor, MAX_NODES + 1)  # one that is still open holds itself
        elif isinstance(event, events.CollectionStartEvent):
            self._open.append((anchor, self._n_nodes))
            self._n_nodes += 1
        elif isinstance(event, events.CollectionEndEvent):
            opened, before = self._open.pop()
            if opened:
                self._anchored[opened] = self._n_nodes - before
        elif isinstance(event, events.ScalarEvent):
            self._n_nodes += 1
            if anchor:
                self._anchored[anchor] = 1
        if len(self._open) > MAX_DEPTH:
            raise RecipeError.of("LU-R003", _at(self._where, event), "nested too deeply")
        if self._n_nodes > MAX_NODES:
            raise RecipeError.of(
                "LU-R005", _at(self._where, event), "YAML aliases that multiply", "write the values out"
            )


def dump_yaml(tree: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back."""
    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    writer.width = 120
    out = io.StringIO()
    writer.dump(_plain(tree), out)
    return out.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    if isinstance(value, str) and not value.isprintable():  # quoted, with escapes: U+0085 would be read as a space
        from ruamel.yaml.scalarstring import DoubleQuotedScalarString

        return DoubleQuotedScalarString(value)
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _at(where: str, event: Any) -> str:
    mark = getattr(event, "start_mark", None)
    return f"{where}:{mark.line + 1}" if mark else where
