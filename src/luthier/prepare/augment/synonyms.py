"""Synonyms: words replaced by others of the same sense, in the same form, where they fit the sentence.

WordNet offers the words of the most usual senses; `english` keeps part of speech and form. Each offer is put into its
sentence, and the one after which the sentence means most nearly the same (cosine of its embeddings) is taken, if that
is near enough. A language model's likelihood of the sentence may have a say too: then the offers are ordered by the
sum of their ranks in both. English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from luthier.conversation import Conversation
from luthier.embed import available, embed
from luthier.errors import ModelError, extra
from luthier.prepare.augment.contract import Asked, Augment, Unmade, changeable, check_fraction, replaced
from luthier.prepare.augment.english import inflect, read, with_article
from luthier.prepare.augment.protected import free_words
from luthier.prepare.augment.random_edits import STOP_WORDS
from luthier.prepare.augment.wordnet import WordNet, open_wordnet
from luthier.swap import in_case_of

if TYPE_CHECKING:
    from luthier.decoder import Decoder
    from luthier.encode import Encoder

Likelihood = Callable[[Sequence[str]], Sequence[float]]
"""Texts -> log-likelihood of each, in nats: more is better."""
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*|\n")
AHEAD = 512
"""Rows whose offers are embedded together."""


class Offer(NamedTuple):
    """A word in the place of another."""

    start: int
    stop: int
    word: str
    before: str
    """The sentence as it was."""
    after: str


def synonyms(
    *,
    folder: Path,
    rate: float = 0.1,
    senses: int = 2,
    fit: float = 0.85,
    wordnet: str | None = None,
    language_model: str | None = None,
) -> Augment:
    """Args:
        folder: The recipe's.
        rate: Share of the words that are replaced; one at least.
        senses: How many of a word's senses may be meant, the most usual first.
        fit: The least cosine of a sentence's embeddings with and without the word.
        wordnet: The folder of WordNet's files; None: where Debian installs them.
        language_model: A base model, as in `model.base`, whose likelihood ranks the offers too. None: no model is run.

    Raises DataError LU-D140, LU-D146; ModelError LU-M002 without sentence embeddings, LU-M001 without that model.
    """
    for name, value in (("rate", rate), ("fit", fit)):
        check_fraction("synonyms", name, value)
    if not available():
        raise ModelError.of("LU-M002", "data.augment: synonyms", "ranks by sentence embeddings", extra("meaning"))
    likelihood = _likelihood_of(language_model, folder) if language_model else None
    return Synonyms(open_wordnet(wordnet, folder, "synonyms"), rate, senses, fit, likelihood)


class Synonyms:
    """The method; `likelihood` is any function that scores texts."""

    def __init__(
        self, wordnet: WordNet, rate: float, senses: int, fit: float, likelihood: Likelihood | None = None
    ) -> None:
        self._wordnet, self._rate, self._senses, self._fit = wordnet, rate, senses, fit
        self._likelihood = likelihood

    def __call__(self, conversation: Conversation, rng: Random) -> Iterator[Conversation | Unmade]:
        places = changeable(conversation)
        while True:
            texts = {i: self._replaced(conversation.messages[i].content, rng) for i in places}
            found = replaced(conversation, texts)
            yield Unmade("no synonym that fits") if isinstance(found, Unmade) else found

    def ahead(self, asked: Sequence[Asked], train: Sequence[Conversation]) -> None:
        """Embeds what will be compared: many sentences at once take a fraction of the time."""
        for at in range(0, len(asked), AHEAD):
            sentences: dict[str, None] = {}
            for one in asked[at : at + AHEAD]:
                for i in changeable(one.conversation):
                    text = one.conversation.messages[i].content
                    for offers in islice(self._offers(text, one.rng), 2 * one.n * _n(text, self._rate)):
                        sentences |= dict.fromkeys(s for offer in offers for s in (offer.before, offer.after))
            embed([*sentences])

    def _replaced(self, text: str, rng: Random) -> str:
        chosen: list[Offer] = []
        for offers in self._offers(text, rng):
            if best := self._best(offers):
                chosen.append(best)
            if len(chosen) == _n(text, self._rate):
                break
        for offer in sorted(chosen, key=lambda o: -o.start):
            text = text[: offer.start] + offer.word + text[offer.stop :]
        return text

    def _offers(self, text: str, rng: Random) -> Iterator[list[Offer]]:
        """The offers for each word that has some, in an order that is drawn."""
        words = free_words(text)
        order = list(range(len(words)))
        rng.shuffle(order)
        for i in order:
            word = words[i].group()
            if word.lower() in STOP_WORDS or not word.isascii() or not word.isalpha():
                continue
            before = [
                m.group().replace("’", "'").lower() for m in words[max(0, i - 3) : i] if _together(text, m, words[i])
            ]
            if found := self._fitting(word, before):
                yield [_offer(text, words[i], other) for other in found]

    def _fitting(self, word: str, before: Sequence[str]) -> list[str]:
        """Words of its senses, in its form and case."""
        reading = read(word.lower(), before, self._wordnet)
        if reading is None:
            return []
        lemma, pos, form = reading
        others = (inflect(s, pos, form, self._wordnet) for s in self._wordnet.synonyms(lemma, pos, self._senses))
        return [in_case_of(word, other) for other in others if other and other != word.lower()]

    def _best(self, offers: Sequence[Offer]) -> Offer | None:
        vectors = embed([offers[0].before, *(offer.after for offer in offers)])
        fits = [round(float(fit), 5) for fit in vectors[1:] @ vectors[0]]  # equal on machines that round otherwise
        good = [i for i, fit in enumerate(fits) if fit >= self._fit]
        if not good:
            return None
        rank = dict.fromkeys(good, 0)
        for scores in [fits, *([self._likelihood([o.after for o in offers])] if self._likelihood else [])]:
            for place, i in enumerate(sorted(good, key=lambda i: -scores[i])):
                rank[i] += place
        return offers[min(good, key=lambda i: (rank[i], i))]


def _n(text: str, rate: float) -> int:
    return max(1, int(rate * len(text.split())))


def _together(text: str, first: re.Match[str], second: re.Match[str]) -> bool:
    """Whether no punctuation stands between."""
    return re.fullmatch(r"[\w\s'’-]*", text[first.end() : second.start()]) is not None


def _offer(text: str, word: re.Match[str], other: str) -> Offer:
    start, said = with_article(text, word.start(), other)
    sentence = next(m for m in _SENTENCE.finditer(text) if m.end() > word.start())
    after = text[sentence.start() : start] + said + text[word.end() : sentence.end()]
    return Offer(start, word.end(), said, sentence.group(), after)


def _likelihood_of(name: str, folder: Path) -> Likelihood:
    """By a base model, which is loaded when the first text is scored."""
    from luthier.models import find_base, load_model, load_tokenizer

    base = find_base(name, folder)
    loaded: list[tuple[Decoder, Encoder]] = []

    def likelihood(texts: Sequence[str]) -> list[float]:
        from luthier.decoder import Decoder, score_all
        from luthier.encode import Encoder

        if not loaded:
            loaded.append((Decoder(load_model(base)), Encoder(load_tokenizer(base))))
        decoder, encoder = loaded[0]
        return [-nats for nats in score_all(decoder, [encoder.continuation("", t, t) for t in texts], 2048)]

    return likelihood
