"""Blind pairs: what a reviewer sees of two models' answers, and how their votes get to the disk.

Blind by construction: what is shown of a sample is a function of the *unordered* pair of answers. Of the two, the one
with the smaller keyed hash (of reviewer, sample and text) stands left, so the two models could change places in
`evaluation.json` and a reviewer would be shown the same bytes. The key lies in the run's folder and never leaves it.

In between stand attention checks: a sample's reference against that of another sample. They look like all others.

Every vote is a line of `reviews/NAME.jsonl`, on disk before it is confirmed. What the lines mean is `votes`' affair;
this module knows nothing of HTTP and of statistics.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from luthier.errors import RunError
from luthier.files import locked, sync_folder, write_atomically
from luthier.records import EvalReport, Judged, Record
from luthier.store import stage_record
from luthier.votes import Model, Tags, Vote, check_on, digest, other

Place = Literal["left", "right"]
Choice = Literal["left", "right", "tie", "bad"]
LONGEST_NOTE = 2000
"""Characters."""
LONGEST_CORRECTION = 10_000
SAMPLES_PER_CHECK = 10


class Ballot(Record):
    """What a reviewer says of the sample at `position` of their order."""

    position: int = Field(ge=0)
    choice: Choice
    tags: Tags = Tags()
    note: str = Field(default="", max_length=LONGEST_NOTE)
    correction: Annotated[str, StringConstraints(strip_whitespace=True, max_length=LONGEST_CORRECTION)] = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A sample as one reviewer sees it."""

    sample: Judged
    judged: str
    left: Model

    def text(self, place: Place) -> str:
        model = self.left if place == "left" else other(self.left)
        return self.sample.baseline if model == "baseline" else self.sample.tuned


# -- what is shown ---------------------------------------------------------------------------------------


def read_evaluation(run: Path) -> EvalReport:
    """Raises RunError LU-U005 where the run has not been evaluated."""
    if stage_record(run, "evaluate") is None:
        raise RunError.of("LU-U005", str(run), "has not been evaluated", f"luthier evaluate {run}")
    return EvalReport.read(run / "evaluate" / "evaluation.json")


def pairs(report: EvalReport, key: bytes, reviewer: str) -> list[Pair]:
    """What `reviewer` is shown, in order, with an attention check among every ten samples but the first ten.

    The order is drawn, and the same for all reviewers: who stops early has judged a random part of the samples, and two
    who stop early have judged the same part. The places are drawn for each reviewer.
    """
    samples = report.samples
    asked = [i for i, s in enumerate(samples) if s.baseline != s.tuned]
    asked.sort(key=lambda i: _drawn(key, "order", samples[i].id))
    shown: list[Judged] = []
    for start in range(0, len(asked), SAMPLES_PER_CHECK):
        block = [samples[i] for i in asked[start : start + SAMPLES_PER_CHECK]]
        # On a sample that was judged before: who has seen its reference could not judge it blindly any more.
        check = check_on(samples, asked[start - SAMPLES_PER_CHECK]) if start else None
        if check:
            block.insert(int.from_bytes(_drawn(key, "check", check.id)) % (len(block) + 1), check)
        shown += block
    return [Pair(s, digest(s), _left(s, key, reviewer)) for s in shown]


def _left(sample: Judged, key: bytes, reviewer: str) -> Model:
    baseline, tuned = (_drawn(key, "place", reviewer, sample.id, text) for text in (sample.baseline, sample.tuned))
    return "baseline" if baseline < tuned else "tuned"


def _drawn(key: bytes, *what: str) -> bytes:
    return hmac.digest(key, json.dumps(what).encode(), "sha256")


def review_key(run: Path) -> bytes:
    """The run's secret, drawn once: 32 bytes."""
    path = run / "reviews" / ".key"
    with locked(run / "reviews" / ".lock"):
        if not path.is_file():
            write_atomically(path, secrets.token_hex(32).encode())
        return bytes.fromhex(path.read_text())


# -- votes on disk ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[Vote], None]]:
    """A function that writes a vote as one whole line and returns when it is on disk; raises OSError if it is not.

    One process a reviewer at a time. Raises RunError LU-U011.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(path.with_name(f".{path.stem}.lock"), wait=False))
        except BlockingIOError:
            found = "another process takes this reviewer's votes"
            raise RunError.of("LU-U011", str(path), found, "stop it, or give another --reviewer") from None
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        held.callback(os.close, file)
        content = path.read_bytes()
        os.ftruncate(file, content.rfind(b"\n") + 1)
        sync_folder(path.parent)
        yield lambda vote: _write_line(file, vote.model_dump_json().encode() + b"\n")


def _write_line(file: int, line: bytes) -> None:
    size = os.fstat(file).st_size
    try:
        if os.write(file, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)  # the next line must not go on from half of this one
        raise


# -- a reviewer at work ----------------------------------------------------------------------------------


class Session:
    """One reviewer's order and votes. Its methods may be called from several threads."""

    def __init__(self, shown: Sequence[Pair], standing: dict[str, Vote], write: Callable[[Vote], None]) -> None:
        judged = {pair.sample.id: pair.judged for pair in shown}
        self.shown = shown
        self._standing = {name: vote for name, vote in standing.items() if judged.get(name) == vote.judged}
        self._write = write
        self._lock = threading.Lock()

    @property
    def n_done(self) -> int:
        return len(self._standing)

    def first_open(self) -> int | None:
        """The position of the first sample without a vote; None where all have one."""
        with self._lock:
            return next((i for i, pair in enumerate(self.shown) if pair.sample.id not in self._standing), None)

    def vote(self, ballot: Ballot) -> None:
        """Raises IndexError for a position beyond the samples, OSError where the vote could not be kept."""
        with self._lock:
            pair = self.shown[ballot.position]
            vote = self._line(
                pair, choice=ballot.choice, tags=ballot.tags, note=ballot.note, correction=ballot.correction
            )
            self._write(vote)
            self._standing.pop(vote.sample, None)
            self._standing[vote.sample] = vote

    def undo(self) -> tuple[int, Vote] | None:
        """Take the latest vote back: its position and what it was; None where there is none. Raises OSError."""
        with self._lock:
            if not self._standing:
                return None
            name, vote = next(reversed(self._standing.items()))
            position = next(i for i, pair in enumerate(self.shown) if pair.sample.id == name)
            self._write(self._line(self.shown[position], choice="undone"))
            del self._standing[name]
            return position, vote

    @staticmethod
    def _line(pair: Pair, **said: object) -> Vote:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        fields = {"sample": pair.sample.id, "judged": pair.judged, "left": pair.left, "time": now}
        return Vote.model_validate(fields | said)
