"""Encoded conversations, kept: what one stage of a run has encoded, every later one of any run reads.

    n conversations of a pack, N tokens of them all

Promises:
- What is found is what the encoder makes, to the bit: a pack lies under the encoder's fingerprint, and in it under the
  conversation's id, which is a hash of its content.
- A pack is written whole and never changed, so any number of processes may read and write. It begins with hashes of
  what follows: one that is damaged is deleted, and its conversations are encoded anew.
- What was not used for longest leaves first, when there is more than MAX_BYTES or MAX_PACKS.

A pack is a file of the user's cache folder: hashes and counts, an index in order of the ids, and the tokens, each with
whether it is learned as its lowest bit. It is mapped: what is not looked up is not read. Conversations that cannot be
encoded are not kept. This module knows nothing of templates and tokenizers.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier.encode import Encoded, Encoder, Tokens
from luthier.files import cache_folder, write_atomically

MAX_BYTES, MAX_PACKS = 2 << 30, 64
MIN_TOKENS = 20_000
"""Fewer new ones are encoded again as soon as a file is written and synced."""
HEADER = struct.Struct("<32s32sQQ")
"""SHA-256 of the index and of the tokens, n, N."""


@contextmanager
def remembered(encoder: Encoder) -> Iterator[None]:
    """While this lasts, `encoder.many` and `encoder.all` look up what was encoded before; what is new is kept after."""
    packs = _Packs(cache_folder() / "encoded" / encoder.fingerprint()[:32])
    encoder.memory = packs
    try:
        yield
    finally:
        encoder.memory = None
        with suppress(OSError):  # a disk that is full or read-only costs time, not the run
            packs.write()


class _Packs:
    """The packs of one encoder, and what will be the next one: a Memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._packs = [pack for path in sorted(folder.glob("*.pack")) if (pack := _Pack.open(path))]
        self._new: dict[int, tuple[int, int]] = {}  # where a conversation's tokens are in `_tokens`
        self._tokens = array("I")

    def find(self, ids: Sequence[str]) -> dict[str, Tokens]:
        keys = {id_: int(id_, 16) for id_ in ids}
        new = {id_: self._new[key] for id_, key in keys.items() if key in self._new}
        found = {id_: _unpacked(np.array(self._tokens[start:stop])) for id_, (start, stop) in new.items()}
        asked = np.array([keys[id_] for id_ in ids], dtype=np.uint64)
        for pack in self._packs:
            at = np.minimum(np.searchsorted(pack.keys, asked), len(pack.keys) - 1)
            hits = np.flatnonzero(pack.keys[at] == asked)
            if len(hits) and pack.whole():
                found |= {ids[i]: pack.tokens(int(at[i])) for i in hits.tolist()}
        return found

    def keep(self, encoded: Encoded) -> None:
        values = np.array(encoded.ids, dtype=np.uint32) << 1 | np.array(encoded.learn)
        start = len(self._tokens)
        self._tokens.frombytes(values.tobytes())
        self._new[int(encoded.id, 16)] = start, len(self._tokens)

    def write(self) -> None:
        """The new conversations as a pack of their own, if they are worth one."""
        if len(self._tokens) < MIN_TOKENS or 4 * len(self._tokens) > MAX_BYTES:  # for which all others would leave
            return
        order = sorted(self._new)
        spans = np.array([self._new[key] for key in order], dtype="<u8").T  # (2, n)
        index = np.array(order, dtype="<u8").tobytes() + spans.tobytes()
        tokens = np.frombuffer(self._tokens, dtype=np.uint32).astype("<u4", copy=False).data
        header = HEADER.pack(_digest(index), _digest(tokens), len(order), len(self._tokens))
        write_atomically(
            self._folder / f"{hashlib.sha256(header).hexdigest()[:16]}.pack", b"".join((header, index, tokens))
        )
        _let_old_ones_leave(self._folder.parent)


class _Pack:
    def __init__(self, path: Path, index: NDArray[np.uint64], tokens: NDArray[np.uint32], digest: bytes) -> None:
        self._path, self._tokens, self._digest = path, tokens, digest
        self.keys, self._starts, self._stops = index
        self._whole: bool | None = None

    @classmethod
    def open(cls, path: Path) -> _Pack | None:
        """None where it cannot be opened, and where the index is damaged: then there is no file any more."""
        with suppress(ValueError, struct.error):  # it is empty, or shorter than a header
            try:
                content = np.memmap(path, dtype=np.uint8, mode="r")
            except OSError:  # it has left meanwhile, or too many files are open
                return None
            of_index, of_tokens, n, n_tokens = HEADER.unpack(content[: HEADER.size].tobytes())
            index, tokens = np.split(content[HEADER.size :], [24 * n])
            if len(tokens) == 4 * n_tokens and n and _digest(index.data) == of_index:
                return cls(path, index.view("<u8").reshape(3, n), tokens.view("<u4"), of_tokens)
        _delete(path)
        return None

    def whole(self) -> bool:
        """Whether the tokens are as they were written; looked at once, when the first of them are asked for."""
        if self._whole is None:
            self._whole = _digest(self._tokens.data) == self._digest
            with suppress(OSError):
                os.utime(self._path) if self._whole else self._path.unlink()
        return self._whole

    def tokens(self, row: int) -> Tokens:
        return _unpacked(self._tokens[int(self._starts[row]) : int(self._stops[row])])


def _unpacked(values: NDArray[np.uint32]) -> Tokens:
    return (values >> 1).tolist(), (values & 1).astype(bool).tolist()


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).digest()


def _let_old_ones_leave(folder: Path) -> None:
    """Keep the packs that were used last."""
    packs = [(path, status) for path in folder.glob("*/*.pack") if (status := _status(path))]
    n_bytes = 0
    for n, (path, status) in enumerate(sorted(packs, key=lambda p: -p[1].st_mtime_ns), 1):
        n_bytes += status.st_size
        if n_bytes > MAX_BYTES or n > MAX_PACKS:
            _delete(path)


def _status(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):  # another process has just deleted it
        return path.stat()
    return None


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # which fails unless this was the last one
