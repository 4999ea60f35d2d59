"""Damage: what happens to whole files on disks, on the wire, in editors and in other people's scripts."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from .stored import zstd

DATA = Path(os.environ.get("LUTHIER_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
STRANGE = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\r",
    b"\n",
    b'"',
    b"\\",
    b"{",
    b"]",
    b",",
    b"\x1a",
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "utf-7")


def flip(content: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_off(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def behead(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content[rng.randrange(len(content)) :]


def insert(content: bytes, rng: random.Random, other: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    what = rng.choice(
        (
            rng.choice(STRANGE),
            rng.randbytes(rng.randrange(1, 30)),
            b"\x00" * 3000,
            b"[" * 5000,
            b"\n" * 40,
            b"\n" * 70_000,
        )
    )
    return content[:at] + what + content[at:]


def delete(content: bytes, rng: random.Random, other: bytes) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 2, 10, 100)) :]


def lines_swapped(content: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def lines_twice(content: bytes, rng: random.Random, other: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([*lines, *rng.choices(lines, k=rng.randrange(1, 10))])


def line_ends(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"\n\r", b"\x85", b"\xe2\x80\xa8")))


def encoded(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")


def decoded_wrongly(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content.decode("cp1252", "replace").encode()


def spliced(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other)) :]


def appended(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return content + other


def packed(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0) if rng.random() < 0.5 else zstd(content)


def marked(content: bytes, rng: random.Random, other: bytes) -> bytes:
    return (
        rng.choice((b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2, b"\xff\xfe", b"PK\x03\x04", b"PAR1", b"\x1f\x8b")) + content
    )


def quoted(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Values for others of another type."""
    old, new = rng.choice(
        ((b'": "', b'": ["'), (b'"}', b'", "x": null}'), (b': "', b': 5, "y": "'), (b'"', b"'"), (b",", b";"))
    )
    return content.replace(old, new, rng.choice((1, -1)))


DAMAGE: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    *(flip, flip, cut_off, behead, insert, insert, delete, lines_swapped, lines_twice, line_ends, encoded),
    *(decoded_wrongly, spliced, appended, packed, marked, quoted),
)


def damaged(content: bytes, rng: random.Random, other: bytes) -> tuple[bytes, str]:
    """With one to three kinds of damage; and the name of the first."""
    done = rng.choices(DAMAGE, k=rng.choice((1, 1, 2, 3)))
    for damage in done:
        content = damage(content, rng, other) if content else content
    return content, done[0].__name__


@lru_cache(maxsize=1)
def real_rows() -> list[list[str]]:
    """The first lines of each public data set; empty where there are none."""
    found = []
    for path in sorted(DATA.glob("*/*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            found.append([line for line, _ in zip(lines, range(200), strict=False)])
    return found
