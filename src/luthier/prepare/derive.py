"""Derive: a recipe for data that comes without one, with every decision written out.

What is derived is only a beginning: it is printed and kept, and a person changes it. This module reads the
data once and looks at shapes, never at meaning.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.conversation import Conversation
from luthier.errors import DataError, Problem
from luthier.prepare.detect import SAMPLE_ROWS, detect, task_of
from luthier.prepare.formats import Format
from luthier.prepare.rows import Fault, Row, silent
from luthier.prepare.sources import SIDE_NAMES, DataFile, find_files
from luthier.records import Task
from luthier.settings import Data, Source

MAX_SLICES = 3
MAX_SLICE_VALUES = 12
ROWS_PER_VALUE = 10
LISTED_LABELS = 20
LABELS_SCORED, MIN_JUDGED = 20_000, 200
"""Every label is scored as the answer to every test row: of 77 labels, thousands of rows would take hours."""
WINDOW, MAX_DOCUMENTS = 1024, 500
"""Tokens of plain text that are learned at once, and documents that a model is validated and tested on."""
METRICS: dict[Task, tuple[str, ...]] = {
    # Each is 0 for the commonest label, given always. The first asks base models that write no label at all to choose
    # one, so that format alone does not beat them; the second that the tuned model writes what it would choose.
    "classification": ("choice_skill", "label_skill"),
    "answer": ("token_f1",),
    "dialogue": ("token_f1",),
    "text": ("perplexity",),
}
SUMMARIES = ("summary", "highlights", "note")
"""Fields whose texts are judged by ROUGE-L, as is usual for summaries."""


def derive(path: Path) -> dict[str, Any]:
    """A recipe tree, as `recipe.validate` takes it, for a data file or a folder of them.

    Raises DataError as `prepare` does for files, and LU-D101 where the format cannot be told.
    """
    files = find_files((Source(path=str(path.resolve())),), Path())
    samples = [row.data for file in files for row in file.sample(SAMPLE_ROWS)]
    if not samples:
        raise _no_good_row(files)
    format = detect(samples, Data(sources=(Source(path=str(path)),)))
    seen = _look(files, format)
    documents = all(f.kind == "text" for f in files)  # a folder of them is one source
    data: dict[str, Any] = {
        "sources": [{"path": str(path.resolve())}]
        if documents
        else [{"path": str(f.path)} | ({"split": f.side} if f.side else {}) for f in files],
        "format": format.name,
        "fields": format.fields,
        "clean": [{"use": "dedupe", "similarity": 1.0}],
        "split": {"by": "given" if all(f.side for f in files) or seen.has_sides else "row"},
        "slices": seen.slices(),
    }
    evaluate: dict[str, Any] = {}
    if seen.task == "text":
        data["max_tokens"] = WINDOW
        held_out = {"valid_fraction": 0.05, "test_fraction": 0.1}
        data["split"] |= {side: min(most, round(MAX_DOCUMENTS / seen.n, 6)) for side, most in held_out.items()}
    else:
        evaluate["max_new_tokens"] = _max_new_tokens(seen)
    if seen.task == "classification":
        data["system"] = _classify(sorted(seen.answers))
        evaluate["limit"] = max(MIN_JUDGED, LABELS_SCORED // len(seen.answers))
    return {
        "name": re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().stem).strip("-.")[:64] or "data",
        "data": data,
        "train": {"epochs": 6 if seen.n <= 1000 else 3 if seen.n <= 5000 else 1},
        "evaluate": evaluate,
        "release": {
            "rules": [
                *({"metric": name, "must": "beat_baseline"} for name in _main_metrics(seen.task, format)),
                {"metric": "general_perplexity", "must": "not_regress", "by_relative": 0.1},
            ]
        },
    }


def _main_metrics(task: Task, format: Format) -> tuple[str, ...]:
    return ("rougeL",) if format.fields.get("completion") in SUMMARIES else METRICS[task]


@dataclass(slots=True)
class Seen:
    """What one reading of the data told."""

    n: int = 0
    task: Task = "answer"
    answers: Counter[str] = field(default_factory=Counter)
    """Not of plain text, of which nobody asks for more."""
    tags: Counter[str] = field(default_factory=Counter)
    values: dict[str, set[object] | None] = field(default_factory=dict)
    """Of each tag; None: too many, or not plain."""
    has_sides: bool = True

    def add(self, conversation: Conversation) -> None:
        self.n += 1
        if conversation.prompt:
            self.answers[conversation.answer] += 1
        self.has_sides = self.has_sides and str(conversation.tags.get("split")).lower() in SIDE_NAMES
        for name, value in conversation.tags.items():
            self.tags[name] += 1
            values = self.values.setdefault(name, set())
            if values is not None:
                plain = isinstance(value, str | int | bool)
                self.values[name] = values | {value} if plain and len(values) <= MAX_SLICE_VALUES else None

    def slices(self) -> list[str]:
        """The first few tags that all rows have and whose values cut them into parts that are large enough."""
        fit = [name for name, values in self.values.items() if values and len(values) > 1 and self._cuts(name, values)]
        return fit[:MAX_SLICES]

    def _cuts(self, name: str, values: set[object]) -> bool:
        fine = len(values) > MAX_SLICE_VALUES or self.n < ROWS_PER_VALUE * len(values)
        return not fine and self.tags[name] == self.n and name != "split"


def _look(files: list[DataFile], format: Format) -> Seen:
    """All good rows, seen once; the faults are `prepare`'s to report."""
    seen, n_several = Seen(), 0
    for file in files:
        for row in file.rows(silent):
            if conversation := _good(row, format):
                seen.add(conversation)
                n_several += sum(m.role == "assistant" for m in conversation.messages) > 1
    if seen.n == 0:
        raise _no_good_row(files)
    seen.task = task_of(format, several_turns=n_several > 0)
    return seen


def _good(row: Row, format: Format) -> Conversation | None:
    try:
        return None if row.fault else format.conversation(row, set(row.data), silent)
    except Fault:
        return None


def _no_good_row(files: list[DataFile]) -> DataError:
    faults = ((row, row.fault) for file in files for row in file.rows(silent) if row.fault)
    problems = [
        Problem(fault.code, row.where, fault.found, fault.advice)
        for (row, fault), _ in zip(faults, range(10), strict=False)
    ]
    return DataError(
        Problem("LU-D015", files[0].shown, "no row can be used", "the first faults follow" if problems else ""),
        *problems,
    )


def _classify(labels: list[str]) -> str:
    if len(labels) <= LISTED_LABELS:
        return f"Classify the text. Answer with one of: {', '.join(labels)}."
    return f"Classify the text. Answer with the label only, such as: {', '.join(labels[:: len(labels) // 3][:3])}."


def _max_new_tokens(seen: Seen) -> int:
    """Room for nearly all answers. A word is about two tokens, two characters of a label at least one."""
    if seen.task == "classification":
        return max(16, max(map(len, seen.answers)) // 2)
    words = sorted(len(answer.split()) for answer in seen.answers.elements())
    return min(256, max(16, 2 * words[int(0.95 * (len(words) - 1))]))
