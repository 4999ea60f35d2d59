"""Reading: every row of every file, from raw record to encoded conversation, or with the reason why it is none.

A row is read, understood by its source's format, cleaned, and encoded; each is met in order, good or not, so that all
of them can be counted. An engine does this block by block, and what is made of the blocks is added up in their order.
This module compares no rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Protocol

from luthier.conversation import Conversation, Side, by_answer
from luthier.encoded import packed
from luthier.errors import DataError, did_you_mean, printable
from luthier.prepare.audit import Audit, open_audit
from luthier.prepare.blocks import Block, blocks_of
from luthier.prepare.clean import Cleaning, Done
from luthier.prepare.detect import SAMPLE_ROWS, detect
from luthier.prepare.engine import Engine
from luthier.prepare.formats import Format
from luthier.prepare.rows import Fault, Item, Row, Warn, silent
from luthier.prepare.sources import SIDE_NAMES, DataFile
from luthier.prepare.symptoms import damaged, personal
from luthier.prepare.table import Rows
from luthier.prepare.when import OLDEST, time_of
from luthier.settings import Data, Source

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
    @property
    def max_tokens(self) -> int | None:
        """Of a row, and of a document's windows."""

    def fingerprint(self) -> str:
        """Of all that decides what a conversation becomes."""

    def many(self, conversations: Iterable[Conversation]) -> Iterator[Encoded | DataError]:
        """In their order; it may take in conversations ahead of those that it gives back."""

    def spelled(self, conversation: Conversation) -> Conversation:
        """Of token ids, with the text that they stand for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the rows of some sources are read, and the columns that their first rows have."""

    format: Format
    columns: frozenset[str]


Settings = tuple[str, tuple[tuple[str, str], ...]]


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


class Reading:
    """The files with the shapes of their rows.

    Raises DataError LU-D101, LU-D102 where a shape cannot be told or does not fit.
    """

    def __init__(self, files: Sequence[DataFile], data: Data) -> None:
        self._files, self._data = files, data
        self._shapes = _shapes(files, data)
        self.tags = _tags(self._shapes.values(), data)
        """The columns that the model does not read."""

    def _shape(self, file: DataFile) -> Shape:
        return self._shapes[_settings(file.source, self._data)]

    @property
    def format(self) -> Format:
        """Of the first source, which says what the task is."""
        return self._shape(self._files[0]).format

    def raw(self) -> Iterator[Conversation]:
        """The conversations as they are before they are cleaned; faults are said when they are read again."""
        for file in self._files:
            shape = self._shape(file)
            for row in file.rows(silent):
                with suppress(Fault):
                    if not row.fault:
                        yield shape.format.conversation(row, shape.columns, silent)

    def into(self, rows: Rows, cleaning: Cleaning, encoder: Encoder, audit: Audit, engine: Engine) -> int:
        """Append the good rows; the others go to the audit's rejects. How many were read."""
        stages = ("read", "understand", *(["clean"] if cleaning.rejects else []), "encode")
        read, n_more, faulty = Counter[str](), 0, {stage: Counter[str]() for stage in stages}
        work = BlockWork(self._shapes, self._data, cleaning, encoder, engine.folder)
        for part in engine.map(work, blocks_of(self._files)):
            rows.add(part.rows)
            cleaning.add(part.done)
            with part.rejects.open(encoding="utf-8") as rejects:
                audit.add(part.audit, rejects)
            read += part.read
            n_more += part.n_more
            for stage, dropped in part.faulty.items():
                faulty[stage] += dropped
        if empty := [file for file in self._files if not read[file.shown]]:
            raise empty[0].without_rows()
        n = n_read = read.total()
        for name, dropped in faulty.items():
            made = {"one row an answer": n_more} if name == "encode" else {}
            audit.step(name, n, n := n - dropped.total() + sum(made.values()), dropped, made)
        return n_read


@dataclass(slots=True)
class Part:
    """What is made of a block: the lines of its good rows and its rejects are files, the rest is small."""

    rows: Rows
    audit: Audit
    rejects: Path
    done: list[Done]
    """By each cleaner."""
    faulty: dict[str, Counter[str]]
    """Stage -> how many of its rows ended there, by code."""
    read: Counter[str] = field(default_factory=Counter)
    """How many of each file."""
    n_more: int = 0


@dataclass(frozen=True, slots=True)
class BlockWork:
    """Reads a block into a Part."""

    shapes: dict[Settings, Shape]
    data: Data
    cleaning: Cleaning
    encoder: Encoder
    folder: Path | None

    def __call__(self, block: Block) -> Part:
        cleaning = self.cleaning.again()
        with NamedTemporaryFile(dir=self.folder, suffix=".rejects", delete=False) as file:
            rejects = Path(file.name)
        with open_audit(rejects, cleaning.hiding) as audit:
            done = [step.done for step in cleaning.steps]
            part = Part(Rows(self.folder), audit, rejects, done, defaultdict(Counter))
            for met in _encoded(self._met(block, cleaning, part.read), self.encoder):
                if isinstance(met, Odd):
                    audit.warn(*met.finding)
                    continue
                if isinstance(met, Faulty):
                    part.faulty[met.stage][met.fault.code] += 1
                    audit.reject(met.row, met.fault)
                else:
                    for item in met:
                        part.rows.append(*item)
                    part.n_more += len(met) - 1
        part.rows.close()
        return part

    def _met(self, block: Block, cleaning: Cleaning, read: Counter[str]) -> Iterator[Understood | Faulty | Odd]:
        """All rows, each after what was odd about it; they are counted in `read`."""
        odd: list[Odd] = []

        def warn(*finding: str) -> None:
            odd.append(Odd(finding))  # type: ignore[arg-type]

        for portion in block:
            file = portion.file
            shape = self.shapes[_settings(file.source, self.data)]
            for row in portion.rows(warn):
                read[file.shown] += 1
                met = _understood(row, file, shape, self.data, cleaning, warn)
                yield from odd
                odd.clear()
                if isinstance(met, Understood) and met.conversation.tokens:
                    met = replace(met, conversation=self.encoder.spelled(met.conversation))
                yield met
        yield from odd


def _settings(source: Source, data: Data) -> Settings:
    """What the recipe says of a source's format: sources that say the same are detected together."""
    fields = data.fields if source.fields is None else source.fields
    return source.format or data.format, tuple(sorted(fields.items()))


def _shapes(files: Sequence[DataFile], data: Data) -> dict[Settings, Shape]:
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
        conversation = _weighted(conversation, file.source)
        stage = "clean"
        conversation = cleaning(conversation)
        personal(conversation, data.personal_data, warn)
        stage = "understand"
        conversation = _in_family(conversation, data.split.by)
        _check_time(conversation, data.split.time, side)
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
        found = [encoded_item(part, met.side, one) for part, one in alone if not isinstance(one, DataError)]
        if len(found) == len(parts) > 1:
            return found
    if not isinstance(encoded, DataError):
        return [encoded_item(met.conversation, met.side, encoded)]
    problem = encoded.problems[0]
    if problem.code not in ROW_FAULTS:
        raise encoded
    return Faulty(met.row, Fault(problem.code, "", problem.found, problem.advice), "encode")


def encoded_item(conversation: Conversation, side: Side | None, encoded: Encoded) -> Item:
    return Item(conversation, side, packed(encoded.ids, encoded.learn))


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


def _weighted(conversation: Conversation, source: Source) -> Conversation:
    return conversation.model_copy(update={"weight": source.weight})


def _in_family(conversation: Conversation, by: str) -> Conversation:
    """With `by: column`, the rows of one value are one family."""
    if by in ("given", "row"):
        return conversation
    if conversation.tags.get(by) in (None, ""):  # CSV has no null: those whose customer is not known are no family
        raise Fault("LU-D025", by, "the column to split by is missing or empty", "fill it in, or split by row")
    return conversation.model_copy(update={"family": f"{by}={conversation.tags[by]}"})


def _check_time(conversation: Conversation, column: str | None, side: Side | None) -> None:
    """With `time: column`, a row of no given side has a time. Raises Fault LU-D025, LU-D058."""
    if column and time_of(conversation, column) == OLDEST and side is None:
        raise Fault("LU-D025", column, "the column to split by is missing or empty", "fill it in, or split by row")


def _tags(shapes: Iterable[Shape], data: Data) -> list[str]:
    """The columns that become tags. Raises DataError LU-D102 where the recipe names one that does not."""
    shapes = [shape for shape in shapes if shape.columns]
    if not shapes:
        return []
    columns = set[str]().union(*(shape.columns for shape in shapes))
    tags = sorted(set[str]().union(*(shape.columns - shape.format.columns for shape in shapes)))
    named = [("data.slices", one) for one in data.slices]
    named += [("data.split.by", data.split.by)] if data.split.by not in ("given", "row") else []
    named += [("data.split.time", data.split.time)] if data.split.time else []
    labelled = any(shape.format.name == "classification" for shape in shapes)
    if (stratify := data.split.stratify) and not (labelled and stratify == "label"):
        named.append(("data.split.stratify", stratify))
    for where, name in named:
        if name not in tags:
            found = (
                f"'{printable(name)}' is what the model reads"
                if name in columns
                else f"no column is called '{printable(name)}'"
            )
            raise DataError.of("LU-D102", where, found, did_you_mean(name, map(printable, tags)))
    return tags
