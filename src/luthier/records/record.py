"""A record: what a stage leaves on disk; and that of the stage itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.errors import RunError
from luthier.files import write_atomically

Stage = Literal["prepare", "advise", "augment", "train", "evaluate", "release"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def write(self, path: Path) -> None:
        """Atomically: a reader sees the old file or the new one."""
        write_atomically(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises RunError LU-U008 where the file is no such record of this version."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            advice = f"delete {path.parent} to do it anew"
            found = (
                "cannot be read" if isinstance(error, OSError) else "is no record that this version of Luthier reads"
            )
            raise RunError.of("LU-U008", str(path), found, advice) from None


class Artifact(Record):
    path: str
    """Relative to the stage's folder."""
    sha256: str
    n_bytes: int


class RunRecord(Record):
    """One finished stage of a run."""

    stage: Stage
    key: str
    """Hash of everything that went in; a stage with an equal key need not run again."""
    inputs: dict[str, Any]
    """What the key is a hash of: recipe sections, parents, data, plug-ins, versions."""
    parents: dict[str, str] = {}
    """Stage -> key."""
    status: Literal["done"] = "done"
    started: str
    finished: str
    """UTC, ISO 8601."""
    seconds: float
    device: str
    threads: int
    artifacts: tuple[Artifact, ...] = ()
    summary: dict[str, Any] = {}
    sha256: str = ""
    """Of all else that it says, so that no bit of the record itself changes unseen."""

    def write(self, path: Path) -> None:
        super(RunRecord, self.model_copy(update={"sha256": self._hash()})).write(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises RunError LU-U008 also where it has changed since it was written."""
        record = super().read(path)
        if record.sha256 != record._hash():
            advice = f"delete {path.parent} to do it anew"
            raise RunError.of("LU-U008", str(path), "has changed since it was written", advice)
        return record

    def _hash(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()
