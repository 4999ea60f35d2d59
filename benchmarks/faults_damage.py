"""Cases of `faults.py` on files that have changed.

The command is run in this process: most of a process of its own would be its imports.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from faults_project import Case, Found, Project, error_in

Harm = Callable[[bytes, random.Random], bytes | None]
STATES = ("half", "whole", "asked")


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    bit = draw.randrange(8 * len(changed))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes | None:
    return draw.choice((b"", content[: len(content) // 2], content[:-1], None))


def harmed(case: Case, how: Harm) -> Found:
    """One file, each kind of each state in turn."""
    kinds = _kinds(case.made.folder)
    (state, _), files = kinds[case.i % len(kinds)]
    project = case.project(state)
    file = project.folder / case.draw.choice(files)
    changed = how(file.read_bytes(), case.draw)
    file.unlink() if changed is None else file.write_bytes(changed)
    code, said = project.here()
    found, named = case.judged(project, lambda: (code, said)), _names(said, file)
    if code == 0 and named:
        return found.after("named, made anew")
    if code == 0:
        there = file.read_bytes() if file.is_file() else None
        return found if there != changed or changed is None else Found(f"{_kind(file)}: {found.what}, but UNSEEN")
    if not named or code not in (2, 4):
        return Found(f"{_kind(file)}: {found.what}")
    if not (advice := re.search(r"-> delete (\S+) to ", said)):
        return Found(f"{_kind(file)}: no way on: {found.what}")
    shutil.rmtree(advice[1])
    return case.judged(project, project.here).after("named, deleted as advised")


@cache
def _kinds(made: Path) -> list[tuple[tuple[str, str], list[Path]]]:
    """(State, kind of file) -> those of a run, and the answers beside it where they are read again."""
    found: dict[tuple[str, str], list[Path]] = {}
    for state in STATES:
        project = Project(made / state)
        at = project.folder / "runs" / ".answers" if state == "asked" else project.run
        for file in sorted(at.rglob("*")):
            if file.is_file() and file.stat().st_size and file.name != ".lock":
                found.setdefault((state, _kind(file)), []).append(file.relative_to(project.folder))
    return sorted(found.items())


def _kind(file: Path) -> str:
    return re.sub(r"[0-9a-f]{6,}", "*", f"{file.parent.name}/{file.name}")


def _names(said: str, file: Path) -> bool:
    """Whether the file, or the checkpoint that it belongs to, is named."""
    return str(file) in said or (file.parent.name.startswith("step-") and file.parent.name in said)


def all_checkpoints(case: Case) -> Found:
    project = case.project("half")
    folder = project.run / "train" / "checkpoints"
    for checkpoint in folder.glob("step-*"):
        file = case.draw.choice(sorted(checkpoint.iterdir()))
        file.write_bytes(flipped(file.read_bytes(), case.draw))
    for _ in range(2):
        code, said = project.here()
        if code != 4 or f"LU-S002 {folder}" not in said or (project.run / "train" / "train.json").exists():
            return Found(f"exit {code}: {error_in(said)}")
    shutil.rmtree(folder)
    return case.judged(project, project.here).after("stops twice, deleted as advised")


def changed(case: Case) -> Found:
    project = case.project("half")
    what = ("rows", "recipe", "weights", "tokenizer", "threads")[case.i % 5]
    if what == "threads":
        return _other_threads(project)
    file, edit, expected = {
        "rows": ("rows.jsonl", lambda text: text.replace(b"size 7", b"size 8", 1), 0),
        "recipe": ("recipe.yaml", lambda text: text.replace(b"1e-2", b"2e-2"), 0),
        "weights": ("tiny/model.safetensors", lambda text: text[:-4] + bytes([text[-4] ^ 1]) + text[-3:], 2),
        "tokenizer": ("tiny/tokenizer.json", lambda text: text + b"\n", 2),
    }[what]
    before = (project.folder / file).read_bytes()
    (project.folder / file).write_bytes(edit(before))
    code, said = project.here()
    if code != expected or (code and "LU-U004" not in said):
        return Found(f"{what}: exit {code}: {error_in(said)}")
    (project.folder / file).write_bytes(before)
    first = "refused, as before again" if code else "another run, as before again"
    return case.judged(project, project.here).after(f"{what}: {first}")


def _other_threads(project: Project) -> Found:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        code, said = project.here()
    finally:
        torch.set_num_threads(before)
    is_said = code == 0 and f"threads {before} -> {before + 1}: " in said and "not exact any more" in said
    return Found("threads: not exact, which is said" if is_said else f"threads: exit {code}: {error_in(said)}")


def clock(case: Case) -> Found:
    project = case.project("half")
    for file in project.folder.rglob("*"):
        at = case.draw.uniform(0, 2**32)
        os.utime(file, (at, at))
    return case.judged(project, project.here)
