"""Run folders: where records and artifacts lie, written so that a kill at any moment leaves no half truth.

    runs/shop-assistant-1a2b3c/        name, and the hash of recipe and data: one folder, one question
        recipe.yaml                    as it was resolved
        prepare/ [advise/] [augment/] train/ evaluate/ release/
            record.json                written last: a stage without it is not done

A finished stage never changes. A stage whose inputs have an equal key anywhere in the workspace is linked
from there. The folders are the only truth; there is no index to disagree with them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import get_args

from luthier.errors import RunError, did_you_mean
from luthier.files import fresh_folder, sha256_of
from luthier.records import Artifact, RunRecord, Stage

STAGES: tuple[Stage, ...] = get_args(Stage)
"""`advise` is done only where a recipe leaves open what is trained, `augment` where it leaves open which of the rows
that are made are learned from."""


def artifacts_in(folder: Path, *, skip: tuple[str, ...] = ("record.json",)) -> tuple[Artifact, ...]:
    """Every file below `folder` with its hash, in order of name; but hidden ones: a kill leaves half-written files."""
    names = {p: p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()}
    return tuple(
        Artifact(path=str(name), sha256=sha256_of(path), n_bytes=path.stat().st_size)
        for path, name in names.items()
        if str(name) not in skip and not any(part.startswith(".") for part in name.parts)
    )


def folder_hash(folder: Path) -> str:
    """One hash over the names and contents of all files below `folder`."""
    lines = [f"{a.path} {a.sha256}\n" for a in artifacts_in(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def stage_record(run: Path, stage: str) -> RunRecord | None:
    """The record of a finished stage, or None. Raises RunError LU-U008 where there is one that cannot be read."""
    path = run / stage / "record.json"
    return RunRecord.read(path) if path.is_file() else None


def damaged(run: Path, record: RunRecord) -> str | None:
    """The first artifact of a finished stage that is missing or no longer has its hash, in words."""
    for artifact in record.artifacts:
        path = run / record.stage / artifact.path
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != artifact.n_bytes or sha256_of(path) != artifact.sha256:
            return f"{path} has changed since it was written"
    return None


def runs_in(workspace: Path) -> list[Path]:
    """Run folders, newest last."""
    found = [p.parent for p in workspace.glob("*/recipe.yaml")] if workspace.is_dir() else []
    return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name))


def find_stage(workspace: Path, stage: str, key: str, not_in: Path) -> Path | None:
    """Another run's folder in which this very stage is already done."""
    for run in reversed(runs_in(workspace)):
        try:
            record = stage_record(run, stage) if run != not_in else None
        except RunError:  # another run's affair
            continue
        if record and record.key == key and damaged(run, record) is None:
            return run
    return None


def link_stage(source: Path, target: Path, stage: str) -> None:
    """Take over a finished stage by hard links: no space, and the run folder stays whole by itself."""
    with fresh_folder(target / stage) as building:
        for path in sorted((source / stage).rglob("*")):
            to = building / path.relative_to(source / stage)
            if path.is_dir():
                to.mkdir(exist_ok=True)
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, to)
            except OSError:  # another file system, or one without links
                shutil.copy2(path, to)


def find_run(name: str, workspace: Path) -> Path:
    """A run by folder, by full name or by the start of one (the newest). Raises RunError LU-U001."""
    for candidate in (Path(name), workspace / name):
        if (candidate / "run.json").is_file():  # a folder that holds a recipe alone is where a project lies
            return candidate
    runs = runs_in(workspace)
    matching = [run for run in runs if run.name.startswith(name)]
    if matching:
        return matching[-1]
    raise RunError.of("LU-U001", name, f"no such run in {workspace}", did_you_mean(name, [r.name for r in runs]))
