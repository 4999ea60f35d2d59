"""LLaMA-Factory's dataset_info.json: which data sets there are, where they lie and how their rows are read.

Looked up in data/parser.py of hiyouga/LlamaFactory (2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from luthier.migrate.data import COMMIT, PATH_DOC, SHARDS, SPLIT, SUBSET, places
from luthier.migrate.engine import Fate, Rule, Table, View
from luthier.migrate.kinds import flag, mapping, text
from luthier.migrate.place import Place
from luthier.migrate.rules import keys, no_effect, not_supported
from luthier.migrate.shapes import Shape, instruction

INFO = "dataset_info.json"
WHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
"""One of them is in every data set; an earlier one wins."""


def _column(view: View, name: str, default: str) -> str | None:
    """With `columns` given, a column that they do not name is none."""
    columns = view.inside("columns")
    return columns[0](name) if columns else default


def _tag(view: View, name: str, default: str) -> str:
    tags = view.inside("tags")
    return (tags[0](name) if tags else None) or default


def shape(view: View) -> Shape:
    """How the rows of a data set are read."""
    if view("ranking"):
        return Shape("preference")
    if _column(view, "kto_tag", ""):
        return Shape("rated")
    if view("formatting") not in (None, "alpaca"):
        return _chat(view)
    prompt = _column(view, "prompt", "instruction") or "instruction"
    if view.top("stage") == "pt":
        return Shape("text", {"text": prompt})
    if _column(view, "history", ""):
        return Shape("history")
    answer = _column(view, "response", "output") or "output"
    return instruction(prompt, _column(view, "query", "input"), answer, "\n", _column(view, "system", ""))


def _chat(view: View) -> Shape:
    opens = view("formatting") == "openai"
    column = _column(view, "messages", "conversations") or "conversations"
    known = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    others = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    tags = {name: _tag(view, name, (known if opens else others)[name]) for name in known}
    return Shape("chat" if tags == known else "sharegpt", {"messages": column})


def _read_as(value: object, view: View) -> Fate:
    return shape(view).fate()


def _part_of_reading(value: object, view: View) -> Fate:
    return shape(view.above).fate() if view.above else Fate("carried")


def located(view: View) -> tuple[str, str, Fate]:
    """Of a data set: the key that says where it lies, the path of its source, and the fate of that key.

    Raises ValueError where there is none.
    """
    key = next((key for key in WHERE if view(key)), None)
    if key is None:
        raise ValueError(f"one of {', '.join(WHERE)} is expected in each data set that is used")
    if key in ("hf_hub_url", "cloud_file_name", "file_name"):
        paths, fate = places(view(key), [], view)
        return key, paths[0], fate
    path = f"data/{PurePath(view(key)).name}"
    return key, path, Fate("not_supported", f"another hub, or a program; fetch the rows, or write them, to {path}")


def _where(name: str) -> Rule:
    def by(value: str, view: View) -> Fate:
        key, _, fate = located(view)
        return fate if key == name else Fate("no_effect", f"{key} is given, and wins")

    other = "not supported: fetch the rows first"
    return Rule(text, PATH_DOC if name in ("hf_hub_url", "file_name") else other, by)


READ_AS = "`data.sources`: format and fields"
PICTURES = not_supported("pictures, films or sounds in rows", "rows are texts here")
COLUMNS: Table = {
    **keys(
        "prompt query response history messages system chosen rejected kto_tag",
        Rule(text, READ_AS, _part_of_reading),
    ),
    **keys("images videos audios", PICTURES),
    "tools": not_supported("tools that a conversation may call", "calls are not learned yet"),
}
TAGS: Table = keys(
    "role_tag content_tag user_tag assistant_tag observation_tag function_tag system_tag",
    Rule(text, READ_AS, _part_of_reading),
)
DATASET: Table = {
    **{name: _where(name) for name in WHERE},
    "formatting": Rule(text, READ_AS, _read_as),
    "ranking": Rule(flag, "not supported yet: rows of the format preference", _read_as),
    "columns": Rule(mapping, READ_AS, _read_as, inner=COLUMNS),
    "tags": Rule(mapping, READ_AS, _read_as, inner=TAGS),
    "split": SPLIT,
    "subset": SUBSET,
    "folder": SUBSET,
    "revision": COMMIT,
    "num_samples": SHARDS,
    "media_dir": PICTURES,
    "file_sha1": no_effect("the files are hashed in any case"),
}


def data_sets(info: Mapping[str, Any], configuration: View, place: Place) -> View:
    """The view of a dataset_info.json, of which a configuration uses the data sets that it names."""
    used = {*(configuration("dataset") or []), *(configuration("eval_dataset") or [])}
    table: Table = {name: USED if name in used else UNUSED for name in map(str, info)}
    return View(info, table, place, configuration)


USED = Rule(mapping, "its keys follow", lambda value, view: Fate("carried"), inner=DATASET)
UNUSED = no_effect("the configuration does not name this data set")
