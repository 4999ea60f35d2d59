"""Ctrl-C and SIGTERM: at once, or at the end of what must not be cut short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from luthier import interrupts
from luthier.interrupts import Interrupted, deferred, within

SIGNALS = pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    interrupts.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert interrupts._pending is None and interrupts._deferring == 0, "a test left a signal behind"


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@SIGNALS
def test_a_signal_interrupts_at_once(signum: int, exit_code: int) -> None:
    with pytest.raises(Interrupted) as caught:
        send(signum)
    assert caught.value.exit_code == exit_code and str(caught.value) == signal.Signals(signum).name


def test_an_interruption_is_no_error_that_code_may_swallow() -> None:
    assert not issubclass(Interrupted, Exception)


@SIGNALS
def test_a_deferred_signal_is_told_and_raised_at_the_end(signum: int, exit_code: int) -> None:
    steps = []
    with pytest.raises(Interrupted) as caught, deferred() as signalled:
        assert signalled() is None
        send(signum)
        steps.append("whole")
        told = signalled()
        assert told and told.exit_code == exit_code
        steps.append("still going")
    assert steps == ["whole", "still going"] and caught.value.exit_code == exit_code


def test_without_a_signal_nothing_happens() -> None:
    with deferred() as signalled:
        assert signalled() is None
    with deferred():
        pass


def test_impatience_changes_nothing() -> None:
    with pytest.raises(Interrupted) as caught, deferred():
        for signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            send(signum)
    assert caught.value.exit_code == 143


def test_inside_another_block_the_outer_one_raises() -> None:
    steps = []
    with pytest.raises(Interrupted), deferred():
        with deferred():
            send(signal.SIGTERM)
        steps.append("after the inner block")
    assert steps == ["after the inner block"]


def test_a_signal_is_raised_once() -> None:
    with pytest.raises(Interrupted), deferred():
        send(signal.SIGINT)
    with deferred() as signalled:
        assert signalled() is None


def test_an_error_in_the_block_does_not_hide_the_signal() -> None:
    with pytest.raises(Interrupted) as caught, deferred():
        send(signal.SIGTERM)
        raise KeyError("what went wrong")
    assert isinstance(caught.value.__context__, KeyError)


def test_an_error_without_a_signal_comes_through() -> None:
    with pytest.raises(KeyError), deferred():
        raise KeyError
    with pytest.raises(Interrupted):
        send(signal.SIGINT)  # and nothing is deferred any more


@SIGNALS
def test_a_process_ends_with_the_code_of_its_signal(signum: int, exit_code: int) -> None:
    code = "import sys, time; from luthier import interrupts; interrupts.install()\n\
try: print('ready', flush=True); time.sleep(60)\nexcept interrupts.Interrupted as signal: sys.exit(signal.exit_code)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "ready\n"
    child.send_signal(signum)
    assert child.wait(timeout=60) == exit_code
    child.stdout.close()


def test_what_takes_longer_than_it_may_is_ended() -> None:
    with pytest.raises(TimeoutError), within(0.05):
        while True:
            pass


def test_a_time_limit_leaves_handler_and_timer_as_they_were() -> None:
    def rung(_: int, __: object) -> None: ...

    before = signal.signal(signal.SIGALRM, rung)
    signal.setitimer(signal.ITIMER_REAL, 50.0)
    with within(10.0):
        pass
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    assert 49 < left <= 50 and signal.signal(signal.SIGALRM, before) is rung


def test_outside_of_the_main_thread_there_is_no_limit() -> None:
    done: list[int] = []

    def work() -> None:
        with within(0.0):
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
