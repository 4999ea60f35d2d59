"""Requests: what people really asked, read for comparison with the test set; nothing is learned from it.

A `.txt` file holds one request a line. Any other file is read as a data source is, and need not have answers: a
column of prompts will do, and a chat may end with the request. Rows that cannot be read are left out and
counted. Knows neither the test set nor its format.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.conversation import Conversation, Message, make_conversation
from luthier.errors import DataError
from luthier.prepare.chats import ROLE_NAMES, names_in
from luthier.prepare.clean import Cleaning
from luthier.prepare.detect import PROMPTS, SAMPLE_ROWS, TEXTS, detect, profile
from luthier.prepare.formats import Format
from luthier.prepare.rows import Fault, Row, silent
from luthier.prepare.sources import DataFile, find_files
from luthier.settings import Data, Source, source_path


def read_requests(path: str, folder: Path, cleaning: Cleaning | None = None) -> tuple[list[Conversation], list[str]]:
    """The requests at `path`, which counts from `folder`, and notes on rows that were left out.

    With `cleaning` they are cleaned as the rows are that they are compared with. Raises DataError where the file cannot
    be used, or its format cannot be told (LU-D101).
    """
    source = Source(path=path)
    at = source_path(source, folder)
    if at.suffix.lower() == ".txt":
        return _read(_lines(at, path), path, cleaning)
    if at.is_dir():  # whose files no stage's key would hold
        raise DataError.of("LU-D019", path, "is a folder", "name one file of requests")
    (file,) = find_files((source,), folder)
    format = _format([row.data for row in file.sample(SAMPLE_ROWS)], source)
    return _read(_rows(file, format), path, cleaning)


def _read(
    rows: Iterable[Conversation | Fault], path: str, cleaning: Cleaning | None
) -> tuple[list[Conversation], list[str]]:
    found: list[Conversation] = []
    faults: list[str] = []
    for row in rows:
        try:
            if isinstance(row, Fault):
                raise row
            found.append(cleaning.request(row) if cleaning else row)
        except Fault as fault:
            faults.append(cleaning.hiding.finding(fault.found) if cleaning else fault.found)
    notes = [f"requests: {len(faults)} rows of {path} were left out; the first is {faults[0]}"] if faults else []
    return found, notes


def _rows(file: DataFile, format: Format) -> Iterator[Conversation | Fault]:
    for row in file.rows(silent):
        try:
            if row.fault:
                raise row.fault
            yield format.conversation(_answered(row, format), row.data.keys(), silent)
        except Fault as fault:
            yield Fault(fault.code, fault.field, f"{row.where}: {fault.found}")


def _lines(path: Path, shown: str) -> list[Conversation]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError.of("LU-D019", shown, f"cannot be read: {error.strerror}", f"looked for {path}") from None
    except UnicodeDecodeError as error:
        raise DataError.of("LU-D005", shown, f"byte at offset {error.start} is not UTF-8", "convert the file") from None
    return [
        make_conversation([Message(role="text", content=line.strip())], f"{shown}:{n}")
        for n, line in enumerate(lines, 1)
        if line.strip()
    ]


def _format(rows: list[dict[str, Any]], source: Source) -> Format:
    columns = profile(rows)
    try:
        return detect(rows, Data(sources=(source,)))
    except DataError:
        asked = next((name for name in (*PROMPTS, *TEXTS) if name in columns and columns[name].is_text), None)
        if asked is None:
            raise
        return Format("text", {"text": asked})


def _answered(row: Row, format: Format) -> Row:
    """A chat that ends with the request gets an answer: the format asks for one, and nobody reads it."""
    field = format.fields.get("messages", "")
    chat = row.data.get(field)
    if not isinstance(chat, list) or not chat or not isinstance(chat[-1], dict):
        return row
    by, said = names_in(chat[-1])
    if ROLE_NAMES.get(str(chat[-1].get(by))) != "user":
        return row
    return replace(row, data={**row.data, field: [*chat, {by: "assistant", said: "-"}]})
