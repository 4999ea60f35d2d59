"""Rows: raw records read one by one from a data file, each with its place and its raw text.

A row that cannot be read is still yielded, with its fault, so that everything read can be counted. Lines
are read as bytes with bounded memory. This module knows nothing of messages or columns' meaning.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from luthier.conversation import Conversation, Side
from luthier.encoded import Tokens
from luthier.errors import DataError, printable
from luthier.prepare.packed import unpacked
from luthier.strict_json import NotStrict, Why, parse_json

MAX_LINE_BYTES = 16 << 20
MAX_JSON_BYTES = 1 << 30
BOM = b"\xef\xbb\xbf"

Warn = Callable[[str, str, str, str], None]
"""Told of what is odd but not wrong: code, where, found, advice."""


def silent(*_: str) -> None:
    """A `Warn` that tells nobody: of rows that are read once more, or only to look at them."""


class Fault(Exception):
    """Why one row is rejected."""

    def __init__(self, code: str, field: str, found: str, advice: str = "") -> None:
        super().__init__(code, field, found, advice)
        self.code, self.field, self.found, self.advice = code, field, found, advice


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it was read; `fault` says why it could not be."""

    where: str
    """file:line"""
    data: dict[str, Any] = field(default_factory=dict)
    raw: str | None = None
    """The text it was read from; None where the file is no text."""
    fault: Fault | None = None

    def kept_raw(self) -> str:
        """What goes to the rejects, so that nothing is lost. Bytes that are not UTF-8 are escaped surrogates."""
        return json.dumps(self.data, ensure_ascii=False, default=str) if self.raw is None else self.raw


class Item(NamedTuple):
    """A good row: its conversation, its side where one is known, and its tokens."""

    conversation: Conversation
    side: Side | None
    tokens: Tokens

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_learned(self) -> int:
        return int((self.tokens & 1).sum())


class Line(NamedTuple):
    number: int
    offset: int
    """Of its first byte in the file."""
    content: bytes
    whole: bool
    """False: longer than MAX_LINE_BYTES, and cut."""


def lines_of(stream: BinaryIO, offset: int = 0, number: int = 0) -> Iterator[Line]:
    """Lines with their offsets; a line that is too long is cut, and never held as a whole.

    The stream stands at `offset`, after `number` lines.
    """
    while content := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        n_bytes = len(content)
        whole = n_bytes <= MAX_LINE_BYTES or content.endswith(b"\n")
        chunk = content
        while not whole and not chunk.endswith(b"\n") and (chunk := stream.readline(1 << 20)):
            n_bytes += len(chunk)
        yield Line(number, offset, content, whole)
        offset += n_bytes


def read_jsonl(
    path: Path, shown: str, warn: Warn, start: int = 0, stop: int | None = None, before: int = 0
) -> Iterator[Row]:
    """All rows, or those of the lines that begin from byte `start` on, after `before` lines, and before byte `stop`."""
    with unpacked(path, shown) as stream:
        if start:
            stream.seek(start)
        for line in lines_of(stream, start, before):
            if stop is not None and line.offset >= stop:
                return
            where = f"{shown}:{line.number}"
            content = _without_bom(line, where, warn)
            if not content.strip():
                warn("LU-D003", where, "a blank line", "")
                continue
            raw = content.decode("utf-8", "surrogateescape").rstrip("\r\n")
            try:
                yield Row(where, _object_on(line, content), raw)
            except Fault as fault:
                yield Row(where, raw=raw if line.whole else raw[:4096], fault=fault)


def _without_bom(line: Line, where: str, warn: Warn) -> bytes:
    if line.number == 1 and line.content.startswith(BOM):
        warn("LU-D004", where, "the file starts with a byte order mark", "it is skipped; save as UTF-8 without one")
        return line.content[len(BOM) :]
    return line.content


def _object_on(line: Line, content: bytes) -> dict[str, Any]:
    if fault := _line_fault(line):
        raise fault
    try:
        return parse_object(content.decode())
    except Fault as fault:
        if fault.code == "LU-D001" and not content.endswith(b"\n"):
            raise Fault("LU-D002", "", f"the last line is cut off: {fault.found}", "copy the file again") from None
        raise


def _line_fault(line: Line) -> Fault | None:
    """Too long, or not UTF-8."""
    if not line.whole:
        return Fault("LU-D013", "", f"a line of over {MAX_LINE_BYTES >> 20} MiB", "one row a line; cut long documents")
    try:
        line.content.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{line.content[error.start]:02x} at offset {line.offset + error.start} is not UTF-8"
        return Fault("LU-D005", "", found, "convert the file: iconv -f LATIN1 -t UTF-8")
    return None


STRICT: dict[Why, str] = {
    "syntax": "LU-D001",
    "surrogate": "LU-D007",
    "twice": "LU-D009",
    "number": "LU-D011",
    "depth": "LU-D012",
}
"""Why a row's JSON is not taken -> code."""


def parse_object(text: str) -> dict[str, Any]:
    """One JSON object, strictly. Raises Fault LU-D001, LU-D007 and LU-D009 to LU-D012."""
    try:
        value = parse_json(text)
    except NotStrict as error:
        advice = error.advice or ("one JSON object a line" if error.why == "syntax" else "")
        raise Fault(STRICT[error.why], error.key, error.found, advice) from None
    if not isinstance(value, dict):
        kind = "array" if isinstance(value, list) else type(value).__name__
        raise Fault("LU-D010", "", f"a JSON {kind}, not an object", 'write {"column": value, ...}')
    return value


def read_json(path: Path, shown: str, warn: Warn) -> Iterator[Row]:
    """The objects of one JSON array; `line` is where each begins. A broken array raises DataError LU-D001."""
    with unpacked(path, shown) as stream:
        content = stream.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise DataError.of(
            "LU-D013", shown, f"a JSON array of over {MAX_JSON_BYTES >> 20} MiB", "save it as JSON lines"
        )
    try:
        text = _without_bom(Line(1, 0, content, True), f"{shown}:1", warn).decode()
    except UnicodeDecodeError as error:
        raise DataError.of("LU-D005", shown, f"byte at offset {error.start} is not UTF-8", "convert the file") from None
    for line, raw in _items_of_array(text, shown):
        try:
            yield Row(f"{shown}:{line}", parse_object(raw), raw)
        except Fault as fault:
            yield Row(f"{shown}:{line}", raw=raw, fault=fault)


def _items_of_array(text: str, shown: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each item, found without trusting what is inside."""
    decoder = json.JSONDecoder(parse_int=str)  # a number of thousands of digits is its own row's fault
    line, counted = 1, 0
    at = _skip_space(text, _skip_space(text, 0) + 1)  # a file that does not start with [ is no array
    try:
        while text[at : at + 1] != "]":
            _, end = decoder.raw_decode(text, at)
            line, counted = line + text.count("\n", counted, at), at
            yield line, text[at:end]
            at = _skip_space(text, end)
            if text[at : at + 1] == ",":
                at = _skip_space(text, at + 1)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        if (rest := _skip_space(text, at + 1)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f"{shown}:{getattr(error, 'lineno', line)}"
        found = f"not JSON: {getattr(error, 'msg', 'nested too deeply')}"
        raise DataError.of(
            "LU-D001", place, found, "JSON lines would lose one row, an array loses all that follow"
        ) from None


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def read_csv(path: Path, shown: str, warn: Warn, delimiter: str = ",") -> Iterator[Row]:
    """Rows of a CSV file whose first row names the columns. Raises DataError LU-D009, LU-D017."""
    csv.field_size_limit(MAX_LINE_BYTES)
    pending: list[str] = []
    faults: dict[int, Fault] = {}
    with unpacked(path, shown) as stream:
        reader = csv.reader(_text_lines(stream, shown, warn, pending, faults), delimiter=delimiter, strict=True)
        columns: list[str] | None = None
        while True:
            start = reader.line_num + 1
            where, fields, fault = f"{shown}:{start}", [], None
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fault = _csv_fault(str(error), where)
            raw = "".join(pending)
            pending.clear()
            fault = next((faults[n] for n in range(start, reader.line_num + 1) if n in faults), fault)
            if not fields and not fault:
                warn("LU-D003", where, "a blank line", "")
            elif columns is None:
                columns = _header(fields, fault, where)
            else:
                yield _csv_row(where, columns, fields, raw, fault)


def _text_lines(
    stream: BinaryIO, shown: str, warn: Warn, pending: list[str], faults: dict[int, Fault]
) -> Iterator[str]:
    """Decoded lines; each is also put into `pending`, and what is wrong with it into `faults`."""
    for line in lines_of(stream):
        if fault := _line_fault(line):
            faults[line.number] = fault
        text = _without_bom(line, f"{shown}:{line.number}", warn).decode("utf-8", "surrogateescape")
        pending.append(text if line.whole else text[:4096])
        yield pending[-1]


def _csv_fault(message: str, where: str) -> Fault:
    if "unexpected end" in message:  # everything after the quote would be one row
        raise DataError.of("LU-D017", where, "a quote is opened here and never closed", 'write a quote in a text as ""')
    return Fault("LU-D017", "", f"not CSV: {message}", 'write a quote in a text as ""')


def _header(fields: list[str], fault: Fault | None, where: str) -> list[str]:
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if fault or twice:
        code, found = (
            (fault.code, fault.found) if fault else ("LU-D009", f"two columns are called '{printable(twice[0])}'")
        )
        raise DataError.of(code, where, found, "the first row must name the columns")
    return fields


def _csv_row(where: str, columns: list[str], fields: list[str], raw: str, fault: Fault | None) -> Row:
    if fault is None and len(fields) != len(columns):
        n_lines = raw.count("\n")
        over = f" over {n_lines} lines" if n_lines > 1 else ""
        fault = Fault(
            "LU-D017",
            "",
            f"{len(fields)} fields{over}, the header has {len(columns)}",
            "quote texts that hold commas or newlines",
        )
    return Row(where, raw=raw, fault=fault) if fault else Row(where, dict(zip(columns, fields, strict=True)), raw)


def read_tsv(path: Path, shown: str, warn: Warn) -> Iterator[Row]:
    return read_csv(path, shown, warn, delimiter="\t")
