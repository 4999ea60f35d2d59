"""Text files: a document each, or documents between blank lines.

Which of the two a file is, `sources.py` decides by how it is named. The rows have one column, `text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from luthier.prepare.packed import unpacked
from luthier.prepare.rows import BOM, MAX_LINE_BYTES, Fault, Row, Warn, lines_of


def read_text(path: Path, shown: str, warn: Warn) -> Iterator[Row]:
    """The whole file as one document."""
    with unpacked(path, shown) as stream:
        yield _document(stream.read(MAX_LINE_BYTES + 1), f"{shown}:1")


def read_texts(path: Path, shown: str, warn: Warn) -> Iterator[Row]:
    """Each run of lines that are not blank is a document; `line` is where it begins."""
    with unpacked(path, shown) as stream:
        held, begins = bytearray(), 0
        for line in lines_of(stream):
            if line.content.strip():
                begins = begins if held else line.number
                held += line.content[: MAX_LINE_BYTES + 1 - len(held)]  # so much tells that it is too long
            elif held:
                yield _document(bytes(held), f"{shown}:{begins}")
                held.clear()
        if held:
            yield _document(bytes(held), f"{shown}:{begins}")


def _document(content: bytes, where: str) -> Row:
    raw = content[:4096].decode("utf-8", "surrogateescape")
    if len(content) > MAX_LINE_BYTES:
        found = f"a document of over {MAX_LINE_BYTES >> 20} MiB"
        return Row(where, raw=raw, fault=Fault("LU-D013", "", found, "cut it into several"))
    try:
        text = content.removeprefix(BOM).decode().strip()
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start} is not UTF-8"
        return Row(where, raw=raw, fault=Fault("LU-D005", "", found, "convert the file: iconv -f LATIN1 -t UTF-8"))
    return Row(where, {"text": text}, text)
