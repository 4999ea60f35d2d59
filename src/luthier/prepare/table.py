"""The good rows: each conversation a line of a file with its tokens behind it, and what the steps compare as numbers.

A row takes 66 bytes of memory, however long it is. The rows of each block of data lie in a file of their own. Steps
speak of rows by number, and give back the numbers that they leave; only `side` is changed. Hashes stand for texts: of
64 bits, and of 128 where rows are dropped by them.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import SIDES, Conversation, Message, Side, line_of
from luthier.encoded import NO_TOKENS, Tokens
from luthier.similar import normalised

Numbers = NDArray[np.int64]
"""Rows, by number, in ascending order."""
NO_SIDE = -1


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that lie in one file, for whoever reads them there."""

    path: Path
    starts: NDArray[np.uint64]  # (m,)
    stops: NDArray[np.uint64]  # (m,)
    at: NDArray[np.int64]  # (m,) their places among the rows that were asked for

    def __iter__(self) -> Iterator[Conversation]:
        with self.path.open("rb") as file:
            for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True):
                yield Conversation.model_validate_json(_read(file, start, stop))


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


class Rows:
    """Append all rows, or add rows of other files after one's own; then ask."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where the file of the lines stays; None: it goes with the rows."""
        # closed with the rows
        self._file = cast(BinaryIO, NamedTemporaryFile(dir=folder, suffix=".rows", delete=folder is None))  # noqa: SIM115
        self._paths, self._firsts = [Path(self._file.name)], array("Q", [0])  # of each file its first row's number
        self._opened = 0, self._file
        self._ends, self._written = array("Q"), 0  # of each line in its file
        self._side, self._tokens, self._flags = array("b"), array("I"), array("B")
        self._hashes = array("Q")

    @classmethod
    def of(cls, conversations: Iterable[Conversation], side: Side | None = None) -> Rows:
        rows = cls()
        for conversation in conversations:
            rows.append(conversation, side)
        return rows

    def append(self, conversation: Conversation, side: Side | None, tokens: Tokens = NO_TOKENS) -> None:
        self._written += self._file.write(line_of(conversation)) + self._file.write(tokens.data)
        self._ends.append(self._written)
        self._side.append(SIDES.index(side) if side else NO_SIDE)
        self._tokens.extend((len(tokens), int((tokens & 1).sum())))
        key = turns(conversation.messages)
        exact = _digest("\2".join((_joined(key), _joined(turns(conversation.rejected)), beside(conversation))), 16)
        asked = _joined(key[:-1])
        family = conversation.family
        self._hashes.extend(
            (
                int.from_bytes(exact[:8], "big"),
                int.from_bytes(exact[8:], "big"),
                _hash64(asked),
                _hash64(key[-1][1]),
                _hash64(normalised(conversation.asked_text)),
                _hash64(family),
            )
        )
        n_answers = sum(m.role == "assistant" for m in conversation.messages)
        flags = (bool(asked), n_answers > 1, bool(conversation.rejected), conversation.rating is False)
        self._flags.append(sum(flag << n for n, flag in enumerate(flags)))

    def close(self) -> None:
        """All rows are appended: for others to read them where they lie."""
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_file", "_opened")}

    def add(self, part: Rows) -> None:
        """Append the rows of a part, whose file stays where it is."""
        self._paths.append(part._paths[0])
        self._firsts.append(len(self))
        for name in ("_ends", "_side", "_tokens", "_flags", "_hashes"):
            getattr(self, name).extend(getattr(part, name))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> Conversation:
        return Conversation.model_validate_json(self.line(i))

    def line(self, i: int) -> bytes:
        """The conversation as it is written."""
        return _read(self._opened_at(i), *self._line(i))

    def tokens(self, i: int) -> Tokens:
        """What the row was encoded to."""
        file = self._opened_at(i)
        file.seek(self._line(i)[1])
        return np.frombuffer(file.read(self._tokens[2 * i] * NO_TOKENS.itemsize), dtype=np.uint32)

    def _opened_at(self, i: int) -> BinaryIO:
        n = bisect_right(self._firsts, i) - 1
        if n != self._opened[0]:
            self._opened = n, self._paths[n].open("rb") if n else self._file
        return self._opened[1]

    def _line(self, i: int) -> tuple[int, int]:
        """Where it begins and ends in its file."""
        start = 0 if i == self._firsts[self._opened[0]] else self._ends[i - 1]
        return start, self._ends[i] - self._tokens[2 * i] * NO_TOKENS.itemsize

    def pieces(self, numbers: Numbers) -> Iterator[Piece]:
        """The rows, in whichever order, by the files that they lie in."""
        if not len(numbers):
            return
        self._file.flush()
        ends, firsts = np.frombuffer(self._ends, dtype=np.uint64), np.array(self._firsts, dtype=np.int64)
        file = (np.searchsorted(firsts, numbers, side="right") - 1).astype(np.uint32)
        by_file = np.argsort(file, kind="stable")
        for at in np.split(by_file, np.flatnonzero(np.diff(file[by_file])) + 1):
            n, some = int(file[at[0]]), numbers[at]
            starts = np.where(some == firsts[n], np.uint64(0), ends[some - 1])
            yield Piece(self._paths[n], starts, ends[some] - self.n_tokens[some] * np.uint64(NO_TOKENS.itemsize), at)

    def each(self, numbers: Sequence[int] | Numbers) -> Iterator[Conversation]:
        return (self[int(i)] for i in numbers)

    @property
    def numbers(self) -> Numbers:
        return np.arange(len(self))

    # -- columns (n,) --------------------------------------------------------------------------------------

    @cached_property
    def side(self) -> NDArray[np.int8]:
        """Into SIDES; NO_SIDE where none is given."""
        return np.frombuffer(self._side, dtype=np.int8) if self._side else np.zeros(0, dtype=np.int8)

    def on(self, side: Side, numbers: Numbers) -> Numbers:
        found: Numbers = numbers[self.side[numbers] == SIDES.index(side)]
        return found

    @cached_property
    def n_tokens(self) -> NDArray[np.uint32]:
        return self._of_tokens(0)

    @cached_property
    def n_learned(self) -> NDArray[np.uint32]:
        return self._of_tokens(1)

    def _of_tokens(self, k: int) -> NDArray[np.uint32]:
        return np.frombuffer(self._tokens, dtype=np.uint32).reshape(-1, 2)[:, k]

    @cached_property
    def _table(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._hashes, dtype=np.uint64).reshape(-1, 6)

    @property
    def exact(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Equal for exact copies: all turns but for white space, those of a rejected answer, tools and rating."""
        return self._table[:, 0], self._table[:, 1]

    @property
    def asked(self) -> NDArray[np.uint64]:
        """Of all turns before the last answer."""
        return self._table[:, 2]

    @property
    def answer(self) -> NDArray[np.uint64]:
        return self._table[:, 3]

    @property
    def asked_text(self) -> NDArray[np.uint64]:
        """Of what two rows may not share across sides."""
        return self._table[:, 4]

    @property
    def family(self) -> NDArray[np.uint64]:
        return self._table[:, 5]

    def _flag(self, n: int) -> NDArray[np.bool_]:
        return (np.frombuffer(self._flags, dtype=np.uint8) >> n & 1).astype(np.bool_)

    @property
    def has_prompt(self) -> NDArray[np.bool_]:
        return self._flag(0)

    @property
    def has_several_answers(self) -> NDArray[np.bool_]:
        return self._flag(1)

    @property
    def is_pair(self) -> NDArray[np.bool_]:
        return self._flag(2)

    @property
    def is_rated_bad(self) -> NDArray[np.bool_]:
        return self._flag(3)


def turns(messages: Iterable[Message]) -> tuple[tuple[str, str], ...]:
    """Role and text of each, but for white space."""
    return tuple((m.role, normalised(m.text)) for m in messages)


def beside(conversation: Conversation) -> str:
    """What is no turn, and yet makes another row of it: the tools that may be called, and the rating."""
    return conversation.model_dump_json(exclude_defaults=True, include={"tools", "rating"})


def _joined(turns: Iterable[tuple[str, str]]) -> str:
    return "\0".join(f"{role}\1{text}" for role, text in turns)


def firsts(*keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(n,) Of n rows in their order, with keys (n,) each: whether none before has the same keys."""
    n = len(keys[0])
    found = np.zeros(n, dtype=np.bool_)
    by_key = np.lexsort((np.arange(n), *keys))
    found[by_key[_changes(*(key[by_key] for key in keys))]] = True
    return found


def runs(key: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Of rows with a key (n,) each, those of one key, in their order, where there are several."""
    by_key = np.argsort(key, kind="stable")
    begins = np.flatnonzero(_changes(key[by_key]))
    lengths = np.diff(np.append(begins, len(key)))
    for begin, length in zip(begins[lengths > 1], lengths[lengths > 1], strict=True):
        yield by_key[begin : begin + length]


def _changes(*keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of keys in sorted order: whether each place begins a new one."""
    new = np.ones(len(keys[0]), dtype=np.bool_)
    if len(new):
        new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return new


def _digest(text: str, n_bytes: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=n_bytes).digest()


def _hash64(text: str) -> int:
    return int.from_bytes(_digest(text, 8), "big")
