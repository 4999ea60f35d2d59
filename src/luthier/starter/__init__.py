"""What `luthier init` writes: a commented recipe, a small data set of an invented shop, and its own metrics."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from luthier.errors import RunError

FILES = ("recipe.yaml", "shop.jsonl", "general.jsonl", "shop_metrics.py", "README.md")


def write_starter(folder: Path) -> list[Path]:
    """Copy the starter's files into a new `folder`. Raises RunError LU-U007 if one is already there."""
    if taken := [name for name in FILES if (folder / name).exists()]:
        raise RunError.of("LU-U007", str(folder), f"already holds {', '.join(taken)}", "name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in FILES:
        (folder / name).write_bytes(files(__package__).joinpath(name).read_bytes())
        written.append(folder / name)
    return written
