"""Blocks: what is read at once, wherever that is: parts of large data files, or several small files.

Where they are cut depends on the files alone, never on who reads them: JSON lines after so many bytes, at the end of a
line; Parquet between row groups. Any other file is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from luthier.prepare.packed import SUFFIXES
from luthier.prepare.rows import Row, Warn, lines_of
from luthier.prepare.sources import DataFile
from luthier.prepare.tables import whole

LEAST_BYTES, MOST_BYTES = 4 << 20, 16 << 20
"""Of a block: enough blocks of few data for all processors, and not too many files of much."""
ENOUGH = 256
"""Blocks, where they are between the two."""


class Portion(NamedTuple):
    """Rows of a file."""

    file: DataFile
    n_bytes: int
    span: tuple[int | None, ...] = ()
    """What the file's reader calls start, stop and before; nothing: all rows."""

    def rows(self, warn: Warn) -> Iterator[Row]:
        """Bad ones too. Raises DataError LU-D021 (changed meanwhile)."""
        return self.file.part(warn, *self.span)


Block = tuple[Portion, ...]


def blocks_of(files: Sequence[DataFile]) -> Iterator[Block]:
    """All rows of the files, in their order."""
    held, n_bytes = list[Portion](), 0
    size = min(max(sum(file.stamp[0] for file in files) // ENOUGH, LEAST_BYTES), MOST_BYTES)
    for portion in chain.from_iterable(_portions(file, size) for file in files):
        held.append(portion)
        n_bytes += portion.n_bytes
        if n_bytes >= size:
            yield tuple(held)
            held, n_bytes = [], 0
    if held:
        yield tuple(held)


def _portions(file: DataFile, size: int) -> Iterator[Portion]:
    n_bytes = file.stamp[0]
    packed = file.path.suffix.lower() in SUFFIXES
    if file.kind in CUTS and not packed and n_bytes > size:
        return CUTS[file.kind](file, size)
    return iter([Portion(file, n_bytes)])


def _lines(file: DataFile, size: int) -> Iterator[Portion]:
    start = before = 0
    with file.path.open("rb") as stream:
        for line in lines_of(stream):
            if (n_bytes := line.offset - start) >= size:
                yield Portion(file, n_bytes, (start, line.offset, before))
                start, before = line.offset, line.number - 1
    yield Portion(file, file.stamp[0] - start, (start, None, before))


def _row_groups(file: DataFile, size: int) -> Iterator[Portion]:
    import pyarrow.parquet as pq

    with whole("Parquet", file.shown):
        groups = pq.ParquetFile(file.path).metadata
    start = before = n_bytes = n_rows = 0
    for n in range(groups.num_row_groups):
        if n_bytes >= size:
            yield Portion(file, n_bytes, (start, n, before))
            start, before, n_bytes = n, n_rows, 0
        n_bytes += groups.row_group(n).total_byte_size
        n_rows += groups.row_group(n).num_rows
    yield Portion(file, n_bytes, (start, None, before))


CUTS: dict[str, Callable[[DataFile, int], Iterator[Portion]]] = {"JSON lines": _lines, "Parquet": _row_groups}
