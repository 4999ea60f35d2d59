"""A kill between any two steps leaves the old or the new, never a half."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luthier import files
from luthier.files import fresh_folder, locked, sha256_of, sha256_once, write_atomically

STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir", "open", "close", "link")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(n: int) -> Iterator[list[str]]:
    """Every step from the n-th on raises: a dead process does not clean up either. Yields the steps that were done."""
    done: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **settings: Any) -> Any:
            if len(done) >= n:
                raise Killed(name)
            done.append(name)
            return real(*args, **settings)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, dying(name, getattr(os, name)))
        patch.setattr(io, "open", dying("io.open", builtins.open))
        yield done


def every_kill(act: Callable[[], object], prepare: Callable[[], object]) -> Iterator[list[str]]:
    """Runs `act` again and again, killed one step later each time; yields after each kill. The last run is whole."""
    for n in range(200):
        prepare()
        try:
            with killed_at(n) as done:
                act()
        except Killed:
            yield done
        else:
            assert n > 3, "no step was seen"
            return
    raise AssertionError("it never came to an end")


# -- files ------------------------------------------------------------------------------------------------


def test_a_file_is_the_old_or_the_new_one_wherever_the_write_is_killed(tmp_path: Path) -> None:
    path, seen = tmp_path / "record.json", set()
    for _ in every_kill(lambda: write_atomically(path, b"new" * 1000), lambda: path.write_bytes(b"old")):
        seen.add(path.read_bytes())
        assert path.read_bytes() in (b"old", b"new" * 1000)
    assert path.read_bytes() == b"new" * 1000
    assert seen == {b"old", b"new" * 1000}


def test_a_new_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "below" / "record.json"
    for _ in every_kill(lambda: write_atomically(path, b"new"), lambda: path.unlink(missing_ok=True)):
        assert not path.exists() or path.read_bytes() == b"new"
    assert path.read_bytes() == b"new"


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"] and path.read_bytes() == b"old"


def test_the_content_is_durable_before_its_name_is(tmp_path: Path) -> None:
    with killed_at(10**6) as done:
        write_atomically(tmp_path / "x", b"new")
    assert done.index("fsync") < done.index("replace") < len(done) - 1 - done[::-1].index("fsync")


def test_a_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# -- folders ----------------------------------------------------------------------------------------------

OLD = {"a": b"old", "below/b": b"old too", "below/only old": b"x"}
NEW = {"a": b"new", "below/b": b"new too", "only new": b"y"}


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def files_in(folder: Path) -> dict[str, bytes] | None:
    if not folder.exists():
        return None
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def build(folder: Path) -> None:
    with fresh_folder(folder) as building:
        fill(building, NEW)


def test_a_folder_is_the_old_or_the_new_one_wherever_its_replacement_is_killed(tmp_path: Path) -> None:
    """Or, between the two renames, absent: no file system call that Python has swaps two folders."""
    folder = tmp_path / "model"
    states = []

    def as_before() -> None:
        build(folder)  # after a kill, building goes on as if nothing had been
        assert files_in(folder) == NEW
        with fresh_folder(folder) as building:
            fill(building, OLD)

    for done in every_kill(lambda: build(folder), as_before):
        states.append((files_in(folder), done[-1:]))
        assert files_in(folder) in (OLD, NEW, None)
    assert files_in(folder) == NEW
    assert [done for state, done in states if state is None] == [["rename"]]
    assert OLD in [state for state, _ in states] and NEW in [state for state, _ in states]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "below" / "model"
    for _ in every_kill(lambda: build(folder), lambda: shutil.rmtree(folder, ignore_errors=True)):
        assert files_in(folder) in (NEW, None)
    assert files_in(folder) == NEW


def test_a_folder_that_could_not_be_filled_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fill(folder, OLD)
    with pytest.raises(ZeroDivisionError), fresh_folder(folder) as building:
        fill(building, NEW)
        raise ZeroDivisionError
    assert files_in(folder) == OLD and [p.name for p in tmp_path.iterdir()] == ["model"]
    build(folder)
    assert files_in(folder) == NEW


def test_what_a_disk_refuses_is_an_os_error_whoever_writes(tmp_path: Path) -> None:
    import resource

    import torch
    from safetensors.torch import save_file

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError) as error, fresh_folder(tmp_path / "model") as building:
            save_file({"weight": torch.zeros(10_000)}, building / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


def test_every_file_and_folder_is_durable_before_the_folder_has_its_name(tmp_path: Path) -> None:
    with fresh_folder(tmp_path / "model") as building:
        fill(building, NEW)
        watch = killed_at(10**6)
        done = watch.__enter__()
    watch.__exit__(None, None, None)
    assert done[: done.index("rename")].count("fsync") == len(NEW) + 2  # and `below` and the folder itself


# -- locks ------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_process_and_dies_with_it(tmp_path: Path) -> None:
    lock, log = tmp_path / "deep" / "lock", tmp_path / "log"
    code = "import sys, time; from pathlib import Path; from luthier.files import locked\n\
with locked(Path(sys.argv[1])):\n Path(sys.argv[2]).write_text('held'); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(lock), str(log)])
    waiting = None
    try:
        while not log.exists():
            assert other.poll() is None
            time.sleep(0.05)
        mine = "import sys; from pathlib import Path; from luthier.files import locked\n\
with locked(Path(sys.argv[1])): print('mine')"
        waiting = subprocess.Popen([sys.executable, "-c", mine, str(lock)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=1)
        other.kill()
        assert waiting.communicate(timeout=60)[0] == "mine\n"
    finally:
        for process in (other, waiting):
            if process:
                process.kill()
                process.wait()


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    with locked(tmp_path / "lock"):
        pass


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "weights", []
    monkeypatch.setattr(files, "sha256_of", lambda p: read.append(p) or sha256_of(p))

    def write(content: bytes) -> None:
        path.write_bytes(content)
        os.utime(path, ns=(0, 10**18))  # no time but that of the inode tells what changed last

    write(b"one")
    assert [sha256_once(path) for _ in range(3)] == [sha256_of(path)] * 3
    assert len(read) == 3, "it has changed just now, and may change again within the clock's tick"
    monkeypatch.setattr(files, "SETTLED_S", -1.0)
    assert [sha256_once(path) for _ in range(3)] == [sha256_of(path)] * 3
    assert len(read) == 4
    time.sleep(0.05)  # more than a tick
    write(b"two")  # of the same size and with the same time
    assert sha256_once(path) == sha256_of(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        sha256_once(path)
