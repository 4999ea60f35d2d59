"""Prepare: raw files in; three sides of conversations and an audit of every row out.

Read `prepare` from top to bottom: each line is one step, and each step is a module of this folder.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from luthier.conversation import SIDES, Conversation, Side, write_conversations
from luthier.errors import DataError, did_you_mean, printable
from luthier.files import sha256_of
from luthier.prepare.audit import Audit, open_audit
from luthier.prepare.augment import Method, augment, opened
from luthier.prepare.dedupe import dedupe
from luthier.prepare.derive import derive
from luthier.prepare.detect import SAMPLE_ROWS, detect, task_of
from luthier.prepare.formats import Format
from luthier.prepare.noticed import notice
from luthier.prepare.rows import Fault, Item, Row, Warn
from luthier.prepare.sources import SIDE_NAMES, DataFile, find_files
from luthier.prepare.split import limit, split
from luthier.progress import Quiet, Reporter
from luthier.records import AuditReport, Augmentation
from luthier.settings import Data, Recipe, Source

__all__ = ["derive", "prepare"]

ROW_FAULTS = ("LU-D046", "LU-D047", "LU-D052")
"""What the encoder may find wrong with a row; its other errors concern all rows."""


class Encoded(Protocol):
    """The tokens of a conversation and which of them are learned."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def learn(self) -> Sequence[bool]: ...


class Encoder(Protocol):
    def many(self, conversations: Iterable[Conversation]) -> Iterator[Encoded | DataError]:
        """In their order; it may take in conversations ahead of those that it gives back."""


def prepare(recipe: Recipe, folder: Path, out: Path, encoder: Encoder, report: Reporter | None = None) -> AuditReport:
    """Write train, validation and test `.jsonl`, `rejects.jsonl` and `audit.json` into `out`.

    `folder` is where the recipe lies; `report` is told how far an augmentation is. Raises DataError: at once for a file
    that cannot be used and for an augmentation that lacks what it needs, with every row's place where more rows are
    rejected than the recipe allows.
    """
    data = recipe.data
    out.mkdir(parents=True, exist_ok=True)
    files = find_files(data.sources, folder)
    hashes = {file.shown: sha256_of(file.path) for file in files}
    shapes = _shapes(files, data)
    tags = _tags(shapes.values(), data)
    format = shapes[_settings(files[0].source, data)].format  # the first source says what the task is
    labelled = format.name == "classification"
    with opened(data.augment, folder, recipe.seed, labelled) as methods:  # before the rows: what is missing is said now
        with open_audit(out / "rejects.jsonl") as audit:
            items = _read(files, shapes, data, encoder, audit)
        if tags:
            audit.notes.append(f"columns kept as tags, not shown to the model: {', '.join(map(printable, tags))}")
        items = _clean(items, format, data, audit)
        items = _split(items, recipe, audit)
        notice(items, data.split.near_duplicate_similarity, recipe.model.new_tokens, audit)
        items, made = _augment(items, methods, recipe, labelled, encoder, audit, report or Quiet())
    sides = {side: [item for item in items if item.side == side] for side in SIDES}
    for side, members in sides.items():
        write_conversations(out / f"{side}.jsonl", (item.conversation for item in members))
    assert sum(map(len, sides.values())) == audit.steps[-1].n_out
    audited = _report(format, sides, audit, hashes, made)
    audited.write(out / "audit.json")
    return audited


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rows of some sources are read, and the columns that their first rows have."""

    format: Format
    columns: frozenset[str]


Settings = tuple[str, tuple[tuple[str, str], ...]]


def _settings(source: Source, data: Data) -> Settings:
    """What the recipe says of a source's format: sources that say the same are detected together."""
    fields = data.fields if source.fields is None else source.fields
    return source.format or data.format, tuple(sorted(fields.items()))


def _shapes(files: list[DataFile], data: Data) -> dict[Settings, Shape]:
    """Raises DataError LU-D101, LU-D102 where a format cannot be told or does not fit."""
    samples: dict[Settings, list[dict[str, Any]]] = {}
    for file in files:
        samples.setdefault(_settings(file.source, data), []).extend(row.data for row in file.sample(SAMPLE_ROWS))
    shapes = {}
    for settings, rows in samples.items():
        asked = data.model_copy(update={"format": settings[0], "fields": dict(settings[1])})
        # Without a good row there is nothing to detect: the reader will reject them all, each with its reason.
        format = detect(rows, asked) if rows else Format("messages", {"messages": "messages"})
        shapes[settings] = Shape(format, frozenset(column for row in rows for column in row))
    return shapes


@dataclass(frozen=True, slots=True)
class Understood:
    """A row that is a conversation."""

    row: Row
    conversation: Conversation
    side: Side | None


@dataclass(frozen=True, slots=True)
class Faulty:
    """A row that cannot be read, understood or encoded."""

    row: Row
    fault: Fault
    stage: str


@dataclass(frozen=True, slots=True)
class Odd:
    """A finding that rejects nothing."""

    finding: tuple[str, str, str, str]


def _read(
    files: list[DataFile], shapes: dict[Settings, Shape], data: Data, encoder: Encoder, audit: Audit
) -> list[Item]:
    """The good rows of all files; the others go to the rejects."""
    items: list[Item] = []
    n_read, faulty = 0, {"read": Counter[str](), "understand": Counter[str](), "encode": Counter[str]()}
    for met in _encoded(_met(files, shapes, data), encoder):
        if isinstance(met, Odd):
            audit.warn(*met.finding)
            continue
        n_read += 1
        if isinstance(met, Item):
            items.append(met)
        else:
            faulty[met.stage][met.fault.code] += 1
            audit.reject(met.row, met.fault)
    n = n_read
    for name, dropped in faulty.items():
        audit.step(name, n, n := n - dropped.total(), dropped)
    audit.check_rejected(n_read, data.max_rejected_fraction)
    return items


def _met(files: list[DataFile], shapes: dict[Settings, Shape], data: Data) -> Iterator[Understood | Faulty | Odd]:
    """All rows of all files, each after what was odd about it."""
    odd: list[Odd] = []

    def warn(*finding: str) -> None:
        odd.append(Odd(finding))  # type: ignore[arg-type]

    for file in files:
        shape = shapes[_settings(file.source, data)]
        for row in file.rows(warn):
            met = _understood(row, file, shape, data, warn)
            yield from odd
            odd.clear()
            yield met
    yield from odd


def _understood(row: Row, file: DataFile, shape: Shape, data: Data, warn: Warn) -> Understood | Faulty:
    stage = "read"
    try:
        if row.fault:
            raise row.fault
        stage = "understand"
        side = _side_of(row, file, shape.format, data.split.by)
        conversation = _in_family(shape.format.conversation(row, shape.columns, warn), data.split.by)
    except Fault as fault:
        return Faulty(row, fault, stage)
    return Understood(row, conversation, side)


def _encoded(met: Iterable[Understood | Faulty | Odd], encoder: Encoder) -> Iterator[Item | Faulty | Odd]:
    """What was met, in its order, with conversations encoded: the encoder is ahead, so what it has passed waits."""
    waiting: deque[Understood | Faulty | Odd] = deque()

    def conversations() -> Iterator[Conversation]:
        for one in met:
            waiting.append(one)
            if isinstance(one, Understood):
                yield one.conversation

    for encoded in encoder.many(conversations()):
        while not isinstance(one := waiting.popleft(), Understood):
            yield one
        yield _item(one, encoded)
    yield from waiting  # type: ignore[misc]  # no conversation is left


def _side_of(row: Row, file: DataFile, format: Format, by: str) -> Side | None:
    """The side that the source, the file's name or, with `by: given`, the row says. Raises Fault."""
    if file.side or by != "given":
        return file.side
    column = format.fields.get("split", "split")
    value = row.data.get(column)
    if value is None:
        raise Fault("LU-D025", column, "no side is given", "train, validation or test; or set data.split.by to row")
    if not isinstance(value, str) or value.lower() not in SIDE_NAMES:
        raise Fault("LU-D105", column, f"unknown side {printable(repr(value))}", did_you_mean(str(value), SIDE_NAMES))
    return SIDE_NAMES[value.lower()]


def _in_family(conversation: Conversation, by: str) -> Conversation:
    """With `by: column`, the rows of one value are one family."""
    if by in ("given", "row"):
        return conversation
    if conversation.tags.get(by) is None:
        raise Fault("LU-D025", by, "the column to split by is missing or null", "fill it in, or split by row")
    return conversation.model_copy(update={"family": f"{by}={conversation.tags[by]}"})


def _item(met: Understood, encoded: Encoded | DataError) -> Item | Faulty:
    """Raises DataError where what is wrong concerns all rows."""
    if not isinstance(encoded, DataError):
        return Item(met.conversation, met.side, len(encoded.ids), sum(encoded.learn))
    problem = encoded.problems[0]
    if problem.code not in ROW_FAULTS:
        raise encoded
    return Faulty(met.row, Fault(problem.code, "", problem.found, problem.advice), "encode")


def _tags(shapes: Iterable[Shape], data: Data) -> list[str]:
    """The columns that become tags. Raises DataError LU-D102 where the recipe names one that does not."""
    shapes = [shape for shape in shapes if shape.columns]
    if not shapes:
        return []
    columns = set[str]().union(*(shape.columns for shape in shapes))
    tags = sorted(set[str]().union(*(shape.columns - shape.format.columns for shape in shapes)))
    named = [("data.slices", one) for one in data.slices]
    named += [("data.split.by", data.split.by)] if data.split.by not in ("given", "row") else []
    for where, name in named:
        if name not in tags:
            found = (
                f"'{printable(name)}' is what the model reads"
                if name in columns
                else f"no column is called '{printable(name)}'"
            )
            raise DataError.of("LU-D102", where, found, did_you_mean(name, map(printable, tags)))
    return tags


def _clean(items: list[Item], format: Format, data: Data, audit: Audit) -> list[Item]:
    for step in data.clean:
        n = len(items)
        items, dropped = dedupe(items, step.similarity, labelled=format.name == "classification")
        audit.step("dedupe", n, len(items), dropped)
    return items


def _split(items: list[Item], recipe: Recipe, audit: Audit) -> list[Item]:
    items, notes = split(items, recipe.data.split, recipe.seed)
    audit.notes += notes
    audit.step("split", len(items), len(items))
    if recipe.data.limit:
        n = len(items)
        items, dropped = limit(items, recipe.data.limit, recipe.seed)
        audit.step("limit", n, len(items), dropped)
        allowed = f"at most {recipe.data.limit} conversations a side, drawn by seed {recipe.seed}"
        audit.notes.append(f"data.limit: {allowed}; {n - len(items)} left out")
    return items


def _augment(
    items: list[Item],
    methods: Sequence[Method],
    recipe: Recipe,
    labelled: bool,
    encoder: Encoder,
    audit: Audit,
    report: Reporter,
) -> tuple[list[Item], tuple[Augmentation, ...]]:
    """The items with what was made of the training side after them."""
    if not methods:
        return items, ()

    def fit(conversations: Sequence[Conversation]) -> list[Item | str]:
        encoded = zip(conversations, encoder.many(conversations), strict=True)
        met = [_item(Understood(Row(c.source), c, "train"), one) for c, one in encoded]
        return [one if isinstance(one, Item) else one.fault.code for one in met]

    made, records = augment(
        [item.conversation for item in items if item.side == "train"],
        [item.conversation for item in items if item.side != "train"],
        methods,
        seed=recipe.seed,
        similarity=recipe.data.split.near_duplicate_similarity,
        labelled=labelled,
        fit=fit,
        report=report,
    )
    audit.step("augment", len(items), len(items) + len(made), added=len(made))
    return [*items, *made], records


def _report(
    format: Format,
    sides: dict[Side, list[Item]],
    audit: Audit,
    hashes: dict[str, str],
    augmentation: tuple[Augmentation, ...],
) -> AuditReport:
    conversations = [item.conversation for members in sides.values() for item in members]
    return AuditReport(
        task=task_of(format, any(sum(m.role == "assistant" for m in c.messages) > 1 for c in conversations)),
        labels=tuple(sorted({c.answer for c in conversations if c.prompt})) if format.name == "classification" else (),
        format=format.name,
        fields=format.fields,
        steps=tuple(audit.steps),
        sides={side: len(members) for side, members in sides.items()},
        counts=dict(sorted(audit.counts.items())),
        findings=tuple(audit.findings),
        tokens=_tokens(sides["train"]),
        augmentation=augmentation,
        hashes=hashes,
        notes=tuple(audit.notes),
    )


def _tokens(train: list[Item]) -> dict[str, float]:
    n_tokens = [item.n_tokens for item in train]
    return {
        "n_tokens": sum(n_tokens),
        "n_learned": sum(item.n_learned for item in train),
        "longest": max(n_tokens, default=0),
        "mean": sum(n_tokens) / len(train) if train else 0.0,
    }
