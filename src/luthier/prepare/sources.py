"""Sources: the files that a recipe names, what each one is, and which side its rows belong to.

Everything that is wrong with a file as a whole is found here, before a row is read, and all of it at once.
Only regular files are opened, so nothing hangs on a pipe or a device.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from luthier.conversation import Side
from luthier.errors import DataError, Problem, printable
from luthier.prepare.hub import PREFIX, hub_files
from luthier.prepare.packed import SUFFIXES, packing_of, unpacked
from luthier.prepare.rows import BOM, Row, Warn, read_csv, read_json, read_jsonl, read_tsv, silent
from luthier.prepare.tables import read_arrow, read_parquet
from luthier.prepare.texts import read_text, read_texts
from luthier.settings import Source, source_path

KINDS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".feather": "Arrow",
    ".txt": "text",
    ".md": "text",
}
READERS: dict[str, Callable[..., Iterator[Row]]] = {
    "JSON lines": read_jsonl,
    "JSON": read_json,
    "CSV": read_csv,
    "TSV": read_tsv,
    "Parquet": read_parquet,
    "Arrow": read_arrow,
    "text": read_text,
    "texts": read_texts,
}
PACKED = ("JSON lines", "JSON", "CSV", "TSV", "text")
"""The kinds that may be compressed: their names end in .gz or .zst, too."""
SIDE_NAMES: dict[str, Side] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
MAGIC = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
ARCHIVES = {b"PK\x03\x04": "a zip archive", b"Rar!": "a rar archive", b"7z\xbc\xaf": "a 7z archive"}
HEAD_BYTES = 1 << 16
LONGEST_PATH = 4096


@dataclass(frozen=True, slots=True)
class DataFile:
    path: Path
    shown: str
    """As it is named to people: relative to the recipe."""
    side: Side | None
    source: Source
    kind: str
    stamp: tuple[int, int, int]
    """Size, time and inode: to see whether it was changed while it was read."""

    def rows(self, warn: Warn) -> Iterator[Row]:
        """All rows, bad ones too. Raises DataError LU-D014 (no row), LU-D021 (changed meanwhile)."""
        n = 0
        for row in self.part(warn):
            n += 1
            yield row
        if n == 0:
            raise self.without_rows()

    def without_rows(self) -> DataError:
        return DataError.of("LU-D014", self.shown, "no row is in the file")

    def part(self, warn: Warn, *span: int | None) -> Iterator[Row]:
        """The rows of a span as the file's reader counts it, or all. Raises DataError LU-D021 (changed meanwhile)."""
        yield from READERS[self.kind](self.path, self.shown, warn, *span)
        if _stamp(self.path.stat()) != self.stamp:
            raise DataError.of(
                "LU-D021", self.shown, "the file was changed while it was read", "run again when it is at rest"
            )

    def sample(self, n: int) -> list[Row]:
        """The first `n` good rows."""
        good = (row for row in READERS[self.kind](self.path, self.shown, silent) if not row.fault)
        return list(islice(good, n))


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def find_files(sources: tuple[Source, ...], folder: Path) -> list[DataFile]:
    """The files behind the sources, in order. Raises DataError with the problems of all of them."""
    files: list[DataFile] = []
    problems: list[Problem] = []
    for source in sources:
        named = source_path(source, folder)
        try:
            found = list(_paths_of(named, source))
        except DataError as error:
            problems.extend(error.problems)
            continue
        for path, shown, side in found:
            try:
                files.append(_examine(path, shown, side, source, named))
            except DataError as error:
                problems.extend(error.problems)
    if problems:
        raise DataError(*problems)
    return files


def _paths_of(path: Path, source: Source) -> Iterator[tuple[Path, str, Side | None]]:
    """The file itself; the data files of a folder, each with the side that its name says; a data set's splits.

    Texts beside files of rows say what these are (a README), and are no data.
    """
    if source.path.startswith(PREFIX):
        for one, shown, split in hub_files(source.path):
            yield one, shown, source.split or SIDE_NAMES.get(split)
        return
    shown = printable(source.path, LONGEST_PATH)
    try:
        entries = list(path.iterdir())
    except (OSError, ValueError):  # no folder, or one that cannot be looked into: `_examine` says what it is
        yield path, shown, source.split
        return
    inside = sorted(p for p in entries if kind_of_name(p.name) and not p.name.startswith("."))
    rows = [p for p in inside if kind_of_name(p.name) != "text"]
    for one in rows or inside:
        inner = f"{shown.rstrip('/')}/{printable(one.name, 300)}"
        yield one, inner, source.split or side_of_name(one.name)
    if not inside:
        yield path, shown, None


def kind_of_name(name: str) -> str | None:
    """What the name says a file holds; a suffix of a compression is looked through."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix not in SUFFIXES:
        return KINDS.get(suffix)
    kind = KINDS.get(os.path.splitext(stem)[1])
    return kind if kind in PACKED else None


def side_of_name(name: str) -> Side | None:
    """`train.csv`, `train_2.csv`, `train-00000-of-00004.parquet`, `dev.en.jsonl` -> the side.

    Of texts `train.txt` and the like alone: what is called `test-report.md` is a document as others are.
    """
    return SIDE_NAMES.get(re.split(r"[.]" if kind_of_name(name) == "text" else r"[._-]", name.lower())[0])


def _examine(path: Path, shown: str, side: Side | None, source: Source, named: Path) -> DataFile:
    """A file that can be read, or DataError LU-D006, LU-D014, LU-D016, LU-D018 to LU-D020, LU-D022 to LU-D024.

    `named` is what the recipe names: a link is followed there, and not out of a folder that it names.
    """
    if path.is_symlink() and path != named and not path.resolve().is_relative_to(path.parent.resolve()):
        advice = "name the file itself as a source, or copy it here"
        raise DataError.of("LU-D020", shown, "a link to outside its folder", advice)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError.of("LU-D019", shown, "no data file is in this folder", f"it may hold {', '.join(KINDS)}")
        if not stat.S_ISREG(status.st_mode):
            raise DataError.of(
                "LU-D019", shown, "not a regular file but a pipe, socket or device", "save the data to a file"
            )
        with path.open("rb") as stream:
            packing = packing_of(stream.read(4))
        with unpacked(path, shown) as content:
            head = content.read(HEAD_BYTES)
            while head and not head.removeprefix(BOM).strip():  # nothing can be told from white space
                head = content.read(HEAD_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", error)
        advice = f"looked for {printable(str(path), LONGEST_PATH)}"
        raise DataError.of("LU-D019", shown, f"cannot be read: {why}", advice) from None
    if not head:
        raise DataError.of("LU-D014", shown, "the file is empty")
    if packing and path.suffix.lower() not in SUFFIXES:
        ending = next(suffix for suffix, name in SUFFIXES.items() if name == packing)
        raise DataError.of("LU-D016", shown, f"holds {packing}", f"rename it: {printable(path.name, 300)}{ending}")
    _refuse_archives(head, shown, packing is not None)
    kind = _kind(path, shown, head)
    if kind == "text" and (path == named or side_of_name(path.name)):
        kind = "texts"
    return DataFile(path.absolute(), shown, side, source, kind, _stamp(status))


def _refuse_archives(head: bytes, shown: str, packed: bool) -> None:
    """Raises DataError LU-D023, and LU-D024 for what is packed twice."""
    archive = next((name for magic, name in ARCHIVES.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        archive = "a tar archive"
    again = packing_of(head) if packed else None
    if archive or again:
        found = f"holds {archive or f'{again} once more'}" + (", packed" if packed and archive else "")
        advice = "unpack it into a folder, and name that as the source"
        raise DataError.of("LU-D024" if packed else "LU-D023", shown, found, advice)


def _kind(path: Path, shown: str, head: bytes) -> str:
    named, found = kind_of_name(path.name), _sniff(head)
    if named not in ("Parquet", "Arrow") and found == "UTF-16 text":
        raise DataError.of("LU-D006", shown, found, f"convert it: iconv -f UTF-16 -t UTF-8 {printable(path.name, 300)}")
    if named in ("Parquet", "Arrow") and found in ("binary", "UTF-16 text"):
        return named  # a stream of Arrow, or a damaged file: the reader says what is wrong
    if named == "JSON" and found == "JSON lines":
        return found
    fits = found == named or (found == "text" and named in ("CSV", "TSV"))
    if named == "text" and found in ("JSON lines", "JSON", "a single JSON object"):  # or text with brackets in it
        fits = not head.removeprefix(BOM).lstrip().startswith((b'{"', b'[{"'))
    if named is None or not fits:
        endings = ", ".join(ending for ending, kind in KINDS.items() if kind == found)
        advice = f"rename it: {endings}" if found in READERS and found != "text" else ""
        what = f"holds {found}, not {named}" if named else f"holds {found}; its name says nothing"
        raise DataError.of("LU-D016", shown, what, advice or f"data files are {', '.join(KINDS)}")
    return named


def _sniff(head: bytes) -> str:
    """What the first bytes look like: a kind of READERS, an archive, or `binary`."""
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if (
        head.startswith((b"\xff\xfe", b"\xfe\xff"))
        or max(head[:200:2].count(0), head[1:200:2].count(0)) > len(head[:200]) / 5
    ):
        return "UTF-16 text"
    lines = [line.strip() for line in head.removeprefix(BOM).splitlines() if line.strip()]
    if lines[0].startswith(b"[") and not _is_row(lines[0]):
        return "JSON"
    if lines[0] == b"{" and len(lines) > 1:
        return "a single JSON object"
    if lines[0].startswith(b"[") or any(line.startswith(b"{") for line in lines):
        return "JSON lines"
    return "binary" if head.count(0) > len(head) / 100 else "text"


def _is_row(line: bytes) -> bool:
    """Whether a line that starts with `[` is a bad row of JSON lines rather than the start of an array of objects."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not any(isinstance(one, dict) for one in value)
