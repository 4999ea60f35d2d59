"""A peer's files, read strictly: YAML without tags, or JSON; of plain values, in bounds, and no key twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError, first_line
from luthier.migrate.llamafactory_data import WHERE
from luthier.strict_yaml import MAX_DEPTH, read_mapping, read_text


def read(path: Path) -> dict[str, Any]:
    """The configuration in a file. Raises RecipeError LU-R001 to LU-R005."""
    if path.suffix.lower() != ".json":
        return read_mapping(path, "a configuration")
    text = read_text(path, "a configuration")
    try:
        tree = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        _check_depth(tree)
    except (ValueError, RecursionError) as error:
        place = f"{path}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(path)
        found = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON: {first_line(error)}"
        raise RecipeError.of("LU-R003", place, found) from None
    if not isinstance(tree, dict):
        raise RecipeError.of("LU-R002", str(path), "a configuration is a mapping of settings, this is not")
    return tree


def is_info(path: Path) -> bool:
    """Whether it is LLaMA-Factory's dataset_info.json: every value is a data set, with a file or a name."""
    if path.suffix.lower() != ".json":
        return False
    tree = read(path)
    return bool(tree) and all(isinstance(value, dict) and set(WHERE) & value.keys() for value in tree.values())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' stands twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_depth(tree: Any, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise RecursionError
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        _check_depth(value, depth + 1)
