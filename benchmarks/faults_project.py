"""A recipe with its data, model and runs in a folder that can be copied; and what a case is and comes to."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Literal

from luthier import cli
from luthier.interrupts import within

LIMIT_S = 300


@dataclass(frozen=True, slots=True)
class Found:
    """What a case comes to."""

    what: str
    exit_s: float = 0.0
    """How long a process that was asked to end took to."""

    @property
    def good(self) -> bool:
        return self.what.endswith(("EXACT", "is said"))

    def after(self, first: str) -> Found:
        return Found(f"{first}, {self.what}", self.exit_s)


@dataclass(frozen=True)
class Project:
    folder: Path
    name: str = "tiny-*"
    """Of its run."""

    def copied(self, to: Path) -> Project:
        shutil.copytree(self.folder, to)
        return replace(self, folder=to)

    # -- the command --------------------------------------------------------------------------------------------------

    def start(self, fault: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "luthier", "run", "recipe.yaml"]
        with (self.folder / "said.txt").open("wb") as said:
            return subprocess.Popen(
                command, cwd=self.folder, env=os.environ | {"LUTHIER_FAULT": fault}, stdout=said, stderr=said
            )

    def wait_until_begun(self, process: subprocess.Popen[bytes]) -> None:
        """Beyond its imports: then it knows its run."""
        while process.poll() is None and "run: " not in self.said:
            time.sleep(0.01)

    def finish(self, fault: str = "") -> tuple[int, str]:
        """The exit code, and what was said."""
        process = self.start(fault)
        try:
            return process.wait(LIMIT_S), self.said
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(), "HANGS"

    def here(self) -> tuple[int, str]:
        """The same command in this process."""
        recipe, runs, said = self.folder / "recipe.yaml", self.folder / "runs", StringIO()
        sys.argv = ["luthier", "run", str(recipe), "--workspace", str(runs)]
        try:
            with redirect_stdout(said), redirect_stderr(said), within(LIMIT_S):
                cli.main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
        raise AssertionError("the command always exits")

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    # -- its run ------------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Path:
        [run] = self.folder.glob(f"runs/{self.name}")
        return run

    def digest(self) -> str:
        """Of what a finished run has made."""
        found = hashlib.sha256()
        for name in ("train/model/adapter_model.safetensors", "evaluate/base.jsonl", "evaluate/tuned.jsonl"):
            found.update((self.run / name).read_bytes())
        trained = json.loads((self.run / "train" / "train.json").read_bytes())
        report = json.loads((self.run / "release" / "report.json").read_bytes())
        told = [trained[key] for key in ("curve", "checks", "bad_steps")]
        told += [report[key] for key in ("verdict", "rules", "metrics", "slices")]
        found.update(json.dumps(told).encode())
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Made:
    """What all cases share."""

    folder: Path
    run: str
    """Its name."""
    exact: str
    """Digest of the run that nothing disturbed."""
    seconds: float
    """It takes, beside its imports."""
    reached: dict[str, int]
    """Failpoint -> how often it comes by."""

    def project(self, state: Literal["new", "half", "whole", "asked"]) -> Project:
        return Project(self.folder / state, self.run)


@dataclass(frozen=True)
class Case:
    made: Made
    row: str
    i: int
    folder: Path

    @cached_property
    def draw(self) -> random.Random:
        return random.Random(f"{self.row} {self.i}")

    def project(self, state: Literal["new", "half", "whole", "asked"] = "new") -> Project:
        """The case's own, as it is in a state."""
        return self.made.project(state).copied(self.folder)

    def judged(self, project: Project, end: Callable[[], tuple[int, str]]) -> Found:
        """What the project's run comes to, when `end` lets it end now."""
        code, said = end()
        if code == 0:
            return Found("EXACT" if project.digest() == self.made.exact else "DIFFERS")
        return Found(f"exit {code}: {error_in(said)}")


def error_in(said: str) -> str:
    return next((line for line in said.splitlines() if line.startswith("LU-")), said[-200:]).replace("|", "/")


Row = Callable[[Case], Found]
