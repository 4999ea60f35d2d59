"""Packed files: the bytes of a data file, also of one that is compressed, and never more of them than are allowed.

A small file that unpacks to more than any text does is a bomb, and reading stops there. Archives of several files are
not opened: their names may lead anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from luthier.errors import DataError, printable

MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
MAX_RATIO = 100
"""Unpacked over packed bytes; JSON lines of prose come to 3 to 10."""
ALWAYS_BYTES = 64 << 20
"""So much may come out of any file."""


def packing_of(head: bytes) -> str | None:
    """How a file that begins so is compressed."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


@contextmanager
def unpacked(path: Path, shown: str) -> Iterator[BinaryIO]:
    """The file's bytes. Raises DataError LU-D018 (damaged), LU-D022 (a bomb)."""
    with path.open("rb") as stream:
        packing = packing_of(stream.read(4))
        stream.seek(0)
        if packing is None:
            yield stream
            return
        allowed = max(ALWAYS_BYTES, MAX_RATIO * path.stat().st_size)
        with io.BufferedReader(cast(io.RawIOBase, _Bounded(stream, packing, shown, allowed)), 1 << 20) as whole:
            yield cast(BinaryIO, whole)


class _Bounded(io.RawIOBase):
    def __init__(self, stream: BinaryIO, packing: str, shown: str, allowed: int) -> None:
        import pyarrow as pa

        self._source: Any = pa.CompressedInputStream(stream, packing)
        self._packing, self._shown, self._allowed, self._n = packing, shown, allowed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._source.read(len(buffer))
        except OSError as error:
            found = f"cannot be unpacked ({self._packing}): {printable(str(error))}"
            raise DataError.of("LU-D018", self._shown, found, "copy the file again") from None
        self._n += len(content)
        if self._n > self._allowed:
            found = f"unpacks to over {self._allowed >> 20} MiB, more than {MAX_RATIO} times its size"
            raise DataError.of("LU-D022", self._shown, found, "unpack it yourself if you trust it")
        buffer[: len(content)] = content
        return len(content)
