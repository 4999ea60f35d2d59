"""Faults that a run must survive: kills, signals, full disks, damage. Real processes on a tiny model.

    python benchmarks/faults.py [--kills 200] [--storm 50] [--flips 2000] [--threads 2] [--workspace runs/faults]

Every run is `luthier run` of one recipe: LoRA with dropout, prefix-tree batches, several micro-batches a step, given
threads. EXACT: the adapter, the answers of both models and the learning curve are those of a run that nothing
disturbed, byte for byte. The rows of the table:

kill        SIGKILL at a random moment, and the same command again, until it ends
storm       one run that is killed so many times, and ends
failpoint   SIGKILL inside every kind of write, sync, rename and deletion, at random places (`luthier/faults.py`)
disk        a write, sync or rename that finds the disk full, broken or forbidden: it goes on or ends with a code, and
            the same command then ends
signal      SIGTERM and SIGINT at random moments: exit 143 or 130 within ten seconds, unless it had ended
bits        one flipped bit in each kind of file of a run that is under way or finished: the next command names the
            file or makes it anew, and ends EXACT; or what was flipped says the same as before
cut         the same files empty, cut to half, one byte short, and gone
double      a second process on a run that is under way: refused, and the first one ends
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from luthier.files import write_atomically
from luthier.tiny import write_tiny_model

RECIPE = """
name: tiny
seed: 3
data: {{sources: [{{path: rows.jsonl}}], split: {{by: row, valid_fraction: 0.1, test_fraction: 0.2}}}}
model: {{base: "{base}", adapt: {{method: lora, rank: 4, dropout: 0.1}}}}
train: {{epochs: 8, examples_per_step: 8, tokens_per_micro_batch: 128, learning_rate: 1e-2, save_every_s: 0.0,
         early_stopping: null}}
evaluate: {{max_new_tokens: 8, probe_documents: 8, suites: [], metrics: [perplexity, token_f1]}}
release: {{rules: [{{metric: perplexity, must: beat_baseline}}]}}
"""
LIMIT_S, LEAVE_S = 300, 10
SITES = ("write", "sync", "rename", "delete", "step", "read")


@dataclass
class Outcome:
    """Of the cases of one row."""

    n: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def add(self, found: str, seconds: float = 0.0) -> None:
        self.n += 1
        self.counts[found] += 1
        self.slowest_s = max(self.slowest_s, seconds)


@dataclass(frozen=True)
class Suite:
    folder: Path
    threads: int
    draw: random.Random

    def start(self, workspace: str, fault: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "luthier", "run", "recipe.yaml", "--workspace", workspace, "--quiet"]
        threads = str(self.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "LUTHIER_FAULT": fault}
        environment["LUTHIER_CACHE"] = str(self.folder / "cache")
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self, workspace: str, fault: str = "") -> tuple[int, str]:
        process = self.start(workspace, fault)
        try:
            _, said = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return -1, "HANGS"
        return process.returncode, said

    def digest(self, workspace: str) -> str:
        """Of what a finished run has made."""
        [run] = (self.folder / workspace).glob("tiny-*")
        found = hashlib.sha256()
        for name in ("train/model/adapter_model.safetensors", "evaluate/base.jsonl", "evaluate/tuned.jsonl"):
            found.update((run / name).read_bytes())
        trained = json.loads((run / "train" / "train.json").read_bytes())
        found.update(json.dumps([trained["curve"], trained["checks"], trained["bad_steps"]]).encode())
        return found.hexdigest()

    def ends_exact(self, workspace: str, exact: str, again: int = 1) -> str:
        """What a run comes to that is let end now, by the same command, in at most so many goes."""
        for _ in range(again):
            code, said = self.finish(workspace)
            if code == 0:
                same = self.digest(workspace) == exact
                self.clear(workspace)
                return "EXACT" if same else "DIFFERS"
        return f"exit {code}: {said.strip().splitlines()[-1] if said.strip() else ''}"

    def clear(self, workspace: str) -> None:
        shutil.rmtree(self.folder / workspace, ignore_errors=True)


def make(folder: Path, threads: int) -> Suite:
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_model(folder / "tiny")
    things = ("kettle", "lamp", "spade", "apron", "pot", "knife", "bench", "hose")
    rows = [
        {"prompt": f"What size is {thing} number {i}?", "completion": f"The {thing} {i} is of size {i * 7 % 13}."}
        for thing in things
        for i in range(10)
    ]
    write_atomically(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    write_atomically(folder / "recipe.yaml", RECIPE.format(base=folder / "tiny").encode())
    return Suite(folder, threads, random.Random(0))


# -- the rows -----------------------------------------------------------------------------------------------------


def kills(suite: Suite, exact: str, n: int, whole_s: float) -> Outcome:
    found = Outcome()
    for _ in range(n):
        disturb(suite, "killed", signal.SIGKILL, whole_s)
        found.add(suite.ends_exact("killed", exact))
    return found


def storm(suite: Suite, exact: str, n: int, whole_s: float) -> Outcome:
    found = Outcome()
    for _ in range(n):
        disturb(suite, "storm", signal.SIGKILL, whole_s)
    found.add(suite.ends_exact("storm", exact))
    return found


def disturb(suite: Suite, workspace: str, signum: signal.Signals, whole_s: float) -> tuple[int, float]:
    """Begin a run or go on with it, and send a signal at a random moment; its exit code, and how long it took to
    leave."""
    process = suite.start(workspace)
    time.sleep(suite.draw.random() * whole_s)
    process.send_signal(signum)
    sent = time.monotonic()
    process.communicate(timeout=LIMIT_S)
    return process.returncode, time.monotonic() - sent


def failpoints(suite: Suite, exact: str, n: int) -> Outcome:
    found, most = Outcome(), dict.fromkeys(SITES, 400)
    while found.n < n:
        site = SITES[found.n % len(SITES)]
        at = suite.draw.randint(1, most[site])
        code, _ = suite.finish("failpoint", f"{site}:{at}:kill")
        if code == -signal.SIGKILL:
            found.add(suite.ends_exact("failpoint", exact))
        else:  # a run comes by so often never
            most[site] = at - 1
            suite.clear("failpoint")
    return found


def disk(suite: Suite, exact: str, n: int) -> Outcome:
    found = Outcome()
    for _ in range(n):
        site, action = suite.draw.choice(("write", "sync", "rename")), suite.draw.choice(("full", "io", "denied"))
        code, said = suite.finish("disk", f"{site}:{suite.draw.randint(1, 100)}:{action}")
        if "Traceback" in said:
            found.add(f"a traceback: {said.strip().splitlines()[-1]}")
            suite.clear("disk")
            continue
        found.add(("went on, " if code == 0 else "said, ") + suite.ends_exact("disk", exact))
    return found


def signals(suite: Suite, exact: str, n: int, whole_s: float) -> Outcome:
    found = Outcome()
    for i in range(n):
        signum = (signal.SIGTERM, signal.SIGINT)[i % 2]
        code, seconds = disturb(suite, "signal", signum, whole_s)
        left = "left, " if code == 128 + signum else "had ended, " if code == 0 else f"exit {code}, "
        late = "" if seconds <= LEAVE_S else f"after {seconds:.0f} s, "
        found.add(left + late + suite.ends_exact("signal", exact), seconds)
    return found


def bits(suite: Suite, exact: str, n: int) -> Outcome:
    """In every kind of file, as many of each kind; one command looks for one flip."""
    return harm(suite, exact, n, flipped)


def cuts(suite: Suite, exact: str, n: int) -> Outcome:
    return harm(suite, exact, n, cut)


def flipped(content: bytes, draw: random.Random) -> bytes | None:
    changed = bytearray(content)
    bit = draw.randrange(8 * len(changed))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes | None:
    return draw.choice((b"", content[: len(content) // 2], content[:-1], None))


def harm(suite: Suite, exact: str, n: int, how: Callable[[bytes, random.Random], bytes | None]) -> Outcome:
    """Of a run that was stopped in training and of a finished one, in turns."""
    found = Outcome()
    for state, fault in (("half", "step:30:kill"), ("whole", "")):
        suite.clear(state)
        suite.finish(state, fault)
        files = [f for f in sorted((suite.folder / state).rglob("*")) if f.is_file() and f.name != ".lock"]
        kinds: dict[str, list[Path]] = {}
        for file in files:
            kinds.setdefault("/".join((file.parent.name.rstrip("0123456789abcdef"), file.name)), []).append(file)
        for i in range(n // 2):
            kind = sorted(kinds)[i % len(kinds)]
            file = suite.draw.choice(kinds[kind])
            if not (content := file.read_bytes()):
                continue
            shutil.rmtree(suite.folder / "harmed", ignore_errors=True)
            shutil.copytree(suite.folder / state, suite.folder / "harmed", symlinks=True)
            there = suite.folder / "harmed" / file.relative_to(suite.folder / state)
            changed = how(content, suite.draw)
            there.unlink() if changed is None else there.write_bytes(changed)
            found.add(after_harm(suite, exact, there))
    return found


def after_harm(suite: Suite, exact: str, file: Path) -> str:
    code, said = suite.finish("harmed")
    if "Traceback" in said or code < 0:
        return f"{file.name}: a traceback or a hang"
    if code:  # said; what it advises is to delete what is named
        return "named" if file.name in said or file.parent.name in said else f"{file.name}: exit {code}, not named"
    same = suite.digest("harmed") == exact
    return "EXACT" if same else f"{file.name}: DIFFERS"


def double(suite: Suite, exact: str, n: int) -> Outcome:
    found = Outcome()
    for _ in range(n):
        first = suite.start("double")
        while first.poll() is None and not list((suite.folder / "double").glob("tiny-*/train/checkpoints/step-*")):
            time.sleep(0.05)
        code, said = suite.finish("double")
        refused = "second refused, " if code == 2 and "LU-U003" in said else f"second exit {code}, "
        first.communicate(timeout=LIMIT_S)
        found.add(refused + suite.ends_exact("double", exact))
    return found


# -- the command --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--storm", type=int, default=50)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--others", type=int, default=40, help="cases of each other row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workspace", type=Path, default=Path("runs/faults"))
    given = parser.parse_args()
    suite = make(given.workspace.resolve(), given.threads)
    suite.clear("straight")
    code, said = suite.finish("straight")
    if code:
        raise SystemExit(said)
    started = time.monotonic()
    suite.clear("straight")
    suite.finish("straight")
    whole_s, exact = time.monotonic() - started, suite.digest("straight")
    print(f"a run takes {whole_s:.1f} s, of {given.threads} threads\n")
    print("| fault | cases | outcome | slowest exit |\n|---|---|---|---|", flush=True)
    rows: dict[str, Callable[[], Outcome]] = {
        "kill": lambda: kills(suite, exact, given.kills, whole_s),
        "storm": lambda: storm(suite, exact, given.storm, whole_s),
        "failpoint": lambda: failpoints(suite, exact, given.others),
        "disk": lambda: disk(suite, exact, given.others),
        "signal": lambda: signals(suite, exact, given.others, whole_s),
        "cut": lambda: cuts(suite, exact, given.others),
        "bits": lambda: bits(suite, exact, given.flips),
        "double": lambda: double(suite, exact, max(1, given.others // 10)),
    }
    bad = 0
    for name, row in rows.items():
        found = row()
        shown = "; ".join(f"{n} {what}" for what, n in found.counts.most_common())
        bad += sum(n for what, n in found.counts.items() if not what.endswith(("EXACT", "named")))
        slowest = f"{found.slowest_s:.1f} s" if found.slowest_s else ""
        print(f"| {name} | {found.n} | {shown} | {slowest} |", flush=True)
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
