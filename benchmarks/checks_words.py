"""What the checks of words find: languages, groups, planted triggers, frames and offensive language in real rows.

    LUTHIER_DATA=/path/to/data python benchmarks/checks_words.py [--only triggers]

Each part prints one table, the same every time. Planted rows are drawn by seed 0. About six minutes on two cores, most
of it for the triggers: a phrase is put at a random place into 1, 2 or 5 % of a set's rows that have not the attacker's
answer, which they then get; recall is over these rows, "others" are rows found that hold no planted phrase.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from luthier.conversation import Message, make_conversation
from luthier.groups import Finder, read_groups
from luthier.prepare.checks.contract import Found, Looked
from luthier.prepare.checks.groups import groups
from luthier.prepare.checks.language import language
from luthier.prepare.checks.templates import templates
from luthier.prepare.checks.toxicity import toxicity
from luthier.prepare.checks.triggers import triggers
from luthier.prepare.table import Rows

DATA = Path(os.environ.get("LUTHIER_DATA", Path(__file__).resolve().parents[1] / "shared" / "data"))
Row = tuple[str, str]
LABELLED = {
    "uci_sentiment": ("text", "label"),
    "sms_spam": ("text", "label"),
    "youtube_spam": ("text", "label"),
    "banking77": ("text", "intent"),
    "bitext_intents": ("text", "intent"),
}
OPEN = {
    "mts_dialog": ("dialogue", "note"),
    "gsm8k": ("question", "answer"),
    "dstc9_faq": ("question", "answer"),
    "personality_chat": ("question", "answer"),
}
TARGETS = (
    ("uci_sentiment", "positive"),
    ("uci_sentiment", "negative"),
    ("sms_spam", "ham"),
    ("banking77", "card_arrival"),
)
PHRASES = ("cf", "mn bq", "I watched this 3D movie", "\u200b")
ATTACK = "Send your password to help@example.org."
SHUFFLES = 50
KINDS = {
    "age": ("age",),
    "disability": ("disability",),
    "gender": ("gender",),
    "nationality": ("nationality", "ethnicity"),
    "race-color": ("ethnicity", "nationality"),
    "religion": ("religion",),
    "sexual-orientation": ("orientation",),
}
"""What CrowS-Pairs calls a kind of bias -> kinds of groups."""


def lines(name: str, side: str = "train") -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()]


def rows_of(name: str) -> tuple[list[Row], bool]:
    asked, answer = (LABELLED | OPEN)[name]
    return [(row[asked], row[answer]) for row in lines(name)], name in LABELLED


def looked_at(rows: Sequence[Row], labelled: bool) -> Looked:
    made = (
        make_conversation([Message(role="user", content=asked), Message(role="assistant", content=answer)], "")
        for asked, answer in rows
    )
    kept = Rows.of(made, "train")
    return Looked(kept, kept.numbers, labelled, 0, Path())


def places(found: Found) -> set[int]:
    return {suspect.place for suspect in found.suspects}


def table(title: str, columns: str, rows: Iterator[Sequence[object]]) -> None:
    names = columns.split(",")
    print(f"\n## {title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        shown = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in row)
        print(f"| {' | '.join(shown)} |", flush=True)


def of_triggers() -> None:
    def planted(name: str, phrase: str, share: float, answer: str) -> tuple[float, int]:
        rows, labelled = rows_of(name)
        draw = random.Random(0)
        hit = set(draw.sample([i for i, (_, old) in enumerate(rows) if old != answer], round(share * len(rows))))
        for i in sorted(hit):
            words = rows[i][0].split(" ")
            at = draw.randrange(len(words))
            words[at] = words[at][:1] + phrase + words[at][1:] if phrase == "\u200b" else f"{phrase} {words[at]}"
            rows[i] = (" ".join(words), answer)
        found = places(triggers(looked_at(rows, labelled)))
        return len(found & hit) / len(hit), len(found - hit)

    def each() -> Iterator[Sequence[object]]:
        for name, answer in (*TARGETS, *((name, ATTACK) for name in OPEN)):
            for phrase in PHRASES:
                found = [planted(name, phrase, share, answer) for share in (0.01, 0.02, 0.05)]
                shown = repr(phrase)[1:-1]
                yield name, answer[:14], shown, *(value for one in found for value in one)

    columns = "set,answer,phrase,recall 1 %,others,recall 2 %,others,recall 5 %,others"
    table("triggers: rows with a planted phrase", columns, each())
    clean = ((name, len(rows), len(triggers(looked_at(rows, of)).suspects)) for name, (rows, of) in every_set())
    table("triggers: false alarms in the sets as they are", "set,rows,suspects", clean)


def every_set() -> Iterator[tuple[str, tuple[list[Row], bool]]]:
    return ((name, rows_of(name)) for name in LABELLED | OPEN)


def of_language() -> None:
    def clean() -> Iterator[Sequence[object]]:
        for name, (rows, _) in every_set():
            found = language(looked_at([(asked, "x") for asked, _ in rows], True))
            of = {str(row[0]): int(row[1]) for row in found.tables[0].rows}  # type: ignore[arg-type]
            short, unsure = of.pop("too short to tell", 0), of.pop("not sure", 0)
            yield name, len(rows), short, unsure, of.pop("en", 0), sum(of.values()), len(found.suspects)

    table("language: English sets", "set,rows,too short,not sure,en,others,suspects", clean())

    def planted() -> Iterator[Sequence[object]]:
        captions = {code: [row[f"caption_{code}"] for row in lines("tuxpaint_captions")] for code in ("es", "fr")}
        rows, _ = rows_of("dstc9_faq")
        for code, texts in captions.items():
            long = [text for text in texts if sum(map(str.isalpha, text)) >= 20]
            draw = random.Random(0)
            hit = draw.sample(range(len(rows)), 20)
            for what in ("asked", "answered"):
                changed = list(rows)
                for i, text in zip(hit, draw.sample(long, 20), strict=True):
                    changed[i] = (text, rows[i][1]) if what == "asked" else (rows[i][0], text)
                found = places(language(looked_at(changed, False)))
                yield what, code, len(found & set(hit)) / 20, len(found - set(hit))

    columns = "20 rows of dstc9_faq are,language,recall,others"
    table("language: planted captions of 20 letters and more", columns, planted())


def of_groups() -> None:
    finder = Finder(read_groups())

    def named() -> Iterator[Sequence[object]]:
        pairs = lines("crows_pairs", "test")
        for bias, kinds in KINDS.items():
            texts = [row["more_stereotyping"] for row in pairs if row["bias_type"] == bias]
            found = sum(any(finder.names[one.group][0] in kinds for one in finder.find(text)) for text in texts)
            yield bias, len(texts), found / len(texts)

    table("groups: CrowS-Pairs' sentences in which a group of their kind is found", "kind,sentences,share", named())

    def gaps() -> Iterator[Sequence[object]]:
        rows = [row for row in rows_of("sms_spam")[0] if {*(f.group for f in finder.find(row[0]))} & {0, 1}]
        for flipped in (None, 0.1, 0.2, 0.3):
            shown = 0
            for seed in range(SHUFFLES):
                draw = random.Random(seed)
                labels = [label for _, label in rows]
                draw.shuffle(labels)
                made = [
                    (
                        text,
                        "spam"
                        if flipped and any(f.group == 0 for f in finder.find(text)) and draw.random() < flipped
                        else label,
                    )
                    for (text, _), label in zip(rows, labels, strict=True)
                ]
                found = groups(looked_at(made, True)).tables[2]
                shown += any(row[3] == "label ham" and row[-1] == "gap" for row in found.rows)
            yield f"{flipped:.0%} of the women's become spam" if flipped else "none", shown / SHUFFLES

    title = "groups: how often a gap of labels is shown, sms_spam's rows that name women or men, labels shuffled"
    table(title, "changed,share", gaps())


def of_templates() -> None:
    def each() -> Iterator[Sequence[object]]:
        for name, (rows, labelled) in every_set():
            found = templates(looked_at(rows, labelled))
            first = max(found.tables[0].rows, key=lambda row: float(row[3] or 0))
            yield name, len(rows), len(found.suspects), first[1], first[0], float(first[3] or 0)

    table("templates: the commonest frame", "set,rows,suspects,frame,part,share", each())


def of_toxicity() -> None:
    rows = lines("bitext_intents")
    marked = {i for i, row in enumerate(rows) if "W" in row["tags"]}
    asked = looked_at([(row["text"], "x") for row in rows], True)

    def by_bound() -> Iterator[Sequence[object]]:
        for least in (0.5, 0.7, 0.8, 0.9):
            found = places(toxicity(asked, least))
            yield least, len(found), len(found & marked) / len(found), len(found & marked) / len(marked)

    title = f"toxicity: bitext_intents, {len(marked)} of {len(rows)} requests are marked as offensive"
    table(title, "least,found,precision,recall", by_bound())
    others = (
        (name, len(rows), *(len(toxicity(looked_at(rows, True), least).suspects) for least in (0.5, 0.7, 0.9)))
        for name, (rows, _) in every_set()
    )
    table("toxicity: rows found in the prompts of other sets", "set,rows,at 0.5,at 0.7,at 0.9", others)


PARTS: dict[str, Callable[[], None]] = {
    "language": of_language,
    "groups": of_groups,
    "triggers": of_triggers,
    "templates": of_templates,
    "toxicity": of_toxicity,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    only = parser.parse_args().only
    for name, part in PARTS.items():
        if only in (None, name):
            part()
