"""The check `coverage` on banking77: training rows without some intents, against requests with all of them.

    LUTHIER_DATA=/path/to/data python benchmarks/checks_coverage.py [--seeds 3] [--missing 0 5 10]

The data set's training rows are shuffled by seed; the first are the requests, the next the training rows, from which k
intents are taken out. A listed topic stands for the intent that most of the twenty requests with most of its words are
of: what a person would read from the table. Printed, as means over seeds:

    listed     topics said to have too few rows
    recall     of the missing intents, how many a listed topic stands for
    precision  of the listed topics, how many stand for a missing intent
    near       requests of missing and of other intents with no training row within a cosine of 0.6
    shares     recall and precision if topics were compared by the share of training rows nearest to their centres
               (the difference's low end above 0; Newcombe 1998, method 10) instead of by neighbours
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np

from luthier.clusters import k_means, telling
from luthier.conversation import Message, make_conversation
from luthier.embed import embed
from luthier.prepare.checks import coverage as check
from luthier.prepare.checks.contract import Looked
from luthier.prepare.table import Rows
from luthier.similar import WORD
from luthier.stats import wilson

Row = tuple[str, str]


def stands_for(topic: str, requests: Sequence[Row]) -> str:
    named = set(topic.split(", "))
    by_words = sorted(requests, key=lambda row: -len(named & set(WORD.findall(row[0].casefold()))))
    return Counter(intent for _, intent in by_words[:20]).most_common(1)[0][0]


def by_neighbours(requests: Sequence[Row], train: Sequence[Row], seed: int, folder: Path) -> list[str]:
    """The intents that the listed topics stand for."""
    (folder / "requests.txt").write_text("\n".join(text for text, _ in requests))
    made = (
        make_conversation([Message(role="user", content=text), Message(role="assistant", content=intent)], "rows")
        for text, intent in train
    )
    rows = Rows.of(made, "train")
    found = check.coverage(Looked(rows, rows.numbers, True, seed, folder), "requests.txt")
    return [stands_for(str(row[0]), requests) for row in found.tables[0].rows if row[6]]


def by_shares(requests: Sequence[Row], train: Sequence[Row], seed: int) -> list[str]:
    ours, theirs = (embed([text for text, _ in rows]).astype(np.float64) for rows in (requests, train))
    of, centres = k_means(ours, min(check.MAX_TOPICS, len(ours) // check.PER_TOPIC), np.random.default_rng(seed))
    nearest = (theirs @ centres.T).argmax(axis=1)
    level = 1 - (1 - check.CONFIDENCE) / len(centres)
    bags = [set(WORD.findall(text.casefold())) for text, _ in requests]
    counts = Counter(word for bag in bags for word in bag)
    found = []
    for topic in range(len(centres)):
        asked, learned = float((of == topic).sum()), float((nearest == topic).sum())
        p, q = asked / len(of), learned / len(nearest)
        low, high = wilson(asked, len(of), level)[0], wilson(learned, len(nearest), level)[1]
        if p - q > ((p - low) ** 2 + (high - q) ** 2) ** 0.5:
            inside = [bag for bag, t in zip(bags, of, strict=True) if t == topic]
            found.append(stands_for(telling(inside, counts, len(bags), check.NAME_WORDS), requests))
    return found


def scored(listed: Sequence[str], missing: set[str]) -> tuple[float, float]:
    """Recall and precision; NaN of nothing."""
    recall = len(missing & set(listed)) / len(missing) if missing else np.nan
    return recall, sum(one in missing for one in listed) / len(listed) if listed else np.nan


def far(requests: Sequence[Row], train: Sequence[Row], missing: set[str]) -> tuple[float, float]:
    nearest = (embed([text for text, _ in requests]) @ embed([text for text, _ in train]).T).max(axis=1) < 0.6
    is_missing = np.array([intent in missing for _, intent in requests])
    return float(nearest[is_missing].mean()) if missing else np.nan, float(nearest[~is_missing].mean())


def mean(values: Sequence[float]) -> str:
    known = [value for value in values if value == value]
    return f"{fmean(known):5.2f}" if known else "    -"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--missing", type=int, nargs="+", default=[0, 5, 10])
    args = parser.parse_args()
    path = Path(os.environ["LUTHIER_DATA"]) / "banking77" / "train.jsonl"
    data = [(row["text"].strip(), row["intent"]) for row in map(json.loads, path.read_text().splitlines())]
    data = list(dict.fromkeys((" ".join(text.split()), intent) for text, intent in data))
    intents = sorted({intent for _, intent in data})
    print("missing  listed  recall  precision   near: missing, other   shares: recall, precision")
    for k in args.missing:
        table = []
        for seed in range(args.seeds):
            rng = np.random.default_rng(seed)
            rows = [data[i] for i in rng.permutation(len(data))]
            missing = {intents[i] for i in rng.permutation(len(intents))[:k]}
            requests = rows[: args.requests]
            train = [row for row in rows[args.requests :][: args.rows] if row[1] not in missing]
            with tempfile.TemporaryDirectory() as folder:
                listed = by_neighbours(requests, train, seed, Path(folder))
            alone = scored(by_shares(requests, train, seed), missing)
            table.append((len(listed), *scored(listed, missing), *far(requests, train, missing), *alone))
        print(f"{k:7d}  " + "   ".join(map(mean, zip(*table, strict=True))), flush=True)


if __name__ == "__main__":
    main()
