"""Rounds of cases: each is judged in two processes of unlike hash seeds, which must come to the same, byte by byte.

A case that ends its process is found, and the others go on in a new one.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .judge import Outcome

TESTS = Path(__file__).resolve().parents[2]


def attack(seed: int, n: int, model: Path, folder: Path) -> list[tuple[Path, Outcome]]:
    """Draw at most `n` cases, and judge them: where each is kept, and what became of it."""
    folder.mkdir(parents=True)
    first, again = _judged(model, folder, "1", ["--draw", str(seed), str(n)]), _judged(model, folder, "2")
    return [(path, _both(*two)) for path, *two in zip(cases_in(folder), first, again, strict=True)]


def cases_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pickle"))


def outcomes_of(folder: Path, hash_seed: str) -> Path:
    return folder / f"{hash_seed}.jsonl"


def _both(one: Outcome, other: Outcome) -> Outcome:
    if one.finding or (one.digest == other.digest and not other.finding):
        return one
    return replace(one, finding=other.finding or "another process, of another hash seed, comes to something else")


def _judged(model: Path, folder: Path, hash_seed: str, draw: Sequence[str] = ()) -> list[Outcome]:
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
    outcomes = outcomes_of(folder, hash_seed)
    while True:
        command = [sys.executable, "-m", "prepare.attack", str(model), str(folder), *draw]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        found = [Outcome(**json.loads(line)) for line in outcomes.read_text(encoding="utf-8").splitlines()]
        cases, draw = cases_in(folder), ()
        if len(found) == len(cases):
            return found
        case = pickle.loads(cases[len(found)].read_bytes())
        lost = Outcome(case.kind, "", 0, 0.0, "", f"the process ended with {ended.returncode}: {ended.stderr[-2000:]}")
        with outcomes.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(lost)) + "\n")
