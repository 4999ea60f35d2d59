"""Cases of `faults.py` on processes that are killed, asked to end, starved, or two at once."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time

from faults_project import LIMIT_S, Case, Found, Project, error_in

from luthier.train.checkpoint import damage, steps_in

SITES = ("write", "sync", "rename", "delete", "step", "read")
LEAVE_S = 10
SMALLEST_LIMIT = 4096
"""Bytes that a file may grow to: what is said is written to one too."""


def killed(case: Case) -> Found:
    project = case.project()
    code, _ = _disturb(case, project, signal.SIGKILL)
    return case.judged(project, project.finish).after("killed" if code < 0 else "had ended")


def stormed(case: Case, times: int) -> Found:
    """Soon after it has begun; every third time it may write one more checkpoint first, so that it gets on."""
    project, n_killed, newest = case.project(), 0, 0
    for i in range(times):
        process = project.start()
        project.wait_until_begun(process)
        folder = project.run / "train" / "checkpoints"
        while i % 3 == 2 and process.poll() is None and max(steps_in(folder), default=0) <= newest:
            time.sleep(0.01)
        time.sleep(case.draw.random() * case.made.seconds / 50)
        process.kill()
        n_killed += process.wait() < 0
        whole = [step for step in steps_in(folder) if damage(folder / f"step-{step:08d}") is None]
        if folder.is_dir() and newest and (not whole or whole[-1] < newest):
            return Found(f"went back from step {newest}")
        newest = max([newest, *whole])
    return case.judged(project, project.finish).after(f"{n_killed} of {times} kills before its end")


def signalled(case: Case, again_s: float | None = None) -> Found:
    """Once, or again after at most so many seconds."""
    project, signum = case.project(), (signal.SIGTERM, signal.SIGINT)[case.i % 2]
    code, exit_s = _disturb(case, project, signum, again_s=again_s)
    left = "left" if code == 128 + signum else "had ended" if code == 0 else f"exit {code}: {error_in(project.said)}"
    if exit_s > LEAVE_S:
        return Found("left late", exit_s)
    found = case.judged(project, project.finish).after(left)
    return Found(found.what if left in ("left", "had ended") else left, exit_s)


def _disturb(case: Case, project: Project, signum: signal.Signals, again_s: float | None = None) -> tuple[int, float]:
    """Begin a run and send it a signal at a random moment. Its exit code, and how many seconds it took to leave."""
    process = project.start()
    project.wait_until_begun(process)
    time.sleep(case.draw.random() * case.made.seconds)
    process.send_signal(signum)
    sent = time.monotonic()
    if again_s is not None:
        time.sleep(case.draw.random() * again_s)
        process.send_signal(signum)
    return process.wait(LIMIT_S), time.monotonic() - sent


def failpoint(case: Case) -> Found:
    project, site = case.project(), SITES[case.i % len(SITES)]
    code, _ = project.finish(f"{site}:{case.draw.randint(1, case.made.reached[site])}:kill")
    return case.judged(project, project.finish).after("killed" if code == -signal.SIGKILL else "had ended")


def disk(case: Case) -> Found:
    project = case.project()
    action = case.draw.choice(("full", "io", "denied", "limit"))
    if action == "limit":
        process = project.start()
        largest = max(file.stat().st_size for file in case.made.project("whole").run.rglob("*") if file.is_file())
        limit = case.draw.randint(SMALLEST_LIMIT, largest)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        code = process.wait(LIMIT_S)
    else:
        site = case.draw.choice(("write", "sync", "rename"))
        code, _ = project.finish(f"{site}:{case.draw.randint(1, case.made.reached[site])}:{action}")
    said = {0: "went on", 2: "said", 4: "said"}.get(code)
    if said is None or "Traceback" in project.said:
        return Found(f"{action}: exit {code}: {error_in(project.said)}")
    return case.judged(project, project.finish).after(said)


def double(case: Case) -> Found:
    """The first one stops itself in the midst of its training, so that the second meets it there."""
    project = case.project()
    first = project.start(f"step:{case.draw.randint(2, 27)}:stop")
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    code, said = project.finish()
    first.send_signal(signal.SIGCONT)
    _end(first)
    refused = "second refused" if code == 2 and "LU-U003" in said else f"second exit {code}"
    return case.judged(project, project.finish).after(refused)


def _end(process: subprocess.Popen[bytes]) -> None:
    if code := process.wait(LIMIT_S):
        raise AssertionError(f"the first one ended with {code}")
