"""Prepare: raw files in; three sides of conversations and an audit of every row out.

Read `prepare` from top to bottom: each line is one step, and each step is a module of this folder.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from luthier.conversation import SIDES, Conversation, Side, by_answer, write_conversations
from luthier.errors import DataError, did_you_mean, printable
from luthier.files import sha256_of
from luthier.prepare.audit import Audit, open_audit
from luthier.prepare.augment import Method, augment, opened
from luthier.prepare.clean import Cleaning
from luthier.prepare.dedupe import dedupe
from luthier.prepare.derive import derive
from luthier.prepare.detect import SAMPLE_ROWS, detect, task_of
from luthier.prepare.formats import Format
from luthier.prepare.noticed import notice
from luthier.prepare.rows import Fault, Item, Row, Warn
from luthier.prepare.sources import SIDE_NAMES, DataFile, find_files
from luthier.prepare.split import limit, split
from luthier.prepare.symptoms import damaged, personal
from luthier.prepare.table import Numbers, Rows
from luthier.progress import Quiet, Reporter
from luthier.records import AuditReport, Augmentation, Cleaned, Rewritten
from luthier.settings import Data, Dedupe, Recipe, Source

__all__ = ["derive", "prepare"]

REWRITTEN = "LU-D055"
ROW_FAULTS = ("LU-D046", "LU-D047", "LU-D052", "LU-D056", "LU-D057")
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

    def spelled(self, conversation: Conversation) -> Conversation:
        """Of token ids, with the text that they stand for."""


def prepare(recipe: Recipe, folder: Path, out: Path, encoder: Encoder, report: Reporter | None = None) -> AuditReport:
    """Write train, validation and test `.jsonl`, `rejects.jsonl` and `audit.json` into `out`.

    `folder` is where the recipe lies; `report` is told how far an augmentation is. Raises DataError: at once for a file
    that cannot be used and for an augmentation that lacks what it needs, with every row's place where more rows are
    rejected than the recipe allows. RecipeError for a cleaner that cannot be had.
    """
    cleaning = Cleaning(recipe, folder)
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _prepare(recipe, folder, out, encoder, cleaning, report or Quiet())
    except DataError as error:
        raise cleaning.hiding.error(error) from None


def _prepare(
    recipe: Recipe, folder: Path, out: Path, encoder: Encoder, cleaning: Cleaning, report: Reporter
) -> AuditReport:
    data = recipe.data
    files = find_files(data.sources, folder)
    hashes = {file.shown: sha256_of(file.path) for file in files}
    shapes = _shapes(files, data)
    tags = _tags(shapes.values(), data)
    format = shapes[_settings(files[0].source, data)].format  # the first source says what the task is
    cleaning.survey(partial(_raw, files, shapes, data))
    labelled = format.name == "classification"
    with opened(data.augment, folder, recipe.seed, labelled) as methods:  # before the rows: what is missing is said now
        with open_audit(out / "rejects.jsonl", cleaning.hiding) as audit:
            rows = _read(files, shapes, data, cleaning, encoder, audit, out)
        if tags:
            shown = ", ".join(printable(cleaning.hiding.text(tag)) for tag in tags)
            audit.notes.append(f"columns kept as tags, not shown to the model: {shown}")
        numbers = _liked(rows, rows.numbers, audit)
        numbers = _dedupe(rows, numbers, labelled, data, audit)
        numbers = _split(rows, numbers, recipe, audit)
        notice(rows, numbers, data.split.near_duplicate_similarity, recipe.model.new_tokens, audit)
        made, records = _augment(rows, numbers, methods, recipe, labelled, encoder, audit, report)
    for side in SIDES:
        new = [item.conversation for item in made] if side == "train" else []
        write_conversations(out / f"{side}.jsonl", chain(rows.each(rows.on(side, numbers)), new))
    assert len(numbers) + len(made) == audit.steps[-1].n_out
    audited = _report(format, rows, numbers, made, records, audit, hashes, cleaning)
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
    files: list[DataFile],
    shapes: dict[Settings, Shape],
    data: Data,
    cleaning: Cleaning,
    encoder: Encoder,
    audit: Audit,
    out: Path,
) -> Rows:
    """The good rows of all files; the others go to the rejects."""
    rows = Rows(out)
    stages = ("read", "understand", *(["clean"] if cleaning.rejects else []), "encode")
    n_read, n_more, faulty = 0, 0, {stage: Counter[str]() for stage in stages}
    for met in _encoded(_met(files, shapes, data, cleaning, encoder), encoder):
        if isinstance(met, Odd):
            audit.warn(*met.finding)
            continue
        n_read += 1
        if isinstance(met, Faulty):
            faulty[met.stage][met.fault.code] += 1
            audit.reject(met.row, met.fault)
        else:
            for item in met:
                rows.append(*item)
            n_more += len(met) - 1
    n = n_read
    for name, dropped in faulty.items():
        made = {"one row an answer": n_more} if name == "encode" else {}
        audit.step(name, n, n := n - dropped.total() + sum(made.values()), dropped, made)
    audit.check_rejected(n_read, data.max_rejected_fraction)
    return rows


def _raw(files: list[DataFile], shapes: dict[Settings, Shape], data: Data) -> Iterator[Conversation]:
    """The conversations of all files as they are before they are cleaned; faults are said when they are read again."""
    for file in files:
        shape = shapes[_settings(file.source, data)]
        for row in file.rows(_silent):
            with suppress(Fault):
                if not row.fault:
                    yield shape.format.conversation(row, shape.columns, _silent)


def _silent(*_: str) -> None:
    """Of what is read again."""


def _met(
    files: list[DataFile], shapes: dict[Settings, Shape], data: Data, cleaning: Cleaning, encoder: Encoder
) -> Iterator[Understood | Faulty | Odd]:
    """All rows of all files, each after what was odd about it."""
    odd: list[Odd] = []

    def warn(*finding: str) -> None:
        odd.append(Odd(finding))  # type: ignore[arg-type]

    for file in files:
        shape = shapes[_settings(file.source, data)]
        for row in file.rows(warn):
            met = _understood(row, file, shape, data, cleaning, warn)
            yield from odd
            odd.clear()
            if isinstance(met, Understood) and met.conversation.tokens:
                met = replace(met, conversation=encoder.spelled(met.conversation))
            yield met
    yield from odd


def _understood(
    row: Row, file: DataFile, shape: Shape, data: Data, cleaning: Cleaning, warn: Warn
) -> Understood | Faulty:
    stage = "read"
    try:
        if row.fault:
            raise row.fault
        stage = "understand"
        side = _side_of(row, file, shape.format, data.split.by)
        conversation = shape.format.conversation(row, shape.columns, warn)
        stage = "clean"
        conversation = cleaning(conversation)
        personal(conversation, data.personal_data, warn)
        stage = "understand"
        conversation = _in_family(conversation, data.split.by)
    except Fault as fault:
        return Faulty(row, fault, stage)
    damaged(conversation, warn)
    return Understood(row, conversation, side)


def _encoded(met: Iterable[Understood | Faulty | Odd], encoder: Encoder) -> Iterator[Sequence[Item] | Faulty | Odd]:
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
        yield _items(one, encoded, encoder)
    yield from waiting  # type: ignore[misc]  # no conversation is left


def _items(met: Understood, encoded: Encoded | DataError, encoder: Encoder) -> Sequence[Item] | Faulty:
    """The row, or one for each of its answers where the chat template writes an answer differently once it is an
    earlier one (without its thinking, say). Raises DataError where what is wrong concerns all rows."""
    if isinstance(encoded, DataError) and encoded.problems[0].code == REWRITTEN:
        parts = by_answer(met.conversation)
        alone = [(part, one) for part, one in zip(parts, encoder.many(parts), strict=True)]
        found = [_item(part, met.side, one) for part, one in alone if not isinstance(one, DataError)]
        if len(found) == len(parts) > 1:
            return found
    if not isinstance(encoded, DataError):
        return [_item(met.conversation, met.side, encoded)]
    problem = encoded.problems[0]
    if problem.code not in ROW_FAULTS:
        raise encoded
    return Faulty(met.row, Fault(problem.code, "", problem.found, problem.advice), "encode")


def _item(conversation: Conversation, side: Side | None, encoded: Encoded) -> Item:
    return Item(conversation, side, len(encoded.ids), sum(encoded.learn))


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


def _liked(rows: Rows, numbers: Numbers, audit: Audit) -> Numbers:
    """Without the answers that people found bad: nobody should learn to write them."""
    bad = rows.is_rated_bad[numbers]
    if bad.any():
        audit.step("rated", len(numbers), int((~bad).sum()), {"rated bad": int(bad.sum())})
    if n := int(rows.is_pair[numbers].sum()):
        audit.notes.append(f"{n} preference pairs: the chosen answer is learned, the rejected one is kept beside it")
    return numbers[~bad]


def _dedupe(rows: Rows, numbers: Numbers, labelled: bool, data: Data, audit: Audit) -> Numbers:
    for step in data.clean:
        if not isinstance(step, Dedupe):
            continue
        n = len(numbers)
        numbers, dropped = dedupe(rows, numbers, step.similarity, labelled)
        audit.step("dedupe", n, len(numbers), dropped)
    return numbers


def _split(rows: Rows, numbers: Numbers, recipe: Recipe, audit: Audit) -> Numbers:
    audit.notes += split(rows, numbers, recipe.data.split, recipe.seed)
    audit.step("split", len(numbers), len(numbers))
    if recipe.data.limit:
        n = len(numbers)
        numbers, dropped = limit(rows, numbers, recipe.data.limit, recipe.seed)
        audit.step("limit", n, len(numbers), dropped)
        allowed = f"at most {recipe.data.limit} conversations a side, drawn by seed {recipe.seed}"
        audit.notes.append(f"data.limit: {allowed}; {n - len(numbers)} left out")
    return numbers


def _augment(
    rows: Rows,
    numbers: Numbers,
    methods: Sequence[Method],
    recipe: Recipe,
    labelled: bool,
    encoder: Encoder,
    audit: Audit,
    report: Reporter,
) -> tuple[list[Item], tuple[Augmentation, ...]]:
    """What is made of the training side."""
    if not methods:
        return [], ()

    def fit(conversations: Sequence[Conversation]) -> list[Item | str]:
        return [
            one.problems[0].code if isinstance(one, DataError) else _item(c, "train", one)
            for c, one in zip(conversations, encoder.many(conversations), strict=True)
        ]

    train = rows.on("train", numbers)
    made, records = augment(
        [c for c in rows.each(train) if not c.tokens],
        list(rows.each(numbers[rows.side[numbers] != SIDES.index("train")])),
        methods,
        seed=recipe.seed,
        similarity=recipe.data.split.near_duplicate_similarity,
        labelled=labelled,
        fit=fit,
        report=report,
    )
    counts = {f"by {record.method}": record.made for record in records}
    audit.step("augment", len(numbers), len(numbers) + len(made), made=counts)
    return made, records


def _report(
    format: Format,
    rows: Rows,
    numbers: Numbers,
    made: list[Item],
    augmentation: tuple[Augmentation, ...],
    audit: Audit,
    hashes: dict[str, str],
    cleaning: Cleaning,
) -> AuditReport:
    labels = {c.answer for c in rows.each(numbers) if c.prompt} if format.name == "classification" else set()
    return AuditReport(
        task=task_of(format, bool(rows.has_several_answers[numbers].any())),
        labels=tuple(sorted(labels)),
        format=format.name,
        fields=format.fields,
        steps=tuple(audit.steps),
        sides={side: len(rows.on(side, numbers)) + (len(made) if side == "train" else 0) for side in SIDES},
        counts=dict(sorted(audit.counts.items())),
        findings=tuple(audit.findings),
        tokens=_tokens(rows, rows.on("train", numbers), made),
        augmentation=tuple(_hidden(one, cleaning) for one in augmentation),
        hashes=hashes,
        cleaning=cleaning.done(),
        notes=(*map(_told, cleaning.done()), *map(cleaning.hiding.text, audit.notes)),
    )


def _told(done: Cleaned) -> str:
    before, after = done.characters
    counted = "".join(f"; {n:,} {what}" for what, n in done.counts.items())
    changed = f"{done.cleaner} changed {done.texts:,} texts of {done.rows:,} rows"
    return f"{changed}: {before:,} characters became {after:,}{counted}"


def _hidden(augmentation: Augmentation, cleaning: Cleaning) -> Augmentation:
    """With samples that show no personal data."""
    hide = cleaning.hiding.text
    samples = [Rewritten(source=s.source, before=hide(s.before), after=hide(s.after)) for s in augmentation.samples]
    return augmentation.model_copy(update={"samples": tuple(samples)})


def _tokens(rows: Rows, train: Numbers, made: list[Item]) -> dict[str, float]:
    n_tokens = np.append(rows.n_tokens[train], [item.n_tokens for item in made]).astype(np.int64)
    return {
        "n_tokens": int(n_tokens.sum()),
        "n_learned": int(rows.n_learned[train].sum()) + sum(item.n_learned for item in made),
        "longest": int(n_tokens.max(initial=0)),
        "mean": float(n_tokens.mean()) if len(n_tokens) else 0.0,
    }
