"""What is noticed in the good rows: copies, contradictions, one-sided answers, and leaks across sides.

Warnings only: small talk may rightly repeat itself, and given sides are the person's own. The leak is also
stated as a fraction of the held-out rows, since it limits what their scores can prove.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.conversation import SIDES, Conversation
from luthier.errors import printable
from luthier.prepare.audit import Audit
from luthier.prepare.dedupe import exact_key
from luthier.prepare.rows import Item
from luthier.similar import SimilarTexts, normalised

ONE_ANSWER = 0.9


def notice(items: Sequence[Item], similarity: float, new_tokens: Sequence[str], audit: Audit) -> None:
    """Look at all sides and at what lies across them."""
    tokens(items, new_tokens, audit)
    conversations = [item.conversation for item in items]
    copies(conversations, audit)
    contradictions(conversations, audit)
    one_answer(conversations, audit)
    leaks(items, similarity, audit)


def tokens(items: Sequence[Item], new_tokens: Sequence[str], audit: Audit) -> None:
    """How many rows of each side hold each new token."""
    for token in new_tokens:
        holding = Counter(i.side for i in items if any(token in m.content for m in i.conversation.messages))
        counted = ", ".join(f"{holding[side]} {side}" for side in SIDES)
        audit.notes.append(f"rows that hold the new token {printable(token)}: {counted}")
        if not holding["train"]:
            found = f"no training row holds the new token {printable(token)}"
            audit.warn("LU-D107", "model.new_tokens", found, "nothing will be learned of it: check its spelling")


def copies(conversations: Sequence[Conversation], audit: Audit) -> None:
    first: dict[object, str] = {}
    for c in conversations:
        original = first.setdefault(exact_key(c), c.source)
        if original is not c.source:
            audit.warn("LU-D037", c.source, f"an exact copy of {original}", "data.clean: [{use: dedupe}] drops copies")


def contradictions(conversations: Sequence[Conversation], audit: Audit) -> None:
    """The first other answer to each prompt."""
    answers: dict[object, Conversation] = {}
    told: set[object] = set()
    for c in conversations:
        *asked, answered = exact_key(c)
        prompt = tuple(asked)
        if not prompt or prompt in told:
            continue
        original = answers.setdefault(prompt, c)
        if normalised(original.answer) != answered[1]:
            told.add(prompt)
            audit.warn(
                "LU-D038",
                c.source,
                f"another answer to the prompt of {original.source}",
                "put what decides between them into the prompt",
            )


def one_answer(conversations: Sequence[Conversation], audit: Audit) -> None:
    counts = Counter(normalised(c.answer) for c in conversations)
    _, n = counts.most_common(1)[0]
    if n > ONE_ANSWER * len(conversations) and len(conversations) > 1:
        audit.warn(
            "LU-D040", "", f"{n} of {len(conversations)} answers are the same", "always giving it would score as well"
        )


def leaks(items: Sequence[Item], similarity: float, audit: Audit) -> None:
    """Held-out prompts that the training side has too: one finding for each held-out row."""
    train = [item.conversation for item in items if item.side == "train"]
    for side in ("validation", "test"):
        held_out = [item.conversation for item in items if item.side == side]
        shared = _shared(held_out, train, similarity)
        for c, original, copied in shared:
            what = "prompt and answer are those" if copied else "prompt is nearly that"
            advice = "data.clean: [{use: dedupe}] drops the training copy" if copied else ""
            audit.warn("LU-D039", c.source, f"a {side} row whose {what} of {original.source} in train", advice)
        if shared:
            n, n_copies = len(held_out), sum(copied for _, _, copied in shared)
            n_alike = len(shared) - n_copies
            copies = f"{n_copies} of {n} {side} rows ({n_copies / n:.1%}) have an exact copy in train"
            audit.notes.append(f"leak: {copies}, {n_alike} more ({n_alike / n:.1%}) nearly the same prompt")


def _shared(
    held_out: list[Conversation], train: list[Conversation], similarity: float
) -> list[tuple[Conversation, Conversation, bool]]:
    """Of each held-out row that leaks: it, its training row, and whether the two are exact copies."""
    copies = {exact_key(c): c for c in reversed(train)}
    prompts = {normalised(c.asked_text): c for c in reversed(train)}
    near = _nearest(held_out, prompts, similarity)
    found = []
    for c in held_out:
        if copy := copies.get(exact_key(c)):
            found.append((c, copy, True))
        elif alike := prompts.get(normalised(c.asked_text)) or near.get(c.source):
            found.append((c, alike, False))
    return found


def _nearest(
    held_out: list[Conversation], prompts: dict[str, Conversation], similarity: float
) -> dict[str, Conversation]:
    """Source of a held-out row -> a training row whose prompt is similar."""
    if not 0 < similarity < 1 or not prompts:
        return {}
    n, originals = len(prompts), list(prompts.values())
    index = SimilarTexts([*prompts, *(c.asked_text for c in held_out)], similarity)
    for i in range(n):
        index.add(i)
    matches = ((c, next(index.matches(n + i), None)) for i, c in enumerate(held_out))
    return {c.source: originals[match] for c, match in matches if match is not None}
