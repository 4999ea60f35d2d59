"""The encoded rows of a side, in one file: what prepare has encoded, training reads where it lies.

    n rows, N tokens of them all

Promises:
- Opening reads the end of the file alone, however many rows there are; a row is read when it is asked for.
- Tokens are read and not mapped: pages of a map that were looked at once would count as this process's memory.
- The file says by which encoder and of which rows it was made: one of others is made anew.
- It is written aside and renamed: there is a whole one or none. That it stays whole, the stage's record vouches for.

    tokens, each with whether it is learned as its lowest bit (N,) | INDEX (n,) | where the rows are from, as text |
    JSON: what it was made of, and how long each part is | TAIL: the length of that, and MAGIC

This module knows nothing of templates and steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import struct
import weakref
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import Conversation, Side, read_conversations
from luthier.encode import Encoded, Encoder
from luthier.faults import reach
from luthier.files import sync_folder

Tokens = NDArray[np.uint32]
"""Of a row: ids, shifted by one bit, which says whether a token is learned."""
NO_TOKENS: Tokens = np.zeros(0, dtype=np.uint32)
MAGIC, TAIL = b"LUTOKENS", struct.Struct("<Q8s")
ENTRY = struct.Struct("<QQQfH?x")
INDEX = np.dtype(
    {
        "names": ["stop", "id", "source_stop", "weight", "made_by", "document"],
        "formats": ["<u8", "<u8", "<u8", "<f4", "<u2", "?"],
        "offsets": [0, 8, 16, 24, 28, 30],
        "itemsize": ENTRY.size,
    }
)
"""Of each row: where its tokens and its source end, its id, its weight, by which method it was made (0: it was read),
and whether it is a document, which may be longer than a window."""
STAMP_BYTES = 1 << 16


class Maker(Protocol):
    """What the tokens are made by."""

    @property
    def max_tokens(self) -> int | None: ...
    def fingerprint(self) -> str: ...


def packed(ids: Sequence[int], learn: Sequence[bool]) -> Tokens:
    return np.array(ids, dtype=np.uint32) << np.uint32(1) | np.array(learn, dtype=np.uint32)


def write_side(folder: Path, side: Side, rows: Iterable[tuple[bytes, Tokens]], maker: Maker) -> None:
    """Write `SIDE.jsonl` of these lines, and `SIDE.tokens` beside it."""
    path = folder / f"{side}.jsonl"
    with path.open("wb") as lines, _Writer.of(path) as out:
        for line, tokens in rows:
            lines.write(line)
            out.append(Conversation.model_validate_json(line), tokens)
        lines.flush()
        out.finish(maker)


def read_side(folder: Path, side: Side, encoder: Encoder, without: Set[str] = frozenset()) -> EncodedRows:
    """The encoded rows of `SIDE.jsonl`, but for those made by the methods `without`.

    Where the file beside it is missing, or another encoder's or other rows', it is made. Raises DataError as
    `encoder.all`.
    """
    rows = folder / f"{side}.jsonl"
    found = EncodedRows.open(rows, encoder)
    if found is None:
        with _Writer.of(rows) as out:
            conversations = read_conversations(rows), read_conversations(rows)
            for conversation, encoded in zip(conversations[0], encoder.many(conversations[1]), strict=True):
                if isinstance(encoded, Exception):
                    raise encoded
                out.append(conversation, packed(encoded.ids, encoded.learn))
            out.finish(encoder)
        found = EncodedRows.open(rows, encoder)
        assert found is not None
    return found.without(without)


class EncodedRows(Sequence[Encoded]):
    """The rows of a file, or some of them."""

    def __init__(self, path: Path, about: dict[str, Any], some: NDArray[np.int64] | None = None) -> None:
        """`some`: rows of the file, by number; None: all."""
        self._path, self._about, self._some = path, about, some
        n_bytes = about["n_bytes"]
        self._sources_at = n_bytes["tokens"] + n_bytes["index"]
        n = n_bytes["index"] // INDEX.itemsize
        self._index: NDArray[Any] = np.zeros(0, dtype=INDEX)
        if n:  # of nothing there is no map
            self._index = np.memmap(path, dtype=INDEX, mode="r", offset=n_bytes["tokens"], shape=n)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def open(cls, rows: Path, maker: Maker) -> EncodedRows | None:
        """None where there is no file for these rows by this encoder."""
        with suppress(OSError, ValueError, KeyError, struct.error):
            path = _path(rows)
            with path.open("rb") as file:
                file.seek(-TAIL.size, os.SEEK_END)
                n, magic = TAIL.unpack(file.read())
                file.seek(-TAIL.size - n, os.SEEK_END)
                about = json.loads(file.read(n)) if magic == MAGIC else {}
            if about["made_of"] == _made_of(rows, maker):
                return cls(path, about)
        return None

    def without(self, methods: Set[str]) -> EncodedRows:
        """But for rows that were made by these."""
        left_out = [k for k, name in enumerate(self._about["methods"], 1) if name in methods]
        if not left_out:
            return self
        return EncodedRows(self._path, self._about, np.flatnonzero(~np.isin(self._index["made_by"], left_out)))

    @property
    def max_tokens(self) -> int | None:
        """Of a window."""
        most: int | None = self._about["max_tokens"]
        return most

    # -- columns (n,) ------------------------------------------------------------------------------------------

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        stops = self._index["stop"].astype(np.int64)
        lengths = np.diff(stops, prepend=0)
        return lengths if self._some is None else lengths[self._some]

    @property
    def weights(self) -> NDArray[np.float32]:
        return self._column("weight")

    @property
    def is_document(self) -> NDArray[np.bool_]:
        return self._column("document")

    def _column(self, name: str) -> NDArray[Any]:
        column: NDArray[Any] = self._index[name]
        return column if self._some is None else column[self._some]

    # -- rows --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._index if self._some is None else self._some)

    @overload
    def __getitem__(self, i: int) -> Encoded: ...
    @overload
    def __getitem__(self, i: slice) -> list[Encoded]: ...
    def __getitem__(self, i: int | slice) -> Encoded | list[Encoded]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        return unpacked(self.tokens(i), *self.name(i))

    def tokens(self, i: int, start: int = 0, stop: int | None = None) -> Tokens:
        """Of row i, from its token `start` to before its token `stop`, or to its end."""
        first, last = self._span(i, "stop")
        start, stop = first + start, last if stop is None else min(first + stop, last)
        reach("read")
        return np.frombuffer(os.pread(self._file, 4 * (stop - start), 4 * start), dtype="<u4")

    def name(self, i: int) -> tuple[str, str]:
        """Its id and its source."""
        first, last = self._span(i, "source_stop")
        source = os.pread(self._file, last - first, self._sources_at + first)
        return f"{self._index['id'][self._number(i)]:016x}", source.decode()

    def _span(self, i: int, stop: str) -> tuple[int, int]:
        stops, i = self._index[stop], self._number(i)
        return int(stops[i - 1]) if i else 0, int(stops[i])

    def _number(self, i: int) -> int:
        return i if self._some is None else int(self._some[i])


def unpacked(tokens: Tokens, id: str, source: str) -> Encoded:
    return Encoded((tokens >> 1).tolist(), (tokens & 1).astype(bool).tolist(), id, source)


class _Writer:
    """Rows one after the other; in memory is none of them."""

    def __init__(self, rows: Path, tokens: IO[bytes], index: IO[bytes], sources: IO[bytes]) -> None:
        self._rows, self._tokens, self._index, self._sources = rows, tokens, index, sources
        self._methods: dict[str | None, int] = {None: 0}
        self._n = self._n_source_bytes = 0

    @classmethod
    @contextmanager
    def of(cls, rows: Path) -> Iterator[_Writer]:
        path = _path(rows)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # several processes may make it
        try:
            with (
                aside.open("wb") as out,
                TemporaryFile(dir=path.parent) as index,
                TemporaryFile(dir=path.parent) as sources,
            ):
                yield cls(rows, out, index, sources)
                out.flush()
                os.fsync(out.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(path.parent)

    def append(self, conversation: Conversation, tokens: Tokens) -> None:
        self._n += self._tokens.write(tokens.astype("<u4", copy=False).data) // tokens.itemsize
        self._n_source_bytes += self._sources.write(conversation.source.encode("utf-8", "replace"))
        made_by = self._methods.setdefault(conversation.made_by, len(self._methods))
        about = conversation.weight, made_by, conversation.is_document
        self._index.write(ENTRY.pack(self._n, int(conversation.id, 16), self._n_source_bytes, *about))

    def finish(self, maker: Maker) -> None:
        n_bytes = {"tokens": 4 * self._n, "index": self._index.tell(), "sources": self._n_source_bytes}
        for part in (self._index, self._sources):
            part.seek(0)
            shutil.copyfileobj(part, self._tokens)
        about = {
            "made_of": _made_of(self._rows, maker),
            "max_tokens": maker.max_tokens,
            "methods": [name for name in self._methods if name is not None],
            "n_bytes": n_bytes,
        }
        written = json.dumps(about).encode()
        self._tokens.write(written + TAIL.pack(len(written), MAGIC))


def _path(rows: Path) -> Path:
    return rows.with_suffix(".tokens")


def _made_of(rows: Path, maker: Maker) -> str:
    """A hash of the encoder, and of the rows' length, beginning and end: enough to see that they are others."""
    with rows.open("rb") as file:
        n_bytes = file.seek(0, os.SEEK_END)
        ends = []
        for at in (0, max(n_bytes - STAMP_BYTES, 0)):
            file.seek(at)
            ends.append(hashlib.sha256(file.read(STAMP_BYTES)).hexdigest())
    return hashlib.sha256(json.dumps([maker.fingerprint(), n_bytes, ends]).encode()).hexdigest()
