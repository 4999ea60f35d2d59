"""How much of what each augmentation makes passes the filters, and at what pace, on 200 training rows of two data sets.

    python benchmarks/augment.py --data DIR [--rows 200] [--methods noise,synonyms] [--contextual-rows 40]

One candidate a row (two for two pivots); one thread. banking77: short questions with one of 77 labels; dstc9_faq: questions
to hotels and restaurants with their answers; winobias, for `counterfactual` alone: a sentence with a pronoun each.
`contextual` asks the built-in model, 135 million weights: the least that a language model can do here.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from luthier.conversation import Conversation, Message, make_conversation
from luthier.prepare.augment import augment, opened
from luthier.prepare.rows import Item
from luthier.progress import Quiet
from luthier.settings import AugmentUse

SETS = {"banking77": ("text", "intent"), "dstc9_faq": ("question", "answer")}
METHODS: dict[str, dict[str, Any]] = {
    "random_edits": {},
    "noise": {},
    "synonyms": {},
    "back_translate es": {"via": "es"},
    "back_translate eo": {"via": "eo"},
    "back_translate ca": {"via": "ca"},
    "back_translate gl": {"via": "gl"},
    "counterfactual": {},
    "contextual": {"model": "smollm2-135m-instruct", "max_new_tokens": 60},
}


def rows(data: Path, name: str, n: int) -> tuple[list[Conversation], list[Conversation]]:
    """n training rows, drawn, and 1,000 others that stand for the held-out side."""
    if name == "winobias":
        lines = (data / name / "validation.jsonl").read_text().splitlines()
        texts = [(json.loads(line)["text"], None) for line in lines]
    else:
        asked, answer = SETS[name]
        lines = (data / name / "train.jsonl").read_text().splitlines()
        texts = [(row[asked], row[answer]) for row in map(json.loads, lines)]
    drawn = random.Random(0).sample(range(len(texts)), min(len(texts), n + 1000))
    found = [_row(*texts[i], f"{name}:{i}") for i in drawn]
    return found[:n], found[n:]


def _row(text: str, answer: str | None, source: str) -> Conversation:
    if answer is None:
        return make_conversation([Message(role="text", content=text)], source)
    turns = [Message(role="user", content=text), Message(role="assistant", content=answer)]
    return make_conversation(turns, source)


def fit(conversations: Any) -> list[Item | str]:
    return [Item(c, "train", 1, 1) for c in conversations]


def measure(name: str, params: dict[str, Any], data: Path, set_: str, n: int, shown: int) -> None:
    train, held_out = rows(data, set_, n)
    use = AugmentUse.model_validate({"use": name.partition(" ")[0], "fraction": 1.0, **params})
    labelled = set_ == "banking77"
    # WinoBias has each sentence in both forms: whichever is made is there already.
    held_out = [] if set_ == "winobias" else held_out
    with opened([use], Path(), 0, labelled) as methods:
        started = time.monotonic()
        _, [record] = augment(
            train, held_out, methods, seed=0, similarity=0.8, labelled=labelled, fit=fit, report=Quiet()
        )
        seconds = time.monotonic() - started
    reasons = "; ".join(f"{n} {reason}" for reason, n in Counter(record.dropped).most_common(4))
    print(f"| `{name}` | {set_} | {record.asked} | {record.made / record.asked:.0%} | {reasons} | {seconds:.0f} s |")
    for sample in record.samples[:shown]:
        print(f"    {sample.before}\n    -> {sample.after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LUTHIER_DATA", "shared/data")))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--contextual-rows", type=int, default=40)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--samples", type=int, default=0, help="show so many of each")
    asked = parser.parse_args()
    print(
        "| method | data | candidates | kept | the commonest reasons of the others | time |\n|---|---|---|---|---|---|"
    )
    for name in asked.methods.split(","):
        for set_ in ("dstc9_faq", "winobias") if name == "counterfactual" else SETS:
            n = asked.contextual_rows if name == "contextual" else asked.rows
            measure(name, METHODS[name], asked.data, set_, n, asked.samples)


if __name__ == "__main__":
    main()
