"""Preparing on all processors of this machine: blocks are worked on by processes, and come back in their order.

A process takes two seconds to start, so the first blocks of a map are worked on here, and processes are started when
that has taken as long and more is left: small data never starts one. They are new interpreters that are given the
module path and, by a pipe, the work, once for each map. They do not run the program that called us, whose lines may
stand under no `if __name__ == "__main__"`, and are no copy of this process, whose threads a fork would lose. Work that
cannot travel, such as an encoder that the program itself defines, is done here.

    to a process    (the work, pickled, or None where it has it; a block)
    from it         (MADE, what the work returned), (RAISED, what it raised) or (UNKNOWN, None): it cannot have the work

A process ends when its pipe does: none outlives this one by more than a block.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from signal import Signals
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar

from luthier.errors import LuthierError, RunError
from luthier.machine import skip_in_collections

B = TypeVar("B")
R = TypeVar("R")
HERE_S = 1.0
"""Work of a map that is done here before processes are started."""
AHEAD = 2
"""Blocks that are begun before the oldest one is done, for each process."""
START = "import sys; sys.path[:] = sys.argv[1:]; from luthier.prepare.processes import serve; serve()"
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}  # there is a process for each processor
MADE, RAISED, UNKNOWN = "made", "raised", "unknown"


class Processes:
    """At most `n` of them; they are started when they are needed, and stay for the maps that follow."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self._n = folder, n
        self._waiters = ThreadPoolExecutor(n)  # a thread waits for each process
        self._all, self._idle = list[_Process](), list[_Process]()
        self._lock, self._closed = Lock(), False

    def map(self, work: Callable[[B], R], blocks: Iterable[B]) -> Iterator[R]:
        """Raises what work raises, and RunError LU-U053 for a process that is ended."""
        left = iter(blocks)
        yield from self._here(work, left)
        first = list(islice(left, 2))
        given = _packed(work) if len(first) > 1 else None
        left = chain(first, left)
        if given is None:
            yield from map(work, left)
            return
        begun = deque[tuple[B, Future[tuple[str, Any]]]]()
        try:
            while True:
                for block in islice(left, AHEAD * self._n - len(begun)):
                    begun.append((block, self._waiters.submit(self._asked, given, block)))
                if not begun:
                    return
                block, one = begun.popleft()
                kind, found = one.result()
                if kind == RAISED:
                    raise found
                yield found if kind == MADE else work(block)
        finally:
            for _, one in begun:
                one.cancel()

    def _here(self, work: Callable[[B], R], blocks: Iterator[B]) -> Iterator[R]:
        """What is done before processes are worth their start."""
        spent_s = 0.0
        while not self._all and spent_s < HERE_S and (block := next(blocks, self)) is not self:
            began = perf_counter()
            made = work(block)  # type: ignore[arg-type]  # mypy takes it for the engine
            spent_s += perf_counter() - began
            yield made

    def _asked(self, given: bytes, block: Any) -> tuple[str, Any]:
        process = self._free()
        answer = process.ask(given, block)
        self._idle.append(process)
        return answer

    def _free(self) -> _Process:
        with self._lock:
            if self._closed:
                raise CancelledError
            if not self._idle:
                self._idle.append(_Process())
                self._all.append(self._idle[-1])
            return self._idle.pop()

    def close(self) -> None:
        """End them, whatever they do."""
        self._waiters.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for process in self._all:
                process.end()
        self._waiters.shutdown()


class _Process:
    def __init__(self) -> None:
        # In a session of its own: Ctrl-C is for the one that started it, which ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
            start_new_session=True,
        )
        self._has: bytes | None = None

    def ask(self, given: bytes, block: Any) -> tuple[str, Any]:
        """Its answer. Raises RunError LU-U053."""
        to, back = self._process.stdin, self._process.stdout
        assert to and back
        try:
            pickle.dump((None if given is self._has else given, block), to)
            to.flush()
            self._has = given
            answer: tuple[str, Any] = pickle.load(back)
            return answer
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            self._process.kill()  # where it lives, what it wrote is no answer
            code = self._process.wait()
            how = f"by {Signals(-code).name}" if code < 0 else f"with exit code {code}"
            advice = "where memory is short, set prepare.processes to fewer: each takes half a GiB"
            raise RunError.of("LU-U053", "prepare", f"a process that prepared data ended {how}", advice) from error

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(OSError):  # of what it has not read
                pipe.close()


@contextmanager
def processes(folder: Path, n: int) -> Iterator[Processes]:
    """While this lasts."""
    engine = Processes(folder, n)
    try:
        yield engine
    finally:
        engine.close()


def _packed(work: Any) -> bytes | None:
    """None for what cannot travel."""
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None


# -- in the process ------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer until nobody asks any more."""
    asked, told = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what plug-ins print is no answer
    work: Callable[[Any], Any] | None = None
    with suppress(EOFError, OSError, pickle.UnpicklingError):  # who asked is gone
        while True:
            given, block = pickle.load(asked)
            if given is not None:
                work = _unpacked(given)
            pickle.dump(_answer(work, block), told)
            told.flush()


def _unpacked(given: bytes) -> Callable[[Any], Any] | None:
    try:
        work: Callable[[Any], Any] = pickle.loads(given)
    except Exception:  # whatever it is, the work is done where it came from, and says there what is wrong with it
        return None
    skip_in_collections()
    return work


def _answer(work: Callable[[Any], Any] | None, block: Any) -> tuple[str, Any]:
    if work is None:
        return UNKNOWN, None
    try:
        return MADE, work(block)
    except BaseException as error:
        return RAISED, _portable(error)


def _portable(error: BaseException) -> BaseException:
    """As it is, if it can travel; what no person is told on purpose says where it came from."""
    told = "".join(traceback.format_exception(error))
    if not isinstance(error, LuthierError):
        error.add_note(told)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception of one's own may need anything to be made
        return RuntimeError(told)
    return error
