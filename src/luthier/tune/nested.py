"""The nested split: the training side of a recipe, divided once more, so that trials never see what judges the recipe.

    train        what the trials learn from; a shorter rung has the first part of it, by families
    validation   by which each training keeps its best weights
    choose       by which variants are compared, stopped and chosen
    report       by which the chosen one is judged: in no run until there is one

Families and near-duplicate prompts stay together, as in any split. Rows of a kind that the recipe's own test side has
none of, such as general texts that are replayed, are learned from and never asked. Cleaning, `data.limit` and
`max_tokens` are done before, once, on the whole data. Knows nothing of variants and seeds.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from luthier import recipe as recipes
from luthier.conversation import SIDES, Conversation, Message, Side, read_conversations
from luthier.errors import DataError, Problem
from luthier.files import write_atomically
from luthier.metric import Sample
from luthier.prepare.split import draw_key, limit, split
from luthier.prepare.table import Rows
from luthier.records import AuditReport
from luthier.settings import FormatName, Recipe, Rule, Source, Split, fingerprint
from luthier.stats import MIN_CLUSTERS
from luthier.store import stage_record

Part = Literal["choose", "report"]
VALID_FRACTION = 0.05
"""Of the training side, where the recipe draws no validation side of its own."""
FIELDS = {
    name: {field: f"nested.{field}" for field in fields}
    for name, fields in (
        ("messages", ("messages", "tools")),
        ("preference", ("prompt", "chosen", "rejected", "tools")),
        ("classification", ("text", "label", "system")),
        ("text", ("text",)),
        ("tokens", ("input_ids", "labels")),
    )
}
"""Names that no tag has: the other columns of a row are its tags."""


@dataclass(frozen=True, slots=True)
class Nest:
    """The parts, and the recipe that is asked of them."""

    folder: Path
    recipe: Recipe
    origin: Path
    audit: AuditReport
    parts: dict[str, list[Conversation]]


def make_nest(recipe: Recipe, origin: Path, prepared: Path, workspace: Path, held_out: float) -> Nest:
    """Divide the training side of the finished preparation in the run's folder `prepared`.

    `held_out` is the fraction for choosing and reporting together, half each. Raises DataError LU-D106, LU-D130
    where that leaves too little to choose or to report by.
    """
    record = stage_record(prepared, "prepare")
    assert record is not None
    audit = AuditReport.read(prepared / "prepare" / "audit.json")
    # Rows that were made are made anew of the nested training rows: none is asked, and `data.augment` can be varied.
    train = [c for c in read_conversations(prepared / "prepare" / "train.jsonl") if c.made_by is None]
    tested = {_kind(c, audit) for c in read_conversations(prepared / "prepare" / "test.jsonl")}
    learned_only = [c for c in train if _kind(c, audit) not in tested]
    fractions = {"valid_fraction": recipe.data.split.valid_fraction or VALID_FRACTION, "test_fraction": held_out}
    how = recipe.data.split.model_copy(update=_NO_FOLDS | fractions)
    first = _draw([c for c in train if _kind(c, audit) in tested], how, recipe.seed)
    halves = _draw(first["test"], how.model_copy(update={"valid_fraction": 0.0, "test_fraction": 0.5}), recipe.seed)
    parts = {"train": first["train"] + learned_only, "validation": first["validation"]}
    parts["choose"], parts["report"] = (
        _at_most(half, recipe.evaluate.limit, recipe.seed) for half in (halves["train"], halves["test"])
    )
    _check(parts, recipe.evaluate.cluster_by, prepared)
    drawn = fingerprint([record.key, held_out, recipe.evaluate.limit])[:6]
    return Nest(workspace / "trials" / f"{recipe.name}-{drawn}", recipe, origin.resolve(), audit, parts)


def question(nest: Nest, metric: str, part: Part, fraction: float) -> Path:
    """The folder of the recipe that trains on `fraction` of the nested training rows and is asked `part`.

    It is a target of `lifecycle.run`: paths and plug-ins count from where the recipe itself lies.
    """
    sides: list[tuple[Side, str, Sequence[Conversation]]] = [
        ("train", f"train-{fraction:g}", _first(nest.parts["train"], fraction, nest.recipe.seed)),
        ("validation", "validation", nest.parts["validation"]),
        ("test", part, nest.parts[part]),
    ]
    sources = [source for side, name, rows in sides for source in _write(nest, side, name, rows)]
    # The first source says what the task is.
    sources.sort(key=lambda s: (s.format == "text") != (nest.audit.format == "text"))
    data = nest.recipe.data.model_copy(update={**_ROWS, "sources": tuple(sources), "split": _given(nest.recipe)})
    asked = nest.recipe.model_copy(
        update={
            "data": data,
            "evaluate": nest.recipe.evaluate.model_copy(update={"limit": None}),
            "release": nest.recipe.release.model_copy(
                update={"rules": (Rule(metric=metric, must="beat_baseline"),), "export": ()}
            ),
        }
    )
    folder = nest.folder / f"{fingerprint(asked)[:6]}-{part}-{fraction:g}"
    write_atomically(folder / "recipe.yaml", recipes.to_yaml(asked).encode())
    write_atomically(folder / "run.json", json.dumps({"origin": str(nest.origin)}).encode() + b"\n")
    return folder


def answers_of(run: Path, cluster_by: str | None) -> list[Sample]:
    """The test rows that an evaluated run's tuned model answered, in the order of their ids."""
    rows = map(json.loads, (run / "evaluate" / "tuned.jsonl").read_text(encoding="utf-8").splitlines())
    samples = [Sample(**row) for row in rows if row.pop("of") == "test"]
    if cluster_by is not None:
        samples = [replace(s, cluster=str(s.tags.get(cluster_by, s.cluster))) for s in samples]
    return sorted(samples, key=lambda s: s.id)


_ROWS: dict[str, Any] = {
    "format": "auto", "fields": {}, "system": None, "clean": (), "limit": None, "slices": (),
    "bad_rows": "strict",  # every row was accepted before
}  # fmt: skip
"""What has been done to the rows already."""


_NO_FOLDS: dict[str, Any] = {"folds": None, "fold": None}
"""The test side of the recipe's fold is not among the rows."""


def _given(recipe: Recipe) -> Split:
    """All sides are given; a column that makes families goes on doing so."""
    by = "row" if recipe.data.split.by == "given" else recipe.data.split.by
    return recipe.data.split.model_copy(update=_NO_FOLDS | {"by": by, "valid_fraction": 0.0, "test_fraction": 0.0})


def _draw(conversations: Sequence[Conversation], how: Split, seed: int) -> dict[Side, list[Conversation]]:
    rows = Rows.of(conversations)
    split(rows, rows.numbers, how, seed)
    return {side: list(rows.each(rows.on(side, rows.numbers))) for side in SIDES}


def _at_most(conversations: Sequence[Conversation], n: int | None, seed: int) -> list[Conversation]:
    """`evaluate.limit`, drawn once: by the seed of each trial, no two of them would be asked the same."""
    rows = Rows.of(conversations, "test")
    kept, _ = limit(rows, rows.numbers, n or len(conversations), seed)
    return list(rows.each(kept))


def _check(parts: dict[str, list[Conversation]], cluster_by: str | None, prepared: Path) -> None:
    problems = []
    for part in ("choose", "report"):
        n = len({str(c.tags.get(cluster_by, c.family)) if cluster_by else c.family for c in parts[part]})
        if n < MIN_CLUSTERS:
            found = f"{n} independent conversations to {part} by, where at least {MIN_CLUSTERS} are needed"
            advice = "give more data, or hold out a larger part of it for the trials (--held-out)"
            problems.append(Problem("LU-D130", str(prepared), found, advice))
    if problems:
        raise DataError(*problems)


def _first(conversations: Sequence[Conversation], fraction: float, seed: int) -> list[Conversation]:
    """The first families, in an order drawn by seed, that make up the fraction: a smaller one is part of a larger."""
    sizes: dict[str, int] = defaultdict(int)
    for c in conversations:
        sizes[c.family] += 1
    kept, n = set(), 0
    for family in sorted(sizes, key=lambda f: draw_key(seed, f"rung:{f}")):
        if n >= math.ceil(fraction * len(conversations)):
            break
        kept.add(family)
        n += sizes[family]
    return [c for c in conversations if c.family in kept]


# -- rows on disk -------------------------------------------------------------------------------------------------


def _write(nest: Nest, side: Side, name: str, conversations: Sequence[Conversation]) -> Iterator[Source]:
    """A file and its source for each kind and weight of row among them. Its name and folder say what is in it."""
    rows: dict[tuple[FormatName, float], list[Conversation]] = defaultdict(list)
    for c in conversations:
        rows[_kind(c, nest.audit), c.weight].append(c)
    for (kind, weight), found in sorted(rows.items()):
        weighted = "" if weight == 1 else f"-{weight:g}"
        path = nest.folder / "data" / f"{name}{weighted}.{kind}.jsonl"
        if not path.is_file():
            lines = (json.dumps(_row(c, kind), ensure_ascii=False) + "\n" for c in found)
            write_atomically(path, "".join(lines).encode())
        shown = os.path.relpath(path.resolve(), nest.origin)
        yield Source(path=shown, split=side, format=kind, fields=FIELDS[kind], weight=weight)


def _kind(conversation: Conversation, audit: AuditReport) -> FormatName:
    roles = [m.role for m in conversation.messages if m.role != "system"]
    if conversation.tokens:
        return "tokens"
    if roles[0] == "text":
        return "text"
    if conversation.rejected:
        return "preference"
    return "classification" if audit.format == "classification" and roles == ["user", "assistant"] else "messages"


def _row(conversation: Conversation, kind: FormatName) -> dict[str, Any]:
    fields, tags = FIELDS[kind], conversation.model_dump(mode="json")["tags"]
    return {**{fields[name]: value for name, value in _values(conversation, kind).items()}, **tags}


def _values(conversation: Conversation, kind: FormatName) -> dict[str, Any]:
    messages, tools = [_turn(m) for m in conversation.messages], list(conversation.tools)
    if kind == "tokens":
        ids, learn = conversation.tokens.ids, conversation.tokens.learn  # type: ignore[union-attr]
        labels = [id_ if learned else -100 for id_, learned in zip(ids, learn, strict=True)]
        return {"input_ids": ids, "labels": labels}
    if kind == "messages":
        return {"messages": messages, "tools": tools}
    if kind == "preference":
        rejected = [_turn(m) for m in conversation.rejected]
        return {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": rejected, "tools": tools}
    if kind == "text":
        return {"text": messages[0]["content"]}
    *system, asked, answered = (m["content"] for m in messages)
    return {"text": asked, "label": answered, "system": system[0] if system else None}


def _turn(message: Message) -> dict[str, Any]:
    return message.as_openai() | ({} if message.learn is None else {"learn": message.learn})
