"""Ctrl-C and SIGTERM: at once where nothing can break, after the step in flight where something could. And time limits.

Commands install the handlers once. Inside `deferred()` a signal is only noted, and the block decides when
its state is whole; a second signal of the same kind is not needed and does nothing worse.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(BaseException):
    """A signal asked the run to end. `exit_code` is 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(signal.Signals(signum).name)


_pending: int | None = None
_deferring = 0


def install() -> None:
    """Turn SIGINT and SIGTERM into `Interrupted`."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def ignore() -> None:
    """For a process that is ending anyway."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _handle(signum: int, _: FrameType | None) -> None:
    global _pending
    if _deferring:
        _pending = signum
    else:
        raise Interrupted(signum)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], Interrupted | None]]:
    """Yields a function that tells whether a signal has come; one left over is raised at the end."""
    global _deferring, _pending
    _deferring += 1
    try:
        yield lambda: Interrupted(_pending) if _pending is not None else None
    finally:
        _deferring -= 1
        if not _deferring and (signum := _pending) is not None:
            _pending = None
            raise Interrupted(signum)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in Python code that runs longer, in the main thread and where the system has such a timer."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before, outer = signal.signal(signal.SIGALRM, _late), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)
        signal.signal(signal.SIGALRM, before)


def _late(_: int, __: FrameType | None) -> None:
    raise TimeoutError
