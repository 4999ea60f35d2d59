"""Near-duplicates among rows, wherever the rows lie: the groups of similar texts, exactly, joined by bucket.

`similar.py` says why two similar texts share one of their rarest shingles. Here this is done in steps whose work an
engine does by parts:

    hash    each file of rows: the shingles of its texts, and how often each is met; the counts are added up
    key     each file of shingles: the keys of each text's rarest, sorted, and where each range of keys begins
    join    each range: texts that share a key are compared and joined
    greedy  each group, for `first_of_each`: the texts that are similar to none kept before them

Shingles and keys are files; what comes back is one pair for each text that was joined, never one for each two that are
similar. Texts of different groups are not similar, so the groups decide about their texts apart, and the order in which
ranges are joined changes no group.
"""

from __future__ import annotations

import math
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import Conversation
from luthier.prepare.engine import HERE, Engine
from luthier.prepare.table import Numbers, Piece, Rows, runs
from luthier.similar import SEEN, Groups, Hashes, SimilarTexts, hashed, join_shared, rarest

Read = Callable[[Conversation], tuple[str, str]]
"""The text of a row that is compared, and its space: texts of different spaces are never similar."""
PART_ENTRIES, MAX_PARTS = 1 << 18, 1 << 12
"""Keys of a range, on the average; and how many ranges there are at most, each of which is looked for in every file."""
PART_TEXTS = 1 << 14
"""In the groups that are decided about at once, at least."""


def asked_text(conversation: Conversation) -> tuple[str, str]:
    """What two rows may not share across sides."""
    return conversation.asked_text, ""


def group_similar(
    rows: Rows, numbers: Numbers, read: Read, similarity: float, engine: Engine = HERE
) -> NDArray[np.int64]:
    """(n,) For each of the rows the first place in `numbers` of its group of similar texts."""
    with _joined(rows, numbers, read, similarity, engine) as joined:
        return joined.roots


def first_of_each(
    rows: Rows, numbers: Numbers, read: Read, similarity: float, engine: Engine = HERE
) -> NDArray[np.bool_]:
    """(n,) In the order of `numbers`: whether the row is similar to none of those before it that are so themselves."""
    first = np.ones(len(numbers), dtype=np.bool_)
    with _joined(rows, numbers, read, similarity, engine) as joined:
        several = list(_dealt(runs(joined.roots.astype(np.uint64))))
        work = partial(_greedy, joined.shingles, similarity)
        for places, kept in zip(several, engine.map(work, (joined.places[at] for at in several)), strict=True):
            first[places] = kept
    return first


def _dealt(groups: Iterator[NDArray[np.int64]]) -> Iterator[NDArray[np.int64]]:
    """Whole groups together, as many as make a piece of work."""
    held, n = list[NDArray[np.int64]](), 0
    for group in groups:
        held.append(group)
        n += len(group)
        if n >= PART_TEXTS:
            yield np.concatenate(held)
            held, n = [], 0
    if held:
        yield np.concatenate(held)


class Shingles(NamedTuple):
    """A file of the hashed shingles of `n` texts, one text's after the other's, and then where each text's end."""

    path: Path
    n: int


@dataclass(frozen=True, slots=True)
class _Joined:
    shingles: list[Shingles]
    places: NDArray[np.uint64]  # (n,) where each row's shingles are: file << 32 | text
    roots: NDArray[np.int64]  # (n,)


@contextmanager
def _joined(rows: Rows, numbers: Numbers, read: Read, similarity: float, engine: Engine) -> Iterator[_Joined]:
    with tempfile.TemporaryDirectory(dir=engine.folder, ignore_cleanup_errors=True) as made:
        folder = Path(made)
        files, at, n_entries = list[Shingles](), list[NDArray[np.int64]](), 0
        seen = np.zeros(SEEN, dtype=np.uint32)
        for found in engine.map(partial(_hash, read, folder), rows.pieces(numbers)):
            files.append(found.shingles)
            at.append(found.at)
            seen += found.seen
            n_entries += int((1 - similarity) * found.n_shingles) + len(found.at)
        n_parts = min(math.ceil(n_entries / PART_ENTRIES), MAX_PARTS)
        keyed = list(engine.map(partial(_key, seen, similarity, n_parts, folder), files))
        groups = Groups(len(numbers))
        for pairs in engine.map(partial(_join, files, keyed, similarity), range(n_parts)):
            for one, other in pairs.tolist():
                groups.join(int(at[one >> 32][one & 0xFFFFFFFF]), int(at[other >> 32][other & 0xFFFFFFFF]))
        places = np.zeros(len(numbers), dtype=np.uint64)
        for file, those in enumerate(at):
            places[those] = (file << 32) + np.arange(len(those), dtype=np.uint64)
        yield _Joined(files, places, np.fromiter(map(groups.root, range(len(numbers))), np.int64, len(numbers)))


# -- what is done to each part -----------------------------------------------------------------------------


class _Hashed(NamedTuple):
    shingles: Shingles
    at: NDArray[np.int64]
    seen: NDArray[np.uint32]
    n_shingles: int


def _hash(read: Read, folder: Path, piece: Piece) -> _Hashed:
    seen, ends, n = np.zeros(SEEN, dtype=np.uint32), array("Q"), 0
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
        for conversation in piece:
            found = hashed(*read(conversation))
            n += out.write(found.tobytes()) // found.itemsize
            ends.append(n)
            seen[found % SEEN] += 1
        out.write(ends.tobytes())
    return _Hashed(Shingles(Path(out.name), len(ends)), piece.at, seen, n)


def _key(seen: NDArray[np.uint32], similarity: float, n_parts: int, folder: Path, shingles: Shingles) -> Path:
    """A file of where each range of keys begins in it, and where the last one ends; then key << 32 | text, in order."""
    text_of = _reader([shingles])
    keys = [rarest(text_of(i), seen, similarity) for i in range(shingles.n)]
    entries = np.concatenate(keys).astype(np.uint64) << np.uint64(32)
    entries |= np.repeat(np.arange(shingles.n, dtype=np.uint64), [len(key) for key in keys])
    entries.sort()
    bounds = np.array([(n << 64) // n_parts for n in range(n_parts)], dtype=np.uint64)
    begins = n_parts + 1 + np.append(np.searchsorted(entries, bounds), len(entries))
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
        out.write(begins.astype(np.uint64).tobytes())
        out.write(entries.data)
    return Path(out.name)


def _range(part: int, path: Path) -> Hashes:
    """The entries of a range of keys."""
    start, stop = np.fromfile(path, np.uint64, 2, offset=8 * part).tolist()
    return np.fromfile(path, np.uint64, stop - start, offset=8 * start)


def _join(files: Sequence[Shingles], keyed: Sequence[Path], similarity: float, part: int) -> NDArray[np.uint64]:
    """(e, 2) Places of texts that are joined, each with the first of its group."""
    held = [_range(part, path) for path in keyed]
    file = np.repeat(np.arange(len(held), dtype=np.uint32), [len(found) for found in held])
    entries = np.concatenate(held)
    if not len(entries):
        return np.zeros((0, 2), dtype=np.uint64)
    order = np.argsort(entries)
    keys = (entries[order] >> np.uint64(32)).astype(np.uint32)
    same = np.concatenate([[False], keys[1:] == keys[:-1], [False]])
    shared = order[same[1:] | same[:-1]]
    bucket = np.cumsum(~same[:-1], dtype=np.uint32)[same[1:] | same[:-1]]
    places = file[shared].astype(np.uint64) << np.uint64(32) | entries[shared] & np.uint64(0xFFFFFFFF)
    del held, file, entries, order, keys, same, shared
    places, text = np.unique(places, return_inverse=True)
    by_text = np.argsort(text, kind="stable")
    index, text_of = SimilarTexts(similarity), _reader(files)
    for place in places.tolist():
        index.append_hashed(text_of(place))
    names, bucket = np.unique(bucket[by_text], return_inverse=True)
    index.put(np.searchsorted(text[by_text], np.arange(len(places) + 1)), bucket.astype(np.uint32), len(names))
    groups = Groups(len(places))
    join_shared(groups, index, range(len(places)))
    roots = np.fromiter(map(groups.root, range(len(places))), np.int64, len(places))
    joined = np.flatnonzero(roots != np.arange(len(places)))
    return np.stack([places[joined], places[roots[joined]]], axis=1)


def _greedy(files: Sequence[Shingles], similarity: float, places: NDArray[np.uint64]) -> NDArray[np.bool_]:
    index, text_of = SimilarTexts(similarity), _reader(files)
    for place in places.tolist():
        index.append_hashed(text_of(place))
    kept = np.zeros(len(places), dtype=np.bool_)
    for i in range(len(places)):
        if next(index.matches(i), None) is None:
            index.add(i)
            kept[i] = True
    return kept


def _reader(files: Sequence[Shingles]) -> Callable[[int], Hashes]:
    """Gives the shingles at a place."""

    @lru_cache(maxsize=64)
    def opened(file: int) -> tuple[BinaryIO, Hashes]:
        stream = files[file].path.open("rb")
        stream.seek(-8 * files[file].n, 2)
        return stream, np.frombuffer(stream.read(), dtype=np.uint64)

    def text_of(place: int) -> Hashes:
        stream, ends = opened(place >> 32)
        i = place & 0xFFFFFFFF
        start, stop = int(ends[i - 1]) if i else 0, int(ends[i])
        stream.seek(8 * start)
        return np.frombuffer(stream.read(8 * (stop - start)), dtype=np.uint64)

    return text_of
