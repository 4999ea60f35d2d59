"""Training rows that hold what a model is going to be tested by.

By words, as others do: any run of 13 words (Brown et al. 2020, GPT-3), or 70 % of an item's runs of 8 (Anil et al.
2023, PaLM 2). By meaning, where embeddings are installed, as `same_meaning` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import luthier
from luthier.embed import available
from luthier.errors import extra
from luthier.prepare.checks.contract import Found, Looked, Suspect
from luthier.prepare.checks.ngrams import Runs
from luthier.prepare.checks.paraphrase import across
from luthier.prepare.checks.vectors import MOST_ROWS, drawn, texts_of, told
from luthier.prepare.rows import silent
from luthier.prepare.sources import find_files
from luthier.prepare.table import firsts
from luthier.records import FactTable
from luthier.settings import Source
from luthier.settings.section import Count

CODE = "LU-D180"
LONG, SHORT = 13, 8
SHARE = 0.7
"""Of an item's runs of 8 words."""
LEAST_WORDS = 4
"""A shorter text is a choice or a name rather than a question."""


def eval_overlap(looked: Looked, sets: tuple[str, ...] = (), rows: Count = MOST_ROWS) -> Found:
    """Args:
        sets: Files or folders of evaluation sets, in any format of `data.sources`; none: the questions that come with
            Luthier, by which every run is tested.
        rows: At most so many training rows, and as many items, are compared by meaning.

    Raises DataError where a file cannot be read.
    """
    read = _read(sets, looked.folder)
    train = looked.on("train")
    long, short = Runs(read.items, LONG), Runs(read.items, SHORT)
    against: dict[int, Suspect] = {}

    def suspect(place: int, score: float, item: int, how: str) -> None:
        if place not in against or against[place].score < score:
            against[place] = Suspect(place, score, f"{how} {read.wheres[read.row_of[item]]}")

    for place, conversation in zip(train.tolist(), looked.rows.each(looked.numbers[train]), strict=True):
        text = "\n".join(m.text for m in conversation.messages if m.role != "system")
        for runs, least, how in ((long, 0.0, "shares a run of 13 words with"), (short, SHARE, "has most words of")):
            found, shares = runs.shared(text)
            if len(found) and shares.max() >= least:
                suspect(place, float(max(shares.max(), 0.5)), int(found[shares.argmax()]), how)
    touched = {"13 words": long.seen > 0, "8 words": short.seen >= SHARE}
    notes = [f"touched by words: a training row has 13 of a text in a run, or train {SHARE:.0%} of its runs of 8"]
    if available():
        items = drawn(np.arange(len(read.items)), rows, looked.seed)
        distinct = train[firsts(looked.rows.asked_text[looked.numbers[train]])]
        some = drawn(distinct, rows, looked.seed)
        touched["meaning"] = np.zeros(len(read.items), dtype=np.bool_)
        for i, j, cosine in across([read.items[i] for i in items], texts_of(looked, some)):
            touched["meaning"][items[i]] = True
            suspect(int(some[j]), min(cosine, 1.0), int(items[i]), "says in other words what is in")
        notes += told(len(some), len(distinct))
    else:
        notes.append(f"paraphrases were not looked for: they need sentence embeddings; {extra('meaning')}")
    table = _table(read, touched)
    suspects = sorted(against.values(), key=lambda one: one.place)
    return Found(suspects, CODE, "drop the row, or do not trust what this set says of the model", [table], notes)


class Read(NamedTuple):
    """Evaluation sets: each item is a text of a row of a set."""

    sets: list[str]
    set_of: list[int]
    """(n_rows,)"""
    wheres: list[str]
    """(n_rows,)"""
    items: list[str]
    row_of: list[int]
    """(n_items,)"""


def _read(sets: Sequence[str], folder: Path) -> Read:
    shipped = sorted((Path(luthier.__file__).parent / "probe").glob("*.jsonl"))
    files = find_files(tuple(Source(path=one) for one in sets or map(str, shipped)), folder)
    read = Read([file.shown if sets else file.path.stem for file in files], [], [], [], [])
    for n, file in enumerate(files):
        for row in file.rows(silent):
            if row.fault:
                continue
            texts = list(dict.fromkeys(_texts(row.data)))
            read.items.extend(texts)
            read.row_of.extend([len(read.wheres)] * len(texts))
            read.wheres.append(row.where if sets else f"{read.sets[n]}:{row.where.rpartition(':')[2]}")
            read.set_of.append(n)
    return read


def _table(read: Read, touched: dict[str, NDArray[np.bool_]]) -> FactTable:
    set_of, row_of = np.array(read.set_of), np.array(read.row_of)

    def counted(of_rows: NDArray[np.int64]) -> list[int]:
        return [int(n) for n in np.bincount(set_of[of_rows], minlength=len(read.sets))]

    counts = [counted(np.arange(len(set_of))), *(counted(np.unique(row_of[by])) for by in touched.values())]
    columns = ("set", "rows", *(f"touched by {how}" for how in touched))
    rows: list[tuple[str | int, ...]] = [(name, *(of[n] for of in counts)) for n, name in enumerate(read.sets)]
    return FactTable(title="evaluation rows that train touches", columns=columns, rows=tuple(rows))


def _texts(value: Any) -> Iterator[str]:
    """The texts of a row, however deep, that have some words."""
    if isinstance(value, str) and len(value.split()) >= LEAST_WORDS:
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)
