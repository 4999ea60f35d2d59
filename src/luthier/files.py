"""Files that cannot be half there: written aside, synced, renamed. And what their content hashes to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from luthier.faults import reach

SETTLED_S = 2.0
"""A file that changed so lately may change again without another time: some systems' clocks tick in seconds."""


def cache_folder() -> Path:
    """Where what can be made again is kept: LUTHIER_CACHE, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("LUTHIER_CACHE") or Path(home).expanduser() / "luthier")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """`sha256_of` for large files, such as weights: a process reads one again only when the system says it changed."""
    status = path.stat()
    if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_S:
        return sha256_of(path)
    return _sha256_at(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=256)
def _sha256_at(path: Path, status: tuple[int, ...]) -> str:
    return sha256_of(path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write, fsync, rename, fsync the folder: readers and crashes see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            reach("write")
            out.write(content)
            out.flush()
            _sync(out.fileno())
        reach("rename")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    reach("sync")
    os.fsync(descriptor)


def delete_folder(folder: Path) -> None:
    """Delete a folder if it is there: crashes see all of it under its name, or nothing."""
    going = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(going, ignore_errors=True)
        reach("rename")
        folder.rename(going)
    reach("delete")
    shutil.rmtree(going, ignore_errors=True)


def building_of(folder: Path) -> Path:
    """Where `fresh_folder` fills it."""
    return folder.with_name(f".{folder.name}.building")


@contextlib.contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, renamed to `folder` on success; an earlier one of that name is replaced.

    Crashes see the old folder or the new one; between the two renames that replace one, none. What a disk refuses is
    an OSError, whoever writes, and leaves nothing.
    """
    building = building_of(folder)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        reach("write")
        for path in (*building.rglob("*"), building):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb") as file:
                    _sync(file.fileno())
    except Exception as error:
        shutil.rmtree(building, ignore_errors=True)
        if of_disk := re.search(r"\(os error (\d+)\)", str(error)):  # as safetensors and tokenizers say it
            number = int(of_disk[1])
            raise OSError(number, os.strerror(number)) from error
        raise
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():  # moved aside first: a deletion that is cut short would leave half of it
        reach("rename")
        folder.rename(old)
    reach("rename")
    building.rename(folder)
    sync_folder(folder.parent)
    reach("delete")
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock `path`, which dies with its process. Raises BlockingIOError if another has it and not `wait`."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
