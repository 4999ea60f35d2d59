"""A peer's files, read strictly: YAML without tags, or JSON; of plain values, in bounds, and no key twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.errors import RecipeError, printable
from luthier.migrate.llamafactory_data import WHERE
from luthier.strict_json import NotStrict, parse_json
from luthier.strict_yaml import read_mapping, read_text


def read(path: Path) -> dict[str, Any]:
    """The configuration in a file. Raises RecipeError LU-R001 to LU-R005."""
    if path.suffix.lower() != ".json":
        return read_mapping(path, "a configuration")
    text = read_text(path, "a configuration")
    try:
        tree = parse_json(text)
    except NotStrict as error:
        found = f"'{printable(error.key)}': {error.found}" if error.key else error.found
        raise RecipeError.of("LU-R003", str(path), found, error.advice) from None
    if not isinstance(tree, dict):
        raise RecipeError.of("LU-R002", str(path), "a configuration is a mapping of settings, this is not")
    return tree


def is_info(path: Path) -> bool:
    """Whether it is LLaMA-Factory's dataset_info.json: every value is a data set, with a file or a name."""
    if path.suffix.lower() != ".json":
        return False
    tree = read(path)
    return bool(tree) and all(isinstance(value, dict) and set(WHERE) & value.keys() for value in tree.values())
