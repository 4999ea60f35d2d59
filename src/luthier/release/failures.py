"""What is wrong with the answers, counted by simple rules that are stated beside the counts.

The rules see text, not truth: a wrong answer of the right form is in none of them, and an answer may be in several.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from luthier.records import EvalReport

Faulty = Callable[[str, str], bool]
"""(answer, reference) -> whether the answer has the fault."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of failure: in how many of `n` answers of each model it was found."""

    name: str
    rule: str
    baseline: int | None
    """None where the kind is one of the tuned model alone."""
    tuned: int
    n: int


def kinds_of_failure(evaluation: EvalReport) -> list[Kind]:
    """All kinds that apply to the task, also those never met; none where nothing was answered."""
    samples = evaluation.samples
    if not any(s.baseline.strip() or s.tuned.strip() for s in samples):
        return []
    rules = _ANY if evaluation.confusion else {**_ANY, **_FREE}
    found = []
    for (name, rule), faulty in rules.items():
        base = sum(faulty(s.baseline, s.reference) for s in samples)
        ours = sum(faulty(s.tuned, s.reference) for s in samples)
        found.append(Kind(name, rule, base, ours, len(samples)))
    base, ours = (sum(s.cut[side] for s in samples) for side in (0, 1))
    found.append(Kind("cut off", "not ended within evaluate.max_new_tokens", base, ours, len(samples)))
    kept = sum(same(s.tuned, s.baseline) and not same(s.tuned, s.reference) for s in samples)
    unchanged = Kind("unchanged", "the same answer as the base's, and not the reference's", None, kept, len(samples))
    return [*found, *_of_labels(evaluation), unchanged]


def _of_labels(evaluation: EvalReport) -> list[Kind]:
    if not evaluation.confusion:
        return []
    (base_none, base_wrong), (none, wrong) = (_without_label(evaluation.confusion[s]) for s in ("baseline", "tuned"))
    n = sum(map(sum, evaluation.confusion["tuned"]))
    return [
        Kind("no label", "the answer is none of the labels", base_none, none, n),
        Kind("wrong label", "the answer is another label than the reference", base_wrong, wrong, n),
    ]


def _without_label(rows: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(no label, wrong label) of a confusion, whose last column is "no label"."""
    none = sum(row[-1] for row in rows)
    return none, sum(map(sum, rows)) - none - sum(row[i] for i, row in enumerate(rows))


def same(one: str, other: str) -> bool:
    """Equal but for case and spaces."""
    return one.casefold().split() == other.casefold().split()


def words(text: str) -> list[str]:
    """Runs of letters and digits; each Chinese or Japanese character is a word."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+", text.casefold())


def is_empty(answer: str, reference: str) -> bool:
    return not answer.strip() and bool(reference.strip())


def repeats(answer: str, reference: str) -> bool:
    """Some four words in a row three times or more, which the reference does not do."""
    return _most_repeated(answer) >= 3 > _most_repeated(reference)


def _most_repeated(text: str) -> int:
    said = words(text)
    return max(Counter(zip(said, said[1:], said[2:], said[3:], strict=False)).values(), default=0)


def is_longer(answer: str, reference: str) -> bool:
    n, due = len(words(answer)), len(words(reference))
    return n > 2 * due and n >= due + 10


def is_shorter(answer: str, reference: str) -> bool:
    n, due = len(words(answer)), len(words(reference))
    return 0 < 2 * n < due and n + 10 <= due


def is_in_another_script(answer: str, reference: str) -> bool:
    """By the commonest script of the letters; not told where one of the two has no letter."""
    found, due = _script(answer), _script(reference)
    return None not in (found, due) and found != due


def _script(text: str) -> str | None:
    counts = Counter(_script_of(c) for c in text if c.isalpha())
    return counts.most_common(1)[0][0] if counts else None


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    first = unicodedata.name(letter, "UNKNOWN").split(" ")[0]
    return "CJK" if first in ("HIRAGANA", "KATAKANA") else first  # Japanese mixes them with Chinese characters


_ANY: dict[tuple[str, str], Faulty] = {("empty", "no text where the reference has some"): is_empty}
_FREE: dict[tuple[str, str], Faulty] = {
    ("repetition", "four words in a row three times or more, which the reference does not do"): repeats,
    ("much longer", "over twice the words of the reference, and at least 10 more"): is_longer,
    ("much shorter", "under half the words of the reference, and at least 10 fewer; not empty"): is_shorter,
    ("another script", "most letters are of another script than the reference's"): is_in_another_script,
}
