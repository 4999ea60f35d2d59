"""LLaMA-Factory's dataset_info.json: which data sets there are, where they lie and how their rows are read.

Looked up in data/parser.py of hiyouga/LlamaFactory (2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from luthier.migrate.data import FOLDER, HEAD, PATH_DOC, SHARDS, SPLIT, part_of_name, places
from luthier.migrate.engine import Fate, Rule, Table, View
from luthier.migrate.kinds import flag, mapping, text
from luthier.migrate.place import Place
from luthier.migrate.rules import keys, no_effect, not_supported
from luthier.migrate.shapes import Shape, asked, fate_of

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


def shape(view: View) -> Shape | None:
    """How the rows of a data set are read; None where nothing here reads them."""
    chat = view("formatting") not in (None, "alpaca")
    if view("ranking"):
        prompt = _chat_column(view) if chat else _prompt(view)
        answers = {name: _column(view, name, name) or name for name in ("chosen", "rejected")}
        return Shape("preference", {"prompt": prompt, **answers}) if not chat or _has_known_tags(view) else None
    rating = _column(view, "kto_tag", "")
    if chat:
        return Shape("messages", {"messages": _chat_column(view)}) if not rating and _has_known_tags(view) else None
    if view.top("stage") == "pt":
        return Shape("text", {"text": _column(view, "prompt", "instruction") or "instruction"})
    fields = {"prompt": _prompt(view), "completion": _column(view, "response", "output") or "output"}
    fields |= {name: column for name in ("system", "history") if (column := _column(view, name, ""))}
    return Shape("rated", fields | {"rating": rating}) if rating else Shape("prompt_completion", fields)


def _prompt(view: View) -> str:
    return asked(_column(view, "prompt", "instruction") or "instruction", _column(view, "query", "input"), "\n")


def _chat_column(view: View) -> str:
    return _column(view, "messages", "conversations") or "conversations"


def _has_known_tags(view: View) -> bool:
    """Whether turns are named as OpenAI or ShareGPT names them."""
    opens = ("role", "content", "user", "assistant")
    others = ("from", "value", "human", "gpt")
    default = opens if view("formatting") == "openai" else others
    names = ("role_tag", "content_tag", "user_tag", "assistant_tag")
    return tuple(_tag(view, name, one) for name, one in zip(names, default, strict=True)) in (opens, others)


def _read_as(value: object, view: View) -> Fate:
    return fate_of(shape(view))


def _part_of_reading(value: object, view: View) -> Fate:
    return fate_of(shape(view.above)) if view.above else Fate("carried")


def located(view: View) -> tuple[str, str, Fate]:
    """Of a data set: the key that says where it lies, the path of its source, and the fate of that key.

    Raises ValueError where there is none.
    """
    key = next((key for key in WHERE if view(key)), None)
    if key is None:
        raise ValueError(f"one of {', '.join(WHERE)} is expected in each data set that is used")
    if key in ("hf_hub_url", "cloud_file_name", "file_name"):
        paths, fate = places(view(key), [], view, view("subset"), view("revision"))
        return key, paths[0], fate
    path = f"data/{PurePath(view(key)).name}"
    return key, path, Fate("not_supported", f"another hub, or a program; fetch the rows, or write them, to {path}")


def _where(name: str) -> Rule:
    def by(value: str, view: View) -> Fate:
        key, _, fate = located(view)
        return fate if key == name else Fate("no_effect", f"{key} is given, and wins")

    other = "not supported: fetch the rows first"
    return Rule(text, PATH_DOC if name in ("hf_hub_url", "file_name") else other, by)


def _tools(value: str, view: View) -> Fate:
    if value == "tools":
        return Fate("carried", "the column `tools` is read as what may be called")
    return Fate("not_supported", "tools are read from a column of that name: rename it, or add it to the fields")


READ_AS = "`data.sources`: format and fields"
PICTURES = not_supported("pictures, films or sounds in rows", "rows are texts here")
COLUMNS: Table = {
    **keys(
        "prompt query response history messages system chosen rejected kto_tag",
        Rule(text, READ_AS, _part_of_reading),
    ),
    **keys("images videos audios", PICTURES),
    "tools": Rule(text, "read where the column is called tools", _tools),
}
TAGS: Table = keys(
    "role_tag content_tag user_tag assistant_tag observation_tag function_tag system_tag",
    Rule(text, READ_AS, _part_of_reading),
)
DATASET: Table = {
    **{name: _where(name) for name in WHERE},
    "formatting": Rule(text, READ_AS, _read_as),
    "ranking": Rule(flag, READ_AS, _read_as),
    "columns": Rule(mapping, READ_AS, _read_as, inner=COLUMNS),
    "tags": Rule(mapping, READ_AS, _read_as, inner=TAGS),
    "split": SPLIT,
    "subset": part_of_name("a configuration", lambda view: [located(view)[1]]),
    "folder": FOLDER,
    "revision": part_of_name("a revision", lambda view: [located(view)[1]], HEAD),
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
