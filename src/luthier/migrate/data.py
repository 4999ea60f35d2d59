"""Where a peer's data lie: files, folders, data sets on the hub, and what becomes of each.

All three peers name data as `datasets.load_dataset` does: a path or a hub name, or a way to read files together with
the files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath

from luthier.migrate.engine import Fate, Rule, View
from luthier.migrate.kinds import anything, names, or_none, text
from luthier.migrate.rules import NO_PART, no_effect, not_supported

READERS = ("json", "csv", "parquet", "arrow", "text")
"""What stands in the place of a path where files are named apart."""
SUFFIXES = ("json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow", "txt", "gz", "zst")

FOLDER = not_supported("a folder of a data set on the hub", "fetch its files, and name their folder")
HEAD = (None, "", "main")
"""Revisions that are the newest."""
SHARDS = not_supported("a part of the rows", "data.limit takes so many, drawn by seed")
STREAMED = no_effect("rows are read as they come")


def places(
    path: str | None, files: list[str], view: View, config: str | None = None, revision: str | None = None
) -> tuple[list[str], Fate]:
    """The paths of sources for what a peer names, and the fate of the key that names it."""
    if not path or (path in READERS and files):
        said = "how a file is read is told from the file"
        return [view.place.for_recipe(file) for file in files], Fate("no_effect", said)
    if re.match(r"\w+://", path):
        local = f"data/{PurePath(path).name}"
        return [local], Fate("not_supported", f"a remote file; fetch it to {local}")
    if view.place.find(path) is None and not is_file(path):
        if not files:
            name = f"hub:{path}" + (f"@{revision}" if revision not in HEAD else "") + (f":{config}" if config else "")
            return [name], Fate("carried", f"`data.sources`: {name}")
        folder = f"data/{path.replace('/', '--')}"
        said = f"files of a data set on the hub; fetch it: hf download --repo-type dataset {path} --local-dir {folder}"
        return [f"{folder}/{file}" for file in files], Fate("not_supported", said)
    inside = [f"{path}/{file}" for file in files if view.place.find(f"{path}/{file}")]
    found = [view.place.for_recipe(one) for one in inside or files or [path]]
    return found, Fate("carried", f"`data.sources`: {', '.join(found)}")


def part_of_name(what: str, of: Callable[[View], list[str]], off: tuple[object, ...] = (None, "")) -> Rule:
    """A key that says which configuration or revision is meant of a data set on the hub; `of` gives the sources."""

    def by(value: str | None, view: View) -> Fate:
        if value in off:
            return Fate("no_effect", NO_PART)
        if any(path.startswith("hub:") for path in of(view)):
            return Fate("carried", "`data.sources`: part of the name")
        return Fate("not_supported", f"{what} of a data set on the hub; fetch its files, and name their folder")

    return Rule(or_none(text), f"`data.sources`: {what}, part of a hub name as in hub:NAME@REVISION:CONFIG", by)


def is_file(path: str) -> bool:
    """Whether it is one by its name; what is neither there nor so named is on the hub."""
    return path[:1] in "./~" or path.rpartition(".")[2].lower() in SUFFIXES


def listed(files: object) -> list[str]:
    """`data_files`: one, a list, or lists by split."""
    if isinstance(files, dict):
        return [file for group in files.values() for file in names(group)]
    return names(files) if files else []


def split_name(value: str, view: View) -> Fate:
    if value in ("train", "test", "validation"):
        return Fate("no_effect", "in a folder, names such as train.jsonl and test.jsonl say the side of their rows")
    return Fate("not_supported", "a part of the rows by name; name its file in data.sources, or use data.limit")


def file_names(value: object, view: View) -> Fate:
    listed(value)
    return Fate("carried", "`data.sources`, each")


FILES = Rule(anything, "`data.sources`: each file", file_names)
PATH_DOC = "`data.sources`: a file or folder; a hub name as hub:NAME"
SPLIT = Rule(text, "no effect: files say their side by name; parts such as train[:10%] are not supported", split_name)
