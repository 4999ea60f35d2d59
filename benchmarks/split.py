"""What the ways of `data.split` do to real sets.

    LUTHIER_DATA=/path/to/data python benchmarks/split.py [--seeds 5] [--prompts 1000]

- banking77 (77 intents), drawn with and without `stratify: label`: the largest difference between an intent's share of
  the test side and of all rows, and intents that the test side lacks; means over seeds.
- youtube_spam by `time`: rows on each side and left out.
- The first prompts of banking77, shuffled, with `cluster`: groups, the largest of them, and test rows with a training
  row whose embedding has a cosine of at least 0.9. Needs the extra `meaning`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from statistics import fmean

import numpy as np

from luthier.conversation import Conversation, Message, make_conversation
from luthier.embed import embed
from luthier.prepare.split import split
from luthier.prepare.table import NO_SIDE, Rows
from luthier.settings import Split

DATA = Path(os.environ["LUTHIER_DATA"])


def rows_of(name: str, label: str) -> list[Conversation]:
    lines = (DATA / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        make_conversation(
            [Message(role="user", content=row["text"]), Message(role="assistant", content=row[label])], name, row
        )
        for row in map(json.loads, lines)
    ]


def divided(conversations: list[Conversation], how: Split, seed: int) -> tuple[Rows, list[str]]:
    rows = Rows.of(conversations)
    return rows, split(rows, rows.numbers, how, seed)


def strata(seeds: int) -> None:
    every = rows_of("banking77", "intent")
    whole = Counter(c.answer for c in every)
    for how in (Split(), Split(stratify="label"), Split(folds=5, fold=0), Split(folds=5, fold=0, stratify="label")):
        worst, lacking = [], []
        for seed in range(seeds):
            rows, _ = divided(every, how, seed)
            test = Counter(c.answer for c in rows.each(rows.on("test", rows.numbers)))
            worst.append(max(abs(test[label] / test.total() - n / len(every)) for label, n in whole.items()))
            lacking.append(len(whole) - len(test))
        shown = ", ".join(f"{k}: {v}" for k, v in how.model_dump(exclude_defaults=True).items()) or "by seed"
        print(f"banking77, {shown}: {100 * fmean(worst):.2f} points at most; {fmean(lacking):.1f} intents not tested")


def by_time() -> None:
    rows, notes = divided(rows_of("youtube_spam", "label"), Split(time="time"), 0)
    counts = Counter(rows.side.tolist())
    print(f"youtube_spam by time: {counts[0]} train, {counts[1]} validate, {counts[2]} test; {notes[-1]}")
    assert counts[NO_SIDE] + counts[0] + counts[1] + counts[2] == len(rows)


def clusters(n: int) -> None:
    every = rows_of("banking77", "intent")
    every = [every[i] for i in np.random.default_rng(0).permutation(len(every))[:n]]
    for cosine in (None, 0.9, 0.8):
        rows, notes = divided(every, Split(cluster=cosine), 0)
        test, train = (embed([every[i].asked_text for i in rows.on(side, rows.numbers)]) for side in ("test", "train"))
        alike = float(((test @ train.T).max(axis=1) >= 0.9).mean())
        print(f"cluster: {cosine}: {notes[0]}; {alike:.1%} of the test rows have such a training row")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1000)
    args = parser.parse_args()
    strata(args.seeds)
    by_time()
    clusters(args.prompts)


if __name__ == "__main__":
    main()
