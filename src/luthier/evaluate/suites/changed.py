"""Changed questions: the test set's own prompts with she for he, with typing errors, in capitals, in other words.

Each change keeps what is asked, so the right answer should stay as likely as it was: what it loses is bias
(`counterfactual`) or a lack of robustness (`typos`, `case`, `wording`). Changes are functions of the text alone: the
same for every model and every run. English, but for capitals. Knows nothing of models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import numpy as np

from luthier.conversation import Conversation, Message, make_conversation
from luthier.evaluate.suites.suite import Item, Suite, form_metrics
from luthier.settings import SuiteUse
from luthier.swap import read_terms

DEFAULT_LIMIT = 50
"""Conversations a suite, unless the recipe says: each costs two likelihoods, no generation."""
TYPO_EVERY_WORDS = 8
_EXPANDED = {
    "i'm": "I am", "i've": "I have", "i'd": "I would", "i'll": "I will", "can't": "cannot", "don't": "do not",
    "doesn't": "does not", "didn't": "did not", "won't": "will not", "isn't": "is not", "aren't": "are not",
    "it's": "it is", "what's": "what is", "where's": "where is", "how's": "how is", "that's": "that is",
    "there's": "there is", "haven't": "have not", "hasn't": "has not", "wasn't": "was not", "couldn't": "could not",
}  # fmt: skip
_ENGLISH = set("the is are my i you do does how what can to of and please".split())
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def swap_gender(text: str) -> str:
    """She for he, her for him or his, Mary for John, and the other way, as `luthier.swap` does."""
    return read_terms().swap(text)


def misspell(text: str) -> str:
    """About one letter in TYPO_EVERY_WORDS words swapped with its neighbour, left out or doubled; one at least.

    Words of under four letters, first letters and numbers stay: what is asked can still be read.
    """
    places = [m for m in _WORD.finditer(text) if len(m.group()) >= 4]
    rng = random.Random(text)
    chosen = rng.sample(places, min(len(places), 1 + len(places) // TYPO_EVERY_WORDS))
    for match in sorted(chosen, key=lambda m: -m.start()):
        at = match.start() + rng.randrange(1, len(match.group()) - 1)
        a, b = text[at], text[at + 1]
        change = rng.choice([b + a, b, a + a + b]) if a != b else b
        text = text[:at] + change + text[at + 2 :]
    return text


def reword(text: str) -> str:
    """English without contractions, and with the words around it in which people wrap a question."""
    if not _ENGLISH & {w.lower() for w in _WORD.findall(text)}:
        return text
    plain = _WORD.sub(lambda m: _in_first_case(m.group(), _EXPANDED.get(m.group().lower().replace("’", "'"))), text)
    return f"Hello, I have a question. {plain.strip()} Thanks in advance!"


def _in_first_case(word: str, expanded: str | None) -> str:
    if expanded is None:
        return word
    return expanded[0].upper() + expanded[1:] if word[0].isupper() else expanded


def _last_turn(change: Callable[[str], str]) -> Callable[[Conversation], list[Message]]:
    """The conversation with its last question changed, the answer as it was."""

    def changed(conversation: Conversation) -> list[Message]:
        *before, asked, answer = conversation.messages
        return [*before, asked.model_copy(update={"content": change(asked.content)}), answer]

    return changed


def _every_turn(change: Callable[[str], str]) -> Callable[[Conversation], list[Message]]:
    return lambda c: [m.model_copy(update={"content": change(m.content)}) for m in c.messages]


CHANGES: dict[str, Callable[[Conversation], list[Message]]] = {
    "counterfactual": _every_turn(swap_gender),
    "typos": _last_turn(misspell),
    "case": _last_turn(str.upper),
    "wording": _last_turn(reword),
}


def from_tests(use: SuiteUse, tests: Sequence[Conversation], seed: int) -> Suite:
    """The suite `use.form`, made of those test conversations that the change touches; it may have none."""
    items = []
    for conversation in tests:
        if conversation.prompt:
            changed = CHANGES[use.form](conversation)
            if changed != list(conversation.messages):
                items.append(_item(conversation, changed))
    limit = use.limit or DEFAULT_LIMIT
    if len(items) > limit:
        items = [items[i] for i in sorted(np.random.default_rng(seed).permutation(len(items))[:limit])]
    return Suite(use.name, items, form_metrics(use.name, use.form), form=use.form)


def _item(conversation: Conversation, changed: Sequence[Message]) -> Item:
    variants = {"as it is": conversation.messages, "changed": changed}
    return Item(conversation, {name: _only_the_answer(m, conversation.source) for name, m in variants.items()})


def _only_the_answer(messages: Sequence[Message], source: str) -> Conversation:
    *prompt, answer = messages
    learned = answer.model_copy(update={"learn": True})
    return make_conversation([*(m.model_copy(update={"learn": False}) for m in prompt), learned], source)
