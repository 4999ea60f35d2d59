"""What a practitioner would look at: simple conditions on held-out items, each in words and with its members.

Tags, lengths, first words, question words, digits, script, topics. A condition reads the item only, never an answer or
a score, so that looking for it costs no evidence. Question words are English; all else is of any language. Knows
nothing of metrics: `slices.py` finds out where a model fails.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import printable
from luthier.evaluate.metrics.text import words
from luthier.metric import Floats, Sample

Bools = NDArray[np.bool_]

MAX_VALUES = 30
"""A tag of more values names items rather than kinds of items."""
QUESTION_WORDS = ("how", "what", "when", "where", "which", "who", "why")
MAX_TOPICS = 12
SAMPLES_PER_TOPIC = 40
VOCABULARY = 1000
"""Words by which topics are told apart: the most frequent of those that are no more frequent than this."""
MAX_FREQUENCY = 0.5
"""Share of the texts."""
_TURN = re.compile(r"^(?:user|assistant|tool): ", re.MULTILINE)
"""How a turn of `Sample.prompt` starts."""


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    about: str
    """What it is on: two conditions on the same thing are not combined."""
    words: str
    members: Bools
    """(n,)"""


def find_conditions(
    samples: Sequence[Sample], *, at_least: int, seed: int, tag_text: Callable[[Any], str]
) -> list[Condition]:
    """All conditions that at least so many samples meet, and as many do not.

    Args:
        samples: In an order that does not depend on chance: topics are drawn along it.
        at_least: Samples on either side of a condition.
        seed: Of the topics' first centres.
        tag_text: How a tag's value is written; that of a tag which a sample lacks, too (None).
    """
    found = _all(samples, at_least, seed, tag_text)
    return [c for c in found if at_least <= c.members.sum() <= len(samples) - at_least]


def _all(samples: Sequence[Sample], at_least: int, seed: int, tag_text: Callable[[Any], str]) -> Iterator[Condition]:
    for tag in sorted({tag for s in samples for tag in s.tags}):
        values = [tag_text(s.tags.get(tag)) for s in samples]
        if len(set(values)) <= MAX_VALUES:
            yield from _each(f"tag {tag}", values, lambda v, tag=tag: f"{tag}={printable(v, 60)}")  # type: ignore[misc]
    references = [s.reference for s in samples]
    if len(set(references)) <= MAX_VALUES:  # labels
        yield from _each("reference", references, lambda v: f"reference '{printable(v, 60)}'")
    asked = [_TURN.split(s.prompt)[-1] for s in samples]  # the last turn, the one to be answered
    read = [words(text) for text in asked]
    yield from _lengths("prompt", [len(words(_TURN.sub("", s.prompt))) for s in samples])
    yield from _lengths("reference", [len(words(text)) for text in references])
    common = {word for word, n in Counter(text[0] for text in read if text).items() if n >= at_least}
    first = ["" if not text or text[0] not in common else text[0] for text in read]
    yield from _each("first word", first, lambda v: f"prompt that starts with '{printable(v, 40)}'")
    for word in QUESTION_WORDS:
        yield Condition("question word", f"prompt with '{word}'", np.array([word in text for text in read]))
    for what, texts in (("prompt", asked), ("reference", references)):
        digits = np.array([any(map(str.isdigit, text)) for text in texts])
        yield Condition(f"digits, {what}", f"{what} with digits", digits)
        yield Condition(f"digits, {what}", f"{what} without digits", ~digits)
    yield from _each("script", [_script(text) for text in asked], lambda v: f"prompt in {v} script")
    yield from _topics(read, seed)


def _each(about: str, values: Sequence[str], wording: Callable[[str], str]) -> Iterator[Condition]:
    """A condition for each value; "" is none."""
    array = np.array(values)
    for value in sorted(set(values) - {""}):
        yield Condition(about, wording(value), array == value)


def _lengths(what: str, lengths: Sequence[int]) -> Iterator[Condition]:
    """A condition for each quarter of the lengths, in words."""
    array = np.array(lengths)
    cuts = np.unique(np.quantile(array, (0.25, 0.5, 0.75), method="lower")).tolist()  # where many are equal, fewer
    about = f"length, {what}"
    for low, high in zip([-1, *cuts], [*cuts, None], strict=True):
        if low < 0:
            yield Condition(about, f"{what} of {high} words or fewer", array <= high)
        elif high is None:
            yield Condition(about, f"{what} of {low + 1} words or more", array > low)
        else:
            span = f"{low + 1} to {high}" if high > low + 1 else f"{high}"
            yield Condition(about, f"{what} of {span} words", (array > low) & (array <= high))


def _script(text: str) -> str:
    """The script of most of the letters, as Unicode names it: LATIN, CYRILLIC, CJK; "" without letters."""
    found: Counter[str] = Counter()
    for char, n in Counter(text).items():
        if char.isalpha():
            found[unicodedata.name(char, "unnamed").split()[0]] += n
    return max(found, key=lambda name: (found[name], name)) if found else ""


# -- topics -------------------------------------------------------------------------------------------------------


def _topics(texts: Sequence[Sequence[str]], seed: int) -> Iterator[Condition]:
    """Clusters of the texts, each named by the words that tell it best from the others."""
    vocabulary = _vocabulary(texts)
    k = min(MAX_TOPICS, len(texts) // SAMPLES_PER_TOPIC)
    if k < 2 or len(vocabulary) < k:
        return
    vectors = _tf_idf(texts, vocabulary)  # (n, V)
    topics, centres = _spherical_k_means(vectors, k, seed)
    telling = centres - vectors.mean(axis=0)  # (k, V)
    for topic in range(k):
        named = ", ".join(vocabulary[i] for i in np.argsort(-telling[topic], kind="stable")[:3])
        yield Condition("topic", f"prompt about {named}", (topics == topic) & vectors.any(axis=1))


def _vocabulary(texts: Sequence[Sequence[str]]) -> list[str]:
    frequency = Counter(word for text in texts for word in set(text) if _is_telling(word))
    usable = [(-n, word) for word, n in frequency.items() if 3 <= n <= MAX_FREQUENCY * len(texts)]
    return [word for _, word in sorted(usable)[:VOCABULARY]]


def _is_telling(word: str) -> bool:
    """Numbers name items; of up to three letters are the articles and prepositions of most European languages."""
    return word.isalpha() and (len(word) > 3 or not word.isascii())


def _tf_idf(texts: Sequence[Iterable[str]], vocabulary: Sequence[str]) -> Floats:
    """(n, V) of length 1 each: log(1 + a word's count) times the log of how few texts have it (Salton 1988)."""
    place = {word: i for i, word in enumerate(vocabulary)}
    counts = np.zeros((len(texts), len(vocabulary)))
    for row, text in enumerate(texts):
        for word, n in Counter(text).items():
            if word in place:
                counts[row, place[word]] = n
    return _unit(np.log1p(counts) * np.log(len(texts) / (counts > 0).sum(axis=0)))


def _spherical_k_means(vectors: Floats, k: int, seed: int) -> tuple[NDArray[np.intp], Floats]:
    """Clusters by cosine (Dhillon & Modha 2001) from k-means++ centres (Arthur & Vassilvitskii 2007).

    Returns the cluster of each vector `(n,)` and the centres `(k, V)`.
    """
    rng = np.random.default_rng(seed)
    distance = np.ones(len(vectors))
    centres = np.empty((0, vectors.shape[1]))
    for _ in range(k):
        at = rng.choice(len(vectors), p=distance / distance.sum())
        centres = np.vstack([centres, vectors[at]])
        distance = np.maximum(1 - (vectors @ centres.T).max(axis=1), 1e-9)
    topics = np.full(len(vectors), -1)
    for _ in range(30):
        nearest = (vectors @ centres.T).argmax(axis=1)  # (n,)
        if (nearest == topics).all():
            break
        topics = nearest
        centres = _unit((topics == np.arange(k)[:, None]).astype(float) @ vectors)
    return topics, centres


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0))
