"""Labels in one spelling: `Billing`, `billing ` and `BILLING.` are one class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from luthier.errors import DataError
from luthier.prepare.cleaners import traits

MAX_LABELS, MAX_CHARACTERS = 2000, 200
"""More different answers, or longer ones, are no labels."""
AROUND = " \t\n.,;:!?\"'`“”‘’«»()[]"


def same(label: str) -> str:
    """Equal for the spellings of one label: up to case, white space, hyphens, and punctuation around it."""
    key = re.sub(r"[\s_]+|(?<=\w)-(?=\w)", " ", label).strip(AROUND).casefold()
    return key or label


def survey(
    texts: Iterable[str], names: Sequence[str] = (), mapping: Mapping[str, str] | None = None
) -> dict[str, object]:
    """The commonest spelling of each label, unless `names` says which are right.

    Raises DataError LU-D121 where there are too many different answers, or too long ones, to be labels.
    """
    if names:
        return {}
    counts: Counter[str] = Counter()
    for text in texts:
        counts[text] += 1
        if len(counts) > MAX_LABELS:
            raise _no_labels(f"over {MAX_LABELS:,} different answers")
        if len(text) > MAX_CHARACTERS:
            raise _no_labels(f"an answer of {len(text):,} characters")
    spelled: dict[str, list[str]] = defaultdict(list)
    for text in sorted(counts, key=lambda text: (-counts[text], len(text), text)):
        spelled[same(text)].append(text)
    return {"names": [spellings[0].strip() for spellings in spelled.values()]}


@traits(roles=("assistant",), survey=survey, count=lambda before, after: Counter({f"{before} -> {after}": 1}))
def labels(text: str, names: Sequence[str] = (), mapping: Mapping[str, str] | None = None) -> str:
    """An answer that is a label in the label's own spelling: that of `names`, or else the commonest in the data.

    Spellings differ in case, white space, hyphens and punctuation around the label; `mapping` says which others are the
    same ("n/a": "none"). What is none of them stays.
    """
    known = {same(name): name for name in reversed(names)}
    mapped = {same(label): name for label, name in (mapping or {}).items()}
    name = mapped.get(same(text), text)
    return known.get(same(name), name)


def _no_labels(found: str) -> DataError:
    advice = "name the labels: {use: labels, names: [...]}; or leave the cleaner out"
    return DataError.of("LU-D121", "data.clean: labels", f"{found}: these are no labels", advice)
