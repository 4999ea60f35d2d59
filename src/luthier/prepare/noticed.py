"""What is noticed in the good rows: copies, contradictions, one-sided answers, and leaks across sides.

Warnings only: small talk may rightly repeat itself, and given sides are the person's own. The leak is also
stated as a fraction of the held-out rows, since it limits what their scores can prove.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.conversation import SIDES, Side
from luthier.documents import n_windows
from luthier.errors import printable
from luthier.prepare.audit import Audit
from luthier.prepare.engine import HERE, Engine
from luthier.prepare.near import asked_text, group_similar
from luthier.prepare.table import Numbers, Rows, firsts, runs
from luthier.similar import SimilarTexts

ONE_ANSWER = 0.9


def notice(
    rows: Rows, numbers: Numbers, similarity: float, new_tokens: Sequence[str], audit: Audit, engine: Engine = HERE
) -> None:
    """Look at all sides and at what lies across them: at nearly equal prompts too, if `similarity` is above 0."""
    tokens(rows, numbers, new_tokens, audit)
    copies(rows, numbers, audit)
    contradictions(rows, numbers, audit)
    one_answer(rows, numbers, audit)
    leaks(rows, numbers, similarity, audit, engine)


def tokens(rows: Rows, numbers: Numbers, new_tokens: Sequence[str], audit: Audit) -> None:
    """How many rows of each side hold each new token."""
    holding: Counter[tuple[str, Side]] = Counter()
    for side in SIDES if new_tokens else ():
        for conversation in rows.each(rows.on(side, numbers)):
            texts = [m.content for m in conversation.messages]
            holding.update((token, side) for token in new_tokens if any(token in text for text in texts))
    for token in new_tokens:
        counted = ", ".join(f"{holding[token, side]} {side}" for side in SIDES)
        audit.notes.append(f"rows that hold the new token {printable(token)}: {counted}")
        if not holding[token, "train"]:
            found = f"no training row holds the new token {printable(token)}"
            audit.warn("LU-D107", "model.new_tokens", found, "nothing will be learned of it: check its spelling")


def long_documents(rows: Rows, numbers: Numbers, max_tokens: int | None, audit: Audit) -> None:
    """Into how many windows they are cut; any other row that is too long is rejected."""
    lengths = rows.n_tokens[numbers].astype(np.int64)
    if max_tokens and len(longer := lengths[lengths > max_tokens]):
        n, all_windows = len(longer), int(n_windows(longer, max_tokens).sum())
        found = f"{n:,} documents of more than {max_tokens:,} tokens ({longer.sum():,} in all)"
        audit.notes.append(f"{found} are {all_windows:,} windows, each of which begins with the last token before it")


class Like(NamedTuple):
    """A row, and an earlier one that it is like."""

    row: int
    other: int


def copies(rows: Rows, numbers: Numbers, audit: Audit) -> None:
    one, other = rows.exact
    again = ~firsts(one[numbers], other[numbers])
    original = {int(one[numbers[run[0]]]): int(numbers[run[0]]) for run in runs(one[numbers])}
    found = [Like(int(i), original[int(one[i])]) for i in numbers[again]]

    def tell(copy: Like) -> tuple[str, str, str]:
        advice = "data.clean: [{use: dedupe}] drops copies"
        return rows[copy.row].source, f"an exact copy of {rows[copy.other].source}", advice

    audit.warn_each("LU-D037", found, tell)


def contradictions(rows: Rows, numbers: Numbers, audit: Audit) -> None:
    """The first other answer to each prompt."""
    asking = numbers[rows.has_prompt[numbers]]
    found = []
    for run in runs(rows.asked[asking]):
        other = run[rows.answer[asking[run]] != rows.answer[asking[run[0]]]]
        if len(other):
            found.append(Like(int(asking[other[0]]), int(asking[run[0]])))

    def tell(two: Like) -> tuple[str, str, str]:
        advice = "put what decides between them into the prompt"
        return rows[two.row].source, f"another answer to the prompt of {rows[two.other].source}", advice

    audit.warn_each("LU-D038", sorted(found), tell)


def one_answer(rows: Rows, numbers: Numbers, audit: Audit) -> None:
    _, counts = np.unique(rows.answer[numbers], return_counts=True)
    n = int(counts.max())
    if n > ONE_ANSWER * len(numbers) and len(numbers) > 1:
        advice = "always giving it would score as well"
        audit.warn("LU-D040", "", f"{n} of {len(numbers)} answers are the same", advice)


def leaks(rows: Rows, numbers: Numbers, similarity: float, audit: Audit, engine: Engine) -> None:
    """Held-out prompts that the training side has too: one finding for each held-out row."""
    train = rows.on("train", numbers)
    copied, left = _equal(rows.exact[0], numbers[rows.side[numbers] != SIDES.index("train")], train)
    alike, left = _equal(rows.asked_text, left, train)
    alike += _near(rows, left, train, similarity, engine)
    for side in SIDES[1:]:
        n, of = len(rows.on(side, numbers)), SIDES.index(side)
        found = sorted((like, is_copy) for is_copy, likes in ((True, copied), (False, alike)) for like in likes)
        found = [(like, is_copy) for like, is_copy in found if rows.side[like.row] == of]

        def tell(shared: tuple[Like, bool], side: Side = side) -> tuple[str, str, str]:
            (row, other), is_copy = shared
            what = "prompt and answer are those" if is_copy else "prompt is nearly that"
            advice = "data.clean: [{use: dedupe}] drops the training copy" if is_copy else ""
            return rows[row].source, f"a {side} row whose {what} of {rows[other].source} in train", advice

        audit.warn_each("LU-D039", found, tell)
        if found:
            n_copies = sum(is_copy for _, is_copy in found)
            n_alike = len(found) - n_copies
            counted = f"{n_copies} of {n} {side} rows ({n_copies / n:.1%}) have an exact copy in train"
            audit.notes.append(f"leak: {counted}, {n_alike} more ({n_alike / n:.1%}) nearly the same prompt")


def _equal(key: NDArray[np.uint64], held_out: Numbers, train: Numbers) -> tuple[list[Like], Numbers]:
    """The held-out rows that have a training row's key, with the first that has it; and the other rows."""
    order = train[np.argsort(key[train], kind="stable")]
    if not len(order):
        return [], held_out
    at = np.minimum(np.searchsorted(key[order], key[held_out]), len(order) - 1)
    equal = key[order][at] == key[held_out]
    return [Like(int(i), int(order[n])) for i, n in zip(held_out[equal], at[equal], strict=True)], held_out[~equal]


def _near(rows: Rows, held_out: Numbers, train: Numbers, similarity: float, engine: Engine) -> list[Like]:
    """The held-out rows whose prompt is similar to one in train, with a row that has such a prompt."""
    if not 0 < similarity < 1 or not len(held_out):
        return []
    distinct = train[firsts(rows.asked_text[train])]
    both = np.concatenate([distinct, held_out])
    group = group_similar(rows, both, asked_text, similarity, engine)
    across = np.intersect1d(group[: len(distinct)], group[len(distinct) :])
    some = np.flatnonzero(np.isin(group, across))
    n = int(np.searchsorted(some, len(distinct)))  # the training rows among them
    index = SimilarTexts(similarity, (c.asked_text for c in rows.each(both[some])))
    for i in range(n):
        index.add(i)
    matches = ((int(both[some[i]]), next(index.matches(i), None)) for i in range(n, len(some)))
    return [Like(row, int(both[some[match]])) for row, match in matches if match is not None]
