"""What the checks of labels and meanings find of what was planted, and how often they find what was not.

    LUTHIER_DATA=/path/to/data python benchmarks/checks_meaning.py [labels] [outliers] [same_meaning] [eval_overlap]

labels        A share of the labels is changed to another, drawn evenly. Rows that were wrong before count as false
              alarms. Beside it cleanlab's, where it is installed, from the same out-of-fold probabilities.
outliers      1 % of another set's rows are put among a set's; beside it local outlier factors.
same_meaning  Paraphrases of training rows as held-out rows: by Apertium through Spanish and Esperanto, and sixty by
              hand (tests/prepare/checks/paraphrases.jsonl). Not to be found: questions of banking77 whose intent is not
              in train, and those written without the one that they paraphrase. Beside it a cosine alone.
eval_overlap  Questions of gsm8k's test split, put into training rows as they are, with each tenth word changed, and
              through Spanish; and gsm8k's own training rows.

Each takes a few minutes on one core; every draw is seeded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np

from luthier.conversation import Conversation, Message, make_conversation
from luthier.embed import embed
from luthier.prepare.audit import open_audit
from luthier.prepare.checks import labels, outliers, paraphrase
from luthier.prepare.checks.classifier import out_of_fold
from luthier.prepare.checks.contract import Looked
from luthier.prepare.checks.eval_overlap import eval_overlap
from luthier.prepare.checks.same_meaning import LEAK, same_meaning
from luthier.prepare.checks.vectors import by_spelling, nearest
from luthier.prepare.noticed import leaks
from luthier.prepare.table import Rows

DATA = Path(os.environ.get("LUTHIER_DATA", "shared/data"))
BY_HAND = Path(__file__).resolve().parents[1] / "tests" / "prepare" / "checks" / "paraphrases.jsonl"


def read(name: str, column: str, at_most: int, splits: Sequence[str] = ("train",)) -> list[str]:
    """Distinct texts in a drawn order."""
    return list(dict.fromkeys(one for one, _ in read_two(name, column, column, at_most, splits)))


def read_two(name: str, a: str, b: str, at_most: int, splits: Sequence[str] = ("train",)) -> list[tuple[str, str]]:
    lines = [line for s in splits for line in (DATA / name / f"{s}.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [(" ".join(row[a].split()), row[b]) for row in map(json.loads, lines)]
    Random(0).shuffle(rows)
    return rows[:at_most]


def row(*cells: object) -> None:
    print("  ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells), flush=True)


# -- labels -----------------------------------------------------------------------------------------------


def of_labels() -> None:
    sets = {"uci_sentiment": "label", "sms_spam": "label", "banking77": "intent"}
    for name, column in sets.items():
        rows = read_two(name, "text", column, 2500)
        texts = [text for text, _ in rows]
        names, right = np.unique([label for _, label in rows], return_inverse=True)
        print(f"\n{name}: {len(rows)} rows, {len(names)} labels")
        row("features", "planted", "accuracy", "method", "found", "precision", "recall", "precision at k")
        for features, vectors in (("meaning", embed(texts)), ("spelling", by_spelling(texts))):
            for share in (0.0, 0.02, 0.05, 0.1) if features == "meaning" else (0.05,):
                planted, given = flipped(right, len(names), share)
                likely = out_of_fold(vectors, given, np.arange(len(given)), labels.STRENGTH, 5, 0)
                accuracy = float((likely.argmax(axis=1) == given).mean())
                doubt, n_wrong = labels.doubt(given, likely), labels.wrong(given, likely)
                ways = {"luthier": (doubt, np.argsort(-doubt, kind="stable")[:n_wrong]), **cleanlab(given, likely)}
                for way, (score, found) in ways.items():
                    k = int(planted.sum())
                    at_k = float(planted[np.argsort(-score, kind="stable")[:k]].mean()) if k else "-"
                    hits = int(planted[found].sum())
                    precision = hits / len(found) if k else "-"
                    row(features, share, accuracy, way, len(found), precision, hits / k if k else "-", at_k)


def flipped(right: np.ndarray, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    at = draw.choice(len(right), round(share * len(right)), replace=False)
    given = right.copy()
    given[at] = (right[at] + draw.integers(1, n, len(at))) % n
    return given != right, given


def cleanlab(given: np.ndarray, likely: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}
    ways = {}
    for way in ("prune_by_noise_rate", "confident_learning"):
        found = np.flatnonzero(find_label_issues(given, likely, filter_by=way, n_jobs=1))
        ways[f"cleanlab {way}"] = (-get_label_quality_scores(given, likely, method="self_confidence"), found)
    return ways


# -- outliers ---------------------------------------------------------------------------------------------


def of_outliers() -> None:
    columns = {"banking77": "text", "uci_sentiment": "text", "dstc9_faq": "question", "sms_spam": "text"}
    of = {name: embed(read(name, column, 2000)) for name, column in columns.items()}
    of["gsm8k"] = embed(read("gsm8k", "question", 100))
    row("set", "others", "method", "recall at the number planted", "found", "right")
    for host in columns:
        for guest in ("", *of):
            if guest == host:
                continue
            n = round(0.01 * len(of[host])) if guest else 0
            vectors = np.concatenate([of[host], of[guest][:n]]) if guest else of[host]
            planted = np.arange(len(vectors)) >= len(of[host])
            away = outliers.distances(vectors)
            far = away > outliers.beyond(away)
            cells = (int(far.sum()), int((far & planted).sum()))
            for way, score in (("20th neighbour", away), ("LOF 20", lof(vectors, 20)), ("LOF 60", lof(vectors, 60))):
                top = float(planted[np.argsort(-score)[:n]].mean()) if n else "-"
                row(host, guest or "none", way, top, *(cells if score is away else ()))


def lof(vectors: np.ndarray, k: int) -> np.ndarray:
    """Breunig et al. 2000."""
    cosines, places = nearest(vectors, vectors, k, itself=True)
    away = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    density = 1 / np.maximum(np.maximum(away, away[places, -1]).mean(axis=1), 1e-9)
    return density[places].mean(axis=1) / density


# -- paraphrases ------------------------------------------------------------------------------------------


def through(texts: Sequence[str], there: str, back: str) -> list[str]:
    for pair in (there, back):
        done = subprocess.run(["apertium", "-u", pair], input="\n".join(texts) + "\n", capture_output=True, text=True)
        texts = done.stdout.split("\n")[: len(texts)]
    return list(texts)


def of_same_meaning() -> None:
    if not shutil.which("apertium"):
        sys.exit("same_meaning: install apertium with its pairs en-es and en-eo")
    rows = read_two("banking77", "text", "intent", 3300)
    train = list(dict.fromkeys(rows))
    asked = [text for text, _ in rows[:300]]
    hand = [json.loads(line) for line in BY_HAND.read_text(encoding="utf-8").splitlines()]
    same, question, other = ([one[key] for one in hand] for key in ("same", "question", "other"))
    texts = [text for text, _ in train] + question + other
    yes = {
        "through Spanish": (through(asked, "eng-spa", "spa-eng"), texts),
        "through Esperanto": (through(asked, "en-eo", "eo-en"), texts),
        "written": (same, texts),
    }
    no = {f"intent {i}": ([], [t for t, its in train if its != i]) for i in sorted({i for _, i in train})}
    for text, intent in rows[:300]:
        no[f"intent {intent}"][0].append(text)
    topics = {one["topic"] for one in hand}
    for topic in sorted(topics):
        for k, one in enumerate(o for o in hand if o["topic"] == topic):
            rest = [o["question"] for o in hand if o is not one]
            no[f"hand {topic} {k}"] = ([one["same"]], rest)
    near = {"in one word": (other, question)}

    def share(of: dict[str, tuple[list[str], list[str]]], found: Callable[[list[str], list[str]], int]) -> float:
        return sum(found(*one) for one in of.values()) / sum(len(one[0]) for one in of.values())

    intents = {k: v for k, v in no.items() if k.startswith("intent")}
    topical = {k: v for k, v in no.items() if k.startswith("hand")}
    print("\nshare of the rows that are flagged: paraphrases, then other questions")
    row("rule", *yes, "another intent", "another question, written", "another but in one word")

    def table(name: str, found: Callable[[list[str], list[str]], int]) -> None:
        row(
            name,
            *(share({k: v}, found) for k, v in yes.items()),
            *(share(of, found) for of in (intents, topical, near)),
        )

    for least in (0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95):
        table(f"cosine {least}", lambda a, b, x=least: int((nearest(embed(a), embed(b), 1)[0] > x).sum()) if a else 0)
    default = paraphrase.MARGIN
    for least in (0.6, 0.7, 0.8):
        for margin in (0.05, 0.1, 0.15, 0.2):
            paraphrase.MARGIN = margin
            table(f"check {least} {margin}", lambda a, b, x=least: len(paraphrase.across(a, b, x)))
    paraphrase.MARGIN = default
    print("\nplanted leaks: found by LU-D039 or by LU-D179, of those planted")
    long = [text for text, _ in rows if len(text.split()) >= 15][:100]
    kinds = {"exact": asked[:100], "near": [changed(t, 1) for t in long]}
    kinds |= {name: made[:100] for name, (made, _) in yes.items()}
    for name, planted in kinds.items():
        looked = laid(texts, planted)
        with open_audit(Path(os.devnull), Nothing()) as audit:
            leaks(looked.rows, looked.numbers, 0.8, audit)
        known = audit.counts["LU-D039"]
        found = sum(s.code == LEAK for s in same_meaning(looked).suspects)
        row(name, len(planted), f"LU-D039 {known}", f"LU-D179 {found}", (known + found) / len(planted))


class Nothing:
    """Hides nothing."""

    def finding(self, text: str) -> str:
        return text

    def row(self, row: object) -> None:
        return None


def changed(text: str, n: int) -> str:
    """With n words at the end replaced."""
    words = text.split()
    return " ".join([*words[: len(words) - n], *["indeed"] * n])


def laid(train: Sequence[str], test: Sequence[str] = ()) -> Looked:
    rows = Rows()
    for side, texts in (("train", train), ("test", test)):
        for n, text in enumerate(texts):
            rows.append(asking(text, f"{side}:{n}"), side, 0, 0)
    return Looked(rows, rows.numbers, False, 0, Path())


def asking(text: str, source: str) -> Conversation:
    answer = f"The answer to {source}."
    return make_conversation([Message(role="user", content=text), Message(role="assistant", content=answer)], source)


# -- evaluation sets --------------------------------------------------------------------------------------


def of_eval_overlap() -> None:
    tested = read("gsm8k", "question", 300, ["test"])
    draw = Random(0)

    def tenth(text: str) -> str:
        return " ".join("other" if draw.random() < 0.1 else word for word in text.split())

    kinds = {
        "as they are": tested[:100],
        "a tenth of the words changed": [tenth(text) for text in tested[:100]],
        "through Spanish": through(tested[:100], "eng-spa", "spa-eng"),
        "none": [],
        "none, of one kind": read("gsm8k", "question", 1500),
    }
    usual = read("banking77", "text", 1000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gsm8k.jsonl"
        path.write_text("\n".join(json.dumps({"question": text}) for text in tested))
        for name, planted in kinds.items():
            found = eval_overlap(laid([*planted, *usual]), sets=(str(path),))
            row(name, len(planted), "planted", len(found.suspects), "suspects")
            row(*found.tables[0].columns)
            row(*found.tables[0].rows[0])


PARTS = {"labels": of_labels, "outliers": of_outliers, "same_meaning": of_same_meaning, "eval_overlap": of_eval_overlap}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        print(f"\n== {part}")
        PARTS[part]()
